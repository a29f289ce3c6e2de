"""Group normalization of channels_last activations, optionally followed by SiLU, in Triton.

Sums over chunks of pixels, then over the chunks of a group, then the result: two reads of ``x`` and one
write. torch's own kernels need channels_first and run SiLU as another pass. The order of summation is fixed,
so that equal inputs give equal bits.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable

PIXELS, CHANNELS = tl.constexpr(128), tl.constexpr(64)
"""The tile of one program: 128 contiguous bytes of each pixel in bfloat16."""

WARPS = 8

MAX_CHUNKS = 64
"""Largest number of chunks whose sums one program adds up."""


def group_norm(x: Tensor, groups: int, weight: Tensor, bias: Tensor, eps: float, *, silu: bool) -> Tensor:
    """``f((x - mean) / sqrt(var + eps) * weight + bias)``, f = SiLU or identity, mean and var per group.

    ``x`` [batch, channels, height, width] -> the same shape and dtype, in channels_last; an ``x`` in another
    layout is copied first. Raises ValueError if ``weight`` or ``bias`` [channels] require gradients.
    """
    if torch.is_grad_enabled() and (weight.requires_grad or bias.requires_grad):
        raise ValueError("this group_norm has no gradient for weight and bias: freeze them")
    return GroupNorm.apply(x, groups, weight, bias, eps, silu)


class GroupNorm(torch.autograd.Function):
    """With ``n = (x - mean) * rstd``, ``z = n * weight + bias`` and ``dn = dz * weight``:
    ``dx = rstd * (dn - mean(dn) - n * mean(dn * n))``, each mean over a group.

    Saves x, and in float32 the groups' mean and rstd [batch, groups].
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, groups: int, weight: Tensor, bias: Tensor, eps: float, silu: bool
    ) -> Tensor:
        x = x.contiguous(memory_format=torch.channels_last)
        batch, channels, pixels, chunk, chunks = _chunks(x)
        mean, rstd = (x.new_empty(batch, groups, dtype=torch.float32) for _ in range(2))
        part_mean, part_m2 = (x.new_empty(batch, chunks, channels, dtype=torch.float32) for _ in range(2))
        out = torch.empty_like(x)
        size = channels // groups
        with torch.cuda.device_of(x):
            _moments[_grid(batch, channels, chunks)](
                x, part_mean, part_m2, pixels, channels, chunk, num_warps=WARPS
            )
            _combine_moments[(groups, batch)](
                part_mean, part_m2, mean, rstd, pixels, channels, chunk, chunks, size, eps,
                MOST_CHUNKS=triton.next_power_of_2(chunks), MOST_CHANNELS=triton.next_power_of_2(size),
            )  # fmt: skip
            _normalise[_grid(batch, channels, triton.cdiv(pixels, PIXELS.value))](
                x, weight, bias, mean, rstd, out, pixels, channels, size, SILU=silu, num_warps=WARPS
            )
        ctx.save_for_backward(x, weight, bias, mean, rstd)
        ctx.silu = silu
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_out: Tensor) -> tuple[Tensor, None, None, None, None, None]:
        x, weight, bias, mean, rstd = ctx.saved_tensors
        silu = ctx.silu
        grad_out = grad_out.contiguous(memory_format=torch.channels_last)
        batch, channels, pixels, chunk, chunks = _chunks(x)
        groups = mean.shape[1]
        mean_dn, mean_dn_n = torch.empty_like(mean), torch.empty_like(mean)
        part_dn, part_dn_n = (x.new_empty(batch, chunks, channels, dtype=torch.float32) for _ in range(2))
        grad = torch.empty_like(x)
        size = channels // groups
        with torch.cuda.device_of(x):
            _sum_gradients[_grid(batch, channels, chunks)](
                x, grad_out, weight, bias, mean, rstd, part_dn, part_dn_n, pixels, channels, chunk, size,
                SILU=silu, num_warps=WARPS,
            )  # fmt: skip
            _combine_gradients[(groups, batch)](
                part_dn, part_dn_n, mean_dn, mean_dn_n, pixels, channels, chunks, size,
                MOST_CHUNKS=triton.next_power_of_2(chunks), MOST_CHANNELS=triton.next_power_of_2(size),
            )  # fmt: skip
            _normalise_backward[_grid(batch, channels, triton.cdiv(pixels, PIXELS.value))](
                x, grad_out, weight, bias, mean, rstd, mean_dn, mean_dn_n, grad, pixels, channels, size,
                SILU=silu, num_warps=WARPS,
            )  # fmt: skip
        return grad, None, None, None, None, None


def _grid(batch: int, channels: int, pieces: int) -> tuple[int, int, int]:
    return pieces, triton.cdiv(channels, CHANNELS.value), batch


