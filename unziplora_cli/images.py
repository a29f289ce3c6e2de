"""Image files: reading any format as 8-bit RGB, PNG files with generation parameters, and data URIs."""

from __future__ import annotations

import base64
import io
import json
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from typing import Any, TypedDict, cast

import numpy as np
from PIL import Image, ImageOps, PngImagePlugin, UnidentifiedImageError

from unziplora_cli.errors import Remedy, UsageError
from unziplora_cli.files import atomic_write

MIN_SIDE = 64
"""Smallest accepted shorter side in pixels."""

MAX_SIDE = 4096
"""Longest shorter side that training uses, in pixels; larger JPEG files are decoded at a reduced size."""

_DECODING_ERRORS = (
    OSError,
    ValueError,
    SyntaxError,
    EOFError,
    IndexError,
    KeyError,
    OverflowError,
    TypeError,
)
"""What Pillow raises for damaged files, besides its own errors."""


@dataclass(frozen=True, slots=True)
class LoadedImage:
    """An image in RGB, with notes about how it was read."""

    path: Path
    image: Image.Image
    notes: tuple[str, ...] = ()


def load_image(path: Path) -> LoadedImage:
    """Read an image file as 8-bit RGB.

    Applies the EXIF orientation, puts transparent images on white and takes the first frame of animations.

    Raises:
        UsageError: The file is missing, not an image, damaged, too small, or too large to decode.
    """
    if path.is_dir():
        raise UsageError(
            f"{path} is a folder, not an image.", Remedy(f"Name a file in it: {path / 'fox.png'}")
        )
    if not path.exists():
        raise UsageError(f"There is no file {path}.", Remedy("Check the path."))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with Image.open(path) as file:
                return _decode(path, file)
    except Image.DecompressionBombError as error:
        raise UsageError(
            f"{path} is too large: {_first_line(error)}.", Remedy("Scale it down in an image editor first.")
        ) from error
    except PermissionError as error:
        raise UsageError(
            f"{path} cannot be read: permission denied.",
            Remedy("Give your user permission to read the file."),
        ) from error
    except UnidentifiedImageError as error:
        raise UsageError(
            f"{path} is not an image that can be read.", Remedy("Use PNG, JPEG, WebP, TIFF, GIF or BMP.")
        ) from error
    except MemoryError as error:
        raise UsageError(
            f"There is not enough memory to read {path}.", Remedy("Scale it down in an image editor first.")
        ) from error
    except _DECODING_ERRORS as error:
        raise UsageError(
            f"{path} is damaged or truncated: {_first_line(error)}.",
            Remedy("Copy or export the image again."),
        ) from error


def _decode(path: Path, file: Image.Image) -> LoadedImage:
    width, height = file.size
    if min(width, height) < MIN_SIDE:
        raise UsageError(
            f"{path} is {width} x {height} px: too small, the shorter side needs {MIN_SIDE} px.",
            Remedy("Use the original image, not a thumbnail."),
        )
    notes = []
    frames = getattr(file, "n_frames", 1)
    if frames > 1:
        notes.append(f"{path.name} has {frames} frames; the first one is used.")
    scale = min(1.0, MAX_SIDE / min(width, height))
    file.draft(None, (int(width * scale), int(height * scale)))
    image = to_rgb(ImageOps.exif_transpose(file))
    return LoadedImage(path, image, tuple(notes))


def to_rgb(image: Image.Image) -> Image.Image:
    """Convert an image of any Pillow mode to 8-bit RGB; transparent images are put on white."""
    if image.mode.startswith(("I", "F")):
        return _gray_to_8_bits(image).convert("RGB")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return image.convert("RGB")


def _gray_to_8_bits(image: Image.Image) -> Image.Image:
    """Scale gray of more than 8 bits from the smallest usual range (1, 255, 65535) that holds all values."""
    values = np.nan_to_num(np.asarray(image, dtype=np.float32)).clip(min=0)
    peak = float(values.max())
    ranges = (65535.0,) if image.mode.startswith("I;16") else (255.0, 65535.0)
    if image.mode == "F":
        ranges = (1.0, *ranges)
    white = next((limit for limit in ranges if peak <= limit), peak)
    return Image.fromarray((values * (255.0 / white)).round().astype(np.uint8))


def _first_line(error: BaseException) -> str:
    return str(error).strip().split("\n")[0].rstrip(".") or type(error).__name__


# Generation parameters in PNG files. The text chunk "parameters" has the layout of AUTOMATIC1111's web UI,
# which many programs show; the chunk "unziplora" holds all parameters as JSON.

KEY = "unziplora"
SAMPLERS = {"euler": "Euler", "ddim": "DDIM", "ddpm": "DDPM", "dpm++": "DPM++ 2M"}


