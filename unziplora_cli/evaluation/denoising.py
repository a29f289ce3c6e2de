"""How well the base, with and without the branches, finds the training picture in noise.

Every way of asking sees the same noise at the same timesteps, so that differences are paired.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import DDIMScheduler, DDPMScheduler
from torch import Tensor

from unziplora_cli.accel.cuda_graph import GraphedUNet
from unziplora_cli.accel.device import memory_guard, settle_threads
from unziplora_cli.accel.merged_unet import cache_text, check_fit, fuse, restore
from unziplora_cli.events import run
from unziplora_cli.method.lora import LoRAPair
from unziplora_cli.sdxl.base import BaseRef, component_config, predicts_velocity
from unziplora_cli.sdxl.generate import ImageRequest, encode_prompts, make_conditioning
from unziplora_cli.sdxl.load import load_unet
from unziplora_cli.sdxl.text import Conditioning

REBUILD_STEPS = 20
"""Steps of the whole noise schedule when the picture is drawn back."""
START = 0.6
"""Share of the schedule from which it is drawn back: its outlines are gone by then, its masses are not."""
REBUILDS = 4
_ADVICE = "Use another device (--device) or a smaller --batch-size."


@dataclass(frozen=True, slots=True)
class NoiseSamples:
    """Noisy versions of the training picture, on the CPU in float32.

    ``latents`` and ``noise`` are [draws, channels, height, width], ``timesteps`` [draws].
    """

    latents: Tensor
    noise: Tensor
    timesteps: Tensor


@dataclass(frozen=True, slots=True)
class DenoisingResult:
    """What one way of asking found.

    ``loss`` [draws] is each draw's mean squared error, ``prediction`` [draws, ...] the network's answer: the
    noise, or the velocity on a base that predicts that. ``rebuilt`` is the error of the picture drawn back
    from noise, None where that was not asked for.
    """

    loss: Tensor
    prediction: Tensor
    rebuilt: float | None


def sample_noise(latents: Tensor, count: int, seed: int, timesteps: int) -> NoiseSamples:
    """``count`` draws of the pictures ``latents`` [pictures, channels, height, width] in turn.

    The timesteps are stratified: one at random from each of ``count`` equal parts of the schedule.
    """
    generator = torch.Generator().manual_seed(seed)
    shown = latents.float().cpu()[torch.arange(count) % len(latents)]
    places = (torch.arange(count) + torch.rand(count, generator=generator)) / count * timesteps
    return NoiseSamples(
        latents=shown,
        noise=torch.randn(shown.shape, generator=generator),
        timesteps=places.long().clamp(max=timesteps - 1),
    )


@torch.no_grad()
def denoise(
    base: BaseRef,
    ways: Mapping[str, ImageRequest],
    latents: Tensor,
    *,
    count: int,
    seed: int,
    device: torch.device,
    dtype: torch.dtype,
    batch_size: int = 1,
    rebuild: Collection[str] = (),
    on_way: Callable[[int], None] = lambda done: None,
) -> dict[str, DenoisingResult]:
    """Ask for the noise in ``count`` draws of ``latents`` in every way of ``ways``, named as there.

    Those named by ``rebuild`` also draw the picture back. Ways that follow each other with the very same
    branches share one fused network. Raises ModelError, AdapterError when a LoRA does not fit, OutOfMemory.
    """
    schedule = component_config(base, "scheduler")
    noising = DDPMScheduler.from_config(schedule)
    found = {}
    with memory_guard(_ADVICE):
        texts = run(encode_prompts(base, tuple(ways.values()), device=device, dtype=dtype))
        unet = load_unet(base, device=device, dtype=dtype)
        settle_threads(unet)
        predict = GraphedUNet(unet)
        for way in ways.values():
            check_fit(unet, way.branches)
        draws = sample_noise(latents, count, seed, noising.config.num_train_timesteps)
        parts = (draws.latents, draws.noise, draws.timesteps)
        noisy = noising.add_noise(*parts)
        target = noising.get_velocity(*parts) if predicts_velocity(base) else draws.noise
        fused: LoRAPair | None = None
        originals: dict[str, Tensor] = {}
        for done, (name, way) in enumerate(ways.items()):
            on_way(done)
            if way.branches is not fused:
                restore(unet, originals)
                originals, fused = fuse(unet, way.branches), way.branches
            told, _ = make_conditioning(base, way, texts, device=device, dtype=dtype)
            ask = _Asked(predict, way.branches, told, batch_size)
            prediction = ask(noisy, draws.timesteps)
            loss = (prediction - target).square().flatten(1).mean(dim=1)
            rebuilt = _rebuild(ask, draws, schedule) if name in rebuild else None
            found[name] = DenoisingResult(loss, prediction, rebuilt)
    return found


def relative_gap(one: Tensor, other: Tensor, reference: Tensor) -> float:
    """||one - other|| / ||other - reference|| over all draws: 1 is as large as the whole effect."""
    effect = float((other - reference).norm())
    return float((one - other).norm()) / effect if effect > 0.0 else 0.0


@dataclass(frozen=True, slots=True)
class _Asked:
    """The fused network with one way's texts: noisy latents and timesteps to its prediction, on the CPU."""

    predict: GraphedUNet
    branches: LoRAPair
    told: Conditioning
    batch_size: int

    def __call__(self, noisy: Tensor, timesteps: Tensor) -> Tensor:
        unet, parts = self.predict.unet, []
        for latents, times in zip(
            noisy.split(self.batch_size), timesteps.split(self.batch_size), strict=True
        ):
            told = self.told.expand(len(latents))
            cache_text(unet, self.branches, told)
            parts.append(self.predict(latents.to(unet.device), times, told).cpu())
        return torch.cat(parts)


def _rebuild(ask: _Asked, draws: NoiseSamples, schedule: Mapping[str, Any]) -> float:
    """Noise the picture up to START, denoise it without guidance (DDIM), and compare.

    The error is ||rebuilt - picture|| / ||picture - its mean||, in latents, over REBUILDS noise draws.
    """
    scheduler = DDIMScheduler.from_config({**schedule, "clip_sample": False, "set_alpha_to_one": True})
    scheduler.set_timesteps(REBUILD_STEPS)
    steps = scheduler.timesteps[-round(START * REBUILD_STEPS) :]
    picture, noise = draws.latents[:REBUILDS], draws.noise[:REBUILDS]
    rebuilt = scheduler.add_noise(picture, noise, steps[:1].expand(len(picture)))
    for step in steps:
        rebuilt = scheduler.step(ask(rebuilt, step.expand(len(picture))), step, rebuilt).prev_sample
    return float((rebuilt - picture).norm() / (picture - picture.mean(dim=(2, 3), keepdim=True)).norm())
