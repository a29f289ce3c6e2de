"""PNG files that tell how they were drawn.

The text ``parameters`` is written as AUTOMATIC1111's web UI writes it, which many programs show; the text
``unziplora`` holds everything as JSON.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from PIL import Image, PngImagePlugin

from unziplora_cli.atomic import replacing
from unziplora_cli.errors import UsageError

KEY = "unziplora"
SAMPLERS = {"euler": "Euler", "ddim": "DDIM", "ddpm": "DDPM", "dpm++": "DPM++ 2M"}


def save_png(image: Image.Image, path: Path, parameters: Mapping[str, Any]) -> None:
    """Write a picture with its parameters, whole or not at all."""
    info = PngImagePlugin.PngInfo()
    info.add_itxt("parameters", parameters_text(parameters))
    info.add_itxt(KEY, json.dumps(parameters, ensure_ascii=False))
    with replacing(path) as temporary:
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