class ImageParameters(TypedDict, total=False):
    """How an image was generated. Every value that :func:`read_parameters` returns has its declared type."""

    schema: int
    version: str
    command: str
    base: dict[str, str | None]
    projects: dict[str, str]
    adapters: dict[str, str]
    branches: dict[str, float]
    merge_weights: bool
    prompts: dict[str, str]
    negative_prompt: str
    seed: int
    steps: int
    guidance: float
    scheduler: str
    width: int
    height: int


def save_png(image: Image.Image, path: Path, parameters: Mapping[str, Any]) -> None:
    """Write an image with its parameters atomically."""
    info = PngImagePlugin.PngInfo()
    info.add_itxt("parameters", parameters_text(parameters))
    info.add_itxt(KEY, json.dumps(parameters, ensure_ascii=False))
    with atomic_write(path) as temporary:
        image.save(temporary, format="PNG", pnginfo=info)


def read_parameters(path: Path) -> ImageParameters:
    """The parameters that :func:`save_png` wrote; empty for other images.

    A file may come from anybody: unknown keys and values of the wrong type are dropped. Raises UsageError
    for a file that is not an image.
    """
    try:
        with Image.open(path) as image:
            image.load()
            text = image.info.get(KEY)
    except Exception as error:  # Pillow raises nearly anything for damaged files
        raise UsageError(f"{path} is not an image that can be read.") from error
    try:
        values = json.loads(text) if isinstance(text, str) else None
    except (ValueError, RecursionError):
        return {}
    return typed_parameters(values)


def typed_parameters(values: object) -> ImageParameters:
    """The known parameters of the right type in a JSON value; everything else is dropped."""
    if not isinstance(values, dict):
        return {}
    valid = {
        name: values[name] for name, is_valid in _VALID.items() if name in values and is_valid(values[name])
    }
    return cast(ImageParameters, valid)


def _is_text(value: object) -> bool:
    """Whether a value is a string that UTF-8 can encode: JSON may hold lone surrogates."""
    return isinstance(value, str) and not any("\ud800" <= character <= "\udfff" for character in value)


def _is_integer(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and abs(value) <= 2**64


def _is_number(value: object) -> bool:
    return _is_integer(value) or (isinstance(value, float) and isfinite(value))


def _is_mapping_to(is_valid: Callable[[object], bool]) -> Callable[[object], bool]:
    return lambda value: (
        isinstance(value, dict) and all(_is_text(key) and is_valid(item) for key, item in value.items())
    )


_VALID: dict[str, Callable[[object], bool]] = {
    **dict.fromkeys(("version", "command", "negative_prompt", "scheduler"), _is_text),
    **dict.fromkeys(("schema", "seed", "steps", "width", "height"), _is_integer),
    **dict.fromkeys(("projects", "adapters", "prompts"), _is_mapping_to(_is_text)),
    "base": _is_mapping_to(lambda value: value is None or _is_text(value)),
    "branches": _is_mapping_to(_is_number),
    "merge_weights": lambda value: isinstance(value, bool),
    "guidance": _is_number,
}


def parameters_text(parameters: Mapping[str, Any]) -> str:
    """Prompt, negative prompt and settings on up to three lines, in the layout of AUTOMATIC1111's web UI."""
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
        ", ".join(f"{name}: {_setting_text(value)}" for name, value in settings.items() if value is not None)
    )
    return "\n".join(lines)


def _setting_text(value: object) -> str:
    """A number without a needless fraction; text that holds a comma or colon is quoted."""
    text = f"{value:g}" if isinstance(value, float) else str(value)
    return json.dumps(text, ensure_ascii=False) if any(mark in text for mark in ",:") else text


# Data URIs: a page that embeds its images needs no other file.

LOSSLESS_SIDE = 256
"""Images up to this side in pixels stay PNG; larger ones become JPEG, a tenth of the size."""


@dataclass(frozen=True, slots=True)
class DataURI:
    """An image as a ``data:`` URI, with its size in pixels."""

    uri: str
    width: int
    height: int


def data_uri(image: Image.Image, longest: int = 4096) -> DataURI:
    """Encode an RGB or palette image, scaled down to a longer side of at most ``longest`` pixels.

    Index 0 of a palette image becomes transparent. Metadata (location, camera, prompts) is removed.
    """
    image = image.copy()
    image.thumbnail((longest, longest))
    image.info = {}
    buffer = io.BytesIO()
    if image.mode == "P" or max(image.size) <= LOSSLESS_SIDE:
        kind = "png"
        image.save(buffer, "PNG", optimize=True, **({"transparency": 0} if image.mode == "P" else {}))
    else:
        kind = "jpeg"
        image.save(buffer, "JPEG", quality=88, optimize=True, progressive=True)
    data = base64.b64encode(buffer.getvalue()).decode("ascii")
    return DataURI(f"data:image/{kind};base64,{data}", image.width, image.height)
