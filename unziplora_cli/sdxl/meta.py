"""A U-Net of the right shape that weighs nothing, and what diffusers makes of a LoRA file on it.

Loading a LoRA asks for the names and shapes of a network, never for its numbers; so the very code that users
run can be tried without the base's 5 GB.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers
from diffusers import UNet2DConditionModel
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn

from unziplora_cli.errors import AdapterError
from unziplora_cli.method.inject import adapted_projections
from unziplora_cli.method.lora import LoRA, LoRAWeights


@dataclass(frozen=True, slots=True)
class Comparison:
    """The updates that diffusers applies, against those that are wanted, projection by projection.

    ``error`` is the largest relative error (Frobenius norm) and ``layer`` where it is; ``missing`` are layers
    that should change and do not, ``extra`` modules that change and should not.
    """

    projections: int
    adapted: int
    error: float
    layer: str
    missing: tuple[str, ...]
    extra: tuple[str, ...]


def meta_unet(config: Mapping[str, Any]) -> UNet2DConditionModel:
    """A U-Net of this configuration whose every weight is one zero, seen as a matrix."""
    with torch.device("meta"):
        unet = UNet2DConditionModel.from_config(dict(config))
    zero = torch.zeros(())
    for module in unet.modules():
        for name, parameter in module.named_parameters(recurse=False):
            setattr(module, name, nn.Parameter(zero.expand(parameter.shape), requires_grad=False))
    return unet


@torch.no_grad()
def compare(path: Path, config: Mapping[str, Any], wanted: LoRA) -> Comparison:
    """Load a file into a diffusers pipeline with peft and compare the update of every projection.

    Raises AdapterError when diffusers refuses the file.
    """
    unet = meta_unet(config)
    projections = adapted_projections(unet)
    _load(path, unet)
    applied = {name: module for name, module in unet.named_modules() if isinstance(module, LoraLayer)}
    missing, worst = [], (0.0, "")
    for layer in projections:
        weights, module = wanted.get(layer), applied.pop(layer, None)
        if module is not None and weights is not None:
            worst = max(worst, (_error(module.get_delta_weight(module.active_adapters[0]), weights), layer))
        elif weights is not None:
            missing.append(layer)
        elif module is not None:
            applied[layer] = module
    adapted = len(projections.keys() & wanted.keys()) - len(missing)
    return Comparison(len(projections), adapted, *worst, tuple(missing), tuple(applied))


def _load(path: Path, unet: UNet2DConditionModel) -> None:
    for library in (diffusers, transformers):
        library.utils.logging.set_verbosity(logging.CRITICAL)
    from diffusers import StableDiffusionXLPipeline  # now, for its import talks

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
        with warnings.catch_warnings(action="ignore"):  # what they warn of, the comparison finds
            pipeline.load_lora_weights(
                path.absolute().parent,
                weight_name=path.name,
                use_safetensors=True,
                local_files_only=True,
            )
    except Exception as error:  # whatever a library of many formats may raise
        reason = str(error).strip().split("\n")[0] or type(error).__name__
        raise AdapterError(
            f"diffusers {diffusers.__version__} refuses {path.name}: {reason}",
            hint="Write it again in a format that every program takes: --to kohya",
        ) from error


def _error(applied: Tensor, wanted: LoRAWeights) -> float:
    whole = applied.float()  # [out, in]
    difference = torch.addmm(whole, wanted.up, wanted.down, alpha=-1)
    norm = float(whole.norm())
    return float(difference.norm()) / norm if norm else float("inf")
