"""Color management: convert an image to sRGB from the color space that its file declares.

Sources in the order in which they count: an ICC profile; coding-independent code points (ITU-T H.273) in
PNG's cICP and HEIF's nclx; PNG's gAMA and cHRM; and the Adobe RGB mark of cameras in EXIF (DCF 2.0).
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from io import BytesIO
from typing import Any

import numpy as np
from PIL import Image, ImageCms

Chromaticities = Sequence[float]
"""x and y of white, red, green and blue (CIE 1931)."""

_D65 = (0.3127, 0.3290)
SRGB: Chromaticities = (*_D65, 0.64, 0.33, 0.30, 0.60, 0.15, 0.06)
ADOBE_RGB: Chromaticities = (*_D65, 0.64, 0.33, 0.21, 0.71, 0.15, 0.06)
ADOBE_GAMMA = 563 / 256
H273_PRIMARIES: dict[int, Chromaticities] = {
    9: (*_D65, 0.708, 0.292, 0.170, 0.797, 0.131, 0.046),  # BT.2020
    11: (0.314, 0.351, 0.680, 0.320, 0.265, 0.690, 0.150, 0.060),  # DCI P3
    12: (*_D65, 0.680, 0.320, 0.265, 0.690, 0.150, 0.060),  # Display P3
}
H273_GAMMA = {4: 2.2, 5: 2.8, 8: 1.0}
"""Transfer functions that are a plain power; all others of standard dynamic range are read as sRGB's."""
H273_HDR = {16, 18}
"""Transfer functions of high dynamic range: PQ and HLG."""

_MODES = {"RGB": "RGB", "GRAY": "L", "CMYK": "CMYK"}
"""The Pillow mode that a profile of each color space describes."""


def to_srgb(image: Image.Image, profile: bytes | None) -> tuple[Image.Image, bool]:
    """Convert an 8-bit image without alpha to RGB, and say whether its ICC profile was used.

    Colors outside sRGB are clipped (relative colorimetric, with black point compensation). A profile that is
    broken or describes another kind of image is ignored.
    """
    if image.mode == "LAB":  # needs no profile
        return _transformed(image, ImageCms.createProfile("LAB")), True
    if profile is None:
        return image.convert("RGB"), True
    try:
        source = ImageCms.ImageCmsProfile(BytesIO(profile))
        space = source.profile.xcolor_space.strip()
        if space == "RGB" and image.mode == "L":  # gray values stand for equal red, green and blue
            image = image.convert("RGB")
        if image.mode == _MODES.get(space):
            return _transformed(image, source), True
    except (ImageCms.PyCMSError, OSError, ValueError, TypeError):
        pass
    return image.convert("RGB"), False


def _transformed(image: Image.Image, source: Any) -> Image.Image:
    converted = ImageCms.profileToProfile(
        image,
        source,
        ImageCms.createProfile("sRGB"),
        renderingIntent=ImageCms.Intent.RELATIVE_COLORIMETRIC,
        outputMode="RGB",
        flags=ImageCms.Flags.BLACKPOINTCOMPENSATION,
    )
    assert converted is not None  # only in-place conversions return None
    return converted


def declared_profile(image: Image.Image) -> bytes | None:
    """The ICC profile of an opened file, or one made from its other color marks; None for sRGB."""
    info = image.info
    if isinstance(profile := info.get("icc_profile"), bytes) and profile:
        return profile
    if isinstance(codes := info.get("nclx_profile"), dict):
        info = {**info, "cicp": (codes.get("color_primaries"), codes.get("transfer_characteristics"))}
    match info.get("cicp"):
        case (int(primaries), int(transfer), *_):
            if primaries not in H273_PRIMARIES and transfer not in H273_GAMMA:
                return None
            return matrix_profile(H273_PRIMARIES.get(primaries, SRGB), H273_GAMMA.get(transfer))
    if "srgb" not in info and ("gamma" in info or "chromaticity" in info):
        return _png_profile(info.get("gamma"), info.get("chromaticity"))
    if _is_adobe_rgb(image):
        return matrix_profile(ADOBE_RGB, ADOBE_GAMMA)
    return None


