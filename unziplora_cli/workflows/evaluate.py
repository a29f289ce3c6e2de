"""Measure how well a project's content and style were separated, and record it in the manifest."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import groupby
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING

from unziplora_cli import resources
from unziplora_cli.config import ComputeConfig, GenerateConfig, Prompts, Words, resolve
from unziplora_cli.errors import AdapterError, ProjectError, Remedy
from unziplora_cli.evaluation.prompts import EvaluationConfig
from unziplora_cli.events import Event, Notice, Phase
from unziplora_cli.job import Scalar, now
from unziplora_cli.projects import manifest
from unziplora_cli.projects.manifest import BlockColumns, Evaluation, Manifest, ScoreRecord
from unziplora_cli.projects.store import Project, ProjectStore
from unziplora_cli.projects.verify import inside
from unziplora_cli.prompts import TRIGGER, make_prompts
from unziplora_cli.training.request import DESTYLED
from unziplora_cli.workflows.generate import AdapterCache, GenerateSpec, collect_images

if TYPE_CHECKING:
    from PIL import Image

    from unziplora_cli.evaluation.denoising import DenoisingResult
    from unziplora_cli.evaluation.diagnosis import Problem
    from unziplora_cli.evaluation.prompts import EvaluationPrompt
    from unziplora_cli.evaluation.scorers import ImageScore, Scorer
    from unziplora_cli.method.lora import LoRAPair
    from unziplora_cli.sdxl.base import BaseRef
    from unziplora_cli.sdxl.generate import ImageRequest

SHEET = "evaluation.png"


@dataclass(frozen=True)
class EvaluationRequest:
    """The project to evaluate, and how to generate its images."""

    project: str
    base: BaseRef
    config: EvaluationConfig
    generation: GenerateConfig
    compute: ComputeConfig


@dataclass(frozen=True)
class EvaluationResult:
    """The project with its evaluation, and the contact sheet of the generated images, if there are any.

    Without the ``missing_scorers`` no images were generated.
    """

    project: Project
    evaluation: Evaluation
    sheet: Path | None
    missing_scorers: tuple[str, ...] = ()


def download_encoders() -> Generator[Event, None, None]:
    """Download what is missing of DINOv2 and CLIP; raises ModelError."""
    from unziplora_cli import hub
    from unziplora_cli.evaluation.scorers import ENCODER_FILES, missing_encoders

    for model_id in missing_encoders():
        yield Phase("download", model_id)
        yield from hub.download(hub.query_files(model_id, ENCODER_FILES[model_id]))


def evaluate(request: EvaluationRequest, store: ProjectStore) -> Generator[Event, None, EvaluationResult]:
    """Evaluate a project and write the result into its manifest.

    The project is locked meanwhile, so the recorded numbers belong to its files. Raises ProjectError when the
    project is in use or has no training image or weights, ModelError, AdapterError, OutOfMemory.
    """
    from unziplora_cli.adapters.columns import count_columns, group_by_block, read_columns
    from unziplora_cli.evaluation.diagnosis import diagnose, misreading
    from unziplora_cli.evaluation.metrics import denoising_scores, weight_scores
    from unziplora_cli.evaluation.prompts import evaluation_prompts
    from unziplora_cli.evaluation.scorers import missing_encoders
    from unziplora_cli.images import save_image

    unchanged = f"The LoRAs of {request.project!r} are unchanged."
    with store.home_errors(unchanged), store.lock(request.project):
        project = store.open(request.project)
        record = project.manifest
        if not record.job.images:
            raise ProjectError(
                f"The project {project.name!r} has no training image to compare with.",
                Remedy("Only projects that were trained here can be evaluated."),
            )
        request = replace(
            request, compute=replace(request.compute, vae=request.compute.vae or record.job.vae)
        )
        loras = AdapterCache().branches(GenerateSpec(request.base, request.generation, project, project))
        training = _training_images(project)
        scorer = find_scorer(request.base, record.job.words, training)
        missing = () if scorer else missing_encoders()
        misread = misreading(scorer.seen, record.job.words.subject) if scorer else ""
        if misread:
            yield Notice(misread)
        results = yield from _measure_denoising(request, project, loras, training)
        measured = denoising_scores(results)
        _check_finite(measured, project)
        of_images: tuple[ScoreRecord, ...] = ()
        sheet, sheet_image = project.folder / SHEET, None
        prompts: tuple[EvaluationPrompt, ...] = ()
        if scorer is not None:
            words, config = record.job.words, request.config
            excluded = f"{scorer.subject} {words.subject.lower()}".split()
            prompts = evaluation_prompts(words, scorer.subject, excluded, config.count, config.seed)
            of_images, sheet_image = yield from _score_images(
                request, project, loras, training, scorer, prompts
            )
        layers = read_columns(loras)
        scores = tuple(map(_rounded, (*of_images, *measured, *weight_scores(layers))))
        diagnosis = diagnose(scores, _settings(project), record.job.words)
        evaluation = Evaluation(
            created=now(),
            diagnosis=f"{misread} {diagnosis.summary}".strip(),
            advice=tuple(problem.advice for problem in diagnosis.problems),
            scores=scores,
            columns=tuple(
                BlockColumns(block, **asdict(count_columns(part)))
                for block, part in group_by_block(layers).items()
            ),
            scorer=scorer.name if scorer else "",
            notes=(*_training_notes(record), *(scorer.notes if scorer else ())),
            seed=request.config.seed,
            images=2 * len(prompts),  # with the LoRAs, and by the base alone
        )
        if sheet_image is not None:
            save_image(sheet_image, sheet, force=True)
        else:
            sheet.unlink(missing_ok=True)
        evaluated = replace(project, manifest=replace(record, evaluation=evaluation))
        manifest.write(project.folder, evaluated.manifest)
        return EvaluationResult(evaluated, evaluation, sheet if sheet_image else None, missing)


def recorded_advice(project: Project) -> list[Notice]:
    """The advice of a project's evaluation, each with the commands that follow it."""
    from unziplora_cli.evaluation.diagnosis import diagnose

    if (evaluation := project.manifest.evaluation) is None:
        return []
    problems = diagnose(evaluation.scores, _settings(project), project.job.words).problems
    remedies = {problem.advice: tuple(_remedies(problem, project)) for problem in problems}
    return [Notice(text, remedies.get(text, ())) for text in evaluation.advice]


