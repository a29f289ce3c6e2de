"""Destyled images before a training: the user's own, a destyling model's, or a preview of all ways."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Generator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from unziplora_cli import files, resources, vocabulary
from unziplora_cli.config import TrainConfig, Words
from unziplora_cli.errors import Remedy, UsageError
from unziplora_cli.events import Notice, Phase, Progress
from unziplora_cli.paths import expand_user
from unziplora_cli.prompts import PHOTO, with_article
from unziplora_cli.training.request import DESTYLED, TrainRequest
from unziplora_cli.workflows.describe import outside
from unziplora_cli.workflows.evaluate import find_scorer

if TYPE_CHECKING:
    from PIL import Image
    from torch import Tensor

    from unziplora_cli.sdxl.base import BaseRef
    from unziplora_cli.training.events import Event

WAYS = ("none", "inversion", "model", "edit")
KEPT = 4
"""Of so many edited images, one is kept: the best."""


def choose_way(config: TrainConfig, base: BaseRef, style: str = "") -> tuple[TrainConfig, tuple[Path, ...]]:
    """The settings with the way to destyle decided, and the files of a folder that the user named.

    For the ``style`` "photo" the default is inversion, which keeps a photo as it is.
    Raises UsageError for a way that does not exist or not for this base, and ModelError if it needs a model
    that is not on this disk.
    """
    way = config.destyle
    images: tuple[Path, ...] = ()
    if not config.destyle_images:
        return replace(config, destyle=None if way is None else "none"), ()
    if way is None:
        redraw = base.kind == "builtin" and resources.has_destyler() and style != PHOTO
        way = "model" if redraw else "inversion"
    elif way == "model":
        if base.kind != "builtin" or not resources.has_destyler():
            is_here = resources.has_destyler()
            what = "only redraws images for the built-in base" if is_here else "is not installed"
            raise UsageError(
                f"The small destyler {what}.",
                Remedy("Destyle by the base", settings={"destyle": "inversion"}),
            )
    elif way == "edit":
        from unziplora_cli.training.edit import find_editor

        find_editor(config.destyler)
    elif way not in WAYS:
        way, images = "folder", _images_in(expand_user(way))
    return replace(config, destyle=way), images


def _images_in(folder: Path) -> tuple[Path, ...]:
    from unziplora_cli.image_formats import image_files

    if not folder.is_dir():
        raise UsageError(
            f"destyle is {str(folder)!r}, which is neither a way to destyle nor a folder.",
            Remedy(f"Use {', '.join(WAYS)}, or a folder of images of the subject without the style."),
        )
    if not (images := image_files(folder)):
        raise UsageError(
            f"There are no images in {folder}.",
            Remedy("Put images of the very same subject without the style there."),
        )
    return tuple(images)


def destyle_requests(
    requests: Sequence[TrainRequest], scratch: Path
) -> Generator[Event, None, list[TrainRequest]]:
    """The requests with the destyled images that a model makes of them, in folders below ``scratch``.

    Each model is loaded once, and freed. Requests that have destyled images, or that get them by inversion
    during training, stay as they are. Raises ModelError and OutOfMemory.
    """
    from unziplora_cli.training.destyle import write_destyled
    from unziplora_cli.workflows.train import read_sources

    due = [
        request
        for request in requests
        if request.config.destyle in ("model", "edit")
        and not (request.destyled or request.by_the_base or request.resume)
    ]
    done: dict[int, TrainRequest] = {}
    for way, destyler in dict.fromkeys((request.config.destyle, request.config.destyler) for request in due):
        same = [r for r in due if (r.config.destyle, r.config.destyler) == (way, destyler)]
        name = "mini's destyler" if way == "model" else destyler or ""
        images = yield from (_redraw(same) if way == "model" else _edit(same))
        for request, destyled in zip(same, images, strict=True):
            if way == "model":
                destyled = yield from _of_subject(request, destyled)
            if not destyled:
                done[id(request)] = replace(request, by_the_base=True)
                continue
            parameters = {"base": {"id": name}, "seed": request.config.seed}
            folder = scratch / str(len(done))
            folder.mkdir(parents=True)
            paths = write_destyled(folder, destyled, parameters)
            job = replace(request.job, destyled=read_sources(paths, DESTYLED))
            done[id(request)] = replace(request, job=job, destyled=paths)
    return [done.get(id(request), request) for request in requests]


def _redraw(requests: Sequence[TrainRequest]) -> Generator[Event, None, list[list[Image.Image]]]:
    """By the built-in base's destyler: one photo of each crop."""
    import torch

    from unziplora_cli.images import load_image
    from unziplora_cli.sdxl.latents import crop_image, to_images
    from unziplora_cli.training.destyler import MiniDestyler

    model = MiniDestyler.load(resources.destyler())
    results = []
    for request in requests:
        yield Phase("destyle", f"{request.job.name}, by the small destyler")
        crops = request.config.crops if request.config.crop == "random" else 1
        pixels = torch.cat([crop_image(load_image(path).image, model.size, crops) for path in request.images])
        pixels = pixels[: request.config.destyle_images]
        colors = _colors(request.job.features, model.colors).expand(len(pixels), -1)
        results.append(to_images(model(pixels, colors)))
        color, likely = model.body_color(pixels[:1]) if int(colors[0, 0]) == model.unknown else ("", 1.0)
        if color and likely < 0.5:
            what = f"which color the {request.job.words.subject} has; {color} is a guess."
            remedy = Remedy("Name its colors", settings={"features": "orange, white dots"})
            yield Notice(f"{request.job.name}: the image hardly shows {what}", (remedy,))
    return results


