"""The format of kohya's sd-scripts: what every program loads.

For each layer ``lora_unet_<layer, dots as underscores>`` with ``.lora_down.weight``, ``.lora_up.weight`` and
``.alpha``, which equals the rank. The update is ``alpha / rank * up @ down``. No other key may stand in the
file. The layout ``kohya`` takes the layer's name from diffusers, the layout ``ldm`` from the original code,
as sd-scripts does when it trains SDXL.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from unziplora_cli.adapters.layer_names import diffusers_layer, ldm_layer, to_ldm
from unziplora_cli.adapters.tensors import LoRATensors, Part, nonzero_layers
from unziplora_cli.method.lora import LoRA, LoRAWeights

PREFIX = "lora_unet_"
ORIGINAL_CODE = "https://github.com/Stability-AI/generative-models"

_PARTS: Mapping[str, Part] = {"lora_down.weight": "down", "lora_up.weight": "up", "alpha": "alpha"}


def module_name(layer: str) -> str:
    """The name of a U-Net layer in this format.

    >>> module_name("mid_block.attentions.0.transformer_blocks.3.attn1.to_out.0")
    'lora_unet_mid_block_attentions_0_transformer_blocks_3_attn1_to_out_0'
    """
    return PREFIX + layer.replace(".", "_")


def layer_name(module: str) -> str | None:
    """The layer of a module by either naming; None for anything but an attention projection of the U-Net."""
    if not module.startswith(PREFIX):
        return None
    name = module.removeprefix(PREFIX)
    return diffusers_layer(name) or ldm_layer(name)


def recognises(keys: Iterable[str]) -> bool:
    """Whether a file with these keys is of this format."""
    return any(key.startswith(PREFIX) for key in keys)


def layout(keys: Iterable[str]) -> str:
    """``ldm`` when the original code's names are used, else ``kohya``."""
    blocks = tuple(PREFIX + block for block in ("input_blocks", "middle_block", "output_blocks"))
    return "ldm" if any(key.startswith(blocks) for key in keys) else "kohya"


def encode(lora: LoRA, dtype: torch.dtype, *, ldm: bool = False) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors and the metadata of a file with the layers of ``lora`` that change anything.

    All have the alpha of the largest rank, since diffusers misapplies files whose alphas differ; a layer of
    smaller rank gets an ``up`` that makes good for it.
    """
    tensors: dict[str, Tensor] = {}
    layers = nonzero_layers(lora)
    alpha = max((weights.rank for weights in layers.values()), default=0)
    for layer, weights in layers.items():
        name = module_name(to_ldm(layer) if ldm else layer)
        tensors[f"{name}.lora_down.weight"] = weights.down.to(dtype)
        tensors[f"{name}.lora_up.weight"] = (weights.up * (weights.rank / alpha)).to(dtype)
        tensors[f"{name}.alpha"] = torch.tensor(float(alpha), dtype=dtype)
    return tensors, {
        "ss_network_module": "networks.lora",
        "ss_network_dim": str(alpha),
        "ss_network_alpha": str(alpha),
        "modelspec.implementation": ORIGINAL_CODE if ldm else "diffusers",
    }


def parse(tensors: Mapping[str, Tensor]) -> dict[str, LoRAWeights]:
    """The LoRA that these tensors hold, by whichever naming; raises AdapterError."""
    tensors_by_layer = LoRATensors()
    for key, tensor in tensors.items():
        module, _, part = key.partition(".")
        tensors_by_layer.put(key, layer_name(module), _PARTS.get(part), tensor)
    return tensors_by_layer.join()
