"""The denoising loop with classifier-free guidance, for any diffusers scheduler."""

from __future__ import annotations

import inspect
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

Denoiser = Callable[[Tensor, Tensor], Tensor]
"""(noisy [batch, channels, height, width], timestep) -> noise of that shape."""


def initial_noise(
    seeds: Sequence[int], channels: int, height: int, width: int
) -> tuple[Tensor, list[torch.Generator]]:
    """Unit-variance latents [n, channels, height, width], float32 on the CPU, and their generators."""
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    noise = [torch.randn(1, channels, height, width, generator=generator) for generator in generators]
    return torch.cat(noise), generators


@torch.no_grad()
def sample_steps(
    denoiser: Denoiser,
    scheduler: Any,
    latents: Tensor,
    *,
    steps: int,
    guidance: float,
    generators: list[torch.Generator] | None = None,
) -> Iterator[Tensor]:
    """Denoise unit-variance ``latents`` [n, channels, height, width]; yields the latents after each step.

    With ``guidance`` w above 1 the denoiser gets a batch of 2n, the unconditional half first, and the noise
    is uncond + w (cond - uncond) (Ho and Salimans, arXiv 2207.12598); otherwise a batch of n. ``generators``
    are for schedulers that add noise.
    """
    scheduler.set_timesteps(steps, device=latents.device)
    extra = {"generator": generators} if "generator" in inspect.signature(scheduler.step).parameters else {}
    latents = latents * scheduler.init_noise_sigma
    for timestep in scheduler.timesteps:
        guided = guidance > 1.0
        noisy = scheduler.scale_model_input(torch.cat([latents, latents]) if guided else latents, timestep)
        noise = denoiser(noisy, timestep)
        if guided:
            uncond, cond = noise.chunk(2)
            noise = uncond + guidance * (cond - uncond)
        latents = scheduler.step(noise, timestep, latents, **extra, return_dict=False)[0]
        yield latents


def sample(denoiser: Denoiser, scheduler: Any, latents: Tensor, **settings: Any) -> Tensor:
    """The latents after the last of :func:`sample_steps`, whose arguments it takes."""
    (last,) = deque(sample_steps(denoiser, scheduler, latents, **settings), maxlen=1)
    return last
