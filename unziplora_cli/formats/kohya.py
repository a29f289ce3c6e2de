"""The format of kohya's sd-scripts with diffusers' block names: what every program loads.

For each layer ``lora_unet_<layer, dots as underscores>`` with ``.lora_down.weight``, ``.lora_up.weight`` and
``.alpha``, which equals the rank. The update is
``alpha / rank * up @ down``. No other key may stand in the file.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from torch import Tensor

from unziplora_cli.errors import AdapterError
from unziplora_cli.formats.pairs import join, nonzero
from unziplora_cli.formats.tensors import some, write_tensors
from unziplora_cli.method.lora import LoRA, LoRAWeights

PREFIX = "lora_unet_"

_LAYER = re.compile(
    PREFIX + r"(?:(down|up)_blocks_(\d+)|(mid)_block)_attentions_(\d+)_transformer_blocks_(\d+)"
    r"_(attn[12])_(to_[qkv]|to_out_0)"
)


def module_name(layer: str) -> str:
    """The name of a U-Net layer in this format.

    >>> module_name("mid_block.attentions.0.transformer_blocks.3.attn1.to_out.0")
    'lora_unet_mid_block_attentions_0_transformer_blocks_3_attn1_to_out_0'
    """
    return PREFIX + layer.replace(".", "_")


def layer_name(module: str) -> str | None:
    """The inverse of :func:`module_name`; None for anything but an attention projection of the U-Net."""
    found = _LAYER.fullmatch(module)
    if found is None:
        return None
    side, number, mid, attention, block, kind, projection = found.groups()
    place = "mid_block" if mid else f"{side}_blocks.{number}"
    projection = projection.replace("_0", ".0")
    return f"{place}.attentions.{attention}.transformer_blocks.{block}.{kind}.{projection}"


def recognises(keys: Iterable[str]) -> bool:
    """Whether a file with these keys is of this format."""
    return any(key.startswith(PREFIX) for key in keys)


def write(path: Path, lora: LoRA, metadata: Mapping[str, str], dtype: torch.dtype) -> None:
    """Write the layers of ``lora`` that change anything.

    All have the alpha of the largest rank, since diffusers misapplies files whose alphas differ; a layer of
    smaller rank gets an ``up`` that makes good for it.
    """
    tensors: dict[str, Tensor] = {}
    layers = nonzero(lora)
    alpha = max((weights.rank for weights in layers.values()), default=0)
    for layer, weights in layers.items():
        name = module_name(layer)
        tensors[f"{name}.lora_down.weight"] = weights.down.to(dtype)
        tensors[f"{name}.lora_up.weight"] = (weights.up * (weights.rank / alpha)).to(dtype)
        tensors[f"{name}.alpha"] = torch.tensor(float(alpha), dtype=dtype)
    network = {
        "ss_network_module": "networks.lora",
        "ss_network_dim": str(alpha),
        "ss_network_alpha": str(alpha),
    }
    write_tensors(path, tensors, {**network, **metadata})


def parse(tensors: Mapping[str, Tensor]) -> dict[str, LoRAWeights]:
    """The LoRA that these tensors hold; raises AdapterError."""
    downs: dict[str, Tensor] = {}
    ups: dict[str, Tensor] = {}
    alphas: dict[str, float] = {}
    unknown = []
    for key, tensor in tensors.items():
        module, _, part = key.partition(".")
        layer = layer_name(module)
        match part:
            case "lora_down.weight" if layer:
                downs[layer] = tensor
            case "lora_up.weight" if layer:
                ups[layer] = tensor
            case "alpha" if layer:
                alphas[layer] = float(tensor)
            case _:
                unknown.append(key)
    if unknown:
        raise AdapterError(
            f"The file adapts more than the attention of SDXL's U-Net: {some(unknown)}.",
            hint="Only LoRAs of SDXL's attention projections can be used.",
        )
    return join(downs, ups, alphas)
