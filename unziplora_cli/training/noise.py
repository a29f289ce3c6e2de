"""Random numbers of a training and the diffusion formulas that use them.

Every random number is a pure function of the seed and of where in the training it is used. A resumed or
replayed training therefore draws the same numbers, and no generator state has to be saved.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import torch
from torch import Tensor

IMAGE_STREAM, CONTENT_PRIOR_STREAM, STYLE_PRIOR_STREAM, DESTYLE_STREAM = 0, 1, 2, 3
"""Independent streams: the training image, the class images of each branch, and destyling."""
PRIOR_STREAMS = {"content": CONTENT_PRIOR_STREAM, "style": STYLE_PRIOR_STREAM}


@dataclass(frozen=True, slots=True)
class StepNoise:
    """The random numbers of one batch.

    ``noise`` and ``posterior`` are [batch, channels, height, width], standard normal; ``timesteps`` and
    ``crop`` are [batch], int64.
    """

    noise: Tensor
    posterior: Tensor
    timesteps: Tensor
    crop: Tensor


def step_noise(
    seed: int,
    step: int,
    part: int,
    batch: int,
    shape: tuple[int, ...],
    crops: int,
    *,
    stream: int = IMAGE_STREAM,
    timesteps: int = 1000,
    bias: float = 0.0,
) -> StepNoise:
    """The random numbers of part ``part`` of step ``step``, on the CPU.

    ``part`` counts the batches whose gradients accumulate, over all processes. ``shape`` is (channels,
    height, width). Crops below ``crops`` and timesteps below ``timesteps`` are uniform; with a ``bias``, the
    density of timestep t is proportional to t ** bias.
    """
    generator = torch.Generator().manual_seed(derive_seed(seed, step, part, stream))
    return StepNoise(
        noise=torch.randn(batch, *shape, generator=generator),
        posterior=torch.randn(batch, *shape, generator=generator),
        timesteps=_sample_timesteps(timesteps, batch, bias, generator),
        crop=torch.randint(crops, (batch,), generator=generator),
    )


def _sample_timesteps(timesteps: int, batch: int, bias: float, generator: torch.Generator) -> Tensor:
    if bias == 0.0:
        return torch.randint(timesteps, (batch,), generator=generator)
    share = torch.rand(batch, generator=generator, dtype=torch.float64) ** (1.0 / (1.0 + bias))
    return (share * timesteps).long().clamp(max=timesteps - 1)


def derive_seed(*numbers: int) -> int:
    """A 63-bit seed from integers; close integers give unrelated seeds."""
    text = ",".join(map(str, numbers)).encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "big") >> 1


def add_noise(latents: Tensor, noise: Tensor, alphas_cumprod: Tensor, timesteps: Tensor) -> Tensor:
    """sqrt(a) * latents + sqrt(1 - a) * noise, with a = ``alphas_cumprod`` at each image's timestep."""
    alpha = alphas_cumprod[timesteps].view(-1, 1, 1, 1).to(latents.dtype)  # [batch, 1, 1, 1]
    return alpha.sqrt() * latents + (1.0 - alpha).sqrt() * noise


def velocity(latents: Tensor, noise: Tensor, alphas_cumprod: Tensor, timesteps: Tensor) -> Tensor:
    """sqrt(a) * noise - sqrt(1 - a) * latents (Salimans and Ho, arXiv 2202.00512)."""
    alpha = alphas_cumprod[timesteps].view(-1, 1, 1, 1).to(latents.dtype)  # [batch, 1, 1, 1]
    return alpha.sqrt() * noise - (1.0 - alpha).sqrt() * latents
