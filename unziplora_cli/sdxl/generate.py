"""Pictures from a base with a content LoRA, a style LoRA, or both."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
from diffusers import AutoencoderKL
from PIL import Image
from torch import Tensor

import unziplora_cli
from unziplora_cli.accel.cuda_graph import GraphedUNet
from unziplora_cli.accel.device import empty_cache, memory_guard, settle_threads
from unziplora_cli.accel.merged_unet import cache_text, check_fit, fuse, restore
from unziplora_cli.config import GenerateConfig, Prompts
from unziplora_cli.method.lora import LoRAPair
from unziplora_cli.sdxl.base import BaseRef, native_resolution, scheduler_name, vae_scale_factor
from unziplora_cli.sdxl.latents import decode_latents
from unziplora_cli.sdxl.load import load_scheduler, load_text_encoders, load_unet, load_vae
from unziplora_cli.sdxl.sampling import concat_conditionings, initial_noise, sample, unconditional
from unziplora_cli.sdxl.text import (
    Conditioning,
    TextEmbeddings,
    encode,
    encode_unconditional,
    time_ids,
    truncation_note,
)

PARAMETERS_SCHEMA = 1
_ADVICE = "Draw smaller pictures (--width, --height) or use another device (--device)."


@dataclass(frozen=True, slots=True)
class ImageRequest:
    """Pictures that differ in their seed alone.

    With one branch its own prompt speaks to everything; with both, each branch hears its own prompt and the
    base the full one; with none, the full one. The strengths of ``config`` replace those of ``branches``.
    ``notes`` go into the pictures' parameters.
    """

    prompts: Prompts
    branches: LoRAPair = field(default_factory=LoRAPair)
    config: GenerateConfig = field(default_factory=GenerateConfig)
    notes: Mapping[str, Any] = field(default_factory=dict)

    @property
    def seeds(self) -> range:
        """One seed per picture."""
        return range(self.config.seed, self.config.seed + self.config.count)

    @property
    def texts(self) -> tuple[str, str, str]:
        """What the base, the content branch and the style branch are told."""
        if len(self.branches.names) == 2:
            return self.prompts.full, self.prompts.content, self.prompts.style
        text: str = (
            getattr(self.prompts, self.branches.names[0]) if self.branches.names else self.prompts.full
        )
        return text, text, text

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
    """A finished picture, which request it answers, and everything needed to draw it again."""

    image: Image.Image
    request: ImageRequest
    seed: int
    parameters: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Progress:
    """How far the drawing is; ``picture`` counts finished ones, ``step`` those of the picture at hand.

    In phase ``note`` it carries one sentence that the user should know.
    """

    phase: Literal["load", "note", "draw", "decode"]
    picture: int
    pictures: int
    step: int = 0
    steps: int = 0
    note: str = ""


def generate(
    base: BaseRef,
    requests: Sequence[ImageRequest],
    *,
    device: torch.device,
    dtype: torch.dtype,
    batch_size: int = 1,
    vae: str | None = None,
    on_progress: Callable[[Progress], None] | None = None,
) -> Iterator[GeneratedImage]:
    """Draw every picture of every request, in order, loading each part of the base once.

    ``batch_size`` pictures of one request are drawn together. A seed gives the same noise on every device.
    Raises ModelError, AdapterError when a LoRA does not fit the base, OutOfMemory.
    """
    report = on_progress or (lambda progress: None)
    total = sum(request.config.count for request in requests)
    done = 0
    report(Progress("load", done, total))
    with memory_guard(_ADVICE):
        texts = encode_prompts(
            base,
            requests,
            device=device,
            dtype=dtype,
            on_note=lambda note: report(Progress("note", done, total, note=note)),
        )
        unet = load_unet(base, device=device, dtype=dtype)
        settle_threads(unet)
        for request in requests:
            check_fit(unet, request.branches)
        decoder = load_vae_decoder(base, device=device, dtype=dtype, vae=vae)
        predict = GraphedUNet(unet)

        originals: dict[str, Tensor] = {}
        for number, request in enumerate(requests):
            follows = number > 0 and _same(request.weighted, requests[number - 1].weighted)
            last = all(_same(request.weighted, later.weighted) for later in requests[number + 1 :])
            if not follows:
                restore(unet, originals)
                originals = fuse(unet, request.weighted, keep=not last)
            told, empty = make_conditioning(base, request, texts, device=device, dtype=dtype)
            for first in range(0, request.config.count, batch_size):
                seeds = request.seeds[first : first + batch_size]
                latents = denoise(base, predict, request, seeds, told, empty, _stepper(report, done, total))
                report(Progress("decode", done, total))
                for seed, latent in zip(seeds, latents.split(1), strict=True):
                    image = decode_latents(decoder, latent)[0]
                    yield GeneratedImage(image, request, seed, parameters(base, request, seed))
                    done += 1


def encode_prompts(
    base: BaseRef,
    requests: Sequence[ImageRequest],
    *,
    device: torch.device,
    dtype: torch.dtype,
    on_note: Callable[[str], None] | None = None,
) -> Mapping[str | None, TextEmbeddings]:
    """All texts of ``requests``, encoded on ``device`` and kept on the CPU; the encoders are gone afterwards.

    Under None lies what guidance moves away from when no negative prompt is given, if that is not zeros.
    ``on_note`` is told what of a text is too long to be read.
    """
    encoders = load_text_encoders(base, device=device, dtype=dtype)
    negatives = [request.config.negative_prompt for request in requests if request.config.negative_prompt]
    unique = list(dict.fromkeys([*(text for request in requests for text in request.texts), *negatives]))
    # One by one: a text's last bits would depend on its company, and with them the picture.
    encoded: dict[str | None, TextEmbeddings] = {text: encode(encoders, [text]) for text in unique}
    for note in filter(None, (truncation_note(encoders, text) for text in unique)):
        if on_note is not None:
            on_note(note)
    empty = encode_unconditional(encoders)
    if empty is not None:
        encoded[None] = empty
    del encoders
    empty_cache(device)
    return {text: embeddings.to(device=torch.device("cpu")) for text, embeddings in encoded.items()}


def make_conditioning(
    base: BaseRef,
    request: ImageRequest,
    texts: Mapping[str | None, TextEmbeddings],
    *,
    device: torch.device,
    dtype: torch.dtype,
) -> tuple[Conditioning, Conditioning]:
    """What one picture is told, and what guidance moves away from."""
    full, content, style = (texts[text] for text in request.texts)
    height, width = size(base, request.config)
    told = Conditioning(
        full=full.tokens,
        content=content.tokens,
        style=style.tokens,
        pooled=full.pooled,
        time_ids=time_ids(height, width),
    )
    away = texts.get(request.config.negative_prompt or None)
    empty = unconditional(told, None if away is None else (away.tokens, away.pooled))
    if away is not None and len(request.branches.names) == 1:
        empty = Conditioning.from_prompt(away.tokens, away.pooled, told.time_ids)
    return told.to(device=device, dtype=dtype), empty.to(device=device, dtype=dtype)


def size(base: BaseRef, config: GenerateConfig) -> tuple[int, int]:
    """Height and width in pixels; what the configuration leaves out is the base's own."""
    native = native_resolution(base)
    return config.height or native, config.width or native


