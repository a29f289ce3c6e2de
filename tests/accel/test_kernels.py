"""The Triton kernels against torch in float64. TRITON_INTERPRET=1 runs them without a GPU, slowly."""

import os

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

pytest.importorskip("triton")

from unziplora_cli.accel.kernels.geglu import geglu
from unziplora_cli.accel.kernels.group_norm import group_norm

pytestmark = pytest.mark.gpu

DEVICE = "cpu" if os.environ.get("TRITON_INTERPRET") == "1" else "cuda"
TOLERANCE = {torch.float32: 1e-5, torch.float16: 1e-3, torch.bfloat16: 8e-3}
"""Relative to the largest value; the interpreter truncates bfloat16, a GPU rounds it."""


def random(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(DEVICE, dtype)


def check(actual: Tensor, expected: Tensor, tolerance: float) -> None:
    assert (actual.double() - expected).abs().max() <= tolerance * expected.abs().max()


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("shape", [(1, 37, 600), (2, 5, 14), (3, 64, 512)])
def test_geglu_equals_torch(shape: tuple[int, int, int], dtype: torch.dtype) -> None:
    batch, pixels, width = shape
    hidden = (3 * random(*shape, dtype=dtype)).requires_grad_()
    grad_out = random(batch, pixels, width // 2, dtype=dtype, seed=1)
    out = geglu(hidden)
    out.backward(grad_out)

    exact = hidden.detach().double().requires_grad_()
    value, gate = exact.chunk(2, dim=-1)
    expected = value * F.gelu(gate)
    expected.backward(grad_out.double())
    assert out.dtype == hidden.grad.dtype == dtype
    check(out, expected, TOLERANCE[dtype])
    check(hidden.grad, exact.grad, TOLERANCE[dtype])


def test_geglu_accepts_a_view() -> None:
    hidden = random(2, 14, 5).transpose(1, 2)
    assert torch.equal(geglu(hidden), geglu(hidden.contiguous()))


def compare_norms(x: Tensor, groups: int, silu: bool, tolerance: float) -> None:
    """Forward and backward of group_norm on ``x`` against torch's in float64."""
    x.requires_grad_()
    weight, bias = (random(x.shape[1], dtype=x.dtype, seed=seed) for seed in (1, 2))
    grad_out = random(*x.shape, dtype=x.dtype, seed=3)
    out = group_norm(x, groups, weight, bias, 1e-5, silu=silu)
    out.backward(grad_out)

    exact = x.detach().double().requires_grad_()
    expected = F.group_norm(exact, groups, weight.double(), bias.double(), 1e-5)
    expected = F.silu(expected) if silu else expected
    expected.backward(grad_out.double())
    assert out.dtype == x.dtype
    assert out.is_contiguous(memory_format=torch.channels_last)
    check(out, expected, tolerance)
    check(x.grad, exact.grad, tolerance)


@pytest.mark.parametrize("silu", [False, True])
@pytest.mark.parametrize(
    ("shape", "groups"),
    [
        ((2, 30, 7, 9), 3),  # fewer pixels than a tile, ten channels in a group
        ((1, 320, 16, 24), 32),
        ((2, 70, 20, 33), 7),  # a last tile of 20 pixels, a last block of 6 channels
        ((1, 12, 136, 137), 3),  # chunks of three tiles, the last one shorter
    ],
)
def test_group_norm_equals_torch(shape: tuple[int, ...], groups: int, silu: bool) -> None:
    for dtype, tolerance in TOLERANCE.items():
        x = random(*shape, dtype=dtype).contiguous(memory_format=torch.channels_last)
        compare_norms(x, groups, silu, tolerance)


@pytest.mark.parametrize("silu", [False, True])
def test_other_memory_layouts_are_accepted(silu: bool) -> None:
    compare_norms(random(2, 32, 12, 12), 4, silu, TOLERANCE[torch.float32])


@pytest.mark.parametrize(("mean", "tolerance"), [(100.0, 3e-5), (10_000.0, 3e-3)])
def test_a_large_mean_costs_no_precision(mean: float, tolerance: float) -> None:
    """float32 itself limits x; a variance from the difference of squares would keep no digit at 10,000."""
    x = (random(2, 24, 40, 40) + mean).contiguous(memory_format=torch.channels_last)
    compare_norms(x, 4, False, tolerance)


def test_equal_inputs_give_equal_bits() -> None:
    x = random(1, 64, 96, 96, dtype=torch.bfloat16)
    weight, bias = random(64), random(64, seed=1)
    first, second = (group_norm(x, 32, weight, bias, 1e-5, silu=True) for _ in range(2))
    assert torch.equal(first, second)


def test_trainable_weights_raise() -> None:
    weight, bias = random(8).requires_grad_(), random(8)
    with pytest.raises(ValueError, match="freeze"):
        group_norm(random(1, 8, 2, 2), 4, weight, bias, 1e-5, silu=False)
    with torch.no_grad():
        group_norm(random(1, 8, 2, 2), 4, weight, bias, 1e-5, silu=False)


@pytest.mark.skipif(DEVICE == "cpu", reason="needs a GPU")
def test_kernels_can_be_captured_in_a_graph() -> None:
    hidden = random(1, 64, 512, dtype=torch.bfloat16).requires_grad_()
    x = random(1, 64, 16, 16, dtype=torch.bfloat16).requires_grad_()
    weight, bias = random(64), random(64, seed=1)

    def gradients() -> tuple[Tensor, ...]:
        loss = geglu(hidden).sum() + group_norm(x, 32, weight, bias, 1e-5, silu=True).square().sum()
        return torch.autograd.grad(loss, (hidden, x))

    expected = gradients()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = gradients()
    graph.replay()
    assert all(torch.equal(a, b) for a, b in zip(captured, expected, strict=True))
