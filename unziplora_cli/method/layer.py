"""One linear projection with a content and a style branch (paper, section 3)."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Mode = Literal["both", "content", "style"]
LoRAStart = Literal["noise", "zero"]

BRANCHES = ("content", "style")


class Branch(nn.Module):
    """The low-rank update of one branch, with its merge weight and its columns.

    ``down`` [rank, in], ``up`` [out, rank]; ``merge`` [out] starts at one. A *column* is one output feature,
    that is a row of ``up``. All may have a leading dimension.

    ``mask`` [out] holds the columns chosen so far; ``gate`` [out] is what the forward multiplies by: the mask
    while the branches are separated, ones while every column is open.
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
    def drawn(
        cls,
        in_features: int,
        out_features: int,
        rank: int,
        generator: torch.Generator | None = None,
        start: LoRAStart = "noise",
    ) -> Branch:
        """A branch of which both matrices are Normal(0, 1/rank), so that it acts from the first step on.

        With start ``zero``, ``up`` is zero.
        """
        std = 1.0 / rank
        down = torch.empty(rank, in_features).normal_(std=std, generator=generator)
        up = torch.empty(out_features, rank).normal_(std=std, generator=generator)
        return cls(down, up if start == "noise" else torch.zeros_like(up))

    def open(self) -> None:
        """Let every column take part; the mask is kept."""
        self.gate.fill_(1.0)

    def close(self) -> None:
        """Let only the chosen columns take part."""
        self.gate.copy_(self.mask)


class DualLoRALinear(nn.Module):
    """A frozen linear layer plus a content and a style branch.

    In mode ``both``::

        y = W x + b + (B_c A_c x_c) * merge_c * gate_c + (B_s A_s x_s) * merge_s * gate_s

    In mode ``content`` or ``style`` that branch acts alone and without its merge weight. The in x out matrix
    ``B A`` is never formed: the column factors scale the rows of ``B``.

    While fused, ``fused_weight`` is W + B A [out, in], ``cached_projection`` the y of a text, and
    ``fused_qkv`` the fused weight of query, key and value.
    """

    def __init__(
        self,
        base: nn.Linear,
        rank: int,
        generator: torch.Generator | None = None,
        start: LoRAStart = "noise",
    ):
        super().__init__()
        self.base = base.requires_grad_(False)
        self.content = Branch.drawn(base.in_features, base.out_features, rank, generator, start)
        self.style = Branch.drawn(base.in_features, base.out_features, rank, generator, start)
        self.mode: Mode = "both"
        self.fused_weight: Tensor | None = None
        self.fused_qkv: Tensor | None = None
        self.cached_projection: Tensor | None = None

    @property
    def in_features(self) -> int:
        return self.base.in_features

    @property
    def out_features(self) -> int:
        return self.base.out_features

    def branches(self) -> tuple[Branch, Branch]:
        """The content and the style branch, in that order."""
        return self.content, self.style

    def forward(self, x: Tensor, x_content: Tensor | None = None, x_style: Tensor | None = None) -> Tensor:
        """Project ``x`` [..., in] to [..., out].

        ``x_content`` and ``x_style`` [..., in] are what the branches see where prompts are separated (keys
        and values of cross-attention); left out, both branches see ``x``.
        """
        if self.cached_projection is not None:
            return self.cached_projection
        if self.fused_weight is not None:
            return F.linear(x, self.fused_weight, self.base.bias)
        y: Tensor = self.base(x)
        if self.mode != "both":
            branch, own = (self.content, x_content) if self.mode == "content" else (self.style, x_style)
            return y + F.linear(
                F.linear(x if own is None else own, branch.down), branch.up * branch.gate[:, None]
            )

        content_up = self.content.up * (self.content.merge * self.content.gate)[:, None]
        style_up = self.style.up * (self.style.merge * self.style.gate)[:, None]
        if x_content is None and x_style is None:
            down = torch.cat([self.content.down, self.style.down])  # [2 rank, in]
            up = torch.cat([content_up, style_up], dim=1)  # [out, 2 rank]
            return y + F.linear(F.linear(x, down), up)
        y = y + F.linear(F.linear(x if x_content is None else x_content, self.content.down), content_up)
        return y + F.linear(F.linear(x if x_style is None else x_style, self.style.down), style_up)
