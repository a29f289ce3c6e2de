"""Column importance and the choice of columns (paper, section 3.3)."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from unziplora_cli.method.blocks import Policy
from unziplora_cli.method.layer import Branch, DualLoRALinear

ImportanceScore = Literal["count", "magnitude"]


@torch.no_grad()
def column_scores(
    branch: Branch, score: ImportanceScore, *, threshold: float = 1e-5, loss_scale: float = 1.0
) -> Tensor:
    """How much each output column of ``branch`` matters, from the gradients of one backward pass.

    With W = A^T B^T and its first-order change dW = (dA^T B^T + A^T dB^T) * merge, both [in, out]:

    - ``count``: the share of rows i with ``|W * dW|[i, j] > threshold``, as in the reference implementation.
      Its fp16 gradients still carry the factor of loss scaling at that moment; ``loss_scale`` states it;
    - ``magnitude``: the mean of ``|W * dW|[i, j]`` over the rows, free of threshold and scale.

    What is no finite number counts nothing. Returns [out]. The two [in, out] matrices live only inside this
    call.
    """
    down, up = branch.down, branch.up
    if down.grad is None or up.grad is None:
        raise RuntimeError("column_scores needs the gradients of a backward pass")
    weight = down.T @ up.T  # [in, out]
    change = (down.grad.T @ up.T + down.T @ up.grad.T) * branch.merge
    saliency = (weight * change).abs_().nan_to_num_(nan=0.0, posinf=0.0)
    if score == "magnitude":
        return saliency.mean(dim=0)
    return (saliency > threshold / loss_scale).sum(dim=0) / down.shape[1]


def top_columns(scores: Tensor, ratio: float, *, strict: bool) -> Tensor:
    """The best ``int(out * ratio)`` columns of ``scores`` [out], as a boolean mask [out].

    ``strict`` keeps only what lies above the last of them, as the reference does: at most n - 1 columns,
    fewer where scores tie. Columns scored -inf are never chosen.
    """
    n = int(scores.shape[0] * ratio)
    if n == 0:
        return torch.zeros_like(scores, dtype=torch.bool)
    best, columns = torch.topk(scores, n)
    if strict:
        return scores > best[-1]
    chosen = torch.zeros_like(scores, dtype=torch.bool)
    chosen[columns] = True
    return chosen & (scores > -torch.inf)


def choose_columns(
    layer: DualLoRALinear, policy: Policy, ratio: float, *, avoid_overlap: bool = True, strict: bool = True
) -> None:
    """Add each branch's best columns to its mask, from the scores held by the layer.

    Masks only grow. Under policy ``both`` style keeps off every column that content holds
    (``avoid_overlap``); content never gives way. Under ``content`` or ``style`` only that branch chooses, the
    other takes all columns.
    """
    content, style = layer.branches()
    if policy == "style":
        content.mask.fill_(True)
        style.mask |= top_columns(style.score, ratio, strict=strict)
        return
    content.mask |= top_columns(content.score, ratio, strict=strict)
    if policy == "content":
        style.mask.fill_(True)
        return
    style_scores = style.score.masked_fill(content.mask, -torch.inf) if avoid_overlap else style.score
    style.mask |= top_columns(style_scores, ratio, strict=strict)
