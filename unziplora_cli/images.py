"""Image files: reading any format as 8-bit RGB, PNG files with generation parameters, and data URIs."""

from __future__ import annotations

import base64
import io
import json
import logging
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from typing import Any, TypedDict, cast

import numpy as np
from PIL import ExifTags, Image, PngImagePlugin, UnidentifiedImageError

from unziplora_cli import image_formats
from unziplora_cli.color import declared_profile, is_hdr, to_srgb
from unziplora_cli.errors import Remedy, UsageError, disk_advice, first_line
from unziplora_cli.files import read_bytes, write_file
from unziplora_cli.image_repair import PNG_SIGNATURE, clean_png, tiff_pixels

MIN_SIDE = 64
"""Smallest accepted shorter side in pixels."""

REDUCED_SIDE = 2048
"""Shorter side in pixels that large images keep when they are read; a higher resolution asks for more."""

MAX_BYTES = 2**30
"""Largest image file that is read."""

# Pillow logs remarks about files, and Python prints the warnings of loggers that nobody has set up.
logging.getLogger("PIL").setLevel(logging.CRITICAL)


@dataclass(frozen=True, slots=True)
class LoadedImage:
    """An image in sRGB, with notes about how it was read, and the format and size that the file has."""

    path: Path
    image: Image.Image
    notes: tuple[str, ...] = ()
    format: str = "PNG"
    file_size: tuple[int, int] = (0, 0)


def load_image(path: Path, side: int = REDUCED_SIDE) -> LoadedImage:
    """Read an image file as 8-bit sRGB.

    Converts embedded color profiles, applies the EXIF orientation, puts transparent images on white and takes
    the first frame of animations. Damaged metadata is ignored. To save memory, large images are read at a
    half, a third and so on of their size, as long as the shorter side keeps ``side`` pixels.

    Raises:
        UsageError: The file is missing, not an image, damaged, too small, or too large to decode.
    """
    data = _read_file(path)
    if image_formats.is_raw(path):
        raise image_formats.unreadable(path, b"")
    try:
        return _decode(path, data, side)
    except UsageError:
        raise
    except Image.DecompressionBombError as error:
        raise UsageError(
            f"{path} is too large: {first_line(error)}.", Remedy("Scale it down in an image editor first.")
        ) from error
    except UnidentifiedImageError as error:
        raise image_formats.unreadable(path, data[:512]) from error
    except MemoryError as error:
        raise UsageError(
            f"There is not enough memory to read {path}.", Remedy("Scale it down in an image editor first.")
        ) from error
    except Exception as error:  # Pillow raises nearly anything for damaged files
        raise UsageError(
            f"{path} is damaged or truncated: {first_line(error)}.", Remedy("Copy or export the image again.")
        ) from error


def _read_file(path: Path) -> bytes:
    """The bytes of an image file; raises UsageError unless it is a regular file of a sensible size."""
    if path.is_dir():
        raise UsageError(
            f"{path} is a folder, not an image.", Remedy(f"Name a file in it: {path / 'fox.png'}")
        )
    try:
        return read_bytes(path, MAX_BYTES)
    except (FileNotFoundError, NotADirectoryError, ValueError) as error:  # ValueError: a NUL in the name
        raise UsageError(f"There is no file {path}.", Remedy("Check the path.")) from error
    except OSError as error:
        reason = (error.strerror or str(error)).rstrip(".")
        raise UsageError(
            f"{path} cannot be read: {reason[:1].lower()}{reason[1:]}.",
            disk_advice(error) or Remedy("Use another file."),
        ) from error


@contextmanager
def _opened(data: bytes) -> Iterator[Image.Image]:
    """Open the bytes of an image file in one of the supported formats, without warnings."""
    with warnings.catch_warnings(action="ignore"):
        clean, extra = clean_png(data, KEY) if data.startswith(PNG_SIGNATURE) else (data, {})
        with Image.open(io.BytesIO(clean), formats=image_formats.formats()) as file:
            for name, value in extra.items():
                file.info[name] = value
            if not isinstance(file.info.get("exif", b""), bytes):  # a text chunk of that name
                del file.info["exif"]
            yield file


def _decode(path: Path, data: bytes, side: int) -> LoadedImage:
    notes = []
    with _opened(data) as file:
        width, height = size = file.size
        if min(size) < MIN_SIDE:
            raise UsageError(
                f"{path} is {width} x {height} px: too small, the shorter side needs {MIN_SIDE} px.",
                Remedy("Use the original image, not a thumbnail."),
            )
        if (frames := _frames(file, data)) > 1:
            notes.append(f"{path.name} has {frames} frames; the first one is used.")
        scale = min(1.0, side / min(size))
        file.draft(None, (int(width * scale), int(height * scale)))  # JPEG is decoded at this size
        profile = declared_profile(file)
        if is_hdr(file):
            notes.append(f"{path.name} has a high dynamic range; its colors are approximate.")
        elif file.mode == "CMYK" and profile is None:
            notes.append(f"{path.name} is CMYK without a color profile; its colors are approximate.")
        pixels = tiff_pixels(file, data) or file
        pixels.load()
        orientation = _orientation(file)  # Pillow turns a TIFF file when it loads the pixels
        factor = min(pixels.size) // side
        if factor > 1 and pixels.mode in ("RGB", "L") and not pixels.has_transparency_data:
            pixels = pixels.reduce(factor)
        image, profile_used = _to_rgb(pixels, profile)
        if not profile_used:
            notes.append(f"The color profile of {path.name} is broken or of another kind; it is ignored.")
        if orientation is not None:
            image = image.transpose(orientation)
        image.info = {}  # a profile would be saved with pixels that it no longer describes
        return LoadedImage(path, image, tuple(notes), file.format or "unknown", size)