def load_vae_decoder(
    base: BaseRef, *, device: torch.device, dtype: torch.dtype, vae: str | None = None
) -> AutoencoderKL:
    """The autoencoder in float32, or in ``dtype`` when it says that it can take that."""
    model = load_vae(base, device=device, vae=vae)
    return model if model.config.force_upcast else model.to(dtype)


def parameters(base: BaseRef, request: ImageRequest, seed: int) -> dict[str, Any]:
    """Everything that makes this picture, as plain values."""
    config = request.config
    height, width = size(base, config)
    return {
        "schema": PARAMETERS_SCHEMA,
        "version": unziplora_cli.__version__,
        "base": {
            "id": base.id,
            "kind": base.kind,
            "revision": base.revision,
            "fingerprint": base.fingerprint,
        },
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


@torch.no_grad()
def denoise(
    base: BaseRef,
    predict: GraphedUNet,
    request: ImageRequest,
    seeds: Sequence[int],
    told: Conditioning,
    empty: Conditioning,
    on_step: Callable[[int, int], None],
) -> Tensor:
    """The finished latents of ``seeds``, [n, channels, height, width], float32; by a U-Net fused already."""
    config, unet = request.config, predict.unet
    height, width = (side // vae_scale_factor(base) for side in size(base, config))
    noise, generators = initial_noise(seeds, unet.config.in_channels, height, width)
    batch = told.expand(len(seeds))
    if config.guidance > 1.0:
        batch = concat_conditionings(empty.expand(len(seeds)), batch)
    cache_text(unet, request.weighted, batch)
    return sample(
        lambda noisy, timestep: predict(noisy, timestep, batch),
        load_scheduler(base, config.scheduler),
        noise.to(unet.device),
        steps=config.steps,
        guidance=config.guidance,
        generators=generators,
        on_step=lambda step: on_step(step + 1, config.steps),
    )


def _stepper(report: Callable[[Progress], None], done: int, total: int) -> Callable[[int, int], None]:
    return lambda step, steps: report(Progress("draw", done, total, step, steps))


def _same(one: LoRAPair, other: LoRAPair) -> bool:
    """Whether both put the very same weights into the network."""
    strengths = ("content_strength", "style_strength")
    tensors = ("content", "style", "content_merge", "style_merge")
    return all(getattr(one, name) == getattr(other, name) for name in strengths) and all(
        getattr(one, name) is getattr(other, name) for name in tensors
    )
