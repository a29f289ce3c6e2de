"""The metadata of LoRA and merge-weight files, for people and for the programs that list LoRAs.

The keys are those of Stability AI's ModelSpec 1.0.1 (``modelspec.``), of kohya's sd-scripts (``ss_``), which
A1111 and Forge read, and our own (``unziplora.``), from which an import restores words and prompts.
"""

from __future__ import annotations

import base64
import io
import json
from dataclasses import asdict
from pathlib import Path
from typing import Literal

import unziplora_cli
from unziplora_cli.images import load_image
from unziplora_cli.job import Job
from unziplora_cli.prompts import style_phrase

Part = Literal["content", "style", "merge", "combined"]

THUMBNAIL = 256
"""Side of the thumbnail in pixels."""
SDXL_RESOLUTION = 1024
"""For LoRAs that were not trained here."""

_SDXL, _MINI = "stable-diffusion-xl-v1-base", "unziplora-mini"


def file_metadata(
    job: Job, part: Part, thumbnail: str = "", merged_from: tuple[str, ...] = ()
) -> dict[str, str]:
    """The metadata of one file of the weights of ``job``; writing it adds those of its layout and its hashes.

    ``thumbnail`` is a data URI, or empty; ``merged_from`` names the projects of a combination.
    """
    metadata = {
        "unziplora.version": unziplora_cli.__version__,
        "unziplora.project": job.name,
        "unziplora.part": part,
        "unziplora.base": _public_base(job),
        "unziplora.base_hash": job.base.hash or "",
        "unziplora.subject": job.words.subject,
        "unziplora.style": job.words.style,
        "unziplora.trigger": job.words.trigger,
        "unziplora.prompts": json.dumps(asdict(job.prompts), ensure_ascii=False),
    }
    if part != "merge":
        metadata |= _modelspec(job, part, thumbnail, merged_from) | _sd_scripts(job, part)
    return metadata


def project_metadata(job: Job, image: Path | None) -> dict[str, dict[str, str]]:
    """The metadata of the three files of a project, by part, with a thumbnail of ``image``."""
    parts: tuple[Part, ...] = ("content", "style", "merge")
    small = thumbnail(image) if image else ""
    return {part: file_metadata(job, part, small) for part in parts}


def thumbnail(image: Path) -> str:
    """A small JPEG of the center of an image, as a data URI."""
    from PIL import ImageOps

    file = io.BytesIO()
    ImageOps.fit(load_image(image).image.convert("RGB"), (THUMBNAIL, THUMBNAIL)).save(
        file, "JPEG", quality=80
    )
    return "data:image/jpeg;base64," + base64.b64encode(file.getvalue()).decode()


def _public_base(job: Job) -> str:
    """A name of the base; of one on this disk, only the last part of its path."""
    return Path(job.base.id).name if job.base.kind in ("folder", "file") else job.base.id


def _resolution(job: Job) -> int:
    return job.settings.resolution if job.settings else SDXL_RESOLUTION


def _trigger(job: Job, part: Part) -> str:
    """The words of a prompt that call the content, the style, or both."""
    if part == "style":
        phrase = style_phrase(job.words)
        return phrase if phrase in job.prompts.style else job.prompts.style
    return job.prompts.full if part == "combined" else job.prompts.content


def _modelspec(job: Job, part: Part, thumbnail: str, merged_from: tuple[str, ...]) -> dict[str, str]:
    subject, style = job.words.subject, job.words.style
    descriptions = {
        "content": f"The content ({subject}) of one image, without its style.",
        "style": f"The style ({style}) of one image, without its content.",
        "combined": f"The content ({subject}) and the style ({style}) together.",
    }
    side = _resolution(job)
    entries = {
        "sai_model_spec": "1.0.1",
        "architecture": f"{_MINI if job.base.kind == 'builtin' else _SDXL}/lora",
        "title": f"{job.name} ({part})",
        "description": f"{descriptions[part]} Trained with unziplora on {_public_base(job)}.",
        "date": job.created,
        "resolution": f"{side}x{side}",
        "trigger_phrase": _trigger(job, part),
        "usage_hint": f'Use "{_trigger(job, part)}" in the prompt.',
        "tags": f"{subject}, {style}, unziplora, {part}",
        "thumbnail": thumbnail,
        "merged_from": ", ".join(merged_from),
    }
    return {f"modelspec.{key}": value for key, value in entries.items() if value}


def _sd_scripts(job: Job, part: Part) -> dict[str, str]:
    side = _resolution(job)
    entries = {
        "ss_base_model_version": "" if job.base.kind == "builtin" else "sdxl_base_v1-0",
        "ss_output_name": f"{job.name}-{part}",
        "ss_sd_model_name": _public_base(job),
        "ss_resolution": f"({side}, {side})",
        "ss_tag_frequency": json.dumps({job.name: {_trigger(job, part): 1}}, ensure_ascii=False),
    }
    return {key: value for key, value in entries.items() if value}
