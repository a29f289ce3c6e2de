"""diffusers' own formats: PEFT names, the older names, and the paper's releases.

========== ===============================================================  =====
``peft``   ``unet.<layer>.lora_A.weight``, ``.lora_B.weight``                read, written
``older``  ``unet.<layer>.lora.down.weight``, ``.lora.up.weight``            read
``paper``  the same behind a doubled ``unet.unet.``                          read
========== ===============================================================  =====

Only PEFT files can carry an alpha, in the ``lora_adapter_metadata`` entry of the header.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from torch import Tensor

from unziplora_cli.errors import AdapterError
from unziplora_cli.formats.pairs import join, nonzero
from unziplora_cli.formats.tensors import some, write_tensors
from unziplora_cli.method.lora import LoRA, LoRAWeights

ADAPTER_METADATA = "lora_adapter_metadata"

_PREFIX = "unet."
_DOWN = (".lora_A.weight", ".lora.down.weight")
_UP = (".lora_B.weight", ".lora.up.weight")


def recognises(keys: Iterable[str]) -> bool:
    """Whether a file with these keys is of one of these formats."""
    return any(key.startswith(_PREFIX) and key.endswith(_DOWN) for key in keys)


def scheme(keys: Iterable[str]) -> str:
    """``peft``, ``older`` or ``paper``."""
    key = next(key for key in keys if key.endswith(_DOWN))
    if key.endswith(_DOWN[0]):
        return "peft"
    return "paper" if key.startswith(2 * _PREFIX) else "older"


def write(path: Path, lora: LoRA, metadata: Mapping[str, str], dtype: torch.dtype) -> None:
    """Write the layers of ``lora`` that change anything, with PEFT names."""
    tensors: dict[str, Tensor] = {}
    layers = nonzero(lora)
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
    write_tensors(path, tensors, {**metadata, ADAPTER_METADATA: entry})


def parse(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> dict[str, LoRAWeights]:
    """The LoRA that these tensors hold; raises AdapterError."""
    downs: dict[str, Tensor] = {}
    ups: dict[str, Tensor] = {}
    unknown = []
    for key, tensor in tensors.items():
        for suffixes, halves in ((_DOWN, downs), (_UP, ups)):
            if key.startswith(_PREFIX) and key.endswith(suffixes):
                suffix = next(s for s in suffixes if key.endswith(s))
                halves[_layer(key.removesuffix(suffix))] = tensor
                break
        else:
            unknown.append(key)
    if unknown:
        raise AdapterError(
            f"The file holds more than a LoRA of a U-Net: {some(unknown)}.",
            hint="Only LoRAs of SDXL's attention projections can be used.",
        )
    return join(downs, ups, _alphas(metadata, downs))


def _layer(name: str) -> str:
    return name.removeprefix(_PREFIX).removeprefix(_PREFIX)


def _alphas(metadata: Mapping[str, str], downs: Mapping[str, Tensor]) -> dict[str, float]:
    """Alpha of every layer, by the header's word; without one, none."""
    if ADAPTER_METADATA not in metadata:
        return {}
    try:
        adapter = json.loads(metadata[ADAPTER_METADATA])
        pattern = adapter.get(f"{_PREFIX}alpha_pattern") or {}
        alpha = float(adapter[f"{_PREFIX}lora_alpha"])
        return {layer: float(pattern.get(layer, alpha)) for layer in downs}
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise AdapterError(f"The header's {ADAPTER_METADATA} cannot be read: {error!r}.") from error
