"""The frozen base in eight bits per weight, for GPUs with little memory."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

MIN_WEIGHTS = 100_000
"""Smaller layers are not quantized: it would save next to nothing."""


class _Int8Weight:
    """Integer weights from -127 to 127 times one scale per output channel.

    ``weight`` is computed at every use. Autograd keeps that copy, so memory is saved only if activations are
    recomputed or without gradients.
    """

    levels: Tensor
    scale: Tensor

    @property
    def weight(self) -> Tensor:
        """The dequantized weights, in their original dtype and shape."""
        return self.levels * self.scale

    def quantize(self, weight: Tensor) -> None:
        """Store ``weight`` [out, ...] rounded to the nearest level."""
        largest = weight.float().abs().flatten(1).amax(dim=1).clamp(min=torch.finfo(torch.float32).tiny)
        scale = (largest / 127.0).view(-1, *[1] * (weight.ndim - 1))
        levels = (weight.float() / scale).round_().to(torch.int8)
        self.register_buffer("levels", levels)  # type: ignore[attr-defined]
        self.register_buffer("scale", scale.to(weight.dtype))  # type: ignore[attr-defined]


class Int8Linear(_Int8Weight, nn.Linear):  # type: ignore[override]
    """A frozen linear layer with one byte per weight."""

    def __init__(self, linear: nn.Linear) -> None:
        nn.Module.__init__(self)
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.bias = linear.bias
        self.quantize(linear.weight.detach())

    def forward(self, input: Tensor) -> Tensor:
        return F.linear(input, self.weight, self.bias)


class Int8Conv2d(_Int8Weight, nn.Module):
    """A frozen convolution with one byte per weight."""

    def __init__(self, convolution: nn.Conv2d) -> None:
        super().__init__()
        self.stride, self.padding = convolution.stride, convolution.padding
        self.dilation, self.groups = convolution.dilation, convolution.groups
        self.bias = convolution.bias
        self.quantize(convolution.weight.detach())

    def forward(self, input: Tensor) -> Tensor:
        return F.conv2d(input, self.weight, self.bias, self.stride, self.padding, self.dilation, self.groups)


def quantize(network: nn.Module, device: torch.device) -> None:
    """Quantize every large linear layer and convolution of ``network`` to int8, and move it to ``device``.

    Layers are moved one by one, so that ``device`` never holds the original weights.
    """
    for name in [name for name, _ in network.named_modules()]:
        module = network.get_submodule(name)
        if not isinstance(module, nn.Linear | nn.Conv2d) or module.weight.numel() < MIN_WEIGHTS:
            continue
        module.to(device)
        network.set_submodule(
            name, Int8Linear(module) if isinstance(module, nn.Linear) else Int8Conv2d(module)
        )
    network.to(device)
