"""Picture files of every kind to 8-bit RGB, upright."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from unziplora_cli.errors import UsageError

SMALLEST = 64
"""Fewest pixels along the shorter side."""

LARGEST = 4096
"""Pixels along the shorter side that a training can use at most; a larger JPEG is decoded smaller."""

_BROKEN = (OSError, ValueError, SyntaxError, EOFError, IndexError, KeyError, OverflowError, TypeError)
"""What Pillow raises for damaged files, beside its own errors."""


@dataclass(frozen=True, slots=True)
class Picture:
    """A picture in RGB, and what the user should know about how it was read."""

    path: Path
    image: Image.Image
    notes: tuple[str, ...] = ()


def load_picture(path: Path) -> Picture:
    """Read one picture: EXIF orientation applied, transparency on white, first frame, 8 bits.

    Raises UsageError for what is missing, no picture, damaged, too small, or too large to be honest.
    """
    if path.is_dir():
        raise UsageError(f"{path} is a folder, not a picture.", hint=f"Name a file in it: {path / 'fox.png'}")
    if not path.exists():
        raise UsageError(f"There is no file {path}.", hint="Check the spelling, or drag the file here.")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with Image.open(path) as file:
                return _read(path, file)
    except Image.DecompressionBombError as error:
        raise UsageError(
            f"{path} is far too large: {_first_line(error)}.", hint="Scale it down in a picture editor first."
        ) from error
    except PermissionError as error:
        raise UsageError(f"{path} cannot be read: permission denied.", hint=f"chmod u+r {path}") from error
    except UnidentifiedImageError as error:
        raise UsageError(
            f"{path} is not a picture that can be read.", hint="PNG, JPEG, WebP, TIFF, GIF and BMP are fine."
        ) from error
    except MemoryError as error:
        raise UsageError(f"{path} needs more memory than there is.", hint="Scale it down first.") from error
    except _BROKEN as error:
        raise UsageError(
            f"{path} is damaged or cut short: {_first_line(error)}.", hint="Copy or export the picture again."
        ) from error


def _read(path: Path, file: Image.Image) -> Picture:
    width, height = file.size
    if min(width, height) < SMALLEST:
        raise UsageError(
            f"{path} is {width} x {height} px: too small, the shorter side needs {SMALLEST} px.",
            hint="Use the original of the picture, not a thumbnail.",
        )
    notes = []
    frames = getattr(file, "n_frames", 1)
    if frames > 1:
        notes.append(f"{path.name} has {frames} frames; the first one is used.")
    shrink = min(1.0, LARGEST / min(width, height))
    file.draft(None, (int(width * shrink), int(height * shrink)))
    image = to_rgb(ImageOps.exif_transpose(file))
    return Picture(path, image, tuple(notes))


def to_rgb(image: Image.Image) -> Image.Image:
    """Any mode of Pillow's as RGB with 8 bits per channel; transparency lies on white."""
    if image.mode.startswith(("I", "F")):
        return _grey_to_8_bits(image).convert("RGB")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return image.convert("RGB")


def _grey_to_8_bits(image: Image.Image) -> Image.Image:
    """Grey with more than 8 bits: scaled from the smallest usual range (1, 255, 65535) that holds it."""
    values = np.nan_to_num(np.asarray(image, dtype=np.float32)).clip(min=0)
    peak = float(values.max())
    ranges = (65535.0,) if image.mode.startswith("I;16") else (255.0, 65535.0)
    if image.mode == "F":
        ranges = (1.0, *ranges)
    full = next((r for r in ranges if peak <= r), peak)
    return Image.fromarray((values * (255.0 / full)).round().astype(np.uint8))


def _first_line(error: BaseException) -> str:
    return str(error).strip().split("\n")[0].rstrip(".") or type(error).__name__
