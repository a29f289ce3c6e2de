"""How well the base predicts the noise in noisy training images, with and without the LoRAs.

All requests see the same noise at the same timesteps, so their losses are paired.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Generator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import DDIMScheduler, DDPMScheduler
from torch import Tensor

from unziplora_cli.accel.device import limit_threads, memory_guard
from unziplora_cli.accel.fused_lora import check_fit
from unziplora_cli.events import Event, Phase, Progress
from unziplora_cli.sdxl.base import BaseRef, component_config, predicts_velocity
from unziplora_cli.sdxl.generate import AdaptedUNet, ImageRequest, encode_prompts, make_conditioning
from unziplora_cli.sdxl.load import load_unet
from unziplora_cli.sdxl.text import Conditioning

RECONSTRUCTION_STEPS = 20
"""DDIM steps over the whole noise schedule."""
RECONSTRUCTION_START = 0.6
"""Share of the schedule from which images are reconstructed; outlines are lost there, large shapes not."""
MAX_RECONSTRUCTIONS = 4

Predict = Callable[[Tensor, Tensor], Tensor]
"""Noisy latents, timesteps -> prediction on the CPU."""


@dataclass(frozen=True, slots=True)
class NoiseSamples:
    """Noise for the training images, float32 on the CPU.

    Attributes:
        latents, noise: [samples, channels, height, width].
        timesteps: [samples].
    """

    latents: Tensor
    noise: Tensor
    timesteps: Tensor


@dataclass(frozen=True, slots=True)
class DenoisingResult:
    """What the U-Net predicts for one request.

    Attributes:
        loss: [samples], mean squared error of each sample.
        prediction: [samples, channels, height, width], the noise, or the velocity on a v-prediction base.
        reconstruction_error: the relative error of the reconstructed images; None if not measured.
    """

    loss: Tensor
    prediction: Tensor
    reconstruction_error: float | None


def sample_noise(latents: Tensor, count: int, seed: int, num_timesteps: int) -> NoiseSamples:
    """Draw ``count`` noise samples for ``latents`` [images, channels, height, width], image by image in turn.

    Timesteps are stratified: one at random from each of ``count`` equal parts of the schedule.
    """
    generator = torch.Generator().manual_seed(seed)
    repeated = latents.float().cpu()[torch.arange(count) % len(latents)]
    positions = (torch.arange(count) + torch.rand(count, generator=generator)) / count * num_timesteps
    return NoiseSamples(
        latents=repeated,
        noise=torch.randn(repeated.shape, generator=generator),
        timesteps=positions.long().clamp(max=num_timesteps - 1),
    )


@torch.no_grad()
def measure_denoising(
    base: BaseRef,
    requests: Mapping[str, ImageRequest],
    latents: Tensor,
    *,
    samples: int,
    seed: int,
    device: torch.device,
    dtype: torch.dtype,
    batch_size: int = 1,
    fuse: bool = True,
    reconstruct: Collection[str] = (),
) -> Generator[Event, None, dict[str, DenoisingResult]]:
    """Predict the noise in ``samples`` noisy versions of ``latents`` for every request.

    Requests are named; those in ``reconstruct`` also reconstruct the images. Consecutive requests with the
    same ``branches`` share one fused U-Net. Raises ModelError, OutOfMemory, and AdapterError if a LoRA
    does not fit the base.
    """
    schedule = component_config(base, "scheduler")
    scheduler = DDPMScheduler.from_config(schedule)
    results = {}
    yield Phase("load base")
    with memory_guard("Use another device or a smaller batch-size."):
        texts = yield from encode_prompts(base, tuple(requests.values()), device=device, dtype=dtype)
        unet = load_unet(base, device=device, dtype=dtype, fuse=fuse)
        limit_threads(unet)
        adapted = AdaptedUNet(unet, fuse=fuse)
        for request in requests.values():
            check_fit(unet, request.branches)
        drawn = sample_noise(latents, samples, seed, scheduler.config.num_train_timesteps)
        noisy = scheduler.add_noise(drawn.latents, drawn.noise, drawn.timesteps)
        target = drawn.noise
        if predicts_velocity(base):
            target = scheduler.get_velocity(drawn.latents, drawn.noise, drawn.timesteps)
        for done, (name, request) in enumerate(requests.items()):
            yield Progress("measure loss", done, len(requests))
            adapted.apply(request.branches)
            conditioning, _ = make_conditioning(base, request, texts, device=device, dtype=dtype)
            predict = _predictor(adapted, conditioning, batch_size)
            prediction = predict(noisy, drawn.timesteps)
            results[name] = DenoisingResult(
                loss=(prediction - target).square().flatten(1).mean(dim=1),
                prediction=prediction,
                reconstruction_error=_reconstruct(predict, drawn, schedule) if name in reconstruct else None,
            )
    return results


def relative_gap(prediction: Tensor, other: Tensor, reference: Tensor) -> float:
    """||prediction - other|| / ||other - reference||: 1 means as large as the whole effect of ``other``."""
    effect = float((other - reference).norm())
    return float((prediction - other).norm()) / effect if effect > 0.0 else 0.0


def _predictor(adapted: AdaptedUNet, cond: Conditioning, batch_size: int) -> Predict:
    """The prediction of a U-Net with the LoRAs and texts of one request."""
    device = adapted.unet.device

    def predict(noisy: Tensor, timesteps: Tensor) -> Tensor:
        predictions = []
        for latents, times in zip(noisy.split(batch_size), timesteps.split(batch_size), strict=True):
            batch = cond.expand(len(latents))
            adapted.set_texts(batch)
            predictions.append(adapted(latents.to(device), times, batch).cpu())
        return torch.cat(predictions)

    return predict


def _reconstruct(predict: Predict, drawn: NoiseSamples, schedule: Mapping[str, Any]) -> float:
    """Add noise up to RECONSTRUCTION_START, denoise by DDIM without guidance, and compare.

    The error is ||reconstruction - image|| / ||image - its mean||, in latents.
    """
    scheduler = DDIMScheduler.from_config({**schedule, "clip_sample": False, "set_alpha_to_one": True})
    scheduler.set_timesteps(RECONSTRUCTION_STEPS)
    timesteps = scheduler.timesteps[-round(RECONSTRUCTION_START * RECONSTRUCTION_STEPS) :]
    images, noise = drawn.latents[:MAX_RECONSTRUCTIONS], drawn.noise[:MAX_RECONSTRUCTIONS]
    latents = scheduler.add_noise(images, noise, timesteps[:1].expand(len(images)))
    for timestep in timesteps:
        prediction = predict(latents, timestep.expand(len(images)))
        latents = scheduler.step(prediction, timestep, latents).prev_sample
    return float((latents - images).norm() / (images - images.mean(dim=(2, 3), keepdim=True)).norm())
