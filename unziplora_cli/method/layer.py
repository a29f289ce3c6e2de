"""One linear projection with a content and a style branch (paper, section 3)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Mode = Literal["both", "content", "style"]
LoRAStart = Literal["noise", "zero"]

BRANCHES = ("content", "style")


class Branch(nn.Module):
    """The low-rank update of one branch, with its merge weight and its columns.

    ``down`` [rank, in], ``up`` [out, rank]; ``merge`` [out] starts at one. A *column* is one output feature,
    that is, a row of ``up``. ``mask`` [out] holds the columns selected so far; ``gate`` [out] is what the
    forward pass multiplies by: the mask while the branches are separated, ones while all columns are open.

    All of them may share one leading dimension, for several projections of one shape.
    """

    down: nn.Parameter
    up: nn.Parameter
    merge: nn.Parameter
    mask: Tensor
    gate: Tensor
    score: Tensor

    def __init__(self, down: Tensor, up: Tensor):
        super().__init__()
        columns = up.shape[:-1]
        self.down = nn.Parameter(down)
        self.up = nn.Parameter(up)
        self.merge = nn.Parameter(up.new_ones(columns), requires_grad=False)
        self.register_buffer("mask", torch.zeros(columns, dtype=torch.bool, device=up.device))
        self.register_buffer("gate", up.new_ones(columns))
        self.register_buffer("score", up.new_zeros(columns))

    @classmethod
    def random(
        cls,
        in_features: int,
        out_features: int,
        rank: int,
        generator: torch.Generator | None = None,
        start: LoRAStart = "noise",
    ) -> Branch:
        """A branch whose matrices are both Normal(0, 1/rank), so that it acts from the first step on.

        With ``start="zero"``, ``up`` is zero.
        """
        std = 1.0 / rank
        down = torch.empty(rank, in_features).normal_(std=std, generator=generator)
        up = torch.empty(out_features, rank).normal_(std=std, generator=generator)
        return cls(down, up if start == "noise" else torch.zeros_like(up))

    def factors(self, dtype: torch.dtype, *, merged: bool) -> tuple[Tensor, Tensor]:
        """A [rank, in] and B [out, rank] of the update in ``dtype``, the rows of B scaled per column.

        The scale is ``gate``, times ``merge`` if ``merged``. It is applied in the branch's own precision.
        """
        scale = self.merge * self.gate if merged else self.gate
        return self.down.to(dtype), (self.up * scale[..., None]).to(dtype)

    def open(self) -> None:
        """Let every column take part; the mask is kept."""
        self.gate.fill_(1.0)

    def close(self) -> None:
        """Let only the selected columns take part."""
        self.gate.copy_(self.mask)


class AdaptedLayer(Protocol):
    """What is trained: one projection, or several whose branches are held in shared tensors."""

    content: Branch
    style: Branch
    mode: Mode

    def branches(self) -> tuple[Branch, Branch]:
        """The content and the style branch, in that order."""

    def projections(self, name: str) -> Iterator[tuple[str, DualLoRALinear]]:
        """Each single projection by name, with its gradients; the layer itself is called ``name``."""


class DualLoRALinear(nn.Module):
    """A frozen linear layer plus a content and a style branch.

    In mode ``both``::

        y = W x + b + (B_c A_c x_c) * merge_c * gate_c + (B_s A_s x_s) * merge_s * gate_s

    In mode ``content`` or ``style`` that branch acts alone and without its merge weight. The in x out matrix
    ``B A`` is never formed: the column factors scale the rows of ``B``.
    """

    def __init__(
        self, base: nn.Linear, rank: int, generator: torch.Generator | None = None, start: LoRAStart = "noise"
    ):
        super().__init__()
        self.base = base.requires_grad_(False)
        self.content = Branch.random(base.in_features, base.out_features, rank, generator, start)
        self.style = Branch.random(base.in_features, base.out_features, rank, generator, start)
        self.mode: Mode = "both"

    @property
    def in_features(self) -> int:
        return self.base.in_features

    @property
    def out_features(self) -> int:
        return self.base.out_features

    def branches(self) -> tuple[Branch, Branch]:
        """The content and the style branch, in that order."""
        return self.content, self.style

    def projections(self, name: str) -> Iterator[tuple[str, DualLoRALinear]]:
        """This projection under ``name``."""
        yield name, self

    def forward(self, x: Tensor, x_content: Tensor | None = None, x_style: Tensor | None = None) -> Tensor:
        """Project ``x`` [..., in] to [..., out], in the dtype of ``x`` and of the base.

        ``x_content`` and ``x_style`` [..., in] are the inputs of the branches where prompts are separated
        (keys and values of cross-attention). Default: ``x``.
        """
        y: Tensor = self.base(x)
        for name, branch, x_branch in zip(BRANCHES, self.branches(), (x_content, x_style), strict=True):
            if self.mode in ("both", name):
                down, up = branch.factors(x.dtype, merged=self.mode == "both")
                y = y + F.linear(F.linear(x if x_branch is None else x_branch, down), up)
        return y
