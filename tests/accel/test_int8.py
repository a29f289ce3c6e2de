"""int8 weights against the weights that they replace."""

import pytest
import torch
from torch import nn

from unziplora_cli.accel.int8 import MIN_WEIGHTS, Int8Conv2d, Int8Linear, quantize, quantize_layer


def example(kind: str) -> tuple[nn.Linear | nn.Conv2d, torch.Tensor]:
    torch.manual_seed(0)
    if kind == "linear":
        return nn.Linear(400, 300), torch.randn(5, 400)
    return nn.Conv2d(128, 128, 3, stride=2, padding=1), torch.randn(2, 128, 9, 9)


@pytest.mark.parametrize("kind", ["linear", "convolution"])
def test_the_error_of_a_weight_is_at_most_half_a_level(kind: str) -> None:
    layer, x = example(kind)
    expected, weight = layer(x), layer.weight.detach()
    quantize_layer(layer)
    assert isinstance(layer, Int8Linear | Int8Conv2d)
    level = weight.abs().flatten(1).amax(dim=1).view(-1, *[1] * (weight.ndim - 1)) / 127
    assert ((layer.weight - weight).abs() <= 0.5001 * level).all()
    assert layer.levels.dtype == torch.int8
    assert (layer(x) - expected).norm() < 0.01 * expected.norm()


def test_gradients_of_the_input_use_the_rounded_weights() -> None:
    layer, x = example("linear")
    quantize_layer(layer)
    x.requires_grad_()
    (grad,) = torch.autograd.grad(layer(x).sum(), x)
    torch.testing.assert_close(grad, layer.weight.sum(dim=0).expand_as(x))


def test_a_channel_of_zeros_stays_zero() -> None:
    layer, _ = example("linear")
    layer.weight.data[3] = 0.0
    quantize_layer(layer)
    assert not layer.weight[3].any()


def test_only_large_layers_are_quantized() -> None:
    network = nn.Sequential(nn.Linear(400, 300), nn.SiLU(), nn.Linear(300, 10))
    assert 400 * 300 >= MIN_WEIGHTS > 300 * 10
    state = network[2].weight.clone()
    quantize(network, torch.device("cpu"))
    assert isinstance(network[0], Int8Linear)
    assert type(network[2]) is nn.Linear
    assert torch.equal(network[2].weight, state)
    stored = sum(t.nbytes for t in network[0].state_dict().values())
    assert stored == 400 * 300 + 300 * 4 + 300 * 4  # levels, scales, biases
