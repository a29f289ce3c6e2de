"""The frozen base in eight bits per weight, for GPUs with little memory."""

from __future__ import annotations

import torch
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


class Int8Linear(_Int8Weight, nn.Linear):  # type: ignore[override]
    """A frozen linear layer with one byte per weight."""


class Int8Conv2d(_Int8Weight, nn.Conv2d):  # type: ignore[override]
    """A frozen convolution with one byte per weight."""


def quantize_layer(layer: nn.Linear | nn.Conv2d) -> None:
    """Round the weights [out, ...] of ``layer`` to the nearest level; it becomes an int8 layer."""
    weight = layer.weight.detach()
    largest = weight.float().abs().flatten(1).amax(dim=1).clamp(min=torch.finfo(torch.float32).tiny)
    scale = (largest / 127.0).view(-1, *[1] * (weight.ndim - 1))
    del layer.weight
    layer.register_buffer("levels", (weight.float() / scale).round_().to(torch.int8))
    layer.register_buffer("scale", scale.to(weight.dtype))
    layer.__class__ = Int8Linear if isinstance(layer, nn.Linear) else Int8Conv2d


def quantize(network: nn.Module, device: torch.device) -> None:
    """Quantize every large linear layer and convolution of ``network`` to int8, and move it to ``device``.

    Layers are moved one by one, so that ``device`` never holds the original weights.
    """
    for module in network.modules():
        if isinstance(module, nn.Linear | nn.Conv2d) and module.weight.numel() >= MIN_WEIGHTS:
            quantize_layer(module.to(device))
    network.to(device)