def _settings(project: Project) -> dict[str, Scalar]:
    return asdict(project.job.settings) if project.job.settings else {}


def _remedies(problem: Problem, project: Project) -> Iterator[Remedy]:
    """One command for each of the settings that the advice names."""
    again = [changes for changes in problem.trainings if changes] if project.job.settings else []
    images = tuple(project.folder / image.file for image in project.job.images)
    name = ProjectStore(project.folder.parent.parent).free_name(project.name)
    for number, changes in enumerate(again):
        options = {"name": name, **_settings_to_train(project), **changes}
        yield Remedy("Or" if number else "Train again", "train", images, options)
    for name in problem.generation:
        command = name.removesuffix("_strength") if "strength" in name else "combine"
        yield Remedy("Or generate" if again else "Generate", command, (project.name,), problem.generation)


def _settings_to_train(project: Project) -> dict[str, object]:
    """The options with which the images of a project are trained as they were."""
    job, config, words = project.job, project.job.config, project.job.words
    default = resolve(resources.default_preset(job.base.kind, config.destyle), {})
    options = {
        "subject": words.subject,
        "style": words.style,
        "features": ", ".join(job.features),
        "trigger": "" if words.trigger == TRIGGER else words.trigger,
        "base": job.base.location,
        "prediction": job.base.prediction,
        "vae": job.vae,
        "together": len(job.images) > 1,
    }
    if job.prompts != make_prompts(words):
        options |= {f"{branch}_prompt": text for branch, text in asdict(job.prompts).items()}
    settings = {
        name: str(value) if isinstance(value, float) else value  # all of its digits
        for name, value in asdict(config).items()
        if value not in (None, "none", getattr(default, name))
    }
    if config.destyle == "folder":
        settings["destyle"] = project.folder / DESTYLED
    return {name: value for name, value in options.items() if value} | settings