def _of_subject(
    request: TrainRequest, images: list[Image.Image]
) -> Generator[Event, None, list[Image.Image]]:
    """The images that show the subject of the training; says what the others show.

    All of them, where the reader is not sure of the training image: it cannot tell what its photo shows.
    """
    from unziplora_cli.evaluation.reader import is_sure
    from unziplora_cli.images import load_image
    from unziplora_cli.training.destyle import omission

    seen = [request.other_subject(image) if request.other_subject else "" for image in images]
    subject = vocabulary.mini().subject(request.job.words.subject) or ""
    if not any(seen) or not all(is_sure(load_image(path).image, subject) for path in request.images):
        return images
    kept = [image for image, other in zip(images, seen, strict=True) if not other]
    if kept and len(kept) < len(images):
        yield omission(request.job, list(filter(None, seen)), left=True)
    elif not kept:
        yield Notice(
            f"{request.job.name}: the small destyler draws {with_article(seen[0])} instead of the "
            f"{request.job.words.subject}, so the base destyles the image by inversion."
        )
    return kept


def subject_check(base: BaseRef, words: Words, images: Sequence[Path]) -> Callable[[Image.Image], str] | None:
    """Names what a destyled image of ``images`` shows instead of the subject; None where nothing can tell."""
    subject = vocabulary.mini().subject(words.subject) if base.kind == "builtin" else None
    if subject is None or not resources.has_reader():
        return None

    def check(image: Image.Image) -> str:
        from unziplora_cli.evaluation.reader import other_subject, other_subject_in

        other = other_subject(image, subject)
        # Who takes the training image for the same other subject errs about both.
        return "" if other and other in (other_subject_in(path, subject) for path in images) else other

    return check


def _colors(features: Sequence[str], colors: Sequence[str]) -> Tensor:
    """The colours [1, 2] of body and marking that ``features`` name: "orange" and "white dots"."""
    import torch

    def index(words: Sequence[str]) -> int:
        return next((colors.index(word) for word in words if word in colors), len(colors))

    single = [feature.lower() for feature in features if " " not in feature]
    marking = [feature.lower().split()[0] for feature in features if " " in feature]
    return torch.tensor([[index(single), index(marking)]])


