"""What all LoRA formats share: a ``down`` and an ``up`` tensor for each adapted layer."""

from __future__ import annotations

from dataclasses import dataclass, field
from math import isfinite
from typing import Literal

import torch
from torch import Tensor

from unziplora_cli.errors import AdapterError
from unziplora_cli.formats.tensors import some
from unziplora_cli.method.lora import LoRA, LoRAWeights

Part = Literal["down", "up", "alpha"]


def nonzero(lora: LoRA) -> dict[str, LoRAWeights]:
    """The layers that change anything; the others need not be written."""
    return {layer: weights for layer, weights in lora.items() if bool(torch.any(weights.up != 0))}


@dataclass(slots=True)
class Halves:
    """The tensors of a file, sorted by layer; ``unknown`` are the keys that name no layer."""

    downs: dict[str, Tensor] = field(default_factory=dict)
    ups: dict[str, Tensor] = field(default_factory=dict)
    alphas: dict[str, float] = field(default_factory=dict)
    unknown: list[str] = field(default_factory=list)

    def put(self, key: str, layer: str | None, part: Part | None, tensor: Tensor) -> None:
        """File one tensor under its layer; raises AdapterError when it cannot be what its name says."""
        if layer is None or part is None:
            self.unknown.append(key)
            return
        if part == "alpha":
            place: dict[str, Tensor] | dict[str, float] = self.alphas
            value: Tensor | float = _number(key, tensor)
        else:
            place, value = (self.downs, tensor) if part == "down" else (self.ups, tensor)
            if not tensor.is_floating_point():
                kind = str(tensor.dtype).removeprefix("torch.")
                raise AdapterError(f"{key} holds {kind} numbers, not a weight.", hint="The file is damaged.")
        if layer in place:
            raise AdapterError(f"The file has two tensors for {layer} ({part}).", hint="It is damaged.")
        place[layer] = value  # type: ignore[assignment]

    def join(self) -> dict[str, LoRAWeights]:
        """Pair ``down`` [rank, in] and ``up`` [out, rank] of each layer, in float32 at scale 1.

        A layer's alpha over its rank goes into ``up``; without alpha the scale is 1. Raises AdapterError when
        a key is unknown, a half is missing, the halves do not fit, or a number is not finite.
        """
        if self.unknown:
            raise AdapterError(
                f"The file adapts more than the attention of SDXL's U-Net: {some(self.unknown)}.",
                hint="Only LoRAs of SDXL's attention projections can be used.",
            )
        whole = self.downs.keys() & self.ups.keys()
        single = sorted((self.downs.keys() | self.ups.keys() | self.alphas.keys()) - whole)
        if single:
            raise AdapterError(
                f"The file holds only one half of the LoRA for {some(single)}.", hint="The file is damaged."
            )
        return {layer: self._weights(layer) for layer in self.downs}

    def _weights(self, layer: str) -> LoRAWeights:
        down, up = self.downs[layer], self.ups[layer]
        if down.ndim != 2 or up.ndim != 2 or down.shape[0] != up.shape[1] or down.shape[0] == 0:
            raise AdapterError(
                f"The halves of the LoRA for {layer} do not fit: down is {tuple(down.shape)}, "
                f"up is {tuple(up.shape)}.",
                hint="The file is damaged, or it is not a LoRA of linear layers.",
            )
        down, up = down.float(), up.float()
        if not (torch.isfinite(down).all() and torch.isfinite(up).all()):
            raise AdapterError(
                f"The LoRA for {layer} holds infinite or undefined numbers.",
                hint="Its training went wrong, or the file is damaged; use another one.",
            )
        scale = self.alphas.get(layer, float(down.shape[0])) / down.shape[0]
        return LoRAWeights(down=down, up=up if scale == 1 else up * scale)


def _number(key: str, tensor: Tensor) -> float:
    if tensor.numel() != 1 or tensor.is_complex() or not isfinite(float(tensor)):
        raise AdapterError(f"{key} is not one finite number.", hint="The file is damaged.")
    return float(tensor)