def is_hdr(image: Image.Image) -> bool:
    """Whether a file declares a transfer function of high dynamic range."""
    codes = image.info.get("nclx_profile")
    transfer = codes.get("transfer_characteristics") if isinstance(codes, dict) else None
    return transfer in H273_HDR or image.info.get("cicp", (0, 0))[1] in H273_HDR


def _png_profile(gamma: object, chromaticities: object) -> bytes | None:
    """The profile of PNG's gAMA and cHRM; None where they say sRGB, or nothing that can be true."""
    points: Chromaticities = SRGB
    if isinstance(chromaticities, tuple) and len(chromaticities) == 8:
        points = chromaticities
    encoding = gamma if isinstance(gamma, float) and 0.1 <= gamma <= 2.0 else 1 / 2.2
    is_srgb = abs(encoding - 1 / 2.2) < 0.01
    if is_srgb and np.allclose(points, SRGB, atol=0.002):
        return None
    try:
        return matrix_profile(points, None if is_srgb else 1 / encoding)
    except (ValueError, ZeroDivisionError, struct.error, OverflowError, np.linalg.LinAlgError):
        return None


def _is_adobe_rgb(image: Image.Image) -> bool:
    try:
        exif = image.getexif()
        space = exif.get_ifd(0x8769).get(0xA001)
        return space == 2 or (space == 0xFFFF and exif.get_ifd(0xA005).get(1) == "R03")
    except Exception:  # metadata never refuses an image
        return False


def matrix_profile(chromaticities: Chromaticities, gamma: float | None) -> bytes:
    """An ICC profile (version 4.3) of an RGB color space; ``gamma`` None is sRGB's curve.

    Raises ValueError, ZeroDivisionError or LinAlgError for impossible chromaticities.
    """
    white, *primaries = (
        np.array([x / y, 1.0, (1.0 - x - y) / y])
        for x, y in zip(chromaticities[::2], chromaticities[1::2], strict=True)
    )
    columns = np.stack(primaries, axis=1)
    columns = columns * np.linalg.solve(columns, white)  # RGB -> XYZ under the color space's own white
    bradford = np.array([[0.8951, 0.2664, -0.1614], [-0.7502, 1.7135, 0.0367], [0.0389, -0.0685, 1.0296]])
    d50 = np.array([0.9642, 1.0, 0.8249])
    scale = np.diag((bradford @ d50) / (bradford @ white))
    columns = np.linalg.inv(bradford) @ scale @ bradford @ columns

    curve = _fixed(b"para", "HH", 0, 0, values=(gamma,)) if gamma else _SRGB_CURVE
    tags = {b"wtpt": _fixed(b"XYZ ", values=d50)}
    for name, column in zip((b"r", b"g", b"b"), columns.T, strict=True):
        tags |= {name + b"XYZ": _fixed(b"XYZ ", values=column), name + b"TRC": curve}
    offset = 128 + 4 + 12 * len(tags)
    table, body = struct.pack(">I", len(tags)), b""
    for name, tag in tags.items():
        table += struct.pack(">4sII", name, offset + len(body), len(tag))
        body += tag
    header = struct.pack(
        ">I4xI4s4s4s12x4s28x3i48x",
        offset + len(body),
        0x04300000,
        b"mntr",
        b"RGB ",
        b"XYZ ",
        b"acsp",
        *_s15(d50),
    )
    return header + table + body


def _s15(values: Any) -> list[int]:
    """Numbers as signed fixed-point integers with 16 fractional bits."""
    return [round(float(value) * 65536) for value in values]


def _fixed(kind: bytes, extra: str = "", *numbers: int, values: Any) -> bytes:
    """A tag's data: its type, integers of the format ``extra``, then fixed-point numbers."""
    return struct.pack(f">4s4x{extra}{len(values)}i", kind, *numbers, *_s15(values))


_SRGB_CURVE = _fixed(
    b"para", "HH", 3, 0, values=(2.4, 1 / 1.055, 0.055 / 1.055, 1 / 12.92, 0.04045)
)  # IEC 61966-2-1
