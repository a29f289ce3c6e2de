"""Destyled images: the training image as the base itself would render it, learned by the content LoRA.

One stylised image does not show what belongs to the subject and what to the style. The base knows: DDIM
inversion (arXiv 2010.02502, section 4.3) follows the image into noise, which keeps its shapes and markings,
and denoising under a plain prompt gives it the base's own look. Inversion and denoising both use the full
prompt, style included, and classifier-free guidance leads from it to the plain prompt:

    prediction = f(full) + guidance * (f(plain) - f(full))

so that guidance changes only what the two prompts differ in, the style, and keeps what they share, the
subject. The content branch alone learns these images, under the content prompt, as it would learn class
images; what they lack of the training image is left to the style branch.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from PIL import Image
from torch import Tensor

import unziplora_cli
from unziplora_cli.adapters.tensors import read_tensors, write_tensors
from unziplora_cli.config import Prompts, TrainConfig
from unziplora_cli.errors import ProjectError, Remedy
from unziplora_cli.events import Notice, Progress
from unziplora_cli.images import MIN_SIDE, save_png
from unziplora_cli.job import Job
from unziplora_cli.prompts import with_article
from unziplora_cli.sdxl.latents import LatentDistribution
from unziplora_cli.sdxl.text import Conditioning, GraphedUNet, Movable, TextEmbeddings, unconditional
from unziplora_cli.training.noise import DESTYLE_STREAM, derive_seed
from unziplora_cli.training.request import DESTYLED, DESTYLED_LATENTS

DDIM_STEPS = 20
"""Steps between a clean image and pure noise; destyling takes ``destyle_strength`` of them, each way."""
STRENGTH_SPREAD = 0.1
"""The strengths of the destyled images of one training lie this far to either side of the setting."""
ATTEMPTS = 3
"""How often a destyled image that shows another subject is generated."""

Predict = Callable[[Tensor, Tensor, Conditioning], Tensor]
"""(noisy [n, channels, height, width], timestep [], conditioning) -> the base's prediction, of that shape."""


@dataclass(frozen=True)
class DestyleConditioning(Movable):
    """Texts of destyling and learning.

    The base reads ``inversion`` while the image is inverted, and is guided from ``uncond`` to ``cond`` while
    it is denoised. The content branch learns the result under ``content``.
    """

    inversion: Conditioning
    cond: Conditioning
    uncond: Conditioning
    content: Conditioning

    @classmethod
    def from_prompts(
        cls,
        plain: Conditioning,
        full: Conditioning,
        content: Conditioning,
        config: TrainConfig,
        empty: TextEmbeddings | None = None,
    ) -> DestyleConditioning:
        """Guide from the full prompt to the plain one, or without ``destyle_contrast`` from no text.

        ``empty`` is the base's embedding of no text; None for zeros.
        """
        if config.destyle_contrast:
            return cls(inversion=full, cond=plain, uncond=full, content=content)
        return cls(inversion=content, cond=plain, uncond=unconditional(plain, empty), content=content)


def plain_prompt(
    config: TrainConfig, prompts: Prompts, subject: str = "", features: Sequence[str] = ()
) -> str | None:
    """The prompt of the destyled images; None if the settings ask for none.

    It says what distinguishes the subject, which the prompts of training leave to the trigger: guidance then
    keeps the colours and markings of this individual. Single words precede the subject, others follow it:
    "a monadikos orange fox with white dots".
    """
    if not config.destyle_images:
        return None
    content = prompts.content
    if features:
        adjectives = [feature for feature in features if " " not in feature]
        others = [feature for feature in features if " " in feature]
        described = " ".join([*adjectives, subject]) + (f" with {' and '.join(others)}" if others else "")
        named = re.compile(rf"(?<!\w){re.escape(subject)}(?!\w)", re.IGNORECASE)
        if subject and named.search(content):
            content = named.sub(lambda match: described, content, count=1)
        else:
            content = f"{content}, {', '.join(features)}"
    return config.destyle_prompt.replace("{content}", content)


