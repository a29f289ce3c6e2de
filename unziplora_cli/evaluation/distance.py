"""How far two trainings of the same thing came out apart: their LoRAs and their merge weights."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from unziplora_cli.method.lora import LoRA, LoRAWeights, MergeWeights


@dataclass(frozen=True, slots=True)
class LoRADistance:
    """``relative`` is |D' - D| / max(|D|, |D'|) over all updates D = up @ down, in the Frobenius norm.

    ``columns`` is the share of the output columns open in either LoRA that are open in both.
    """

    relative: float
    columns: float


def lora_distance(recorded: LoRA, new: LoRA) -> LoRADistance:
    """Compare two LoRAs; a layer that only one of them has is zero in the other.

    No update is built: |[U, -U'] [D; D']|^2 is the sum of a product of two Gram matrices of the rank's size.
    """
    apart, sizes, either, both = 0.0, [0.0, 0.0], 0, 0
    for layer in {**recorded, **new}:
        pairs = [lora[layer] for lora in (recorded, new) if layer in lora]
        if not _equal(pairs):
            up = torch.cat([s * p.up.double() for s, p in zip((1.0, -1.0), pairs, strict=False)], dim=1)
            apart += _squared_norm(up, torch.cat([p.down.double() for p in pairs]))
        for i, lora in enumerate((recorded, new)):
            if layer in lora:
                sizes[i] += _squared_norm(lora[layer].up.double(), lora[layer].down.double())
        opened = [p.up.any(dim=1) for p in pairs]  # [out] each
        either += int(torch.stack(opened).any(dim=0).sum())
        both += int((opened[0] & opened[1]).sum()) if len(opened) == 2 else 0
    relative = math.sqrt(apart / max(sizes)) if apart else 0.0
    return LoRADistance(relative, both / either if either else 1.0)


def merge_distance(recorded: MergeWeights, new: MergeWeights) -> float:
    """The largest difference of any merge weight; 1, the most there can be, when the layers differ."""
    if recorded.keys() != new.keys():
        return 1.0
    differences = [(new[layer] - merge).abs().max() for layer, merge in recorded.items()]
    return float(torch.stack(differences).max()) if differences else 0.0


def _equal(pairs: list[LoRAWeights]) -> bool:
    first, last = pairs[0], pairs[-1]
    return len(pairs) == 2 and torch.equal(first.up, last.up) and torch.equal(first.down, last.down)


def _squared_norm(up: Tensor, down: Tensor) -> float:
    """|up @ down|^2 of ``up`` [out, r] and ``down`` [r, in], both float64."""
    return max(0.0, float(((up.T @ up) * (down @ down.T)).sum()))
