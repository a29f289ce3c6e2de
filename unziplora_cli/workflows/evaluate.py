"""Pictures of a project and of its base alone, drawn to be looked at, and what was seen in them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import groupby
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING, Any

from unziplora_cli import files, resources
from unziplora_cli.config import SEED_MAX, Checked, ComputeConfig, GenerateConfig, Prompts, option
from unziplora_cli.errors import AdapterError, ProjectError
from unziplora_cli.projects import manifest
from unziplora_cli.projects.manifest import Evaluation, Manifest, ScoreRecord
from unziplora_cli.projects.store import Project, ProjectStore
from unziplora_cli.projects.verify import inside
from unziplora_cli.workflows.generate import DrawOrder, OnProgress, Shelf, pictures

if TYPE_CHECKING:
    from PIL import Image

    from unziplora_cli.accel.merged_unet import Branches
    from unziplora_cli.evaluation.prompts import Shot
    from unziplora_cli.evaluation.scorers import View, Viewer
    from unziplora_cli.sdxl.generate import Request
if TYPE_CHECKING:
    from PIL import Image

    from unziplora_cli.accel.merged_unet import Branches
    from unziplora_cli.evaluation.denoising import Denoised
    from unziplora_cli.sdxl.base import BaseRef
    from unziplora_cli.sdxl.generate import Progress


@dataclass(frozen=True)
class Seen:
    """What was seen, by whom, in how many pictures; ``sheet`` shows them all, None when there are none."""

    scores: tuple[ScoreRecord, ...] = ()
    notes: tuple[str, ...] = ()
    judge: str = ""
    pictures: int = 0
    sheet: Image.Image | None = None


def look(
    order: EvalOrder,
    project: Project,
    learned: Branches,
    training: Sequence[Image.Image],
    on_progress: OnProgress,
) -> Seen:
    """Draw for every purpose, with the branches and with the base alone, and name what is to be seen.

    Where nobody can look, nothing is drawn, and a note says what to type.
    """
    from unziplora_cli.evaluation.metrics import picture_scores
    from unziplora_cli.evaluation.prompts import plan

    viewer, missing = _viewer(order, project, training)
    if viewer is None:
        return Seen(notes=(missing,))
    words, config = project.manifest.words, order.config
    shots = plan(words, (viewer.subject, words.subject.lower()), config.count, config.seed)
    texts = [shot.text for shot in shots]
    ours, theirs = _draw(order, learned, shots, on_progress)
    views, base_views = viewer.look(ours, texts), viewer.look(theirs, texts)
    return Seen(
        scores=picture_scores(shots, views, base_views, viewer),
        notes=viewer.notes,
        judge=viewer.name,
        pictures=len(ours) + len(theirs),
        sheet=_sheet(project, training[0], shots, (ours, views), (theirs, base_views)),
    )


def _viewer(order: EvalOrder, project: Project, training: Sequence[Image.Image]) -> tuple[Viewer | None, str]:
    """Who looks at the pictures; without anybody, what to type to have somebody."""
    words = project.manifest.words
    if order.base.kind == "builtin":
        from unziplora_cli.evaluation.scorers import JudgeViewer

        return JudgeViewer(resources.judge(), training, words), ""
    from unziplora_cli.evaluation import scorers
    from unziplora_cli.evaluation.scorers import ClipViewer

    missing = scorers.missing()
    if missing:
        return None, (
            f"No pictures were drawn, since nobody could look at them: {' and '.join(missing)} would, once "
            f"fetched with unziplora eval {project.name} --pull"
        )
    return ClipViewer(scorers.Encoders.load(), training, words), ""


def _draw(
    order: EvalOrder, learned: Branches, shots: Sequence[Shot], on_progress: OnProgress
) -> tuple[list[Image.Image], list[Image.Image]]:
    """Every shot drawn with its branches, and drawn by the base alone from the same words and noise."""
    requests = [*_requests(order, shots, None), *_requests(order, shots, learned)]
    drawn = [picture.image for picture in pictures(requests, order.base, order.studio, on_progress)]
    return drawn[len(shots) :], drawn[: len(shots)]


def _requests(order: EvalOrder, shots: Sequence[Shot], learned: Branches | None) -> Iterator[Request]:
    """One request for neighbours that differ in their seed alone; without branches the base is asked."""
    from unziplora_cli.accel.merged_unet import Branches
    from unziplora_cli.evaluation.prompts import BRANCHES
    from unziplora_cli.sdxl.generate import Request

    def kind(shot: Shot) -> tuple[Any, ...]:
        return shot.purpose, shot.prompts

    for (purpose, prompts), group in groupby(shots, kind):
        same = list(group)
        settings = replace(order.drawing, count=len(same), seed=same[0].seed)
        if learned is None:
            text = same[0].text
            yield Request(Prompts(text, text, text), Branches(), settings)
        elif len(BRANCHES[purpose]) == 2:
            yield Request(prompts, learned, settings)
        else:
            branch = BRANCHES[purpose][0]
            yield Request(prompts, Branches(**{branch: getattr(learned, branch)}), settings)


def _sheet(
    project: Project,
    training: Image.Image,
    shots: Sequence[Shot],
    *drawn: tuple[Sequence[Image.Image], Sequence[View]],
) -> Image.Image:
    """One row of what the branches drew and one of what the base did, for each purpose."""
    from unziplora_cli.evaluation.prompts import PURPOSES
    from unziplora_cli.report.contact_sheet import Cell, Heading, contact_sheet

    rows, headings = [], []
    for purpose in PURPOSES:
        for who, (images, views) in zip((purpose, "base alone"), drawn, strict=True):
            rows.append(
                [
                    Cell(image, f"{shot.text}: {view.subject}, {view.style} {view.context}".strip())
                    for shot, image, view in zip(shots, images, views, strict=True)
                    if shot.purpose == purpose
                ]
            )
            headings.append(Heading(who, group=purpose))
    rows[0].append(Cell(training, "the training picture"))
    title = f"{project.name}: what was drawn, and what was seen"
    return contact_sheet(rows, title=title, row_headings=headings)


# From a project to its separation report: measure, draw, look, judge, and write it into the manifest.


SHEET = "evaluation.png"


@dataclass(frozen=True)
class EvalConfig(Checked):
    """How thoroughly a project is looked at."""

    count: int = option(
        4,
        "Pictures per purpose: content, content elsewhere, style, both; the base draws as many.",
        min=1,
        max=100,
    )
    draws: int = option(24, "Noise draws of the training picture.", min=1, max=1000)
    seed: int = option(0, "Seed of every draw and picture.", min=0, max=SEED_MAX - 1000)


@dataclass(frozen=True)
class EvalOrder:
    """One project to look at; ``drawing`` says how its pictures are drawn."""

    project: str
    base: BaseRef
    config: EvalConfig
    drawing: GenerateConfig
    studio: ComputeConfig


@dataclass(frozen=True)
class Doing:
    """How far an evaluation is."""

    what: str
    done: float
    total: float


@dataclass(frozen=True)
class Evaluated:
    """The project with its evaluation in the manifest, and the sheet of what was drawn, if anything was."""

    project: Project
    evaluation: Evaluation
    sheet: Path | None


OnDoing = Callable[[Doing], None]


def fetch_encoders(on_download: Callable[[str, int], None]) -> None:
    """Fetch what is missing of DINOv2 and CLIP, telling each one's name and bytes; raises ModelError."""
    from unziplora_cli import hub
    from unziplora_cli.evaluation import scorers

    for id in scorers.missing():
        download = hub.plan_files(id, scorers.FILES[id])
        on_download(id, download.missing())
        hub.pull(download)


