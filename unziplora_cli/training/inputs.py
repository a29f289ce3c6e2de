"""Everything that is computed once, before the U-Net is loaded: text embeddings and image latents."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from accelerate import Accelerator
from diffusers import UNet2DConditionModel
from torch import Tensor

from unziplora_cli.accel.device import empty_cache, limit_threads
from unziplora_cli.config import GenerateConfig, Prompts, TrainConfig
from unziplora_cli.errors import ProjectError, UsageError
from unziplora_cli.images import load_image
from unziplora_cli.method.layer import BRANCHES
from unziplora_cli.sdxl.base import BaseRef, predicts_velocity
from unziplora_cli.sdxl.generate import GeneratedImage, ImageRequest, generate
from unziplora_cli.sdxl.latents import LatentDistribution, crop_image, crop_note, encode_latents
from unziplora_cli.sdxl.load import load_text_encoders, load_unet, load_vae
from unziplora_cli.sdxl.text import (
    Conditioning,
    TextEmbeddings,
    TextEncoders,
    encode,
    encode_unconditional,
    time_ids,
    truncation_note,
)
from unziplora_cli.training.events import Event, Notice, Phase
from unziplora_cli.training.noise import CONTENT_PRIOR_STREAM, STYLE_PRIOR_STREAM, derive_seed
from unziplora_cli.training.request import TrainRequest

_NO_TEXT = ""


@dataclass(frozen=True, slots=True)
class Prior:
    """A branch's class pictures, one crop each, and their prompt."""

    latents: LatentDistribution
    conditioning: Conditioning


@dataclass(frozen=True, slots=True)
class DestyleConditioning:
    """What an echo shows, and what the picture is said to show: as a whole, and of its content alone."""

    shown: Conditioning
    full: Conditioning
    content: Conditioning


@dataclass(frozen=True, slots=True)
class TrainingInputs:
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
    echo: DestyleConditioning | None = None
    velocity: bool = False


def prepare_inputs(
    requests: Sequence[TrainRequest], accelerator: Accelerator, dtype: torch.dtype
) -> Iterator[Event | tuple[TrainRequest, TrainingInputs]]:
    """Read, draw and encode everything, yielding events and at last each request with its inputs.

    All requests are of one base. ``dtype`` is the text encoders'; the VAE always works in float32. Of several
    processes one draws missing class pictures, and the others wait.
    """
    base, device = requests[0].base, accelerator.device
    pixels = []
    for request in requests:
        yield Phase("read images", _names(request))
        read, notes = _read(request)
        yield from notes
        pixels.append(read)
        if class_prompts(request.config) and accelerator.is_local_main_process:
            for drawn, total in generate_missing_class_images(
                base, request.config, device=device, dtype=dtype, vae=request.job.vae
            ):
                yield Phase("generate class images", f"{drawn} of {total}")
    accelerator.wait_for_everyone()

    encoders = load_text_encoders(base, device=device, dtype=dtype)
    texts = []
    for request in requests:
        yield Phase("encode prompts", request.job.prompts.full)
        found, notices = _encode_texts(encoders, request)
        yield from notices
        texts.append(found)
    del encoders
    empty_cache(device)

    vae = load_vae(base, device=device, vae=requests[0].job.vae)
    latents = []
    for request, read in zip(requests, pixels, strict=True):
        yield Phase("encode images", _names(request))
        classes = {branch: _class_pixels(request.config, branch) for branch in class_prompts(request.config)}
        latents.append(
            (
                tuple(encode_latents(vae, each) for each in read),
                {branch: encode_latents(vae, torch.cat(parts)) for branch, parts in classes.items()},
            )
        )
    del vae
    empty_cache(device)
    for request, known, found in zip(requests, texts, latents, strict=True):
        yield request, _materials(request, known, *found)


def _materials(
    request: TrainRequest,
    texts: Mapping[str, TextEmbeddings],
    latents: tuple[LatentDistribution, ...],
    class_latents: Mapping[str, LatentDistribution],
) -> TrainingInputs:
    config = request.config
    ids = time_ids(config.resolution, config.resolution)
    shown = request.job.validation or request.job.prompts
    echo = _echo_text(request)
    return TrainingInputs(
        conditioning=_three(texts, request.job.prompts, config, ids),
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
        echo=_echo_texts(texts, echo, request.job.prompts, ids) if echo else None,
    )


def _names(request: TrainRequest) -> str:
    return ", ".join(path.name for path in request.images)


def _read(request: TrainRequest) -> tuple[list[Tensor], list[Notice]]:
    """The crops of every picture, and what the user should know about them."""
    config = request.config
    crops = config.crops if config.crop == "random" else 1
    pixels, notes = [], []
    for path in request.images:
        picture = load_image(path)
        note = crop_note(picture.image.size, config.resolution, crops)
        notes += map(Notice, (*picture.notes, *((f"{path.name}: {note}",) if note else ())))
        pixels.append(crop_image(picture.image, config.resolution, crops))
    return pixels, notes


def _echo_text(request: TrainRequest) -> str | None:
    """What an echo shows, if there are any."""
    config = request.config
    return (
        config.destyle_prompt.replace("{content}", request.job.prompts.content)
        if config.destyle_images
        else None
    )


def _encode_texts(
    encoders: TextEncoders, request: TrainRequest
) -> tuple[dict[str, TextEmbeddings], list[Notice]]:
    """The embeddings of every text of ``request``, on the CPU."""
    shown, echo = request.job.validation or request.job.prompts, _echo_text(request)
    texts = [t for p in (request.job.prompts, shown) for t in (p.full, p.content, p.style)]
    more = [*class_prompts(request.config).values(), *([echo] if echo else [])]
    unique = list(dict.fromkeys([*texts, *more]))
    encoded = encode(encoders, unique).to(device=torch.device("cpu"))
    notices = [Notice(note) for note in (truncation_note(encoders, text) for text in unique) if note]
    empty = encode_unconditional(encoders)
    found = {text: encoded[i] for i, text in enumerate(unique)}
    if empty is not None:
        found[_NO_TEXT] = empty.to(device=torch.device("cpu"))
    return found, notices


