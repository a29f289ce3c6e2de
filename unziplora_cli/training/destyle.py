"""Echoes: the training picture as the base itself would draw it, for the content LoRA to learn beside it.

One stylised picture cannot tell what belongs to the subject and what to the style. The base can: the picture
is followed back into noise (DDIM inversion, arXiv 2010.02502, section 4.3), which keeps its shapes and marks,
and denoised from there under a plain prompt, which gives it the base's own look. Both ways hear the full
prompt, style and all, and the way back is guided from it to the plain one:

    noise = e(full) + guidance * (e(echo) - e(full))

so that guidance changes what the two prompts differ in, the style, and not what they share, the subject.
The content branch alone, under the content prompt, learns these echoes as it would learn class pictures;
what they lack of the picture is left to style.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import pairwise

import torch
from diffusers import UNet2DConditionModel
from torch import Tensor

from unziplora_cli.config import TrainConfig
from unziplora_cli.sdxl.base import BaseRef
from unziplora_cli.sdxl.latents import LatentDistribution
from unziplora_cli.sdxl.load import alphas_cumprod
from unziplora_cli.sdxl.text import Conditioning, GraphedUNet, unconditional
from unziplora_cli.training.inputs import DestyleConditioning, Prior, TrainingInputs
from unziplora_cli.training.noise import ECHO, derive_seed, noise_of

STEPS = 20
"""Steps of a whole way from noise to picture; an echo goes ``strength`` of it, there and back."""
SPREAD = 0.1
"""The strengths of the echoes of one picture lie this far to either side of the one asked for."""

Predict = Callable[[Tensor, Tensor, str], Tensor]
"""(noisy [n, channels, h, w], timestep [], "picture", "echo" or "away") -> noise of that shape."""


def add_destyled_images(
    inputs: TrainingInputs,
    unet: UNet2DConditionModel,
    base: BaseRef,
    config: TrainConfig,
    device: torch.device,
) -> TrainingInputs:
    """``inputs`` with ``config.destyle_images`` echoes as the content branch's class pictures.

    They are drawn by the bare ``unet``, which must not hold any branches yet.
    """
    if inputs.echo is None:
        return inputs
    empty = inputs.empty
    texts = destyle_conditioning(inputs.echo, empty, config)
    texts = {name: told.to(device=device, dtype=unet.dtype) for name, told in texts.items()}
    alphas = alphas_cumprod(base)
    replayed = GraphedUNet(unet, enabled=config.capture)

    @torch.no_grad()
    def predict(noisy: Tensor, timestep: Tensor, text: str) -> Tensor:
        prediction = replayed(noisy, timestep, texts[text])
        return noise_of(prediction, noisy, alphas[timestep]) if inputs.velocity else prediction

    echoes = []
    for number in range(config.destyle_images):
        latents = inputs.latents[number % len(inputs.latents)]
        crop = (number // len(inputs.latents)) % latents.crops
        picture = latents.mean[crop : crop + 1].to(device)
        fresh = fresh_noise(config.seed, number, picture.shape).to(device)
        echoes.append(echo(predict, alphas, picture, fresh, config, number).cpu())
    mean = torch.cat(echoes)  # [echoes, channels, h, w]
    found = LatentDistribution(mean, torch.zeros_like(mean))
    return replace(inputs, priors={**inputs.priors, "content": Prior(found, inputs.echo.content)})


def destyle_conditioning(
    told: DestyleConditioning, empty: tuple[Tensor, Tensor] | None, config: TrainConfig
) -> dict[str, Conditioning]:
    """What :data:`Predict` hears under each of its names; ``empty`` is what "no text" is, None for zeros."""
    if config.destyle_contrast:
        return {"picture": told.full, "echo": told.shown, "away": told.full}
    return {"picture": told.content, "echo": told.shown, "away": unconditional(told.shown, empty)}


def echo(
    predict: Predict,
    alphas_cumprod: Tensor,
    picture: Tensor,
    fresh: Tensor,
    config: TrainConfig,
    number: int,
) -> Tensor:
    """Echo ``number`` of each ``picture`` [n, channels, h, w], of that shape; so is ``fresh``, its
    :func:`fresh_noise`."""
    side = (
        2.0 * number / (config.destyle_images - 1) - 1.0 if config.destyle_images > 1 else 0.0
    )  # from -1 to 1
    strength = min(1.0, max(0.1, config.destyle_strength + SPREAD * side))
    last = len(alphas_cumprod) - 1
    times = torch.linspace(0, strength * last, max(1, round(strength * STEPS)) + 1).long()
    latents = picture
    for before, after in pairwise(times):
        noise = predict(latents, before, "picture")
        latents = ddim(latents, noise, alphas_cumprod[before], alphas_cumprod[after])
    latents = _freshened(latents, picture, alphas_cumprod[times[-1]], fresh, config.destyle_fresh_noise)
    for before, after in pairwise(times.flip(0)):
        away, shown = (predict(latents, before, text) for text in ("away", "echo"))
        noise = away + config.destyle_guidance * (shown - away)
        latents = ddim(latents, noise, alphas_cumprod[before], alphas_cumprod[after])
    return latents


def ddim(latents: Tensor, noise: Tensor, before: Tensor, after: Tensor) -> Tensor:
    """One deterministic step of ``latents`` from cumulative alpha ``before`` to ``after``, either way
    (arXiv 2010.02502, equation 12)."""
    clean = (latents - (1.0 - before).sqrt() * noise) / before.sqrt()
    return after.sqrt() * clean + (1.0 - after).sqrt() * noise


def fresh_noise(seed: int, number: int, shape: Sequence[int]) -> Tensor:
    """Standard normal noise of ``shape`` for echo ``number`` of a training, the same whenever it is drawn."""
    generator = torch.Generator().manual_seed(derive_seed(seed, number, 0, ECHO))
    return torch.randn(tuple(shape), generator=generator)


def _freshened(latents: Tensor, picture: Tensor, alpha: Tensor, fresh: Tensor, share: float) -> Tensor:
    """``latents`` with ``share`` of the variance of their noise taken from ``fresh``."""
    own = (latents - alpha.sqrt() * picture) / (1.0 - alpha).sqrt()
    mixed: Tensor = (1.0 - share) ** 0.5 * own + share**0.5 * fresh
    return alpha.sqrt() * picture + (1.0 - alpha).sqrt() * mixed
