"""Everything that is computed once, before the U-Net arrives: texts and pictures as the U-Net reads them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from accelerate import Accelerator
from torch import Tensor

from unziplora_cli.config import Prompts, TrainConfig
from unziplora_cli.diffusion.base import predicts_velocity
from unziplora_cli.diffusion.conditioning import Conditioning
from unziplora_cli.diffusion.generate import free, time_ids
from unziplora_cli.diffusion.load import load_text_encoders, load_vae
from unziplora_cli.diffusion.prompts import TextEmbeddings, TextEncoders, cut_note, encode, no_text
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
    requests: Sequence[TrainRequest], accelerator: Accelerator, dtype: torch.dtype
) -> Iterator[Event | tuple[TrainRequest, Materials]]:
    """Read, draw and encode everything, yielding events and at last each request with its materials.

    All requests are of one base. ``dtype`` is the text encoders'; the VAE always works in float32. Of several
    processes one draws missing class pictures, and the others wait.
    """
    base, device = requests[0].base, accelerator.device
    pixels = []
    for request in requests:
        yield Phase("read pictures", _names(request))
        read, notes = _read(request)
        yield from notes
        pixels.append(read)
        if class_prompts(request.config) and accelerator.is_local_main_process:
            for drawn, total in draw_missing(
                base, request.config, device=device, dtype=dtype, vae=request.vae
            ):
                yield Phase("draw class pictures", f"{drawn} of {total}")
    accelerator.wait_for_everyone()

    encoders = load_text_encoders(base, device=device, dtype=dtype)
    texts = []
    for request in requests:
        yield Phase("encode prompts", request.prompts.full)
        found, notices = _encode_texts(encoders, request)
        yield from notices
        texts.append(found)
    del encoders
    free(device)

    vae = load_vae(base, device=device, vae=requests[0].vae)
    latents = []
    for request, read in zip(requests, pixels, strict=True):
        yield Phase("encode pictures", _names(request))
        classes = {branch: _class_pixels(request.config, branch) for branch in class_prompts(request.config)}
        latents.append(
            (
                tuple(encode_latents(vae, each) for each in read),
                {branch: encode_latents(vae, torch.cat(parts)) for branch, parts in classes.items()},
            )
        )
    del vae
    free(device)
    for request, known, found in zip(requests, texts, latents, strict=True):
        yield request, _materials(request, known, *found)


def _materials(
    request: TrainRequest,
    texts: Mapping[str, TextEmbeddings],
    latents: tuple[LatentDistribution, ...],
    class_latents: Mapping[str, LatentDistribution],
) -> Materials:
    config = request.config
    ids = time_ids(config.resolution, config.resolution)
    shown = request.validation or request.prompts
    echo = _echo_text(request)
    return Materials(
        conditioning=_three(texts, request.prompts, config, ids),
        latents=latents,
        priors={
            branch: Prior(class_latents[branch], _one(texts[prompt], ids))
            for branch, prompt in class_prompts(config).items()
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


def _names(request: TrainRequest) -> str:
    return ", ".join(path.name for path in request.pictures)


def _read(request: TrainRequest) -> tuple[list[Tensor], list[Notice]]:
    """The crops of every picture, and what the user should know about them."""
    config = request.config
    crops = config.crops if config.crop == "random" else 1
    pixels, notes = [], []
    for path in request.pictures:
        picture = load_picture(path)
        note = crop_note(picture.image.size, config.resolution, crops)
        notes += map(Notice, (*picture.notes, *((f"{path.name}: {note}",) if note else ())))
        pixels.append(prepare(picture.image, config.resolution, crops))
    return pixels, notes


def _echo_text(request: TrainRequest) -> str | None:
    """What an echo shows, if there are any."""
    config = request.config
    return config.echo_prompt.replace("{content}", request.prompts.content) if config.echoes else None


def _encode_texts(
    encoders: TextEncoders, request: TrainRequest
) -> tuple[dict[str, TextEmbeddings], list[Notice]]:
    """The embeddings of every text of ``request``, on the CPU."""
    shown, echo = request.validation or request.prompts, _echo_text(request)
    texts = [t for p in (request.prompts, shown) for t in (p.full, p.content, p.style)]
    more = [*class_prompts(request.config).values(), *([echo] if echo else [])]
    unique = list(dict.fromkeys([*texts, *more]))
    encoded = encode(encoders, unique).to(device=torch.device("cpu"))
    notices = [Notice(note) for note in (cut_note(encoders, text) for text in unique) if note]
    empty = no_text(encoders)
    found = {text: encoded[i] for i, text in enumerate(unique)}
    if empty is not None:
        found[_NO_TEXT] = empty.to(device=torch.device("cpu"))
    return found, notices


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
