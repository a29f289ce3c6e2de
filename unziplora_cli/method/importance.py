"""Column importance and column selection (paper, section 3.3)."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from unziplora_cli.method.blocks import Policy
from unziplora_cli.method.layer import Branch, DualLoRALinear

ImportanceScore = Literal["count", "magnitude"]


@torch.no_grad()
def column_scores(
    branch: Branch, score: ImportanceScore, *, threshold: float | Tensor = 1e-5, loss_scale: float = 1.0
) -> Tensor:
    """The importance of each output column of ``branch``, from the gradients of one backward pass.

    With W = A^T B^T and its first-order change dW = (dA^T B^T + A^T dB^T) * merge, both [in, out]:

    - ``count``: the share of rows i with ``|W * dW|[i, j] > threshold``, as in the reference implementation.
      Its fp16 gradients are still multiplied by the loss scale there; ``loss_scale`` is that factor;
    - ``magnitude``: the mean of ``|W * dW|[i, j]`` over the rows, which needs neither threshold nor scale.

    NaN and infinity count as 0. Returns [out], with the leading dimension of the branch, if any. The two [in,
    out] matrices exist only inside this call. Raises RuntimeError without gradients.
    """
    down, up = branch.down, branch.up
    if down.grad is None or up.grad is None:
        raise RuntimeError("column_scores needs the gradients of a backward pass")
    weight = down.mT @ up.mT  # [in, out]
    change = (down.grad.mT @ up.mT + down.mT @ up.grad.mT) * branch.merge[..., None, :]
    saliency = (weight * change).abs_().nan_to_num_(nan=0.0, posinf=0.0)
    if score == "magnitude":
        return saliency.mean(dim=-2)
    return (saliency > threshold / loss_scale).sum(dim=-2) / down.shape[-1]


def top_columns(scores: Tensor, ratio: float, *, strict: bool) -> Tensor:
    """The n = ``int(out * ratio)`` best columns of ``scores`` [out], as a boolean mask [out].

    ``strict`` keeps only scores above the n-th, as the reference does: at most n - 1 columns, fewer if scores
    tie. Columns with score -inf are never selected.
    """
    n = int(scores.shape[0] * ratio)
    if n == 0:
        return torch.zeros_like(scores, dtype=torch.bool)
    best, columns = torch.topk(scores, n)
    if strict:
        return scores > best[-1]
    selected = torch.zeros_like(scores, dtype=torch.bool)
    selected[columns] = True
    return selected & (scores > -torch.inf)


def select_columns(
    layer: DualLoRALinear, policy: Policy, ratio: float, *, avoid_overlap: bool = True, strict: bool = True
) -> None:
    """Add each branch's best columns to its mask, by the scores stored in the layer.

    Masks only grow. Under policy ``both``, style avoids every column in content's mask (``avoid_overlap``);
    content never avoids style's. Under ``content`` or ``style`` only that branch selects; the other takes all
    columns.
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
