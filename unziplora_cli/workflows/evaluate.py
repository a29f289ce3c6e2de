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
from unziplora_cli.events import Event, Progress
from unziplora_cli.projects import manifest
from unziplora_cli.projects.manifest import BlockColumns, Evaluation, Manifest, ScoreRecord
from unziplora_cli.projects.store import Project, ProjectStore
from unziplora_cli.projects.verify import inside
from unziplora_cli.workflows.generate import AdapterCache, GenerateSpec, generate_requests

if TYPE_CHECKING:
    from PIL import Image

    from unziplora_cli.evaluation.prompts import EvaluationPrompt
    from unziplora_cli.evaluation.scorers import ImageScore, Scorer
    from unziplora_cli.method.lora import LoRAPair
    from unziplora_cli.sdxl.generate import ImageRequest
if TYPE_CHECKING:
    from PIL import Image

    from unziplora_cli.evaluation.denoising import DenoisingResult
    from unziplora_cli.method.lora import LoRAPair
    from unziplora_cli.sdxl.base import BaseRef


@dataclass(frozen=True)
class ImageEvaluation:
    """What was seen, by whom, in how many pictures; ``sheet`` shows them all, None when there are none."""

    scores: tuple[ScoreRecord, ...] = ()
    notes: tuple[str, ...] = ()
    scorer: str = ""
    pictures: int = 0
    sheet: Image.Image | None = None


def look(
    order: EvaluationRequest,
    project: Project,
    learned: LoRAPair,
    training: Sequence[Image.Image],
    on_event: Callable[[Event], None],
) -> ImageEvaluation:
    """Draw for every purpose, with the branches and with the base alone, and name what is to be seen.

    Where nobody can look, nothing is drawn, and a note says what to type.
    """
    from unziplora_cli.evaluation.metrics import score_records
    from unziplora_cli.evaluation.prompts import evaluation_prompts

    scorer, missing = _viewer(order, project, training)
    if scorer is None:
        return ImageEvaluation(notes=(missing,))
    words, config = project.manifest.words, order.config
    prompts_to_score = evaluation_prompts(
        words, (scorer.subject, words.subject.lower()), config.count, config.seed
    )
    texts = [shot.text for shot in prompts_to_score]
    ours, theirs = _draw(order, learned, prompts_to_score, on_event)
    image_scores, base_scores = scorer.look(ours, texts), scorer.look(theirs, texts)
    return ImageEvaluation(
        scores=score_records(prompts_to_score, image_scores, base_scores, scorer),
        notes=scorer.notes,
        scorer=scorer.name,
        pictures=len(ours) + len(theirs),
        sheet=_sheet(project, training[0], prompts_to_score, (ours, image_scores), (theirs, base_scores)),
    )


def _viewer(
    order: EvaluationRequest, project: Project, training: Sequence[Image.Image]
) -> tuple[Scorer | None, str]:
    """Who looks at the pictures; without anybody, what to type to have somebody."""
    words = project.manifest.words
    if order.base.kind == "builtin":
        from unziplora_cli.evaluation.scorers import ClassifierScorer

        return ClassifierScorer(resources.classifier(), training, words), ""
    from unziplora_cli.evaluation import scorers
    from unziplora_cli.evaluation.scorers import ClipScorer

    missing = scorers.missing()
    if missing:
        return None, (
            f"No pictures were drawn, since nobody could look at them: {' and '.join(missing)} would, once "
            f"fetched with unziplora eval {project.name} --pull"
        )
    return ClipScorer(scorers.Encoders.load(), training, words), ""


def _draw(
    order: EvaluationRequest,
    learned: LoRAPair,
    prompts_to_score: Sequence[EvaluationPrompt],
    on_event: Callable[[Event], None],
) -> tuple[list[Image.Image], list[Image.Image]]:
    """Every shot drawn with its branches, and drawn by the base alone from the same words and noise."""
    from unziplora_cli.sdxl.generate import GeneratedImage

    requests = [*_requests(order, prompts_to_score, None), *_requests(order, prompts_to_score, learned)]
    drawn = []
    for event in generate_requests(requests, order.base, order.studio):
        if isinstance(event, GeneratedImage):
            drawn.append(event.image)
        else:
            on_event(event)
    return drawn[len(prompts_to_score) :], drawn[: len(prompts_to_score)]


