"""What a file of weights says about itself, for people and for the programs that list LoRAs.

The keys are those of Stability AI's ModelSpec 1.0.1 (``modelspec.``), of kohya's sd-scripts (``ss_``), which
A1111 and its kin read, and our own (``unziplora.``), from which an import restores the words.
"""

from __future__ import annotations

import base64
import hashlib
import io
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal

import unziplora_cli
from unziplora_cli.config import Prompts, Words

if TYPE_CHECKING:
    from PIL.Image import Image


Part = Literal["content", "style", "merge", "combined"]

THUMBNAIL = 256
"""Side in pixels of the picture inside a file."""

_SDXL, _MINI = "stable-diffusion-xl-v1-base", "unziplora-mini"


@dataclass(frozen=True, slots=True)
class Origin:
    """Where weights come from.

    ``base`` is a name that may be made public, never a path; ``style_phrase`` is what a prompt says to call
    the style; ``thumbnail`` a data URI or empty; ``merged_from`` names the projects of a combination.
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


def describe(origin: Origin, part: Part) -> dict[str, str]:
    """The metadata of one file, all of it text; what depends on the tensors is for the writer to add."""
    own = {
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
    return own if part == "merge" else {**own, **_modelspec(origin, part), **_sd_scripts(origin, part)}


def project_metadata(origin: Origin) -> dict[str, dict[str, str]]:
    """The metadata of the three files of a project, by part."""
    parts: tuple[Part, ...] = ("content", "style", "merge")
    return {part: describe(origin, part) for part in parts}


def thumbnail(picture: Image) -> str:
    """A small JPEG of the picture's middle as a data URI."""
    from PIL import ImageOps

    file = io.BytesIO()
    ImageOps.fit(picture.convert("RGB"), (THUMBNAIL, THUMBNAIL)).save(file, "JPEG", quality=80)
    return "data:image/jpeg;base64," + base64.b64encode(file.getvalue()).decode()


def _trigger(origin: Origin, part: Part) -> str:
    if part == "style":
        return origin.style_phrase
    return origin.prompts.full if part == "combined" else origin.prompts.content


def _modelspec(origin: Origin, part: Part) -> Mapping[str, str]:
    about = {
        "content": f"The content ({origin.words.subject}) of one picture, without its style.",
        "style": f"The style ({origin.words.style}) of one picture, without its content.",
        "combined": f"The content ({origin.words.subject}) and the style ({origin.words.style}) together.",
    }
    entries = {
        "sai_model_spec": "1.0.1",
        "architecture": f"{_MINI if origin.builtin else _SDXL}/lora",
        "title": f"{origin.project} ({part})",
        "description": f"{about[part]} Learned with unziplora on {origin.base}.",
        "date": origin.created,
        "resolution": f"{origin.resolution}x{origin.resolution}",
        "trigger_phrase": _trigger(origin, part),
        "usage_hint": f'Say "{_trigger(origin, part)}".',
        "tags": f"{origin.words.subject}, {origin.words.style}, unziplora, {part}",
        "thumbnail": origin.thumbnail,
        "merged_from": ", ".join(origin.merged_from),
    }
    return {f"modelspec.{key}": value for key, value in entries.items() if value}


def _sd_scripts(origin: Origin, part: Part) -> Mapping[str, str]:
    tags = {origin.project: {_trigger(origin, part): 1}}
    entries = {
        "ss_base_model_version": "" if origin.builtin else "sdxl_base_v1-0",
        "ss_output_name": f"{origin.project}-{part}",
        "ss_sd_model_name": origin.base,
        "ss_resolution": f"({origin.resolution}, {origin.resolution})",
        "ss_tag_frequency": json.dumps(tags, ensure_ascii=False),
    }
    return {key: value for key, value in entries.items() if value}


# The hashes by which other programs know a file of weights.


_LEGACY_START, _LEGACY_LENGTH = 0x100000, 0x10000


def weight_hashes(header: Mapping[str, Any], payload: bytes | memoryview) -> dict[str, str]:
    """The metadata entries that tell the hashes of a safetensors file.

    ``modelspec.hash_sha256`` and ``sshs_model_hash`` are the SHA-256 of ``payload``, all that follows the
    header, so that they do not depend on what the file says about itself. ``sshs_legacy_hash`` is the older
    one of A1111's: 64 kB from the first megabyte on, of the same file with no metadata but ``ss_*``, its
    first 8 digits.
    """
    digest = hashlib.sha256(payload).hexdigest()
    training = {key: value for key, value in header["__metadata__"].items() if key.startswith("ss_")}
    start = encode_header({**header, "__metadata__": training})
    end = _LEGACY_START + _LEGACY_LENGTH
    piece = start[_LEGACY_START:end] + payload[max(0, _LEGACY_START - len(start)) : max(0, end - len(start))]
    return {
        "modelspec.hash_sha256": f"0x{digest}",
        "sshs_model_hash": digest,
        "sshs_legacy_hash": hashlib.sha256(piece).hexdigest()[:8],
    }


def encode_header(header: Mapping[str, Any]) -> bytes:
    """A safetensors header as it stands in the file: its length, then JSON padded to 8 bytes."""
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text