def evaluate(order: EvalOrder, store: ProjectStore, on_doing: OnDoing = lambda doing: None) -> Evaluated:
    """Measure how well the project's content and style came apart, and write that into its manifest.

    The project stays locked meanwhile, so that what is written is true of its files. Raises ProjectError when
    it is in use or lacks its picture or weights, ModelError, AdapterError, OutOfMemory.
    """
    with store.lock(order.project):
        project = store.open(order.project)
        recipe = project.manifest
        if not recipe.source:
            raise ProjectError(
                f"The project {project.name!r} has no training picture, so nothing can be compared with it.",
                hint="Only projects made by `unziplora train` can be evaluated.",
            )
        from unziplora_cli.evaluation.columns import by_block, read_columns
        from unziplora_cli.evaluation.diagnosis import judge
        from unziplora_cli.evaluation.metrics import denoising_scores, weight_scores

        order = replace(order, studio=replace(order.studio, vae=order.studio.vae or recipe.vae))
        learned = Shelf().branches(DrawOrder(order.base, order.drawing, project, project))
        training = _training_pictures(project)
        measured = denoising_scores(_denoise(order, project, learned, training, on_doing))
        _check_finite(measured, project)
        seen = look(order, project, learned, training, _on_progress(on_doing))
        layers = read_columns(learned)
        scores = (*seen.scores, *measured, *weight_scores(layers))
        verdict, advice = judge(scores, recipe.training, recipe.words, project.name)
        evaluation = Evaluation(
            created=manifest.now(),
            verdict=verdict,
            advice=advice,
            scores=tuple(map(_rounded, scores)),
            columns=by_block(layers),
            judge=seen.judge,
            notes=(*_training_notes(recipe), *seen.notes),
            seed=order.config.seed,
            pictures=seen.pictures,
        )
        sheet = project.folder / SHEET
        if seen.sheet is not None:
            with files.replacing(sheet) as temporary:
                seen.sheet.save(temporary, format="PNG")
        else:
            sheet.unlink(missing_ok=True)
        updated = store.update(project, replace(recipe, evaluation=evaluation))
        return Evaluated(updated, evaluation, sheet if seen.sheet is not None else None)