def _training_notes(record: Manifest) -> Iterator[str]:
    """What in the training affects how to read the scores."""
    config = record.job.settings
    if config is None:
        return
    if record.state != "complete":
        yield f"Training stopped after step {record.steps_done} of {config.steps}."
    if config.destyle_images and config.destyled_only:
        yield (
            "The content LoRA was trained on destyled images only, so its loss on the training image may be "
            "above the base's."
        )


def _training_images(project: Project) -> list[Image.Image]:
    """The center square of each training image."""
    from unziplora_cli.images import load_image
    from unziplora_cli.sdxl.latents import crop_boxes

    images = []
    for source in project.job.images:
        image = load_image(inside(project.folder, source.file)).image
        left, top, right, bottom = crop_boxes(image.size, 1)[0]
        images.append(image.crop((int(left), int(top), int(right), int(bottom))))
    return images


def _measure_denoising(
    request: EvaluationRequest, project: Project, loras: LoRAPair, training: Sequence[Image.Image]
) -> Generator[Event, None, dict[str, DenoisingResult]]:
    """Denoise the training image with every prompt, with the LoRAs and with the base alone."""
    import torch

    from unziplora_cli.accel.device import empty_cache, memory_guard, pick_device, pick_dtype
    from unziplora_cli.evaluation.denoising import measure_denoising
    from unziplora_cli.method.lora import LoRAPair
    from unziplora_cli.sdxl.base import native_resolution
    from unziplora_cli.sdxl.generate import ImageRequest
    from unziplora_cli.sdxl.latents import crop_image, encode_latents
    from unziplora_cli.sdxl.load import load_vae

    trained = project.job.settings
    side = trained.resolution if trained else native_resolution(request.base)
    device = pick_device(request.compute.device)
    yield Phase("encode images")
    with memory_guard("Use another device."):
        vae = load_vae(request.base, device=device, vae=request.compute.vae)
        latents = torch.cat([encode_latents(vae, crop_image(image, side, 1)).mean for image in training])
        del vae
        empty_cache(device)
    config = GenerateConfig(width=side, height=side)
    prompts, no_lora = project.job.prompts, LoRAPair()
    single = {name: Prompts(text, text, text) for name, text in asdict(prompts).items()}
    requests = {
        **{f"{name} base": ImageRequest(prompt, no_lora, config) for name, prompt in single.items()},
        "content": ImageRequest(prompts, LoRAPair(content=loras.content), config),
        "style": ImageRequest(prompts, LoRAPair(style=loras.style), config),
        "full": ImageRequest(prompts, loras, config),
        "one file": ImageRequest(single["full"], loras, config),
    }
    results = yield from measure_denoising(
        request.base,
        requests,
        latents,
        samples=request.config.noise_samples,
        seed=request.config.seed,
        device=device,
        dtype=pick_dtype(request.compute.precision, device),
        batch_size=request.compute.batch_size,
        fuse=request.compute.fuse,
        reconstruct=("full", "full base"),
    )
    return results


