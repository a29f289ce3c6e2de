"""Destyling by an instruction: a pipeline of diffusers that edits an image as a sentence says."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from unziplora_cli.accel.device import empty_cache
from unziplora_cli.config import Words
from unziplora_cli.errors import ModelError, Remedy
from unziplora_cli.sdxl.base import locate
from unziplora_cli.sdxl.folder import read_json
from unziplora_cli.sdxl.latents import crop_boxes

EDITORS: dict[str, dict[str, Any]] = {
    "Flux2KleinPipeline": {},
    "Flux2Pipeline": {},
    "FluxKontextPipeline": {},
    "QwenImageEditPipeline": {"negative_prompt": " "},
    "QwenImageEditPlusPipeline": {"negative_prompt": " "},
    "StableDiffusionXLInstructPix2PixPipeline": {"num_inference_steps": 50},
    "StableDiffusionInstructPix2PixPipeline": {"num_inference_steps": 50},
}
"""The pipelines that edit by instruction, and what they are called with beside their defaults."""
DISTILLED = {"num_inference_steps": 4, "guidance_scale": 1.0}
"""What a pipeline of few steps is called with."""
INSTRUCTION = (
    "Redraw this image as a realistic photo of the same {subject}. Remove the {style} style. Keep its shape, "
    "pose, colors and markings exactly{features}."
)
ACTIVATIONS = 1.3
"""Memory that editing takes, as a multiple of the weights."""


def instruction(words: Words, features: Sequence[str]) -> str:
    """The sentence that tells an editing model to remove the style and to keep the individual."""
    text = INSTRUCTION.replace("{features}", f": {', '.join(features)}" if features else "", 1)
    before, after = text.split("{subject}", 1)
    return before + words.subject + after.replace("{style}", words.style, 1)


class ImageEditor:
    """An editing pipeline on ``device``, or on the CPU and moved part by part if the device is small."""

    def __init__(self, pipeline: Any, device: torch.device) -> None:
        self._pipeline, self._device = pipeline, device
        name = type(pipeline).__name__
        self._arguments = {**EDITORS[name], **(DISTILLED if pipeline.config.get("is_distilled") else {})}
        self._accepted = set(inspect.signature(pipeline.__call__).parameters)

    def edit(self, image: Image.Image, text: str, side: int, seed: int) -> Image.Image:
        """The central square of ``image``, edited, ``side`` pixels wide; ``seed`` decides the noise."""
        (box,) = crop_boxes(image.size, 1)
        square = image.resize((side, side), Image.Resampling.BILINEAR, box=box)
        size = {name: side for name in ("height", "width") if name in self._accepted}
        generator = torch.Generator().manual_seed(seed)
        result = self._pipeline(
            image=square, prompt=text, generator=generator, output_type="pil", **size, **self._arguments
        )
        edited: Image.Image = result.images[0]
        return edited.convert("RGB").resize((side, side), Image.Resampling.BILINEAR)

    def close(self) -> None:
        """Free the memory of the pipeline."""
        del self._pipeline
        empty_cache(self._device)

    @classmethod
    def load(cls, spec: str | None, *, device: torch.device, dtype: torch.dtype) -> ImageEditor:
        """Load a folder or a Hugging Face id in the cache; raises ModelError."""
        import diffusers

        from unziplora_cli.sdxl.load import loading

        folder = find_editor(spec)
        name = str(read_json(folder / "model_index.json").get("_class_name"))
        with (
            loading(f"the editing model {spec}", _download(spec)),
            warnings.catch_warnings(action="ignore"),  # newer diffusers renamed torch_dtype
        ):
            pipeline = getattr(diffusers, name).from_pretrained(
                folder, torch_dtype=dtype, use_safetensors=True, local_files_only=True
            )
        pipeline.set_progress_bar_config(disable=True)
        _place(pipeline, device)
        return cls(pipeline, device)


def find_editor(spec: str | None) -> Path:
    """The folder of an editing pipeline; raises ModelError if it is not on this disk or of another kind."""
    example = "black-forest-labs/FLUX.2-klein-4B"
    if not spec:
        raise ModelError(
            "No editing model is named.",
            Remedy("Name one in the cache, or its folder", settings={"destyler": example}),
            _download(example),
        )
    folder = locate(spec, "editing model", _download(spec))
    index = folder / "model_index.json"
    name = read_json(index).get("_class_name") if index.is_file() else None
    if not isinstance(name, str) or name not in EDITORS:
        what = f"a {name}" if isinstance(name, str) else "not a pipeline of diffusers"
        raise ModelError(
            f"{spec} is {what}, not a model that edits images by instruction.",
            Remedy(f"These can be used: {', '.join(EDITORS)}."),
        )
    return folder


def _place(pipeline: Any, device: torch.device) -> None:
    """Move a pipeline to its device: whole, or where memory is short, a component or a layer at a time."""
    if device.type != "cuda":
        pipeline.to(device)
        return
    sizes = [
        sum(tensor.numel() * tensor.element_size() for tensor in component.parameters())
        for component in pipeline.components.values()
        if isinstance(component, torch.nn.Module)
    ]
    free, _ = torch.cuda.mem_get_info(device)
    if sum(sizes) * ACTIVATIONS < free:
        pipeline.to(device)
    elif max(sizes) * ACTIVATIONS < free:
        pipeline.enable_model_cpu_offload(device=device)
    else:
        pipeline.enable_sequential_cpu_offload(device=device)


def _download(spec: str | None) -> Remedy:
    return Remedy("Download it", program="hf", command="download", arguments=(spec or "",))
