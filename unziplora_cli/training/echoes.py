"""Echoes: the training picture as the base itself would draw it, for the content LoRA to learn beside it.

One stylised picture cannot tell what belongs to the subject and what to the style. The base can: the picture
is followed back into noise (DDIM inversion, arXiv 2010.02502, section 4.3), which keeps its shapes and marks,
and denoised from there under a plain prompt, which gives it the base's own look. The content branch alone,
under the content prompt, learns these echoes as it would learn class pictures; what they lack of the picture
is left to style.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise

import torch
from torch import Tensor, nn

from unziplora_cli.config import TrainConfig
from unziplora_cli.diffusion.base import BaseRef
from unziplora_cli.diffusion.conditioning import predict_plain
from unziplora_cli.diffusion.load import alphas_cumprod
from unziplora_cli.diffusion.sampling import unconditional
from unziplora_cli.training.data import LatentDistribution
from unziplora_cli.training.materials import Materials, Prior
from unziplora_cli.training.noise import ECHO, derive_seed, noise_of

STEPS = 20
"""Steps of a whole way from noise to picture; an echo goes ``strength`` of it, there and back."""
GUIDANCE = 5.0
SPREAD = 0.1
"""The strengths of the echoes of one picture lie this far to either side of the one asked for."""

Predict = Callable[[Tensor, Tensor, str], Tensor]
"""(noisy [n, channels, h, w], timestep [], "picture", "echo" or "nothing") -> noise of that shape."""


def with_echoes(
    materials: Materials, unet: nn.Module, base: BaseRef, config: TrainConfig, device: torch.device
) -> Materials:
    """``materials`` with ``config.echoes`` echoes as the content branch's class pictures.

    They are drawn by the bare ``unet``, which must not hold any branches yet.
    """
    if materials.echo is None:
        return materials
    dtype = next(unet.parameters()).dtype
    shown, learned = (told.to(device=device, dtype=dtype) for told in materials.echo)
    empty = materials.empty
    away = unconditional(shown, None if empty is None else (empty.tokens, empty.pooled))
    alphas = alphas_cumprod(base)
    texts = {"picture": learned, "echo": shown, "nothing": away.to(device=device, dtype=dtype)}

    @torch.no_grad()
    def predict(noisy: Tensor, timestep: Tensor, text: str) -> Tensor:
        prediction = predict_plain(unet, noisy.to(dtype), timestep.to(device), texts[text]).float()
        return noise_of(prediction, noisy, alphas[timestep]) if materials.velocity else prediction

    echoes = []
    for number in range(config.echoes):
        latents = materials.latents[number % len(materials.latents)]
        crop = (number // len(materials.latents)) % latents.crops
        picture = latents.mean[crop : crop + 1].to(device)
        echoes.append(echo(predict, alphas, picture, config, number).cpu())
    mean = torch.cat(echoes)  # [echoes, channels, h, w]
    found = LatentDistribution(mean, torch.zeros_like(mean))
    return replace(materials, priors={**materials.priors, "content": Prior(found, materials.echo[1])})


def echo(
    predict: Predict, alphas_cumprod: Tensor, picture: Tensor, config: TrainConfig, number: int
) -> Tensor:
    """Echo ``number`` of ``picture`` [1, channels, h, w], of that shape."""
    side = 2.0 * number / (config.echoes - 1) - 1.0 if config.echoes > 1 else 0.0  # from -1 to 1
    strength = min(1.0, max(0.1, config.echo_strength + SPREAD * side))
    last = len(alphas_cumprod) - 1
    times = torch.linspace(0, strength * last, max(1, round(strength * STEPS)) + 1).long()
    latents = picture
    for before, after in pairwise(times):
        noise = predict(latents, before, "picture")
        latents = ddim(latents, noise, alphas_cumprod[before], alphas_cumprod[after])
    latents = _freshened(latents, picture, alphas_cumprod[times[-1]], config, number)
    for before, after in pairwise(times.flip(0)):
        nothing, shown = (predict(latents, before, text) for text in ("nothing", "echo"))
        noise = nothing + GUIDANCE * (shown - nothing)
        latents = ddim(latents, noise, alphas_cumprod[before], alphas_cumprod[after])
    return latents


def ddim(latents: Tensor, noise: Tensor, before: Tensor, after: Tensor) -> Tensor:
    """One deterministic step of ``latents`` from cumulative alpha ``before`` to ``after``, either way
    (arXiv 2010.02502, equation 12)."""
    clean = (latents - (1.0 - before).sqrt() * noise) / before.sqrt()
    return after.sqrt() * clean + (1.0 - after).sqrt() * noise


def _freshened(latents: Tensor, picture: Tensor, alpha: Tensor, config: TrainConfig, number: int) -> Tensor:
    """``latents`` with ``config.echo_fresh`` of the variance of their noise drawn anew."""
    generator = torch.Generator().manual_seed(derive_seed(config.seed, number, 0, ECHO))
    fresh = torch.randn(picture.shape, generator=generator).to(picture.device)
    own = (latents - alpha.sqrt() * picture) / (1.0 - alpha).sqrt()
    mixed = (1.0 - config.echo_fresh) ** 0.5 * own + config.echo_fresh**0.5 * fresh
    return alpha.sqrt() * picture + (1.0 - alpha).sqrt() * mixed
