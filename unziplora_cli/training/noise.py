"""Everything random in a training: a pure function of the seed and of where in the training it is used.

A run that is stopped and resumed, or replayed on another device, draws the same numbers; no generator's state
has to be kept.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import torch
from torch import Tensor

PICTURE, CONTENT_PRIOR_STREAM, STYLE_PRIOR_STREAM, ECHO = 0, 1, 2, 3
"""Streams: the picture itself, the class pictures of either branch, and the making of echoes."""


@dataclass(frozen=True, slots=True)
class StepNoise:
    """The random numbers of one batch: ``noise`` and ``posterior`` [batch, channels, h, w], standard normal.

    ``timesteps`` and ``crop`` are [batch], int64.
    """

    noise: Tensor
    posterior: Tensor
    timesteps: Tensor
    crop: Tensor

    def to(self, device: torch.device | str) -> StepNoise:
        """The same numbers on ``device``."""
        return StepNoise(
            self.noise.to(device), self.posterior.to(device), self.timesteps.to(device), self.crop.to(device)
        )


def draw(
    seed: int,
    step: int,
    part: int,
    batch: int,
    shape: tuple[int, ...],
    crops: int,
    *,
    stream: int = PICTURE,
    timesteps: int = 1000,
    bias: float = 0.0,
) -> StepNoise:
    """The numbers of part ``part`` of step ``step``, drawn on the CPU.

    ``part`` counts the batches whose gradients add up, over accumulation and processes; ``shape`` is
    (channels, h, w); ``crop`` is below ``crops``, timesteps below ``timesteps``, both uniform; a ``bias``
    gives timestep t a density of t to its power instead.
    """
    generator = torch.Generator().manual_seed(derive_seed(seed, step, part, stream))
    return StepNoise(
        noise=torch.randn(batch, *shape, generator=generator),
        posterior=torch.randn(batch, *shape, generator=generator),
        timesteps=_draw_timesteps(timesteps, batch, bias, generator),
        crop=torch.randint(crops, (batch,), generator=generator),
    )


def _draw_timesteps(timesteps: int, batch: int, bias: float, generator: torch.Generator) -> Tensor:
    if bias == 0.0:
        return torch.randint(timesteps, (batch,), generator=generator)
    share = torch.rand(batch, generator=generator, dtype=torch.float64) ** (1.0 / (1.0 + bias))
    return (share * timesteps).long().clamp(max=timesteps - 1)


def derive_seed(*numbers: int) -> int:
    """A 63-bit seed from whole numbers; close numbers give unrelated seeds."""
    text = ",".join(map(str, numbers)).encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "big") >> 1


def velocity(latents: Tensor, noise: Tensor, alphas_cumprod: Tensor, timesteps: Tensor) -> Tensor:
    """sqrt(a) * noise - sqrt(1 - a) * latents (Salimans and Ho, arXiv 2202.00512)."""
    kept = alphas_cumprod[timesteps].view(-1, 1, 1, 1).to(latents.dtype)  # [batch, 1, 1, 1]
    return kept.sqrt() * noise - (1.0 - kept).sqrt() * latents


def noise_of(velocity: Tensor, noisy: Tensor, alpha: Tensor) -> Tensor:
    """The noise in ``noisy`` that a predicted :func:`velocity` means, at cumulative alpha ``alpha``."""
    return alpha.sqrt() * velocity + (1.0 - alpha).sqrt() * noisy


def add_noise(latents: Tensor, noise: Tensor, alphas_cumprod: Tensor, timesteps: Tensor) -> Tensor:
    """sqrt(a) * latents + sqrt(1 - a) * noise, with a = ``alphas_cumprod`` at each picture's timestep."""
    kept = alphas_cumprod[timesteps].view(-1, 1, 1, 1).to(latents.dtype)  # [batch, 1, 1, 1]
    return kept.sqrt() * latents + (1.0 - kept).sqrt() * noise
