"""diffusers' own formats: PEFT names, the older names, and the paper's releases.

============= ===============================================================  =============
``peft``      ``unet.<layer>.lora_A.weight``, ``.lora_B.weight``                read, written
``diffusers`` ``unet.<layer>.lora.down.weight``, ``.lora.up.weight``            read, written
``paper``     the same behind a doubled ``unet.unet.``                          read
============= ===============================================================  =============

Only PEFT files can carry an alpha, in the ``lora_adapter_metadata`` entry of the header.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from math import isfinite

import torch
from torch import Tensor

from unziplora_cli.adapters.layer_names import diffusers_layer
from unziplora_cli.adapters.tensors import LoRATensors, Part, nonzero_layers
from unziplora_cli.errors import AdapterError
from unziplora_cli.method.lora import LoRA, LoRAWeights

ADAPTER_METADATA = "lora_adapter_metadata"

_PREFIX = "unet."
_PARTS: Mapping[str, Part] = {
    ".lora_A.weight": "down",
    ".lora_B.weight": "up",
    ".lora.down.weight": "down",
    ".lora.up.weight": "up",
}
_IMPLEMENTATION = {"modelspec.implementation": "diffusers"}


def recognises(keys: Iterable[str]) -> bool:
    """Whether a file with these keys is of one of these formats."""
    return any(key.startswith(_PREFIX) and key.endswith(tuple(_PARTS)) for key in keys)


def layout(keys: Iterable[str]) -> str:
    """``peft``, ``diffusers`` or ``paper``."""
    key = next(key for key in keys if key.endswith(tuple(_PARTS)))
    if ".lora_" in key:
        return "peft"
    return "paper" if key.startswith(2 * _PREFIX) else "diffusers"


def encode(lora: LoRA, dtype: torch.dtype) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors and the metadata of a file with the older names; it has the scale 1 and no alpha."""
    tensors: dict[str, Tensor] = {}
    for layer, weights in nonzero_layers(lora).items():
        tensors[f"{_PREFIX}{layer}.lora.down.weight"] = weights.down.to(dtype)
        tensors[f"{_PREFIX}{layer}.lora.up.weight"] = weights.up.to(dtype)
    return tensors, _IMPLEMENTATION


def encode_peft(lora: LoRA, dtype: torch.dtype) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors and the metadata of a file with PEFT names, its alpha in the metadata."""
    tensors: dict[str, Tensor] = {}
    layers = nonzero_layers(lora)
    for layer, weights in layers.items():
        tensors[f"{_PREFIX}{layer}.lora_A.weight"] = weights.down.to(dtype)
        tensors[f"{_PREFIX}{layer}.lora_B.weight"] = weights.up.to(dtype)
    ranks = {layer: weights.rank for layer, weights in layers.items()}
    most = max(ranks.values(), default=0)
    others = {layer: rank for layer, rank in ranks.items() if rank != most}
    adapter = {
        "r": most,
        "lora_alpha": most,
        "rank_pattern": others,
        "alpha_pattern": others,
        "target_modules": sorted(layers),
        "peft_type": "LORA",
    }
    entry = json.dumps({_PREFIX + key: value for key, value in adapter.items()}, sort_keys=True)
    return tensors, {**_IMPLEMENTATION, ADAPTER_METADATA: entry}


def parse(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> dict[str, LoRAWeights]:
    """The LoRA that these tensors hold; raises AdapterError."""
    tensors_by_layer = LoRATensors()
    for key, tensor in tensors.items():
        suffix = next((suffix for suffix in _PARTS if key.endswith(suffix)), "")
        name = key.removesuffix(suffix)
        plain = name.removeprefix(_PREFIX).removeprefix(_PREFIX)
        layer = diffusers_layer(plain) if name.startswith(_PREFIX) else None
        tensors_by_layer.put(key, layer, _PARTS.get(suffix), tensor)
    tensors_by_layer.alphas = _alphas(metadata, tensors_by_layer.downs)
    return tensors_by_layer.join()


def _alphas(metadata: Mapping[str, str], downs: Mapping[str, Tensor]) -> dict[str, float]:
    """Alpha of every layer, by the header's word; without one, none."""
    if ADAPTER_METADATA not in metadata:
        return {}
    try:
        adapter = json.loads(metadata[ADAPTER_METADATA])
        pattern = adapter.get(f"{_PREFIX}alpha_pattern") or {}
        alpha = float(adapter[f"{_PREFIX}lora_alpha"])
        alphas = {layer: float(pattern.get(layer, alpha)) for layer in downs}
        if not all(map(isfinite, alphas.values())):
            raise ValueError("an alpha is not finite")
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise AdapterError(f"The header's {ADAPTER_METADATA} cannot be read: {error!r}.") from error
    return alphas
