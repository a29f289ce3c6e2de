import pytest
import torch
from torch import nn

from unziplora_cli.method.layer import DualLoRALinear, Mode


def dense_output(
    layer: DualLoRALinear, x: torch.Tensor, x_content: torch.Tensor, x_style: torch.Tensor
) -> torch.Tensor:
    """Section 3 of the paper with the full in x out matrices."""
    c, s = layer.content, layer.style
    content, style = (c.up @ c.down).T, (s.up @ s.down).T
    return (
        x @ layer.base.weight.T
        + layer.base.bias
        + (x_content @ content) * c.merge * c.gate
        + (x_style @ style) * s.merge * s.gate
    )


@pytest.fixture
def layer() -> DualLoRALinear:
    torch.manual_seed(1)
    layer = DualLoRALinear(nn.Linear(12, 10), rank=3, generator=torch.Generator().manual_seed(0)).double()
    for branch in layer.branches():
        branch.merge.data.uniform_()
        branch.mask.copy_(torch.rand(10) > 0.5)
        branch.close()
    return layer


@pytest.mark.parametrize("separate", [True, False])
def test_both_branches_equal_the_dense_form(layer: DualLoRALinear, separate: bool) -> None:
    x, xc, xs = torch.randn(3, 2, 5, 12, dtype=torch.float64)
    if separate:
        torch.testing.assert_close(layer(x, xc, xs), dense_output(layer, x, xc, xs))
    else:
        torch.testing.assert_close(layer(x), dense_output(layer, x, x, x))


@pytest.mark.parametrize("mode", ["content", "style"])
def test_a_single_branch_has_no_merge_weight(layer: DualLoRALinear, mode: Mode) -> None:
    x, text = torch.randn(2, 4, 12, dtype=torch.float64)
    branch = layer.content if mode == "content" else layer.style
    layer.mode = mode
    expected = layer.base(x) + (text @ (branch.up @ branch.down).T) * branch.mask
    torch.testing.assert_close(layer(x, text, text), expected)


def test_closed_columns_receive_no_gradient(layer: DualLoRALinear) -> None:
    for branch in layer.branches():
        branch.merge.requires_grad_(True)
    layer(torch.randn(4, 12, dtype=torch.float64)).square().sum().backward()
    for branch in layer.branches():
        closed = ~branch.mask
        assert closed.any()
        assert branch.mask.any()
        assert not branch.up.grad[closed].any()
        assert not branch.merge.grad[closed].any()
        assert branch.up.grad[branch.mask].all()
        assert branch.merge.grad[branch.mask].all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
@pytest.mark.parametrize("mode", ["both", "content", "style"])
def test_forward_and_backward_in_every_dtype(mode: Mode, dtype: torch.dtype) -> None:
    """The branches stay in float32 next to a base in another dtype, as injected."""
    torch.manual_seed(0)
    layer = DualLoRALinear(nn.Linear(12, 10).to(dtype), rank=3)
    layer.mode = mode
    x = torch.randn(4, 12)
    y = layer(x.to(dtype))
    assert y.dtype == dtype
    y.float().sum().backward()
    branches = dict(zip(("content", "style"), layer.branches(), strict=True))
    active = [branch for name, branch in branches.items() if mode in ("both", name)]
    expected = nn.functional.linear(x, layer.base.weight.float(), layer.base.bias.float())
    expected += sum(x @ (branch.up @ branch.down).T for branch in active)
    tolerance = {torch.bfloat16: 5e-2, torch.float16: 5e-3}.get(dtype, 1e-5)
    torch.testing.assert_close(y.float(), expected.detach(), rtol=tolerance, atol=tolerance)
    for branch in branches.values():
        assert (branch.up.grad is not None) == any(branch is other for other in active)
        assert branch.up.dtype == torch.float32


def test_start_values_follow_the_paper() -> None:
    layer = DualLoRALinear(nn.Linear(400, 500), rank=8, generator=torch.Generator().manual_seed(0))
    for branch in layer.branches():
        for weight in (branch.down, branch.up):
            assert weight.std().item() == pytest.approx(1 / 8, rel=0.05)
            assert abs(weight.mean().item()) < 0.01
        assert (branch.merge == 1).all()


def test_no_in_by_out_matrix_is_kept_for_backward() -> None:
    """The largest tensor that autograd saves is far smaller than the 900 x 1000 of a dense update."""
    layer = DualLoRALinear(nn.Linear(900, 1000), rank=4)
    sizes: list[int] = []
    frozen = layer.base.weight

    def record(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.untyped_storage().data_ptr() != frozen.untyped_storage().data_ptr():
            sizes.append(tensor.numel())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(record, lambda t: t):
        layer(torch.randn(2, 900)).sum()
    assert sizes
    assert max(sizes) <= 2 * 4 * 1000
