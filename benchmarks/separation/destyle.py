"""Destyled images of many trainings at once, by `unziplora_cli.training.destyle`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict

import torch
from torch import Tensor, nn

from benchmarks.separation.stack import Job
from unziplora_cli.config import TrainConfig
from unziplora_cli.sdxl.text import Conditioning, predict_noise_merged
from unziplora_cli.training.destyle import destyle_conditioning, echo, fresh_noise
from unziplora_cli.training.inputs import DestyleConditioning


@torch.no_grad()
def destyle_all(
    unet: nn.Module,
    alphas_cumprod: Tensor,
    jobs: Sequence[Job],
    images: Tensor,
    texts: Callable[[str], tuple[Tensor, Tensor]],
    time_ids: Tensor,
    dtype: torch.dtype,
) -> Tensor:
    """Destyled latents [jobs, count, channels, h, w] of ``images`` [samples, channels, h, w].

    Trainings without destyled images get zeros; all others use the same count.
    """
    count = max(job.config.destyle_images for job in jobs)
    latents = torch.zeros(len(jobs), count, *images.shape[1:], device=images.device)
    ids = time_ids.to(images.device, dtype)

    def conditioning(prompts: list[str]) -> Conditioning:
        embeddings = [texts(prompt) for prompt in prompts]
        tokens, pooled = (torch.cat([embedding[part] for embedding in embeddings]) for part in range(2))
        result = Conditioning.from_prompt(tokens, pooled, ids.expand(len(prompts), -1))
        return result.to(device=images.device, dtype=dtype)

    for config, positions in _by_settings(jobs).items():
        prompts = [jobs[position].prompts for position in positions]
        encoded = DestyleConditioning(
            conditioning([config.destyle_prompt.replace("{content}", item.content) for item in prompts]),
            conditioning([item.full for item in prompts]),
            conditioning([item.content for item in prompts]),
        )
        conditions = destyle_conditioning(encoded, None, config)

        def predict(noisy: Tensor, timestep: Tensor, text: str, conditions=conditions) -> Tensor:  # type: ignore[no-untyped-def]
            prediction = predict_noise_merged(
                unet, noisy.to(dtype), timestep.to(noisy.device), conditions[text]
            )
            return prediction.float()

        sources = images[[jobs[position].sample for position in positions]]
        for number in range(count):
            noise = [
                fresh_noise(jobs[position].config.seed, number, sources[:1].shape) for position in positions
            ]
            fresh = torch.cat(noise).to(sources.device)
            latents[positions, number] = echo(
                predict, alphas_cumprod.to(sources.device), sources, fresh, config, number
            )
    return latents


def _by_settings(jobs: Sequence[Job]) -> dict[TrainConfig, list[int]]:
    """Positions of the trainings with equal destyling settings, by the settings of the first one."""
    groups: dict[tuple[object, ...], list[int]] = {}
    for position, job in enumerate(jobs):
        if job.config.destyle_images:
            settings = {
                name: value for name, value in asdict(job.config).items() if name.startswith("destyle")
            }
            groups.setdefault(tuple(settings.values()), []).append(position)
    return {jobs[positions[0]].config: positions for positions in groups.values()}
