"""Everything that is computed once, before the U-Net arrives: texts and pictures as the U-Net reads them."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from accelerate import Accelerator
from torch import Tensor

from unziplora_cli.config import Prompts, TrainConfig
from unziplora_cli.diffusion.base import predicts_velocity
from unziplora_cli.diffusion.conditioning import Conditioning
from unziplora_cli.diffusion.generate import free, time_ids
from unziplora_cli.diffusion.load import load_text_encoders, load_vae
from unziplora_cli.diffusion.prompts import TextEmbeddings, cut_note, encode, no_text
from unziplora_cli.training.data import LatentDistribution, crop_note, encode_latents, prepare
from unziplora_cli.training.events import Event, Notice, Phase
from unziplora_cli.training.pictures import load_picture
from unziplora_cli.training.priors import class_pictures, class_prompts, draw_missing
from unziplora_cli.training.request import TrainRequest

_NO_TEXT = ""


@dataclass(frozen=True, slots=True)
class Prior:
    """A branch's class pictures, one crop each, and their prompt."""

    latents: LatentDistribution
    conditioning: Conditioning


@dataclass(frozen=True, slots=True)
class EchoTexts:
    """What an echo shows, and what the picture is said to show: as a whole, and of its content alone."""

    shown: Conditioning
    full: Conditioning
    content: Conditioning


@dataclass(frozen=True, slots=True)
class Materials:
    """What the steps draw from; all on the CPU.

    ``latents`` has one entry per picture; ``priors`` one per branch that has class pictures. ``validation``
    says what the full, content and style validation pictures are told; ``empty`` what guidance moves away
    from, None for zeros; ``echo`` the texts of the echoes, None without them. ``velocity`` says that the base
    predicts the velocity and not the noise.
    """

    conditioning: Conditioning
    latents: tuple[LatentDistribution, ...]
    priors: Mapping[str, Prior]
    validation: Mapping[str, Conditioning]
    empty: TextEmbeddings | None
    echo: EchoTexts | None = None
    velocity: bool = False


def gather(
    request: TrainRequest, accelerator: Accelerator, dtype: torch.dtype
) -> Iterator[Event | Materials]:
    """Read, draw and encode everything, yielding events and at last the materials.

    ``dtype`` is the text encoders'; the VAE always works in float32. Of several processes one draws missing
    class pictures, and the others wait.
    """
    config, device = request.config, accelerator.device
    names = ", ".join(path.name for path in request.pictures)
    yield Phase("read pictures", names)
    pixels = []
    crops = config.crops if config.crop == "random" else 1
    for path in request.pictures:
        picture = load_picture(path)
        note = crop_note(picture.image.size, config.resolution, crops)
        yield from map(Notice, (*picture.notes, *((f"{path.name}: {note}",) if note else ())))
        pixels.append(prepare(picture.image, config.resolution, crops))
    prompts = class_prompts(config)

    if prompts and accelerator.is_local_main_process:
        for drawn, total in draw_missing(request.base, config, device=device, dtype=dtype, vae=request.vae):
            yield Phase("draw class pictures", f"{drawn} of {total}")
    accelerator.wait_for_everyone()

    yield Phase("encode prompts", request.prompts.full)
    echo = config.echo_prompt.replace("{content}", request.prompts.content) if config.echoes else None
    extra = [*prompts.values(), *([echo] if echo else [])]
    texts, notices = _encode_texts(request, extra, device, dtype)
    yield from notices

    yield Phase("encode pictures", names)
    classes = {branch: _class_pixels(config, branch) for branch in prompts}
    latents, class_latents = _encode_pixels(request, pixels, classes, device)
    ids = time_ids(config.resolution, config.resolution)
    shown = request.validation or request.prompts
    yield Materials(
        conditioning=_three(texts, request.prompts, config, ids),
        latents=tuple(latents),
        priors={
            branch: Prior(class_latents[branch], _one(texts[prompt], ids))
            for branch, prompt in prompts.items()
        },
        validation={
            "full": _three(texts, shown, config, ids),
            "content": _one(texts[shown.content], ids),
            "style": _one(texts[shown.style], ids),
        },
        empty=texts.get(_NO_TEXT),
        velocity=predicts_velocity(request.base),
        echo=_echo_texts(texts, echo, request.prompts, ids) if echo else None,
    )


def _encode_texts(
    request: TrainRequest, more: Collection[str], device: torch.device, dtype: torch.dtype
) -> tuple[dict[str, TextEmbeddings], list[Notice]]:
    """Every text's embeddings, on the CPU; the encoders are gone afterwards."""
    encoders = load_text_encoders(request.base, device=device, dtype=dtype)
    shown = request.validation or request.prompts
    texts = [t for p in (request.prompts, shown) for t in (p.full, p.content, p.style)]
    unique = list(dict.fromkeys([*texts, *more]))
    encoded = encode(encoders, unique).to(device=torch.device("cpu"))
    notices = [Notice(note) for note in (cut_note(encoders, text) for text in unique) if note]
    empty = no_text(encoders)
    found = {text: encoded[i] for i, text in enumerate(unique)}
    if empty is not None:
        found[_NO_TEXT] = empty.to(device=torch.device("cpu"))
    del encoders
    free(device)
    return found, notices


def _encode_pixels(
    request: TrainRequest,
    pictures: Sequence[Tensor],
    classes: Mapping[str, Sequence[Tensor]],
    device: torch.device,
) -> tuple[list[LatentDistribution], dict[str, LatentDistribution]]:
    """The latents of the pictures and of each branch's class pictures; the VAE is gone afterwards."""
    vae = load_vae(request.base, device=device, vae=request.vae)
    latents = [encode_latents(vae, pixels) for pixels in pictures]
    class_latents = {branch: encode_latents(vae, torch.cat(list(parts))) for branch, parts in classes.items()}
    del vae
    free(device)
    return latents, class_latents


def _class_pixels(config: TrainConfig, branch: str) -> list[Tensor]:
    return [
        prepare(load_picture(path).image, config.resolution, 1) for path in class_pictures(config, branch)
    ]


def _three(
    texts: Mapping[str, TextEmbeddings], prompts: Prompts, config: TrainConfig, ids: Tensor
) -> Conditioning:
    """The three texts of ``prompts``; without prompt separation both branches read the full one."""
    full = texts[prompts.full]
    content, style = (
        (texts[prompts.content], texts[prompts.style]) if config.prompt_separation else (full, full)
    )
    return Conditioning(full.tokens, content.tokens, style.tokens, full.pooled, ids)


def _echo_texts(texts: Mapping[str, TextEmbeddings], echo: str, prompts: Prompts, ids: Tensor) -> EchoTexts:
    return EchoTexts(*(_one(texts[text], ids) for text in (echo, prompts.full, prompts.content)))


def _one(text: TextEmbeddings, ids: Tensor) -> Conditioning:
    return Conditioning.one_prompt(text.tokens, text.pooled, ids)
