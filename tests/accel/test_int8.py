"""Weights in eight bits against the weights they stand for."""

import pytest
import torch
from torch import nn

from unziplora_cli.accel.int8 import MIN_WEIGHTS, Int8Conv2d, Int8Linear, quantize


def example(kind: str) -> tuple[nn.Module, torch.Tensor]:
    torch.manual_seed(0)
    if kind == "linear":
        return nn.Linear(400, 300), torch.randn(5, 400)
    return nn.Conv2d(128, 128, 3, stride=2, padding=1), torch.randn(2, 128, 9, 9)


@pytest.mark.parametrize("kind", ["linear", "convolution"])
def test_a_weight_is_off_by_half_a_level_at_most(kind: str) -> None:
    layer, x = example(kind)
    wanted = layer(x)
    eight = Int8Linear(layer) if isinstance(layer, nn.Linear) else Int8Conv2d(layer)
    weight = layer.weight.detach()
    level = weight.abs().flatten(1).amax(dim=1).view(-1, *[1] * (weight.ndim - 1)) / 127
    assert ((eight.weight - weight).abs() <= 0.5001 * level).all()
    assert eight.levels.dtype == torch.int8
    assert (eight(x) - wanted).norm() < 0.01 * wanted.norm()


def test_gradients_reach_the_input_through_the_rounded_weights() -> None:
    layer, x = example("linear")
    eight = Int8Linear(layer)
    x.requires_grad_()
    (grad,) = torch.autograd.grad(eight(x).sum(), x)
    torch.testing.assert_close(grad, eight.weight.sum(dim=0).expand_as(x))


def test_a_channel_of_zeros_stays_zero() -> None:
    layer, _ = example("linear")
    layer.weight.data[3] = 0.0
    assert not Int8Linear(layer).weight[3].any()


def test_large_layers_alone_are_quantised_to_a_byte_each() -> None:
    network = nn.Sequential(nn.Linear(400, 300), nn.SiLU(), nn.Linear(300, 10))
    assert 400 * 300 >= MIN_WEIGHTS > 300 * 10
    state = network[2].weight.clone()
    quantize(network, torch.device("cpu"))
    assert isinstance(network[0], Int8Linear)
    assert type(network[2]) is nn.Linear
    assert torch.equal(network[2].weight, state)
    stored = sum(t.nbytes for t in network[0].state_dict().values())
    assert stored == 400 * 300 + 300 * 4 + 300 * 4  # levels, scales, biases
