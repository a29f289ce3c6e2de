"""A U-Net without weights, to load LoRA files with diffusers and peft and check the result.

Loading a LoRA needs the names and shapes of a network but not its weights, so the code of diffusers that
users run can be tested without the 5 GB of the base.
"""

from __future__ import annotations

import logging
import shutil
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import diffusers
import torch
import transformers
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn

from unziplora_cli.errors import AdapterError, Remedy
from unziplora_cli.method.inject import adapted_projections
from unziplora_cli.method.lora import LoRA, LoRAWeights


@dataclass(frozen=True, slots=True)
class Comparison:
    """The updates that diffusers applies, compared with the expected ones.

    ``error`` is the largest relative error (Frobenius norm), at ``layer``; ``missing`` are layers that should
    change but do not, ``extra`` modules that change but should not.
    """

    projections: int
    adapted: int
    error: float
    layer: str
    missing: tuple[str, ...]
    extra: tuple[str, ...]


def meta_unet(config: Mapping[str, Any]) -> UNet2DConditionModel:
    """A U-Net of this configuration in which every parameter is a zero expanded to its shape."""
    with torch.device("meta"):
        unet = UNet2DConditionModel.from_config(dict(config))
    zero = torch.zeros(())
    for module in unet.modules():
        for name, parameter in module.named_parameters(recurse=False):
            setattr(module, name, nn.Parameter(zero.expand(parameter.shape), requires_grad=False))
    return unet


@torch.no_grad()
def compare(path: Path, config: Mapping[str, Any], expected: LoRA) -> Comparison:
    """Load a file into a diffusers pipeline with peft and compare the update of every projection.

    Raises AdapterError if diffusers refuses the file.
    """
    unet = meta_unet(config)
    projections = adapted_projections(unet)
    _load(path, unet)
    applied = {name: module for name, module in unet.named_modules() if isinstance(module, LoraLayer)}
    missing, worst = [], (0.0, "")
    for layer in projections:
        weights, module = expected.get(layer), applied.pop(layer, None)
        if module is not None and weights is not None:
            update = module.get_delta_weight(module.active_adapters[0])
            worst = max(worst, (_relative_error(update, weights), layer))
        elif weights is not None:
            missing.append(layer)
        elif module is not None:
            applied[layer] = module
    adapted = len(projections.keys() & expected.keys()) - len(missing)
    return Comparison(len(projections), adapted, *worst, tuple(missing), tuple(applied))


def _load(path: Path, unet: UNet2DConditionModel) -> None:
    for library in (diffusers, transformers):
        library.utils.logging.set_verbosity(logging.CRITICAL)
    from diffusers import StableDiffusionXLPipeline  # its import prints messages

    pipeline = StableDiffusionXLPipeline(
        vae=None,
        text_encoder=None,
        text_encoder_2=None,
        tokenizer=None,
        tokenizer_2=None,
        unet=unet,
        scheduler=None,
        add_watermarker=False,
    )
    try:
        # The comparison finds what the warnings are about.
        with warnings.catch_warnings(action="ignore"), _as_safetensors(path) as file:
            pipeline.load_lora_weights(
                file.parent, weight_name=file.name, use_safetensors=True, local_files_only=True
            )
    except Exception as error:  # the error types depend on the format
        reason = str(error).strip().split("\n")[0] or type(error).__name__
        raise AdapterError(
            f"diffusers {diffusers.__version__} refuses {path.name}: {reason}",
            Remedy("Convert it to a format that every program reads", settings={"to": "sd-scripts"}),
        ) from error


@contextmanager
def _as_safetensors(path: Path) -> Iterator[Path]:
    """The file under a name that diffusers takes for safetensors; it unpickles every other one."""
    if path.suffix == ".safetensors":
        yield path.absolute()
        return
    with TemporaryDirectory() as folder:
        yield Path(shutil.copyfile(path, Path(folder, "lora.safetensors")))


def _relative_error(applied: Tensor, expected: LoRAWeights) -> float:
    update = applied.float()  # [out, in]
    difference = torch.addmm(update, expected.up, expected.down, alpha=-1)
    error, norm = float(difference.norm()), float(update.norm())
    return error / norm if norm else float("inf") if error else 0.0