def write_destyled(
    folder: Path, images: Iterable[Image.Image], parameters: Mapping[str, Any]
) -> tuple[Path, ...]:
    """Write destyled images to ``destyled/`` in ``folder``, with how they were made."""
    (folder / DESTYLED).mkdir(exist_ok=True)
    header = {"schema": 1, "version": unziplora_cli.__version__, "command": "destyle"}
    paths = []
    for number, image in enumerate(images, start=1):
        paths.append(folder / DESTYLED / f"{number:02}.png")
        save_png(
            image.resize([max(side, MIN_SIDE) for side in image.size]),
            paths[-1],
            {**header, **parameters},
            force=True,
        )
    return tuple(paths)


def omission(job: Job, others: Sequence[str], *, left: bool) -> Notice:
    """What the user is shown about destyled images that show ``others`` instead of the subject."""
    *first, last = (with_article(other) for other in dict.fromkeys(others))
    what = " and ".join(filter(None, (", ".join(first), last)))
    if left:
        images = "1 destyled image shows" if len(others) == 1 else f"{len(others)} destyled images show"
        return Notice(f"{job.name}: {images} {what} instead of the {job.words.subject}: omitted.")
    return Notice(
        f"{job.name}: the destyled images show {what}, none shows the {job.words.subject}. The content LoRA "
        "learns the image itself, with its style.",
        (
            Remedy("Use images of your own", settings={"destyle": "FOLDER"}),
            Remedy("Or train SDXL on a GPU", settings={"base": "sdxl"}),
        ),
    )


def write_latents(folder: Path, latents: LatentDistribution) -> None:
    """Write the latents of destyled images, [images, channels, height, width] in float32, beside them."""
    write_tensors(folder / DESTYLED_LATENTS, {"latents": latents.mean}, {})


def read_latents(path: Path, count: int, like: LatentDistribution) -> LatentDistribution:
    """The latents of ``count`` destyled images; raises ProjectError unless they are as large as ``like``."""
    latents = read_tensors(path)[0].get("latents")
    if latents is None or latents.dtype != torch.float32 or latents.shape != (count, *like.mean.shape[1:]):
        raise ProjectError(f"{path} does not hold the latents of {count} destyled images of this base.")
    return LatentDistribution(latents, torch.zeros_like(latents))


