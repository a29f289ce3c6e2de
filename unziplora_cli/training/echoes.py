"""Echoes: the training picture as the base itself would draw it, for the content LoRA to learn beside it.

One stylised picture cannot tell what belongs to the subject and what to the style. The base can: noised
part of the way and denoised under a plain prompt (SDEdit, arXiv 2108.01073), the picture comes back in the
base's own look, with the subject's shape, marks and colours largely kept. The content branch alone, under the
content prompt, learns these echoes as it would learn class pictures; what they lack of the picture is left to
style.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from unziplora_cli.config import TrainConfig
from unziplora_cli.diffusion.base import BaseRef
from unziplora_cli.diffusion.conditioning import Conditioning
from unziplora_cli.diffusion.load import load_scheduler
from unziplora_cli.diffusion.sampling import sample, stack, unconditional
from unziplora_cli.training.data import LatentDistribution
from unziplora_cli.training.materials import Materials, Prior
from unziplora_cli.training.noise import ECHO, derive_seed

STEPS = 20
GUIDANCE = 5.0


def with_echoes(
    materials: Materials, unet: nn.Module, base: BaseRef, config: TrainConfig, device: torch.device
) -> Materials:
    """``materials`` with ``config.echoes`` echoes as the content branch's class pictures.

    They are drawn by the bare ``unet``, which must not hold any branches yet.
    """
    if materials.echo is None:
        return materials
    told, learned = materials.echo
    empty = materials.empty
    away = unconditional(told, None if empty is None else (empty.tokens, empty.pooled))
    both = stack(away, told).to(device=device, dtype=next(unet.parameters()).dtype)
    echoes = make_echoes(unet, base, config, materials.latents, both)
    return replace(materials, priors={**materials.priors, "content": Prior(echoes, learned)})


@torch.no_grad()
def make_echoes(
    unet: nn.Module,
    base: BaseRef,
    config: TrainConfig,
    pictures: Sequence[LatentDistribution],
    told: Conditioning,
) -> LatentDistribution:
    """``config.echoes`` echoes of ``pictures`` in turn, as latents on the CPU.

    ``told`` has a batch of two: what guidance moves away from, and what an echo shows.
    """
    device, dtype = told.full.device, told.full.dtype

    def denoiser(noisy: Tensor, timestep: Tensor) -> Tensor:
        prediction: Tensor = unet(
            noisy.to(dtype),
            timestep,
            encoder_hidden_states=told.full,
            added_cond_kwargs={"text_embeds": told.pooled, "time_ids": told.time_ids},
            return_dict=False,
        )[0]
        return prediction.float()

    echoes = []
    for number in range(config.echoes):
        latents = pictures[number % len(pictures)]
        crop = (number // len(pictures)) % latents.crops
        picture = latents.mean[crop : crop + 1]
        noise = torch.randn(picture.shape, generator=echo_generator(config.seed, number))
        echoes.append(
            sample(
                denoiser,
                load_scheduler(base, "euler"),
                noise.to(device),
                steps=STEPS,
                guidance=GUIDANCE,
                picture=picture.to(device),
                strength=config.echo_strength,
            ).cpu()
        )
    mean = torch.cat(echoes)  # [echoes, channels, h, w]
    return LatentDistribution(mean, torch.zeros_like(mean))


def echo_generator(seed: int, number: int) -> torch.Generator:
    """The randomness of echo ``number``."""
    return torch.Generator().manual_seed(derive_seed(seed, number, 0, ECHO))
