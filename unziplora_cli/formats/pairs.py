"""What all LoRA formats share: a ``down`` and an ``up`` tensor for each adapted layer."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from unziplora_cli.errors import AdapterError
from unziplora_cli.formats.tensors import some
from unziplora_cli.method.lora import LoRA, LoRAWeights


def nonzero(lora: LoRA) -> dict[str, LoRAWeights]:
    """The layers that change anything; the others need not be written."""
    return {layer: weights for layer, weights in lora.items() if bool(torch.any(weights.up != 0))}


def join(
    downs: Mapping[str, Tensor], ups: Mapping[str, Tensor], alphas: Mapping[str, float]
) -> dict[str, LoRAWeights]:
    """Pair ``down`` [rank, in] and ``up`` [out, rank] of each layer, in float32 at scale 1.

    A layer's alpha over its rank goes into ``up``; without alpha the scale is 1. Raises AdapterError when a
    half is missing or the halves do not fit.
    """
    single = sorted(downs.keys() ^ ups.keys())
    if single:
        raise AdapterError(
            f"The file holds only one half of the LoRA for {some(single)}.", hint="The file is damaged."
        )
    lora = {}
    for layer, down in downs.items():
        up = ups[layer]
        if down.ndim != 2 or up.ndim != 2 or down.shape[0] != up.shape[1] or down.shape[0] == 0:
            raise AdapterError(
                f"The halves of the LoRA for {layer} do not fit: down is {tuple(down.shape)}, "
                f"up is {tuple(up.shape)}.",
                hint="The file is damaged, or it is not a LoRA of linear layers.",
            )
        if not (torch.isfinite(down).all() and torch.isfinite(up).all()):
            raise AdapterError(f"The LoRA for {layer} holds infinite or undefined numbers.")
        scale = alphas.get(layer, float(down.shape[0])) / down.shape[0]
        lora[layer] = LoRAWeights(down=down.float(), up=up.float() * scale)
    return lora
