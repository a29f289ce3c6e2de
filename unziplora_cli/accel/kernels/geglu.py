"""The gated linear unit of SDXL's feed-forward layers as one kernel each for forward and backward, in Triton.

torch needs four (chunk, gelu, product and, backward, a concatenation), each of which reads and writes a whole
activation.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable

ROWS, COLUMNS = tl.constexpr(8), tl.constexpr(256)
"""The tile of one program: a warp reads 16 bytes per lane of one bfloat16 row."""

WARPS = 4


def geglu(hidden: Tensor) -> Tensor:
    """``value * gelu(gate)`` with the exact gelu; ``hidden`` [..., 2n] = [value, gate] -> [..., n]."""
    return GEGLU.apply(hidden)


class GEGLU(torch.autograd.Function):
    """With the normal distribution ``P`` and its density ``p``: ``y = v g P(g)``, ``dv = dy g P(g)``,
    ``dg = dy v (P(g) + g p(g))``. Saves only its input.
    """

    @staticmethod
    def forward(ctx: Any, hidden: Tensor) -> Tensor:
        hidden = hidden.contiguous()
        ctx.save_for_backward(hidden)
        width = hidden.shape[-1] // 2
        out = hidden.new_empty(*hidden.shape[:-1], width)
        rows = out.numel() // width
        with torch.cuda.device_of(hidden):
            _forward[_grid(rows, width)](hidden, out, rows, width, num_warps=WARPS)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_out: Tensor) -> Tensor:
        (hidden,) = ctx.saved_tensors
        grad_out = grad_out.contiguous()
        grad = torch.empty_like(hidden)
        width = hidden.shape[-1] // 2
        rows = grad_out.numel() // width
        with torch.cuda.device_of(hidden):
            _backward[_grid(rows, width)](hidden, grad_out, grad, rows, width, num_warps=WARPS)
        return grad


def _grid(rows: int, width: int) -> tuple[int, int]:
    return triton.cdiv(rows, ROWS.value), triton.cdiv(width, COLUMNS.value)


@triton.jit
def _normal(gate):
    """The normal distribution function at ``gate``."""
    return 0.5 * (1.0 + tl.math.erf(gate * 0.7071067811865476))


@triton.jit
def _tile(rows, width):
    """Row (64 bits), column and mask of this program's tile [ROWS, COLUMNS] of the output."""
    row = (tl.program_id(0) * ROWS + tl.arange(0, ROWS)).to(tl.int64)[:, None]
    column = (tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS))[None, :]
    return row, column, (row < rows) & (column < width)


@triton.jit
def _forward(hidden, out, rows, width):
    """``hidden`` [rows, 2 width] -> ``out`` [rows, width]."""
    row, column, inside = _tile(rows, width)
    at = hidden + row * (2 * width) + column
    value = tl.load(at, mask=inside).to(tl.float32)
    gate = tl.load(at + width, mask=inside).to(tl.float32)
    tl.store(out + row * width + column, value * gate * _normal(gate), mask=inside)


@triton.jit
def _backward(hidden, grad_out, grad, rows, width):
    """``grad_out`` [rows, width] -> ``grad`` [rows, 2 width]."""
    row, column, inside = _tile(rows, width)
    at = row * (2 * width) + column
    value = tl.load(hidden + at, mask=inside).to(tl.float32)
    gate = tl.load(hidden + at + width, mask=inside).to(tl.float32)
    dy = tl.load(grad_out + row * width + column, mask=inside).to(tl.float32)
    p = _normal(gate)
    density = 0.3989422804014327 * tl.exp(-0.5 * gate * gate)
    tl.store(grad + at, dy * gate * p, mask=inside)
    tl.store(grad + at + width, dy * value * (p + gate * density), mask=inside)