def _requests(
    order: EvaluationRequest, prompts_to_score: Sequence[EvaluationPrompt], learned: LoRAPair | None
) -> Iterator[ImageRequest]:
    """One request for neighbours that differ in their seed alone; without branches the base is asked."""
    from unziplora_cli.evaluation.prompts import BRANCHES
    from unziplora_cli.method.lora import LoRAPair
    from unziplora_cli.sdxl.generate import ImageRequest

    def kind(shot: EvaluationPrompt) -> tuple[Any, ...]:
        return shot.purpose, shot.prompts

    for (purpose, prompts), group in groupby(prompts_to_score, kind):
        same = list(group)
        settings = replace(order.drawing, count=len(same), seed=same[0].seed)
        if learned is None:
            text = same[0].text
            yield ImageRequest(Prompts(text, text, text), LoRAPair(), settings)
        elif len(BRANCHES[purpose]) == 2:
            yield ImageRequest(prompts, learned, settings)
        else:
            branch = BRANCHES[purpose][0]
            yield ImageRequest(prompts, LoRAPair(**{branch: getattr(learned, branch)}), settings)


def _sheet(
    project: Project,
    training: Image.Image,
    prompts_to_score: Sequence[EvaluationPrompt],
    *drawn: tuple[Sequence[Image.Image], Sequence[ImageScore]],
) -> Image.Image:
    """One row of what the branches drew and one of what the base did, for each purpose."""
    from unziplora_cli.evaluation.prompts import PURPOSES
    from unziplora_cli.report.contact_sheet import Cell, Heading, contact_sheet

    rows, headings = [], []
    for purpose in PURPOSES:
        for who, (images, image_scores) in zip((purpose, "base alone"), drawn, strict=True):
            rows.append(
                [
                    Cell(image, f"{shot.text}: {view.subject}, {view.style} {view.context}".strip())
                    for shot, image, view in zip(prompts_to_score, images, image_scores, strict=True)
                    if shot.purpose == purpose
                ]
            )
            headings.append(Heading(who, group=purpose))
    rows[0].append(Cell(training, "the training picture"))
    title = f"{project.name}: what was drawn, and what was seen"
    return contact_sheet(rows, title=title, row_headings=headings)


# From a project to its separation report: measure, generate, score, diagnose, and write it into the manifest.


SHEET = "evaluation.png"


@dataclass(frozen=True)
class EvaluationConfig(Checked):
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
class EvaluationRequest:
    """One project to look at; ``drawing`` says how its pictures are drawn."""

    project: str
    base: BaseRef
    config: EvaluationConfig
    drawing: GenerateConfig
    studio: ComputeConfig


@dataclass(frozen=True)
class EvaluationProgress:
    """How far an evaluation is."""

    what: str
    done: float
    total: float


@dataclass(frozen=True)
class EvaluationResult:
    """The project with its evaluation in the manifest, and the sheet of what was drawn, if anything was."""

    project: Project
    evaluation: Evaluation
    sheet: Path | None


OnEvaluationProgress = Callable[[EvaluationProgress], None]


def download_encoders(on_download: Callable[[str, int], None]) -> None:
    """Fetch what is missing of DINOv2 and CLIP, telling each one's name and bytes; raises ModelError."""
    from unziplora_cli import hub
    from unziplora_cli.evaluation import scorers

    for id in scorers.missing():
        download = hub.query_files(id, scorers.FILES[id])
        on_download(id, download.missing())
        hub.download(download)