def _chunks(x: Tensor) -> tuple[int, int, int, int, int]:
    """Batch, channels, pixels, pixels per chunk (the last may have fewer), chunks."""
    batch, channels, height, width = x.shape
    pixels = height * width
    tiles = triton.cdiv(pixels, PIXELS.value)
    chunk = PIXELS.value * triton.cdiv(tiles, MAX_CHUNKS)
    return batch, channels, pixels, chunk, triton.cdiv(pixels, chunk)


@triton.jit
def _moments(x, part_mean, part_m2, pixels, channels, chunk):
    """Mean and sum of squared deviations of each channel in one chunk: [batch, chunks, channels].

    Each tile is centred on its own mean before it is squared, and tiles are combined by Chan's formula: no
    digits are lost if the mean is much larger than the deviation.
    """
    channel = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
    image = tl.program_id(2).to(tl.int64)
    first = tl.program_id(0) * chunk
    last = tl.minimum(first + chunk, pixels)
    mean = tl.zeros((CHANNELS,), tl.float32)
    m2 = tl.zeros((CHANNELS,), tl.float32)
    for start in range(first, last, PIXELS):
        pixel = start + tl.arange(0, PIXELS)
        inside = (pixel < last)[:, None] & (channel < channels)[None, :]
        at = (image * pixels + pixel)[:, None] * channels + channel[None, :]
        tile = tl.load(x + at, mask=inside, other=0.0).to(tl.float32)
        count = (start - first).to(tl.float32)
        new = tl.minimum(last - start, PIXELS).to(tl.float32)
        tile_mean = tl.sum(tile, axis=0) / new
        centred = tl.where(inside, tile - tile_mean[None, :], 0.0)
        delta = tile_mean - mean
        m2 += tl.sum(centred * centred, axis=0) + delta * delta * (count * new / (count + new))
        mean += delta * (new / (count + new))
    at = (image * tl.num_programs(0) + tl.program_id(0)) * channels + channel
    tl.store(part_mean + at, mean, mask=channel < channels)
    tl.store(part_m2 + at, m2, mask=channel < channels)


@triton.jit
def _parts_of_group(channels, chunks, size, MOST_CHUNKS: tl.constexpr, MOST_CHANNELS: tl.constexpr):
    """Offset and mask [MOST_CHUNKS, MOST_CHANNELS] of one group's channels in partial sums."""
    piece = tl.arange(0, MOST_CHUNKS)[:, None]
    channel = tl.arange(0, MOST_CHANNELS)[None, :]
    at = (tl.program_id(1) * chunks + piece) * channels + tl.program_id(0) * size + channel
    return at, (piece < chunks) & (channel < size)


@triton.jit
def _combine_moments(
    part_mean, part_m2, mean, rstd, pixels, channels, chunk, chunks, size, eps,
    MOST_CHUNKS: tl.constexpr, MOST_CHANNELS: tl.constexpr,
):  # fmt: skip
    """The moments of all chunks and channels of one group -> ``mean`` and ``rstd`` [batch, groups]."""
    at, inside = _parts_of_group(channels, chunks, size, MOST_CHUNKS, MOST_CHANNELS)
    means = tl.load(part_mean + at, mask=inside, other=0.0)
    m2 = tl.load(part_m2 + at, mask=inside, other=0.0)
    piece = tl.arange(0, MOST_CHUNKS)[:, None]
    count = tl.where(inside, tl.minimum(pixels - piece * chunk, chunk).to(tl.float32), 0.0)
    total = (pixels * size).to(tl.float32)
    average = tl.sum(means * count) / total
    delta = means - average
    variance = tl.sum(m2 + count * delta * delta) / total
    group = tl.program_id(1) * tl.num_programs(0) + tl.program_id(0)
    tl.store(mean + group, average)
    tl.store(rstd + group, 1.0 / tl.sqrt(variance + eps))