def to_rgb(image: Image.Image) -> Image.Image:
    """Convert an image of any Pillow mode to 8-bit RGB; transparent images are put on white."""
    return _to_rgb(image, None)[0]


def _to_rgb(image: Image.Image, profile: bytes | None) -> tuple[Image.Image, bool]:
    """Convert an image with a color profile to sRGB on white, and say whether the profile was used."""
    image.load()
    alpha = _alpha(image)
    if image.mode.startswith(("I", "F")):
        image = _gray_to_8_bits(image)
    elif image.mode in ("1", "LA", "La"):
        image = image.convert("LA" if image.mode == "La" else "L").convert("L")
    elif image.mode not in ("RGB", "L", "CMYK", "LAB"):
        image = image.convert("RGBA" if image.mode == "RGBa" else "RGB").convert("RGB")
    image, profile_used = to_srgb(image, profile)
    if alpha is not None:
        image = Image.composite(image, Image.new("RGB", image.size, "white"), alpha)
    return image, profile_used


def _alpha(image: Image.Image) -> Image.Image | None:
    """The opacity of an image; None if it is opaque."""
    if not image.has_transparency_data:
        return None
    if image.mode.startswith("I"):  # Pillow converts no transparent gray of 16 bits
        return Image.fromarray((np.asarray(image) != image.info["transparency"]).astype(np.uint8) * 255)
    return image.convert("RGBA").getchannel("A")


def _gray_to_8_bits(image: Image.Image) -> Image.Image:
    """Scale gray of more than 8 bits from the smallest usual range (1, 255, 65535) that holds all values."""
    values = np.asarray(image, dtype=np.float32).clip(min=0)
    peak = float(values.max())
    if not isfinite(peak):
        raise ValueError("some of its pixels are infinite or no numbers (NaN)")
    ranges = (65535.0,) if image.mode.startswith("I;16") else (255.0, 65535.0)
    if image.mode == "F":
        ranges = (1.0, *ranges)
    white = next((limit for limit in ranges if peak <= limit), peak)
    return Image.fromarray((values * (255.0 / white)).round().astype(np.uint8))


def _frames(file: Image.Image, data: bytes) -> int:
    """The number of frames or pages; an image in several parts (a phone's photo, layers) counts once."""
    if file.format in ("MPO", "PSD"):
        return 1
    if file.format == "PNG":
        return int(file.info.get("frames", 1))
    try:
        with Image.open(io.BytesIO(data), formats=[file.format or ""]) as counted:
            return getattr(counted, "n_frames", 1)
    except Exception:  # a frame that is not used is damaged
        return 1


_TRANSPOSITIONS: dict[Any, Image.Transpose] = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def _orientation(file: Image.Image) -> Image.Transpose | None:
    """What turns an image upright, from its EXIF tag; metadata that cannot be read is ignored."""
    try:
        return _TRANSPOSITIONS.get(file.getexif().get(ExifTags.Base.Orientation))
    except Exception:
        return None


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


def save_png(
    image: Image.Image, names: Path | Iterable[Path], parameters: Mapping[str, Any], *, force: bool = False
) -> Path:
    """Write an image with its parameters; see :func:`save_image`."""
    info = PngImagePlugin.PngInfo()
    for key, text in (
        ("parameters", parameters_text(parameters)),
        (KEY, json.dumps(parameters, ensure_ascii=False)),
    ):
        info.add_text(key, text.encode(errors="replace").decode())  # tEXt, or iTXt for more than Latin-1
    return save_image(image, names, force=force, pnginfo=info)


def save_image(
    image: Image.Image,
    names: Path | Iterable[Path],
    *,
    force: bool = False,
    format: str = "PNG",
    **options: Any,
) -> Path:
    """Write an image under the first unused of some names, and return it; see `files.write_file`."""
    buffer = io.BytesIO()  # Pillow hides the reason when a file cannot be written
    image.save(buffer, format=format, **options)
    return write_file(names, lambda file: file.write_bytes(buffer.getvalue()), force=force)


def read_parameters(path: Path) -> ImageParameters:
    """The parameters that :func:`save_png` wrote; empty for other images.

    A file may come from anybody: unknown keys and values of the wrong type are dropped. Raises UsageError
    for a file that is not an image.
    """
    data = _read_file(path)
    try:
        with _opened(data) as image:
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
