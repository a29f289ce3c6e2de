"""LoRA weights outside a network: what is saved, loaded, merged and exchanged with other programs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, slots=True)
class LoRAWeights:
    """The low-rank update ``up @ down`` of one linear layer, at scale 1.

    ``down`` is [rank, in], ``up`` is [out, rank].
    """

    down: Tensor
    up: Tensor

    @property
    def rank(self) -> int:
        return self.down.shape[0]


LoRA = Mapping[str, LoRAWeights]
"""Layer name inside the U-Net (diffusers spelling, ``….attn1.to_out.0``) -> its weights."""

MergeWeights = Mapping[str, Tensor]
"""Layer name -> learned factor in [0, 1] of every output column, [out]."""
