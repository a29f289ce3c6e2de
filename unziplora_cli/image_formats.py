"""Which image formats are read, and how to convert the others."""

from __future__ import annotations

import tomllib
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import NamedTuple

from unziplora_cli.errors import Remedy, UsageError
from unziplora_cli.resources import template

FORMATS = (
    "PNG", "JPEG", "MPO", "WEBP", "HEIF", "AVIF", "TIFF", "GIF", "BMP", "PSD", "JPEG2000", "PPM", "QOI", "JXL"
)  # fmt: skip
"""Pillow's names of the formats that are read, and of no others: some plugins start other programs."""

READABLE = "PNG, JPEG, WebP, HEIC, AVIF, TIFF, GIF, BMP or PSD"


class Kind(NamedTuple):
    """A kind of file that is not read: endings without dots, bytes near its beginning, how to convert it."""

    name: str
    endings: tuple[str, ...]
    marks: tuple[bytes, ...]
    remedy: Remedy


@cache
def kinds() -> tuple[Kind, ...]:
    """The kinds in ``templates/image_kinds.toml``; the first one are cameras' raw files."""
    rows = tomllib.loads(template("image_kinds.toml").read_text(encoding="utf-8"))["kind"]
    return tuple(
        Kind(
            row.pop("name"),
            tuple(row.pop("endings", "").split()),
            tuple(mark.encode("latin-1") for mark in row.pop("marks", ())),
            Remedy(**row),
        )
        for row in rows
    )


@cache
def formats() -> list[str]:
    """Pillow's names of the formats that can be read here, with the plugins for HEIC and JPEG XL."""
    from PIL import Image

    Image.init()
    with suppress(ImportError):
        from pillow_heif import register_heif_opener

        register_heif_opener(thumbnails=False)
    with suppress(ImportError):
        import pillow_jxl  # noqa: F401  (registers itself)
    return [name for name in FORMATS if name in Image.OPEN]


def has_image_ending(path: Path) -> bool:
    """Whether a file name ends like an image that can be read, and is not hidden (as ``._fox.png``)."""
    from PIL import Image

    readable = formats()
    ending = path.suffix.lower()
    return Image.registered_extensions().get(ending) in readable and not path.name.startswith(".")


def image_files(folder: Path) -> list[Path]:
    """The images in a folder, by name, without hidden files."""
    return [file for file in sorted(folder.iterdir()) if has_image_ending(file) and file.is_file()]


def is_raw(path: Path) -> bool:
    """Whether a file is a camera's raw file, whose TIFF reader would only see its thumbnail."""
    return path.suffix[1:].lower() in kinds()[0].endings


def unreadable(path: Path, start: bytes) -> UsageError:
    """The error for a file that is in no readable format, from its first bytes and its name."""
    if _is_readable_format(start):
        return UsageError(
            f"{path} is damaged, or of a kind that cannot be read.",
            Remedy("Export it as PNG with 8 or 16 bits per channel."),
        )
    ending = path.suffix[1:].lower()
    near = start[:512].lower()
    matches = [kind for kind in kinds() if any(_marks(near, mark.lower()) for mark in kind.marks)]
    matches += [kind for kind in kinds() if ending in kind.endings]
    if not matches or (not start and not ending):
        return UsageError(f"{path} is not an image that can be read.", Remedy(f"Use {READABLE}."))
    return UsageError(f"{path} is {matches[0].name}, which cannot be read.", matches[0].remedy)


def _marks(start: bytes, mark: bytes) -> bool:
    """Whether a mark is where it belongs: at the beginning, or within a header that varies."""
    varies = mark.startswith((b"<svg", b"ftyp", b"application/", b"image/", b"<!doctype", b"<html"))
    return mark in start if varies else start.startswith(mark)


def _is_readable_format(start: bytes) -> bool:
    signatures = (b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"GIF8", b"II*\0", b"MM\0*", b"8BPS\0\x01", b"qoif")
    brands = (b"ftypheic", b"ftypheix", b"ftypmif1", b"ftypavif", b"ftypavis", b"jP  \r\n\x87\n")
    return start.startswith(signatures) or start[8:12] == b"WEBP" or start[4:12] in brands
