"""LoRA weights outside a network: as saved, loaded, and imported from or exported to other programs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from torch import Tensor

from unziplora_cli.method.layer import BRANCHES


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
"""Layer name -> learned factor in [0, 1] of each output column, [out]."""


@dataclass(frozen=True, slots=True)
class LoRAPair:
    """A content LoRA, a style LoRA, both, or neither, to add to a base.

    Merge weights apply only if both LoRAs are present (paper, section 3.5). A strength scales its LoRA's
    update.
    """

    content: LoRA | None = None
    style: LoRA | None = None
    content_merge: MergeWeights | None = None
    style_merge: MergeWeights | None = None
    content_strength: float = 1.0
    style_strength: float = 1.0

    @property
    def names(self) -> tuple[str, ...]:
        """Which of ``content`` and ``style`` take part."""
        return tuple(name for name in BRANCHES if getattr(self, name) is not None)

    def updates(self, layer: str) -> Iterator[tuple[str, Tensor, Tensor]]:
        """Name, ``down`` [rank, in] and scaled ``up`` [out, rank] of each branch that changes ``layer``."""
        for name in self.names:
            weights = getattr(self, name).get(layer)
            if weights is None:
                continue
            up = weights.up.float() * getattr(self, f"{name}_strength")
            merge = getattr(self, f"{name}_merge")
            if len(self.names) == 2 and merge is not None and layer in merge:
                up = up * merge[layer].float()[:, None]
            yield name, weights.down.float(), up
