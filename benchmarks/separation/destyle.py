"""The echoes of many trainings, as `unziplora_cli.training.destyle` makes those of one."""

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
    pictures: Tensor,
    texts: Callable[[str], tuple[Tensor, Tensor]],
    time_ids: Tensor,
    dtype: torch.dtype,
) -> Tensor:
    """Echoes [jobs, echoes, channels, h, w] of ``pictures`` [samples, channels, h, w].

    Trainings that want none get zeros; all others want the same number.
    """
    count = max(job.config.destyle_images for job in jobs)
    found = torch.zeros(len(jobs), count, *pictures.shape[1:], device=pictures.device)
    ids = time_ids.to(pictures.device, dtype)

    def told(prompts: list[str]) -> Conditioning:
        known = [texts(prompt) for prompt in prompts]
        tokens, pooled = (torch.cat([each[part] for each in known]) for part in range(2))
        told = Conditioning.from_prompt(tokens, pooled, ids.expand(len(prompts), -1))
        return told.to(device=pictures.device, dtype=dtype)

    for config, places in _alike(jobs).items():
        own = [jobs[place].prompts for place in places]
        known = DestyleConditioning(
            told([config.destyle_prompt.replace("{content}", each.content) for each in own]),
            told([each.full for each in own]),
            told([each.content for each in own]),
        )
        conditions = destyle_conditioning(known, None, config)

        def predict(noisy: Tensor, timestep: Tensor, text: str, conditions=conditions) -> Tensor:  # type: ignore[no-untyped-def]
            prediction = predict_noise_merged(
                unet, noisy.to(dtype), timestep.to(noisy.device), conditions[text]
            )
            return prediction.float()

        shown = pictures[[jobs[place].sample for place in places]]
        for number in range(count):
            drawn = [fresh_noise(jobs[place].config.seed, number, shown[:1].shape) for place in places]
            fresh = torch.cat(drawn).to(shown.device)
            found[places, number] = echo(
                predict, alphas_cumprod.to(shown.device), shown, fresh, config, number
            )
    return found


def _alike(jobs: Sequence[Job]) -> dict[TrainConfig, list[int]]:
    """The places of the trainings whose echoes are made alike, with the settings of the first of them."""
    found: dict[tuple[object, ...], list[int]] = {}
    for place, job in enumerate(jobs):
        if job.config.destyle_images:
            settings = {
                name: value for name, value in asdict(job.config).items() if name.startswith("destyle")
            }
            found.setdefault(tuple(settings.values()), []).append(place)
    return {jobs[places[0]].config: places for places in found.values()}
