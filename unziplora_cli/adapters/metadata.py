"""The metadata of LoRA and merge-weight files, for people and for the programs that list LoRAs.

The keys are those of Stability AI's ModelSpec 1.0.1 (``modelspec.``), of kohya's sd-scripts (``ss_``), which
A1111 and Forge read, and our own (``unziplora.``), from which an import restores words and prompts.
"""

from __future__ import annotations

import base64
import io
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import unziplora_cli
from unziplora_cli.config import Prompts, Words
from unziplora_cli.images import load_image
from unziplora_cli.job import Job
from unziplora_cli.prompts import style_phrase

if TYPE_CHECKING:
    from PIL.Image import Image


Part = Literal["content", "style", "merge", "combined"]

THUMBNAIL = 256
"""Side of the thumbnail in pixels."""
SDXL_RESOLUTION = 1024
"""For LoRAs that were not trained here."""

_SDXL, _MINI = "stable-diffusion-xl-v1-base", "unziplora-mini"


@dataclass(frozen=True, slots=True)
class Origin:
    """The training that weights come from.

    ``base`` is a public name, never a path; ``style_phrase`` are the words of a prompt that call the style;
    ``thumbnail`` is a data URI or empty; ``merged_from`` names the projects of a combination.
    """

    project: str
    base: str
    base_hash: str | None
    builtin: bool
    words: Words
    prompts: Prompts
    style_phrase: str
    resolution: int
    created: str
    thumbnail: str = ""
    merged_from: tuple[str, ...] = ()


def job_origin(job: Job, image: Path | None = None) -> Origin:
    """The origin of the weights of ``job``, with a thumbnail of ``image``.

    Of a base on this disk, only the last part of its path is kept.
    """
    base, phrase = job.base, style_phrase(job.words)
    return Origin(
        project=job.name,
        base=Path(base.id).name if base.kind in ("folder", "file") else base.id,
        base_hash=base.hash,
        builtin=base.kind == "builtin",
        words=job.words,
        prompts=job.prompts,
        style_phrase=phrase if phrase in job.prompts.style else job.prompts.style,
        resolution=job.settings.resolution if job.settings else SDXL_RESOLUTION,
        created=job.created,
        thumbnail=thumbnail(load_image(image).image) if image else "",
    )


def file_metadata(origin: Origin, part: Part) -> dict[str, str]:
    """The metadata of one file; the layout and the hashes add their own when it is written."""
    metadata = {
        "unziplora.version": unziplora_cli.__version__,
        "unziplora.project": origin.project,
        "unziplora.part": part,
        "unziplora.base": origin.base,
        "unziplora.base_hash": origin.base_hash or "",
        "unziplora.subject": origin.words.subject,
        "unziplora.style": origin.words.style,
        "unziplora.trigger": origin.words.trigger,
        "unziplora.prompts": json.dumps(asdict(origin.prompts), ensure_ascii=False),
    }
    if part != "merge":
        metadata |= _modelspec(origin, part) | _sd_scripts(origin, part)
    return metadata


def project_metadata(origin: Origin) -> dict[str, dict[str, str]]:
    """The metadata of the three files of a project, by part."""
    parts: tuple[Part, ...] = ("content", "style", "merge")
    return {part: file_metadata(origin, part) for part in parts}


def thumbnail(image: Image) -> str:
    """A small JPEG of the center of an image, as a data URI."""
    from PIL import ImageOps

    file = io.BytesIO()
    ImageOps.fit(image.convert("RGB"), (THUMBNAIL, THUMBNAIL)).save(file, "JPEG", quality=80)
    return "data:image/jpeg;base64," + base64.b64encode(file.getvalue()).decode()


def _trigger(origin: Origin, part: Part) -> str:
    if part == "style":
        return origin.style_phrase
    return origin.prompts.full if part == "combined" else origin.prompts.content


def _modelspec(origin: Origin, part: Part) -> dict[str, str]:
    descriptions = {
        "content": f"The content ({origin.words.subject}) of one image, without its style.",
        "style": f"The style ({origin.words.style}) of one image, without its content.",
        "combined": f"The content ({origin.words.subject}) and the style ({origin.words.style}) together.",
    }
    entries = {
        "sai_model_spec": "1.0.1",
        "architecture": f"{_MINI if origin.builtin else _SDXL}/lora",
        "title": f"{origin.project} ({part})",
        "description": f"{descriptions[part]} Trained with unziplora on {origin.base}.",
        "date": origin.created,
        "resolution": f"{origin.resolution}x{origin.resolution}",
        "trigger_phrase": _trigger(origin, part),
        "usage_hint": f'Use "{_trigger(origin, part)}" in the prompt.',
        "tags": f"{origin.words.subject}, {origin.words.style}, unziplora, {part}",
        "thumbnail": origin.thumbnail,
        "merged_from": ", ".join(origin.merged_from),
    }
    return {f"modelspec.{key}": value for key, value in entries.items() if value}


def _sd_scripts(origin: Origin, part: Part) -> dict[str, str]:
    tags = {origin.project: {_trigger(origin, part): 1}}
    entries = {
        "ss_base_model_version": "" if origin.builtin else "sdxl_base_v1-0",
        "ss_output_name": f"{origin.project}-{part}",
        "ss_sd_model_name": origin.base,
        "ss_resolution": f"({origin.resolution}, {origin.resolution})",
        "ss_tag_frequency": json.dumps(tags, ensure_ascii=False),
    }
    return {key: value for key, value in entries.items() if value}