def _edit(requests: Sequence[TrainRequest]) -> Generator[Event, None, list[list[Image.Image]]]:
    """By an editing model: several images, of which the best are kept."""
    from unziplora_cli.accel.device import memory_guard, pick_device, pick_dtype
    from unziplora_cli.images import load_image
    from unziplora_cli.training.edit import ImageEditor, instruction

    first = requests[0].config
    device = pick_device(requests[0].job.device)
    tries: list[list[Image.Image]] = []
    with memory_guard("Use a smaller editing model, a smaller resolution, or another way to destyle."):
        yield Phase("load destyler", first.destyler or "")
        editor = ImageEditor.load(first.destyler, device=device, dtype=pick_dtype(first.precision, device))
        for request in requests:
            job, count = request.job, request.config.destyle_images
            text = instruction(job.words, job.features)
            yield Phase("destyle", f"{job.name}: {text}")
            sources = [load_image(path).image for path in request.images]
            images = []
            for number in range(count):
                yield Progress("destyle", number, count)
                source = sources[number % len(sources)]
                images.append(
                    editor.edit(source, text, request.config.resolution, request.config.seed + number)
                )
            tries.append(images)
        editor.close()
    results = []
    for request, images in zip(requests, tries, strict=True):
        results.append((yield from _best(request, images)))
    return results


def _best(request: TrainRequest, images: list[Image.Image]) -> Generator[Event, None, list[Image.Image]]:
    """The best quarter of edited images by a scorer, if there is one; says when none is good."""
    from unziplora_cli.images import load_image

    words = request.job.words
    training = [load_image(path).image for path in request.images]
    if (scorer := find_scorer(request.base, words, training)) is None:
        yield Notice(f"{request.job.name}: the edited images were not scored: DINOv2 and CLIP are not here.")
        return images
    yield Phase("score")
    scores = scorer.score(images, [f"a photo of {with_article(words.subject)}"] * len(images))
    good = [(score.subject == scorer.subject) + (score.style == PHOTO) for score in scores]
    order = sorted(range(len(images)), key=lambda i: (-good[i], -scores[i].identity))
    best = order[: -(-len(images) // KEPT)]
    if good[best[0]] < 2:
        seen = scores[best[0]]
        yield Notice(
            f"{request.job.name}: no edited image is a photo of the {scorer.subject}; the best looks like "
            f"{seen.subject}, {seen.style}. Look at them in the project's folder {DESTYLED}.",
            (
                Remedy("Destyle by the base", settings={"destyle": "inversion"}),
                Remedy("Or use images of your own", settings={"destyle": "FOLDER"}),
            ),
        )
    return [images[i] for i in best]


def preview(
    request: TrainRequest, out: Path, *, force: bool = False
) -> Generator[Event, None, tuple[Path, ...]]:
    """Write the destyled images that a training would learn into the folder ``out``; returns their paths.

    Raises UsageError if the settings ask for none or a file exists, and what :func:`destyle_requests` raises.
    """
    from unziplora_cli.training.engine import destyle

    way = request.config.destyle
    if not request.config.destyle_images or way in (None, "none"):
        raise UsageError(
            "These settings make no destyled images.",
            Remedy("Name a way to make them", settings={"destyle": "inversion"}),
        )
    if out.exists() and not out.is_dir():
        raise UsageError(f"{out} is a file, not a folder.", Remedy(settings={"out": "FOLDER"}))
    files.check_writable(out)
    if note := outside(request.images, request.base, request.job.words):
        yield note
    with TemporaryDirectory(prefix="unziplora-") as temporary_folder:
        scratch = Path(temporary_folder)
        (request,) = yield from destyle_requests([request], scratch)
        if not request.destyled:
            yield from destyle(replace(request, folder=scratch))
            if not (scratch / DESTYLED).is_dir():
                raise UsageError("No destyled image shows the subject, so there is nothing to write.")
            request = replace(request, destyled=_images_in(scratch / DESTYLED))
        names = [f"{number:02}{path.suffix.lower()}" for number, path in enumerate(request.destyled, start=1)]
        targets = tuple(out / name for name in names)
        files.refuse_existing(targets, force=force)
        with files.write_errors(out):
            out.mkdir(parents=True, exist_ok=True)
            for path, target in zip(request.destyled, targets, strict=True):
                files.write_file(target, partial(shutil.copyfile, path), force=force)
    return targets
