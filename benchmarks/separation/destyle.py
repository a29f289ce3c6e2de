"""The destyled images of many trainings, made as `unziplora_cli.training.destyle` makes those of one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict

import torch
from torch import Tensor, nn

from benchmarks.separation.stack import StackedJob
from unziplora_cli import resources
from unziplora_cli.config import TrainConfig
from unziplora_cli.evaluation.reader import is_sure, other_subject
from unziplora_cli.events import run
from unziplora_cli.sdxl.latents import to_images
from unziplora_cli.sdxl.text import Conditioning, predict_noise_merged
from unziplora_cli.training.destyle import DestyleConditioning, destyle, fresh_noise, plain_prompt
from unziplora_cli.training.destyler import MiniDestyler


@torch.no_grad()
def destyle_all(
    unet: nn.Module,
    alphas_cumprod: Tensor,
    jobs: Sequence[StackedJob],
    images: Tensor,
    texts: Callable[[str], tuple[Tensor, Tensor]],
    time_ids: Tensor,
    dtype: torch.dtype,
) -> Tensor:
    """Latents [jobs, destyled images, channels, h, w] from ``images`` [samples, channels, h, w].

    Trainings without destyled images, or whose destyled images have another source, get zeros; all others
    must ask for the same number.
    """
    count = max(job.config.destyle_images for job in jobs)
    device = images.device
    alphas_cumprod, ids = alphas_cumprod.to(device), time_ids.to(device, dtype)
    latents = torch.zeros(len(jobs), count, *images.shape[1:], device=device)

    def conditioning(prompts: list[str]) -> Conditioning:
        embeddings = [texts(prompt) for prompt in prompts]
        tokens, pooled = (torch.cat([embedding[part] for embedding in embeddings]) for part in range(2))
        batch = Conditioning.from_prompt(tokens, pooled, ids.expand(len(prompts), -1))
        return batch.to(device=device, dtype=dtype)

    def predict(noisy: Tensor, timestep: Tensor, cond: Conditioning) -> Tensor:
        return predict_noise_merged(unet, noisy.to(dtype), timestep.to(device), cond).float()

    for config, indices in _group_by_settings(jobs).items():
        prompts = [jobs[index].prompts for index in indices]
        plain = [str(plain_prompt(jobs[index].config, jobs[index].prompts)) for index in indices]
        destyle_conditioning = DestyleConditioning.from_prompts(
            conditioning(plain),
            conditioning([prompt.full for prompt in prompts]),
            conditioning([prompt.content for prompt in prompts]),
            config,
        )
        batch = images[[jobs[index].sample for index in indices]]
        for number in range(count):
            noise = [fresh_noise(jobs[index].config.seed, number, batch[:1].shape) for index in indices]
            latents[indices, number] = run(
                destyle(
                    predict,
                    alphas_cumprod,
                    batch,
                    torch.cat(noise).to(device),
                    destyle_conditioning,
                    config,
                    number,
                )
            )
    return latents


def redrawn(jobs: Sequence[StackedJob], images: Tensor, photos: Tensor) -> Tensor:
    """The destyled image of every job with another source, [jobs, 3, h, w] in [-1, 1]; else zeros.

    ``images`` and ``photos`` [samples, 3, h, w] are the training images and photos of the same individuals.
    """
    samples = torch.tensor([job.sample for job in jobs], device=images.device)
    chosen = torch.tensor([job.source in ("destyler", "checked") for job in jobs], device=images.device)
    photo = torch.tensor([job.source == "photo" for job in jobs], device=images.device)
    result = photos[samples] * photo[:, None, None, None]
    if chosen.any():
        destyler = MiniDestyler.load(resources.destyler()).to(images.device)
        colors = torch.tensor([_told(destyler, job) for job in jobs], device=images.device)
        for at in chosen.nonzero()[:, 0].split(64):
            result[at] = destyler(images[samples[at]], colors[at])
    return result


def shows(image: Tensor, subject: str, source: Tensor, *, redrawn: bool = False) -> bool:
    """Whether the reader sees ``subject`` in an image [3, h, w] in [-1, 1], as a training checks it.

    Or what it takes the ``source`` for, the training image of that shape. An image that the small destyler
    ``redrawn`` shows it wherever the reader is not sure of the source.
    """
    seen, taken = (to_images(x[None])[0] for x in (image, source))
    if redrawn and not is_sure(taken, subject):
        return True
    return other_subject(seen, subject) in ("", other_subject(taken, subject))


def _told(destyler: MiniDestyler, job: StackedJob) -> list[int]:
    words = job.features[:2] if job.features else ("", None)
    return [destyler.colors.index(word) if word else destyler.unknown for word in words]


def _group_by_settings(jobs: Sequence[StackedJob]) -> dict[TrainConfig, list[int]]:
    """The indices of the jobs whose destyling differs in nothing but prompts, by the first configuration."""
    groups: dict[tuple[object, ...], list[int]] = {}
    for index, job in enumerate(jobs):
        if job.config.destyle_images and job.source == "inversion":
            settings = {
                name: value
                for name, value in asdict(job.config).items()
                if name.startswith("destyle") and name != "destyle_prompt"
            }
            groups.setdefault(tuple(settings.values()), []).append(index)
    return {jobs[indices[0]].config: indices for indices in groups.values()}