@torch.no_grad()
def generate_destyled(
    unet: UNet2DConditionModel,
    latents: Sequence[LatentDistribution],
    conditioning: DestyleConditioning,
    alphas_cumprod: Tensor,
    config: TrainConfig,
    *,
    device: torch.device,
    velocity: bool,
    other_subject: Callable[[Tensor], str] = lambda latents: "",
) -> Generator[Progress, None, tuple[LatentDistribution | None, tuple[str, ...]]]:
    """The latents of at most ``config.destyle_images`` destyled images, on the CPU, with zero spread.

    ``unet`` is the base without LoRA layers; ``latents`` holds the crops of each training image. Images and
    crops are used in turn. An image in which ``other_subject`` finds another subject is generated again,
    further from the training image, and omitted after ``ATTEMPTS``: the second result names these subjects.
    None if no image is left.
    """
    conditioning = conditioning.to(device=device, dtype=unet.dtype)
    predict = GraphedUNet(unet, enabled=config.capture)
    images, others = [], []
    for number in range(config.destyle_images):
        source = latents[number % len(latents)]
        crop = (number // len(latents)) % source.crops
        image = source.mean[crop : crop + 1].to(device)
        for attempt in range(ATTEMPTS):
            seed_number = number + attempt * config.destyle_images
            noise = fresh_noise(config.seed, seed_number, image.shape).to(device)
            strength = min(1.0, config.destyle_strength + attempt * STRENGTH_SPREAD)
            changed = replace(config, destyle_strength=strength)
            result = yield from destyle(
                predict, alphas_cumprod, image, noise, conditioning, changed, number, velocity=velocity
            )
            if not (other := other_subject(result)):
                images.append(result)
                break
        else:
            others.append(other)
    if not images:
        return None, tuple(others)
    # [images, channels, height, width]; training depends on their memory format in the last bits
    mean = torch.cat(images).cpu().contiguous()
    return LatentDistribution(mean, torch.zeros_like(mean)), tuple(others)


def destyle(
    predict: Predict,
    alphas_cumprod: Tensor,
    image: Tensor,
    noise: Tensor,
    conditioning: DestyleConditioning,
    config: TrainConfig,
    number: int,
    *,
    velocity: bool = False,
) -> Generator[Progress, None, Tensor]:
    """Destyled image ``number`` of each ``image`` [n, channels, height, width], as latents of that shape.

    ``noise`` is its :func:`fresh_noise`, of the same shape. ``velocity``: the base predicts the velocity
    instead of the noise.
    """
    times = ddim_times(strength_of(number, config), alphas_cumprod, velocity=velocity)
    latents, steps = image, 2 * (len(times) - 1)
    for step, (start, end) in enumerate(pairwise(times), start=1):
        prediction = predict(latents, start, conditioning.inversion)
        latents = ddim_step(
            latents, prediction, alphas_cumprod[start], alphas_cumprod[end], velocity=velocity
        )
        yield Progress("destyle", number, config.destyle_images, step, steps)
    latents = _mix_noise(latents, image, alphas_cumprod[times[-1]], noise, config.destyle_fresh_noise)
    for step, (start, end) in enumerate(pairwise(times.flip(0)), start=len(times)):
        uncond = predict(latents, start, conditioning.uncond)
        cond = predict(latents, start, conditioning.cond)
        prediction = uncond + config.destyle_guidance * (cond - uncond)
        latents = ddim_step(
            latents, prediction, alphas_cumprod[start], alphas_cumprod[end], velocity=velocity
        )
        yield Progress("destyle", number, config.destyle_images, step, steps)
    return latents


def strength_of(number: int, config: TrainConfig) -> float:
    """How far destyled image ``number`` goes into noise, from 0.1 to 1: evenly spread around the setting."""
    count = config.destyle_images
    offset = 2.0 * number / (count - 1) - 1.0 if count > 1 else 0.0  # from -1 to 1
    return min(1.0, max(0.1, config.destyle_strength + STRENGTH_SPREAD * offset))


def ddim_times(strength: float, alphas_cumprod: Tensor, *, velocity: bool) -> Tensor:
    """The timesteps from the clean image to ``strength``, rising, [steps + 1].

    At a cumulative alpha of 0 (zero terminal SNR, arXiv 2305.08891) only a predicted velocity determines the
    clean image; a base that predicts noise stops at the timestep before.
    """
    usable = len(alphas_cumprod) if velocity else int((alphas_cumprod > 0).sum())
    return torch.linspace(0, strength * (usable - 1), max(1, round(strength * DDIM_STEPS)) + 1).long()


def ddim_step(latents: Tensor, prediction: Tensor, start: Tensor, end: Tensor, *, velocity: bool) -> Tensor:
    """One deterministic DDIM step, in either direction (arXiv 2010.02502, equation 12).

    ``start`` and ``end`` are the cumulative alphas before and after it. With a predicted velocity v, the
    clean latents are sqrt(a) x - sqrt(1 - a) v and the noise is sqrt(a) v + sqrt(1 - a) x (arXiv 2202.00512,
    appendix D), which holds at a = 0, too.
    """
    if velocity:
        clean = start.sqrt() * latents - (1.0 - start).sqrt() * prediction
        noise = start.sqrt() * prediction + (1.0 - start).sqrt() * latents
    else:
        clean = (latents - (1.0 - start).sqrt() * prediction) / start.sqrt()
        noise = prediction
    return end.sqrt() * clean + (1.0 - end).sqrt() * noise


def fresh_noise(seed: int, number: int, shape: Sequence[int]) -> Tensor:
    """Standard normal noise of ``shape`` for destyled image ``number``: a function of the seed alone."""
    generator = torch.Generator().manual_seed(derive_seed(seed, number, 0, DESTYLE_STREAM))
    return torch.randn(tuple(shape), generator=generator)


def _mix_noise(latents: Tensor, image: Tensor, alpha: Tensor, noise: Tensor, share: float) -> Tensor:
    """Replace ``share`` of the variance of the noise in ``latents`` by ``noise``."""
    inverted = (latents - alpha.sqrt() * image) / (1.0 - alpha).sqrt()
    mixed: Tensor = (1.0 - share) ** 0.5 * inverted + share**0.5 * noise
    return alpha.sqrt() * image + (1.0 - alpha).sqrt() * mixed
