"""The two terms of the training loss (paper, equation 5)."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from unziplora_cli.method.layer import AdaptedLayer


def denoising_loss(prediction: Tensor, target: Tensor, weight: Tensor | None = None) -> Tensor:
    """Mean squared error between predicted and true noise, in at least float32.

    Both are [batch, channels, height, width]; ``weight`` [batch] scales the mean of each image.
    """
    dtype = torch.promote_types(prediction.dtype, torch.float32)
    squared = (prediction.to(dtype) - target.to(dtype)).square()
    if weight is None:
        return squared.mean()
    return (squared.flatten(1).mean(dim=1) * weight).mean()


def min_snr_weight(alphas_cumprod: Tensor, timesteps: Tensor, gamma: float) -> Tensor:
    """min(SNR, gamma) / SNR for noise prediction (Hang et al., arXiv 2303.09556). Returns [batch]."""
    signal = alphas_cumprod[timesteps]
    snr = signal / (1.0 - signal)
    return snr.clamp(max=gamma) / snr


def min_snr_velocity_weight(alphas_cumprod: Tensor, timesteps: Tensor, gamma: float) -> Tensor:
    """min(SNR, gamma) / (SNR + 1) for velocity prediction (same paper), [batch]; finite at SNR 0."""
    signal = alphas_cumprod[timesteps]
    return torch.minimum(signal, gamma * (1.0 - signal))


def overlap_penalty(layers: Iterable[AdaptedLayer], trainings: int | None = None) -> Tensor:
    """How much content and style share columns: the mean of |merge_c * gate_c * merge_s * gate_s|, a scalar.

    The mean runs over all columns of a layer, shared or not, then over the layers, which all weigh the same.
    Only merge weights receive a gradient. If the leading dimension of the layers is that of ``trainings``:
    the penalty of each, [trainings].
    """
    shape = (-1,) if trainings is None else (trainings, -1)
    pairs = [layer.branches() for layer in layers]
    content, style = (
        torch.cat([pair[i].merge.view(shape) for pair in pairs], dim=-1)
        * torch.cat([pair[i].gate.view(shape) for pair in pairs], dim=-1)
        for i in range(2)
    )  # [all columns of all layers]
    share = torch.cat(
        [c.merge.new_full((c.merge.view(shape).shape[-1],), 1.0 / c.merge.shape[-1]) for c, _ in pairs]
    )
    count = sum(c.merge[..., 0].numel() for c, _ in pairs) // (trainings or 1)
    return ((content * style).abs() * share).sum(dim=-1) / count
