"""Generating images from a base with a content LoRA, a style LoRA, or both."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any

import torch
from PIL import Image
from torch import Tensor

import unziplora_cli
from unziplora_cli.accel.device import empty_cache, limit_threads, memory_guard
from unziplora_cli.accel.fused_lora import cache_text, check_fit, fuse_pair, unfuse_pair
from unziplora_cli.config import GenerateConfig, Prompts
from unziplora_cli.errors import Remedy
from unziplora_cli.events import Event, Notice, Phase, Progress
from unziplora_cli.method.inject import eject, inject_pair
from unziplora_cli.method.lora import LoRAPair
from unziplora_cli.sdxl.attention import separate_prompts
from unziplora_cli.sdxl.base import BaseRef, image_size, scheduler_name, vae_scale_factor
from unziplora_cli.sdxl.latents import decode_latents
from unziplora_cli.sdxl.load import load_scheduler, load_text_encoders, load_unet, load_vae_decoder
from unziplora_cli.sdxl.sampling import initial_noise, sample_steps
from unziplora_cli.sdxl.text import (
    Conditioning,
    GraphedUNet,
    TextEmbeddings,
    concat_conditionings,
    encode,
    encode_unconditional,
    predict_noise,
    time_ids,
    truncation_note,
    unconditional,
)

PARAMETERS_SCHEMA = 1
_LESS_MEMORY = Remedy(
    "Generate smaller images, or use another device", settings={"width": None, "height": None, "device": None}
)

PromptEmbeddings = Mapping[str | None, TextEmbeddings]
"""Prompt -> its embeddings; under None "no text", unless the base uses zeros for it."""


@dataclass(frozen=True, slots=True)
class ImageRequest:
    """Images that differ in their seed only.

    With both LoRAs, each branch gets its own prompt and the base gets the full one. With one LoRA, everything
    gets the prompt of that branch; without a LoRA, the full prompt. The strengths of ``config`` replace those
    of ``branches``. ``notes`` are added to the parameters of the images.
    """

    prompts: Prompts
    branches: LoRAPair = field(default_factory=LoRAPair)
    config: GenerateConfig = field(default_factory=GenerateConfig)
    notes: Mapping[str, Any] = field(default_factory=dict)

    @property
    def seeds(self) -> range:
        """One seed per image."""
        return range(self.config.seed, self.config.seed + self.config.count)

    @property
    def texts(self) -> tuple[str, str, str]:
        """The prompts of the base, the content branch and the style branch."""
        if len(self.branches.names) == 2:
            return self.prompts.full, self.prompts.content, self.prompts.style
        prompt: str = getattr(self.prompts, self.branches.names[0] if self.branches.names else "full")
        return prompt, prompt, prompt

    @property
    def weighted(self) -> LoRAPair:
        """The branches at the strengths of ``config``."""
        return replace(
            self.branches,
            content_strength=self.config.content_strength,
            style_strength=self.config.style_strength,
        )


@dataclass(frozen=True, slots=True)
class GeneratedImage:
    """A finished image, its request and seed, and the parameters that reproduce it."""

    image: Image.Image
    request: ImageRequest
    seed: int
    parameters: Mapping[str, Any]


class AdaptedUNet:
    """A U-Net with one pair of LoRAs at a time, and its prediction in float32.

    The LoRAs are fused into its weights and cached texts. Without ``fuse`` they stay in layers of their own,
    as the method defines them, and every kernel is launched by itself.
    """

    def __init__(self, unet: Any, *, fuse: bool = True) -> None:
        self.unet = unet
        self.pair = LoRAPair()
        self._fuse, self._dtype = fuse, unet.dtype
        self._graphed = GraphedUNet(unet, enabled=fuse)
        self._originals: dict[str, Tensor] = {}
        if not fuse:
            separate_prompts(unet)
            inject_pair(unet, self.pair)

    def apply(self, pair: LoRAPair, *, last: bool = False) -> None:
        """Replace the LoRAs by ``pair``; the ``last`` one cannot be replaced, which saves a copy of the
        weights."""
        if _same_weights(pair, self.pair):
            return
        self.pair = pair
        if self._fuse:
            unfuse_pair(self.unet, self._originals)
            self._originals = fuse_pair(self.unet, pair, keep=not last)
        else:
            eject(self.unet)
            inject_pair(self.unet, pair)

    def set_texts(self, cond: Conditioning) -> None:
        """Prepare for calls with ``cond``, which has the batch of the images."""
        if self._fuse:
            cache_text(self.unet, self.pair, cond.full, cond.content, cond.style)

    def __call__(self, noisy: Tensor, timestep: Tensor, cond: Conditioning) -> Tensor:
        """The estimate for ``noisy`` [batch, channels, height, width] at ``timestep`` [] or [batch]."""
        if self._fuse:
            return self._graphed(noisy, timestep, cond)
        return predict_noise(self.unet, noisy.to(self._dtype), timestep.to(noisy.device), cond).float()


def generate(
    base: BaseRef,
    requests: Sequence[ImageRequest],
    *,
    device: torch.device,
    dtype: torch.dtype,
    batch_size: int = 1,
    vae: str | None = None,
    fuse: bool = True,
) -> Iterator[Event | GeneratedImage]:
    """Yield the images of all requests in order, and progress events; each component is loaded once.

    ``batch_size`` images of one request are generated together. A seed gives the same noise on every device.
    ``fuse`` is that of :class:`AdaptedUNet`.
    Raises ModelError, AdapterError if a LoRA does not fit the base, OutOfMemory.
    """
    total, done = sum(request.config.count for request in requests), 0
    yield Phase("load base")
    with memory_guard(lambda: [_LESS_MEMORY]):
        texts = yield from encode_prompts(base, requests, device=device, dtype=dtype)
        unet = load_unet(base, device=device, dtype=dtype, fuse=fuse)
        limit_threads(unet)
        for request in requests:
            check_fit(unet, request.branches)
        decoder = load_vae_decoder(base, device=device, dtype=dtype, vae=vae)
        predict = AdaptedUNet(unet, fuse=fuse)
        for number, request in enumerate(requests):
            pair = request.weighted
            predict.apply(
                pair, last=all(_same_weights(pair, later.weighted) for later in requests[number + 1 :])
            )
            cond, uncond = make_conditioning(base, request, texts, device=device, dtype=dtype)
            for first in range(0, request.config.count, batch_size):
                seeds = request.seeds[first : first + batch_size]
                latents = torch.empty(0)
                for step, latents in enumerate(denoise(base, predict, request, seeds, cond, uncond), 1):  # noqa: B007
                    yield Progress("generate", done, total, step, request.config.steps)
                for seed, latent in zip(seeds, torch.split(latents, 1), strict=True):
                    image = decode_latents(decoder, latent)[0]
                    yield GeneratedImage(image, request, seed, image_parameters(base, request, seed))
                    done += 1


def encode_prompts(
    base: BaseRef, requests: Sequence[ImageRequest], *, device: torch.device, dtype: torch.dtype
) -> Generator[Notice, None, PromptEmbeddings]:
    """Encode all prompts of ``requests`` on ``device``, free the encoders, return the embeddings on the CPU.

    Yields a notice for each prompt that is too long.
    """
    encoders = load_text_encoders(base, device=device, dtype=dtype)
    negatives = [request.config.negative_prompt for request in requests if request.config.negative_prompt]
    prompts = dict.fromkeys([*(text for request in requests for text in request.texts), *negatives])
    encoded: dict[str | None, TextEmbeddings] = {}
    for prompt in prompts:
        encoded[prompt] = encode(encoders, [prompt])
        if note := truncation_note(encoders, prompt):
            yield Notice(note)
    no_text = encode_unconditional(encoders)
    if no_text is not None:
        encoded[None] = no_text
    del encoders
    empty_cache(device)
    return {prompt: embeddings.to(device=torch.device("cpu")) for prompt, embeddings in encoded.items()}


def make_conditioning(
    base: BaseRef, request: ImageRequest, texts: PromptEmbeddings, *, device: torch.device, dtype: torch.dtype
) -> tuple[Conditioning, Conditioning]:
    """The conditional and the unconditional conditioning of an image."""
    full, content, style = (texts[text] for text in request.texts)
    cond = Conditioning(
        full=full.tokens,
        content=content.tokens,
        style=style.tokens,
        pooled=full.pooled,
        time_ids=time_ids(*image_size(base, request.config)),
    )
    negative = texts.get(request.config.negative_prompt or None)
    uncond = unconditional(cond, negative, single=len(request.branches.names) == 1)
    return cond.to(device=device, dtype=dtype), uncond.to(device=device, dtype=dtype)


@torch.no_grad()
def denoise(
    base: BaseRef,
    predict: AdaptedUNet,
    request: ImageRequest,
    seeds: Sequence[int],
    cond: Conditioning,
    uncond: Conditioning,
) -> Iterator[Tensor]:
    """The latents of ``seeds`` after each step, [n, channels, height, width], float32.

    The LoRAs must be applied already.
    """
    config, unet = request.config, predict.unet
    height, width = (side // vae_scale_factor(base) for side in image_size(base, config))
    noise, generators = initial_noise(seeds, unet.config.in_channels, height, width)
    batch = cond.expand(len(seeds))
    if config.guidance > 1.0:
        batch = concat_conditionings(uncond.expand(len(seeds)), batch)
    predict.set_texts(batch)
    return sample_steps(
        lambda noisy, timestep: predict(noisy, timestep, batch),
        load_scheduler(base, config.scheduler),
        noise.to(unet.device),
        steps=config.steps,
        guidance=config.guidance,
        generators=generators,
    )


def image_parameters(base: BaseRef, request: ImageRequest, seed: int) -> dict[str, Any]:
    """The parameters that reproduce an image, as plain values for JSON."""
    config = request.config
    height, width = image_size(base, config)
    return {
        "schema": PARAMETERS_SCHEMA,
        "version": unziplora_cli.__version__,
        "base": {name: getattr(base, name) for name in ("id", "kind", "revision", "fingerprint")},
        "prompts": dict(zip(("full", "content", "style"), request.texts, strict=True)),
        "negative_prompt": config.negative_prompt,
        "branches": {name: getattr(config, f"{name}_strength") for name in request.branches.names},
        "seed": seed,
        "steps": config.steps,
        "guidance": config.guidance,
        "scheduler": scheduler_name(base, config.scheduler),
        "width": width,
        "height": height,
        **request.notes,
    }


def _same_weights(one: LoRAPair, other: LoRAPair) -> bool:
    """Whether two pairs are the same tensors at the same strengths."""
    values = ((getattr(one, part.name), getattr(other, part.name)) for part in fields(LoRAPair))
    return all(a is b or (isinstance(a, float) and a == b) for a, b in values)