def evaluate(
    order: EvaluationRequest, store: ProjectStore, on_progress: OnEvaluationProgress = lambda doing: None
) -> EvaluationResult:
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
        from unziplora_cli.adapters.columns import count_columns, group_by_block, read_columns
        from unziplora_cli.evaluation.diagnosis import diagnose
        from unziplora_cli.evaluation.metrics import denoising_scores, weight_scores

        order = replace(order, studio=replace(order.studio, vae=order.studio.vae or recipe.vae))
        learned = AdapterCache().branches(GenerateSpec(order.base, order.drawing, project, project))
        training = _training_pictures(project)
        measured = denoising_scores(_denoise(order, project, learned, training, on_progress))
        _check_finite(measured, project)
        seen = look(order, project, learned, training, _on_event(on_progress))
        layers = read_columns(learned.content, learned.style, learned.content_merge, learned.style_merge)
        scores = (*seen.scores, *measured, *weight_scores(layers))
        verdict, advice = diagnose(scores, recipe.training, recipe.words, project.name)
        evaluation = Evaluation(
            created=manifest.now(),
            verdict=verdict,
            advice=advice,
            scores=tuple(map(_rounded, scores)),
            columns=tuple(
                BlockColumns(block, **asdict(count_columns(part)))
                for block, part in group_by_block(layers).items()
            ),
            scorer=seen.scorer,
            notes=(*_training_notes(recipe), *seen.notes),
            seed=order.config.seed,
            pictures=seen.pictures,
        )
        sheet = project.folder / SHEET
        if seen.sheet is not None:
            with files.atomic_write(sheet) as temporary:
                seen.sheet.save(temporary, format="PNG")
        else:
            sheet.unlink(missing_ok=True)
        updated = store.update(project, replace(recipe, evaluation=evaluation))
        return EvaluationResult(updated, evaluation, sheet if seen.sheet is not None else None)


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


def _on_event(on_progress: OnEvaluationProgress) -> Callable[[Event], None]:
    """Tells how far drawing is."""

    def tell(event: Event) -> None:
        if isinstance(event, Progress) and event.steps:
            on_progress(EvaluationProgress("drawing", event.done + event.step / event.steps, event.total))

    return tell


def _training_pictures(project: Project) -> list[Image.Image]:
    """The middle square of each training picture."""
    from unziplora_cli.images import load_image
    from unziplora_cli.sdxl.latents import crop_boxes

    found = []
    for each in project.manifest.source:
        image = load_image(inside(project.folder, each.file)).image
        left, top, right, bottom = crop_boxes(image.size, 1)[0]
        found.append(image.crop((int(left), int(top), int(right), int(bottom))))
    return found


def _denoise(
    order: EvaluationRequest,
    project: Project,
    learned: LoRAPair,
    training: Sequence[Image.Image],
    on_progress: OnEvaluationProgress,
) -> dict[str, DenoisingResult]:
    """The training picture under every prompt, with the branches and with the base alone."""
    import torch

    from unziplora_cli.accel.device import empty_cache, memory_guard, pick_device, pick_dtype
    from unziplora_cli.evaluation.denoising import denoise
    from unziplora_cli.method.lora import LoRAPair
    from unziplora_cli.sdxl.base import native_resolution
    from unziplora_cli.sdxl.generate import ImageRequest
    from unziplora_cli.sdxl.latents import crop_image, encode_latents
    from unziplora_cli.sdxl.load import load_vae

    side = int(project.manifest.training.get("resolution") or native_resolution(order.base))
    device = pick_device(order.studio.device)
    on_progress(EvaluationProgress("encoding", 0, 1))
    with memory_guard("Use another device (--device)."):
        vae = load_vae(order.base, device=device, vae=order.studio.vae)
        latents = torch.cat([encode_latents(vae, crop_image(each, side, 1)).mean for each in training])
        del vae
        empty_cache(device)
    settings = GenerateConfig(width=side, height=side)
    prompts, alone = project.manifest.prompts, LoRAPair()
    one_prompt = {name: Prompts(text, text, text) for name, text in asdict(prompts).items()}
    ways = {
        **{f"{name} base": ImageRequest(each, alone, settings) for name, each in one_prompt.items()},
        "content": ImageRequest(prompts, LoRAPair(content=learned.content), settings),
        "style": ImageRequest(prompts, LoRAPair(style=learned.style), settings),
        "full": ImageRequest(prompts, learned, settings),
        "one file": ImageRequest(one_prompt["full"], learned, settings),
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
        on_way=lambda done: on_progress(EvaluationProgress("measuring", done, len(ways))),
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