@triton.jit
def _channel_constants(weight, bias, mean, rstd, channels, size):
    """Channel index, and weight, bias, mean and rstd [CHANNELS] of this program's channels, in float32."""
    channel = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
    inside = channel < channels
    group = tl.program_id(2) * (channels // size) + channel // size
    return (
        channel,
        tl.load(weight + channel, mask=inside, other=0.0).to(tl.float32),
        tl.load(bias + channel, mask=inside, other=0.0).to(tl.float32),
        tl.load(mean + group, mask=inside, other=0.0),
        tl.load(rstd + group, mask=inside, other=0.0),
    )


@triton.jit
def _normalise(x, weight, bias, mean, rstd, out, pixels, channels, size, SILU: tl.constexpr):
    """``x`` -> ``out``, both [batch, pixels, channels]."""
    channel, scale, shift, mu, inverse = _channel_constants(weight, bias, mean, rstd, channels, size)
    pixel = tl.program_id(0) * PIXELS + tl.arange(0, PIXELS)
    inside = (pixel < pixels)[:, None] & (channel < channels)[None, :]
    at = (tl.program_id(2).to(tl.int64) * pixels + pixel)[:, None] * channels + channel[None, :]
    tile = tl.load(x + at, mask=inside).to(tl.float32)
    z = (tile - mu[None, :]) * (inverse * scale)[None, :] + shift[None, :]
    if SILU:
        z = z / (1.0 + tl.exp(-z))
    tl.store(out + at, z, mask=inside)


@triton.jit
def _gradient_of_normalised(x, grad_out, at, inside, scale, shift, mu, inverse, SILU: tl.constexpr):
    """``n`` and ``dn`` of one tile, zero outside."""
    tile = tl.load(x + at, mask=inside, other=0.0).to(tl.float32)
    dz = tl.load(grad_out + at, mask=inside, other=0.0).to(tl.float32)
    n = (tile - mu[None, :]) * inverse[None, :]
    if SILU:
        z = n * scale[None, :] + shift[None, :]
        sigmoid = 1.0 / (1.0 + tl.exp(-z))
        dz *= sigmoid * (1.0 + z * (1.0 - sigmoid))
    return n, dz * scale[None, :]


@triton.jit
def _sum_gradients(
    x, grad_out, weight, bias, mean, rstd, part_dn, part_dn_n, pixels, channels, chunk, size,
    SILU: tl.constexpr,
):  # fmt: skip
    """Sums of ``dn`` and ``dn * n`` of each channel over one chunk: [batch, chunks, channels]."""
    channel, scale, shift, mu, inverse = _channel_constants(weight, bias, mean, rstd, channels, size)
    image = tl.program_id(2).to(tl.int64)
    first = tl.program_id(0) * chunk
    last = tl.minimum(first + chunk, pixels)
    sum_dn = tl.zeros((CHANNELS,), tl.float32)
    sum_dn_n = tl.zeros((CHANNELS,), tl.float32)
    for start in range(first, last, PIXELS):
        pixel = start + tl.arange(0, PIXELS)
        inside = (pixel < last)[:, None] & (channel < channels)[None, :]
        at = (image * pixels + pixel)[:, None] * channels + channel[None, :]
        n, dn = _gradient_of_normalised(x, grad_out, at, inside, scale, shift, mu, inverse, SILU)
        sum_dn += tl.sum(dn, axis=0)
        sum_dn_n += tl.sum(dn * n, axis=0)
    at = (image * tl.num_programs(0) + tl.program_id(0)) * channels + channel
    tl.store(part_dn + at, sum_dn, mask=channel < channels)
    tl.store(part_dn_n + at, sum_dn_n, mask=channel < channels)


@triton.jit
def _combine_gradients(
    part_dn, part_dn_n, mean_dn, mean_dn_n, pixels, channels, chunks, size,
    MOST_CHUNKS: tl.constexpr, MOST_CHANNELS: tl.constexpr,
):  # fmt: skip
    """The sums of all chunks and channels of one group -> means over the group [batch, groups]."""
    at, inside = _parts_of_group(channels, chunks, size, MOST_CHUNKS, MOST_CHANNELS)
    total = (pixels * size).to(tl.float32)
    group = tl.program_id(1) * tl.num_programs(0) + tl.program_id(0)
    tl.store(mean_dn + group, tl.sum(tl.load(part_dn + at, mask=inside, other=0.0)) / total)
    tl.store(mean_dn_n + group, tl.sum(tl.load(part_dn_n + at, mask=inside, other=0.0)) / total)


@triton.jit
def _normalise_backward(
    x, grad_out, weight, bias, mean, rstd, mean_dn, mean_dn_n, grad, pixels, channels, size,
    SILU: tl.constexpr,
):  # fmt: skip
    """``grad_out`` -> ``grad``, both [batch, pixels, channels]."""
    channel, scale, shift, mu, inverse = _channel_constants(weight, bias, mean, rstd, channels, size)
    group = tl.program_id(2) * (channels // size) + channel // size
    m1 = tl.load(mean_dn + group, mask=channel < channels, other=0.0)
    m2 = tl.load(mean_dn_n + group, mask=channel < channels, other=0.0)
    pixel = tl.program_id(0) * PIXELS + tl.arange(0, PIXELS)
    inside = (pixel < pixels)[:, None] & (channel < channels)[None, :]
    at = (tl.program_id(2).to(tl.int64) * pixels + pixel)[:, None] * channels + channel[None, :]
    n, dn = _gradient_of_normalised(x, grad_out, at, inside, scale, shift, mu, inverse, SILU)
    tl.store(grad + at, inverse[None, :] * (dn - m1[None, :] - n * m2[None, :]), mask=inside)