def _class_pixels(config: TrainConfig, branch: str) -> list[Tensor]:
    return [
        crop_image(load_image(path).image, config.resolution, 1) for path in class_image_files(config, branch)
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


def _echo_texts(
    texts: Mapping[str, TextEmbeddings], echo: str, prompts: Prompts, ids: Tensor
) -> DestyleConditioning:
    return DestyleConditioning(*(_one(texts[text], ids) for text in (echo, prompts.full, prompts.content)))


def _one(text: TextEmbeddings, ids: Tensor) -> Conditioning:
    return Conditioning.from_prompt(text.tokens, text.pooled, ids)


# What trainings of several pictures share, so that nothing is loaded twice.


@dataclass(slots=True)
class InputCache:
    """All pictures ``to_come`` are encoded before the first U-Net, which then stays for those after it.

    They share base, device and precision.
    """

    to_come: Sequence[TrainRequest] = ()
    _encoded: list[tuple[TrainRequest, TrainingInputs]] = field(default_factory=list, init=False)
    _unet: UNet2DConditionModel | None = field(default=None, init=False)

    def inputs(
        self, request: TrainRequest, accelerator: Accelerator, dtype: torch.dtype
    ) -> Iterator[Event | TrainingInputs]:
        """What ``request`` draws from, at last; before it the events of what had to be done."""
        if not any(_alike(request, done) for done, _ in self._encoded):
            others = [each for each in self.to_come if not _alike(request, each)]
            for found in prepare_inputs([request, *others], accelerator, dtype):
                if isinstance(found, tuple):
                    self._encoded.append(found)
                else:
                    yield found
            self.to_come = ()
        yield next(inputs for done, inputs in self._encoded if _alike(request, done))

    def unet(self, request: TrainRequest, device: torch.device, dtype: torch.dtype) -> UNet2DConditionModel:
        """The U-Net, without branches."""
        unet, self._unet = self._unet, None
        if unet is None:
            eight_bits = request.config.quantize == "int8"
            unet = load_unet(
                request.base, device=device, dtype=dtype, eight_bits=eight_bits, fuse=request.config.fuse
            )
        empty_cache(device)
        limit_threads(unet)
        return unet

    def keep(self, unet: UNet2DConditionModel) -> None:
        """Take back the U-Net, without branches."""
        self._unet = unet


def _alike(one: TrainRequest, other: TrainRequest) -> bool:
    """Whether both draw from the same pictures under the same prompts."""
    parts = ("prompts", "validation", "settings", "vae")
    return one.images == other.images and all(
        getattr(one.job, part) == getattr(other.job, part) for part in parts
    )


STREAMS = {"content": CONTENT_PRIOR_STREAM, "style": STYLE_PRIOR_STREAM}
SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff"}


def class_prompts(config: TrainConfig) -> dict[str, str]:
    """The class prompt of each branch that has a folder of class pictures.

    Raises UsageError when a folder has no prompt.
    """
    prompts = {}
    for branch in BRANCHES:
        if getattr(config, f"prior_{branch}") is None:
            continue
        prompt = getattr(config, f"prior_{branch}_prompt")
        if not prompt:
            example = "a fox" if branch == "content" else "a picture in watercolor style"
            raise UsageError(
                f"--prior-{branch} names a folder of class pictures, but not what they show.",
                hint=f'Add --prior-{branch}-prompt "{example}".',
            )
        prompts[branch] = prompt
    return prompts


def class_image_files(config: TrainConfig, branch: str) -> list[Path]:
    """The first ``prior_images`` pictures of a branch's folder, by name; the folder need not exist."""
    folder = Path(getattr(config, f"prior_{branch}")).expanduser()
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"--prior-{branch} {folder} is a file, not a folder of class pictures.")
    files = sorted(folder.iterdir()) if folder.is_dir() else []
    return [file for file in files if file.suffix.lower() in SUFFIXES][: config.prior_images]


def generate_missing_class_images(
    base: BaseRef,
    config: TrainConfig,
    *,
    device: torch.device,
    dtype: torch.dtype,
    vae: str | None = None,
) -> Iterator[tuple[int, int]]:
    """Fill the folders of class pictures up with the base alone; yields (drawn, to draw) after each one."""
    requests, folders = [], []
    for branch, prompt in class_prompts(config).items():
        present = len(class_image_files(config, branch))
        missing = config.prior_images - present
        if missing > 0:
            first = derive_seed(config.seed, STREAMS[branch]) >> 31  # 32 bits
            settings = GenerateConfig(
                width=config.resolution, height=config.resolution, count=missing, seed=first + present
            )
            requests.append(ImageRequest(Prompts(prompt, prompt, prompt), config=settings))
            folders += [Path(getattr(config, f"prior_{branch}")).expanduser()] * missing
    if not requests:
        return
    events = generate(base, requests, device=device, dtype=dtype, vae=vae)
    pictures = (event for event in events if isinstance(event, GeneratedImage))
    for number, (folder, picture) in enumerate(zip(folders, pictures, strict=True), start=1):
        try:
            folder.mkdir(parents=True, exist_ok=True)
            picture.image.save(folder / f"class-{picture.seed:010d}.png")
        except OSError as error:
            raise ProjectError(
                f"Cannot write class pictures to {folder}: {error.strerror}.", hint="Choose another folder."
            ) from error
        yield number, len(folders)