def _score_images(
    request: EvaluationRequest,
    project: Project,
    loras: LoRAPair,
    training: Sequence[Image.Image],
    scorer: Scorer,
    prompts: Sequence[EvaluationPrompt],
) -> Generator[Event, None, tuple[tuple[ScoreRecord, ...], Image.Image]]:
    """Generate images with the LoRAs and with the base alone; returns their scores and a sheet of them."""
    from unziplora_cli.evaluation.metrics import image_scores

    requests = [*_image_requests(request, prompts, None), *_image_requests(request, prompts, loras)]
    images = yield from collect_images(requests, request.base, request.compute)
    yield Phase("score")
    texts = [prompt.text for prompt in prompts]
    base_images, lora_images = images[: len(prompts)], images[len(prompts) :]
    scores, base_scores = scorer.score(lora_images, texts), scorer.score(base_images, texts)
    sheet = _sheet(project, training[0], prompts, (lora_images, scores), (base_images, base_scores))
    return image_scores(prompts, scores, base_scores, scorer), sheet


def find_scorer(base: BaseRef, words: Words, training: Sequence[Image.Image]) -> Scorer | None:
    """What scores images of this base, if it is on this disk."""
    from unziplora_cli.evaluation import scorers

    if base.kind == "builtin":
        return scorers.ClassifierScorer(resources.classifier(), training, words)
    if scorers.missing_encoders():
        return None
    return scorers.ClipScorer(scorers.Encoders.load(), training, words)


def _image_requests(
    request: EvaluationRequest, prompts: Sequence[EvaluationPrompt], loras: LoRAPair | None
) -> Iterator[ImageRequest]:
    """One request for neighbors that differ only in their seed; without LoRAs for the base alone."""
    from unziplora_cli.evaluation.prompts import BRANCHES
    from unziplora_cli.method.lora import LoRAPair
    from unziplora_cli.sdxl.generate import ImageRequest

    for (purpose, texts), group in groupby(prompts, lambda prompt: (prompt.purpose, prompt.prompts)):
        same = list(group)
        settings = replace(request.generation, count=len(same), seed=same[0].seed)
        if loras is None:
            text = same[0].text
            yield ImageRequest(Prompts(text, text, text), LoRAPair(), settings)
        elif len(BRANCHES[purpose]) == 2:
            yield ImageRequest(texts, loras, settings)
        else:
            branch = BRANCHES[purpose][0]
            yield ImageRequest(texts, LoRAPair(**{branch: getattr(loras, branch)}), settings)


def _sheet(
    project: Project,
    training: Image.Image,
    prompts: Sequence[EvaluationPrompt],
    *results: tuple[Sequence[Image.Image], Sequence[ImageScore]],
) -> Image.Image:
    """For each purpose one row of the LoRAs' images and one of the base's, with what the scorer sees."""
    from unziplora_cli.evaluation.prompts import PURPOSES
    from unziplora_cli.report.contact_sheet import Cell, Heading, contact_sheet

    rows, headings = [], []
    for purpose in PURPOSES:
        for title, (images, scores) in zip((purpose, "base alone"), results, strict=True):
            rows.append(
                [
                    Cell(image, f"{prompt.text}: {score.subject}, {score.style} {score.context}".strip())
                    for prompt, image, score in zip(prompts, images, scores, strict=True)
                    if prompt.purpose == purpose
                ]
            )
            headings.append(Heading(title, group=purpose))
    rows[0].append(Cell(training, "the training image"))
    title = f"{project.name}: prompts, and what the scorer sees"
    return contact_sheet(rows, title=title, row_headings=headings)


def _check_finite(scores: Sequence[ScoreRecord], project: Project) -> None:
    """Raise AdapterError when the weights give infinite or undefined losses."""
    if not all(isfinite(score.value) for score in scores):
        raise AdapterError(
            f"The LoRAs of {project.name!r} are damaged: with them the network predicts infinite values.",
            Remedy("Check the files", command="verify", arguments=(project.name,)),
            Remedy("If they are intact, train again with a lower content-lr and style-lr."),
        )


def _rounded(score: ScoreRecord) -> ScoreRecord:
    """Five significant digits."""
    base = None if score.base is None else float(f"{score.base:.5g}")
    return replace(score, value=float(f"{score.value:.5g}"), base=base)
