"""Image files that Pillow refuses or misreads although their pixels are sound."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from typing import Any

import numpy as np
from PIL import Image
from PIL.TiffImagePlugin import TiffImageFile

PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
MAX_PROFILE = 16 * 2**20
"""Bytes of the largest color profile that is decompressed."""

MAX_TEXT = 2**20
"""Bytes of the longest text that is decompressed."""


def clean_png(data: bytes, key: str) -> tuple[bytes, dict[str, Any]]:
    """A PNG file with nothing but its pixels, transparency, simple color chunks and EXIF.

    Pillow refuses a whole file for one chunk that is damaged or larger than a megabyte, such as the workflows
    of ComfyUI. What is read here instead is returned beside it: the color profile, cICP's codes, the number
    of frames of an animation, and the text ``key``. Raises ValueError if a chunk of the pixels is damaged.
    """
    kept: list[bytes] = [PNG_SIGNATURE]
    info: dict[str, Any] = {}
    for kind, content, whole in _chunks(data):
        sound = zlib.crc32(whole[4:-4]) == int.from_bytes(whole[-4:])
        if not kind[0] & 0x20 or kind == b"tRNS":  # what every reader needs for the pixels
            if not sound and len(whole) == len(content) + 12:
                raise ValueError(f"wrong checksum of {kind.decode('latin-1')}")
            kept.append(whole)
        elif not sound:
            continue
        elif kind in (b"gAMA", b"cHRM", b"sRGB", b"eXIf"):
            kept.append(whole)
        elif kind == b"iCCP":
            info["icc_profile"] = _inflated(content.partition(b"\0")[2][1:], MAX_PROFILE) or b"broken"
        elif kind == b"cICP" and len(content) == 4:
            info["cicp"] = tuple(content)
        elif kind == b"acTL" and len(content) == 8:
            info["frames"] = int.from_bytes(content[:4])
        elif kind in (b"tEXt", b"zTXt", b"iTXt") and content.startswith(key.encode() + b"\0"):
            info[key] = _text(kind, content[len(key) + 1 :])
    return b"".join(kept), info


def _text(kind: bytes, content: bytes) -> str:
    """The text of a chunk, from behind its key; empty if it is damaged or too long."""
    if kind == b"iTXt":
        compressed, content = content[:1] == b"\1", content[2:].split(b"\0", 2)[-1]
        text = _inflated(content, MAX_TEXT) if compressed else content
        return text.decode(errors="replace")
    return (_inflated(content[1:], MAX_TEXT) if kind == b"zTXt" else content).decode("latin-1")


def _inflated(compressed: bytes, limit: int) -> bytes:
    """Decompressed bytes; none if they are damaged or more than ``limit``."""
    decompressor = zlib.decompressobj()
    try:
        data = decompressor.decompress(compressed, limit)
    except zlib.error:
        return b""
    return b"" if decompressor.unconsumed_tail else data


def _chunks(data: bytes) -> Iterator[tuple[bytes, bytes, bytes]]:
    """The type, the content and all bytes of each chunk; the last one may be cut off."""
    start = len(PNG_SIGNATURE)
    while start + 8 <= len(data):
        length, kind = struct.unpack_from(">I4s", data, start)
        yield kind, data[start + 8 : start + 8 + length], data[start : start + 12 + length]
        start += 12 + length


def tiff_pixels(file: Image.Image, data: bytes) -> Image.Image | None:
    """The pixels of a TIFF file that Pillow misreads; None for every other file. Raises ValueError."""
    if not isinstance(file, TiffImageFile):
        return None
    return _gray_tiff(file) if file.mode.startswith("I") else _planar_tiff(file, data)


def _gray_tiff(file: TiffImageFile) -> Image.Image | None:
    """Gray of 12 bits, which Pillow reads as dark 16 bits, unsigned 32 bits, and gray whose zero is white."""
    tags = file.tag_v2
    (bits, *_), (kind, *_), zero_is_white = tags.get(258, (1,)), tags.get(339, (1,)), tags.get(262) == 0
    if (bits == 16 and not zero_is_white) or kind != 1:
        return None
    values = np.array(file)
    if bits == 32:
        return Image.fromarray(values.view(np.uint32).astype(np.float32))
    gray = values.astype(np.float32) * (65535 / (2**bits - 1))
    return Image.fromarray((65535 - gray if zero_is_white else gray).round().astype(np.uint16))


def _planar_tiff(file: TiffImageFile, data: bytes) -> Image.Image | None:
    """The pixels of an uncompressed TIFF file with 16 bits and one plane per channel, as 8-bit RGB or RGBA.

    Pillow reads such a file as stripes.
    """
    tags = file.tag_v2
    bits, channels = tags.get(258, (1,)), tags.get(277, 1)
    if tags.get(284) != 2 or tags.get(259, 1) != 1 or max(bits) <= 8 or file.mode not in ("RGB", "RGBA"):
        return None
    if set(bits) != {16}:
        raise ValueError("channels of different depth in separate planes")
    width, height = file.size
    tiled = 324 in tags
    offsets, counts = (tags[324], tags[325]) if tiled else (tags[273], tags[279])
    block_width = tags[322] if tiled else width
    block_height = tags[323] if tiled else min(tags.get(278, height), height)
    across, down = -(-width // block_width), -(-height // block_height)
    planes = np.zeros((channels, down * block_height, across * block_width), np.uint8)
    order = ">u2" if data.startswith(b"MM") else "<u2"
    blocks = ((c, y, x) for c in range(channels) for y in range(down) for x in range(across))
    for (c, y, x), offset, count in zip(blocks, offsets, counts, strict=True):
        block = np.frombuffer(data, order, count // 2, offset).reshape(-1, block_width)
        top, left = y * block_height, x * block_width
        planes[c, top : top + len(block), left : left + block_width] = (block / 257.0).round()
    pixels = np.moveaxis(planes[: len(file.mode), :height, :width], 0, 2)
    image = Image.fromarray(np.ascontiguousarray(pixels), file.mode)
    image.info = dict(file.info)
    return image