def _training_notes(recipe: Manifest) -> Iterator[str]:
    """What in the training bears on how the numbers are to be read."""
    if recipe.state != "complete":
        yield (
            f"The training stopped after step {recipe.steps_done} of {recipe.training.get('steps')}; "
            f"to finish it: unziplora train --resume {recipe.name}"
        )
    if recipe.training.get("destyle_images") and recipe.training.get("destyled_only"):
        yield (
            "The content LoRA learned from echoes alone, the picture as the base would draw it: "
            "its loss on the picture itself may lie above the base's."
        )


def _on_progress(on_doing: OnDoing) -> OnProgress:
    """Tells how far drawing is."""

    def tell(progress: Progress) -> None:
        if progress.phase == "draw":
            on_doing(Doing("drawing", progress.picture + progress.step / progress.steps, progress.pictures))

    return tell


def _training_pictures(project: Project) -> list[Image.Image]:
    """The middle square of each training picture."""
    from unziplora_cli.images import load_picture
    from unziplora_cli.sdxl.latents import crop_boxes

    found = []
    for each in project.manifest.source:
        image = load_picture(inside(project.folder, each.file)).image
        left, top, right, bottom = crop_boxes(image.size, 1)[0]
        found.append(image.crop((int(left), int(top), int(right), int(bottom))))
    return found


def _denoise(
    order: EvalOrder,
    project: Project,
    learned: Branches,
    training: Sequence[Image.Image],
    on_doing: OnDoing,
) -> dict[str, Denoised]:
    """The training picture under every prompt, with the branches and with the base alone."""
    import torch

    from unziplora_cli.accel.device import memory_guard, pick_device, pick_dtype
    from unziplora_cli.accel.merged_unet import Branches
    from unziplora_cli.evaluation.denoising import denoise
    from unziplora_cli.sdxl.base import native_resolution
    from unziplora_cli.sdxl.generate import Request, free
    from unziplora_cli.sdxl.latents import encode_latents, prepare
    from unziplora_cli.sdxl.load import load_vae

    side = int(project.manifest.training.get("resolution") or native_resolution(order.base))
    device = pick_device(order.studio.device)
    on_doing(Doing("encoding", 0, 1))
    with memory_guard("Use another device (--device)."):
        vae = load_vae(order.base, device=device, vae=order.studio.vae)
        latents = torch.cat([encode_latents(vae, prepare(each, side, 1)).mean for each in training])
        del vae
        free(device)
    settings = GenerateConfig(width=side, height=side)
    prompts, alone = project.manifest.prompts, Branches()
    one_prompt = {name: Prompts(text, text, text) for name, text in asdict(prompts).items()}
    ways = {
        **{f"{name} base": Request(each, alone, settings) for name, each in one_prompt.items()},
        "content": Request(prompts, Branches(content=learned.content), settings),
        "style": Request(prompts, Branches(style=learned.style), settings),
        "full": Request(prompts, learned, settings),
        "one file": Request(one_prompt["full"], learned, settings),
    }
    return denoise(
        order.base,
        ways,
        latents,
        count=order.config.draws,
        seed=order.config.seed,
        device=device,
        dtype=pick_dtype(order.studio.precision, device),
        batch_size=order.studio.batch_size,
        rebuild=("full", "full base"),
        on_way=lambda done: on_doing(Doing("measuring", done, len(ways))),
    )


def _check_finite(scores: Sequence[ScoreRecord], project: Project) -> None:
    """Raise AdapterError when the weights give no numbers."""
    if not all(isfinite(score.value) for score in scores):
        raise AdapterError(
            f"The LoRAs of {project.name!r} make the network answer with infinities: they are damaged.",
            hint=f"unziplora verify {project.name}; else train again with lower --content-lr and --style-lr.",
        )


def _rounded(score: ScoreRecord) -> ScoreRecord:
    """Five significant digits."""
    base = None if score.base is None else float(f"{score.base:.5g}")
    return replace(score, value=float(f"{score.value:.5g}"), base=base)
