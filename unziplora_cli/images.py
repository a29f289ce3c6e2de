"""Image files: reading, PNG parameters and data URIs."""

from __future__ import annotations

import base64
import io
import json
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps, PngImagePlugin, UnidentifiedImageError

from unziplora_cli.errors import UsageError
from unziplora_cli.files import atomic_write

SMALLEST = 64
"""Fewest pixels along the shorter side."""

LARGEST = 4096
"""Pixels along the shorter side that a training can use at most; a larger JPEG is decoded smaller."""

_BROKEN = (OSError, ValueError, SyntaxError, EOFError, IndexError, KeyError, OverflowError, TypeError)
"""What Pillow raises for damaged files, beside its own errors."""


@dataclass(frozen=True, slots=True)
class LoadedImage:
    """A picture in RGB, and what the user should know about how it was read."""

    path: Path
    image: Image.Image
    notes: tuple[str, ...] = ()


def load_image(path: Path) -> LoadedImage:
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


def _read(path: Path, file: Image.Image) -> LoadedImage:
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
    return LoadedImage(path, image, tuple(notes))


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


# PNG files that tell how they were drawn.
#
# The text ``parameters`` is written as AUTOMATIC1111's web UI writes it, which many programs show; the text
# ``unziplora`` holds everything as JSON.


KEY = "unziplora"
SAMPLERS = {"euler": "Euler", "ddim": "DDIM", "ddpm": "DDPM", "dpm++": "DPM++ 2M"}


def save_png(image: Image.Image, path: Path, parameters: Mapping[str, Any]) -> None:
    """Write a picture with its parameters, whole or not at all."""
    info = PngImagePlugin.PngInfo()
    info.add_itxt("parameters", parameters_text(parameters))
    info.add_itxt(KEY, json.dumps(parameters, ensure_ascii=False))
    with atomic_write(path) as temporary:
        image.save(temporary, format="PNG", pnginfo=info)


def read_parameters(path: Path) -> dict[str, Any]:
    """The parameters that :func:`save_png` wrote; empty for other pictures. Raises UsageError."""
    try:
        with Image.open(path) as image:
            image.load()
            text = image.info.get(KEY, "{}")
    except Exception as error:  # damaged bytes make Pillow raise nearly anything
        raise UsageError(f"{path} is not a picture that can be read.") from error
    try:
        parameters = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    return parameters if isinstance(parameters, dict) else {}


def parameters_text(parameters: Mapping[str, Any]) -> str:
    """Prompt, negative prompt and settings on up to three lines, as other programs expect them."""
    prompts = parameters.get("prompts", {})
    settings = {
        "Steps": parameters.get("steps"),
        "Sampler": SAMPLERS.get(str(parameters.get("scheduler")), parameters.get("scheduler")),
        "CFG scale": parameters.get("guidance"),
        "Seed": parameters.get("seed"),
        "Size": f"{parameters.get('width')}x{parameters.get('height')}",
        "Model": Path(str(parameters.get("base", {}).get("id"))).name,
        "Version": f"unziplora {parameters.get('version')}",
    }
    lines = [prompts.get("full", "").replace("\n", " ")]
    if parameters.get("negative_prompt"):
        lines.append(f"Negative prompt: {parameters['negative_prompt']}".replace("\n", " "))
    lines.append(
        ", ".join(f"{name}: {_plain(value)}" for name, value in settings.items() if value is not None)
    )
    return "\n".join(lines)


def _plain(value: object) -> str:
    """A number without a needless fraction; text that holds a comma or colon in quotes."""
    text = f"{value:g}" if isinstance(value, float) else str(value)
    return json.dumps(text, ensure_ascii=False) if any(mark in text for mark in ",:") else text


# Pictures as data URIs: a page that holds them needs no other file.


LOSSLESS = 256
"""Pictures up to this side stay PNG; larger ones become JPEG, a tenth of the size."""


@dataclass(frozen=True, slots=True)
class DataURI:
    """A picture inside a page, with its size in pixels."""

    uri: str
    width: int
    height: int


def data_uri(image: Image.Image, longest: int = 4096) -> DataURI:
    """An RGB or palette picture, its longer side at most ``longest``.

    What a file says beside its pixels (place, camera, prompts) is left out.
    """
    image = image.copy()
    image.thumbnail((longest, longest))
    image.info = {}
    buffer = io.BytesIO()
    if image.mode == "P" or max(image.size) <= LOSSLESS:
        kind = "png"
        image.save(buffer, "PNG", optimize=True, **({"transparency": 0} if image.mode == "P" else {}))
    else:
        kind = "jpeg"
        image.save(buffer, "JPEG", quality=88, optimize=True, progressive=True)
    data = base64.b64encode(buffer.getvalue()).decode("ascii")
    return DataURI(f"data:image/{kind};base64,{data}", image.width, image.height)
