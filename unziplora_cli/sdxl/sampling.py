"""The denoising loop with classifier-free guidance, for any diffusers scheduler."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import fields
from typing import Any

import torch
from torch import Tensor

from unziplora_cli.sdxl.text import Conditioning

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
def sample(
    denoiser: Denoiser,
    scheduler: Any,
    latents: Tensor,
    *,
    steps: int,
    guidance: float,
    generators: list[torch.Generator] | None = None,
    on_step: Callable[[int], None] | None = None,
) -> Tensor:
    """Turn unit-variance ``latents`` [n, channels, height, width] into a picture's latents of that shape.

    With ``guidance`` above 1 the denoiser is asked for 2n pictures at once, the n unconditional ones first,
    and their difference is stretched by ``guidance``; otherwise it is asked for n. ``generators`` feed
    schedulers that add noise of their own.
    """
    scheduler.set_timesteps(steps, device=latents.device)
    extra = {"generator": generators} if "generator" in inspect.signature(scheduler.step).parameters else {}
    latents = latents * scheduler.init_noise_sigma
    for number, timestep in enumerate(scheduler.timesteps):
        guided = guidance > 1.0
        noisy = scheduler.scale_model_input(torch.cat([latents, latents]) if guided else latents, timestep)
        noise = denoiser(noisy, timestep)
        if guided:
            unconditional, conditional = noise.chunk(2)
            noise = unconditional + guidance * (conditional - unconditional)
        latents = scheduler.step(noise, timestep, latents, **extra, return_dict=False)[0]
        if on_step is not None:
            on_step(number)
    return latents


def unconditional(conditioning: Conditioning, negative: tuple[Tensor, Tensor] | None = None) -> Conditioning:
    """What guidance moves away from: zeros for every text, or a negative prompt's for the base alone.

    ``negative`` is (tokens [1, tokens, width], pooled [1, width]); the branches never see it (paper's
    release).
    """
    tokens, pooled = negative or (torch.zeros_like(conditioning.full), torch.zeros_like(conditioning.pooled))
    return Conditioning(
        full=tokens.expand_as(conditioning.full),
        content=torch.zeros_like(conditioning.content),
        style=torch.zeros_like(conditioning.style),
        pooled=pooled.expand_as(conditioning.pooled),
        time_ids=conditioning.time_ids,
    )


def concat_conditionings(first: Conditioning, second: Conditioning) -> Conditioning:
    """The two conditionings one after the other along the batch."""
    return Conditioning(
        **{f.name: torch.cat([getattr(first, f.name), getattr(second, f.name)]) for f in fields(Conditioning)}
    )
