"""Train a project: check the images, run the job, write its weights and its manifest."""

from __future__ import annotations

import platform
import shutil
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from importlib.metadata import version
from math import isfinite
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import unziplora_cli
from unziplora_cli import files
from unziplora_cli.checks import check_settings
from unziplora_cli.config import MUTABLE_ON_RESUME, TrainConfig, Words, resolve
from unziplora_cli.errors import Interrupted, ProjectError, Remedy, UsageError
from unziplora_cli.events import Notice, observe
from unziplora_cli.job import BaseRecord, Job, SourceImage, differences, now
from unziplora_cli.paths import leave_process_group, process_count, process_rank
from unziplora_cli.projects import manifest
from unziplora_cli.projects.manifest import Artifact, Manifest
from unziplora_cli.projects.store import Project, ProjectStore
from unziplora_cli.projects.unfinished import (
    CHECKPOINTS,
    UnfinishedRecord,
    read_record,
    write_record,
    write_status,
)
from unziplora_cli.prompts import make_prompts
from unziplora_cli.resources import default_preset
from unziplora_cli.training.request import DESTYLED, DESTYLED_LATENTS, TrainRequest
from unziplora_cli.workflows.describe import outside
from unziplora_cli.workflows.destyle import choose_way, destyle_requests, subject_check

if TYPE_CHECKING:
    from unziplora_cli.sdxl.base import BaseRef
    from unziplora_cli.training.events import Event, TrainResult
    from unziplora_cli.training.inputs import InputCache

    Run = Callable[[TrainRequest], Generator[Event, None, TrainResult]]

LIBRARIES = ("torch", "diffusers", "transformers", "peft", "accelerate", "safetensors")


@dataclass(frozen=True)
class TrainedProject:
    """A finished project, the result of :func:`train`."""

    project: Project
    seconds: float
    seconds_per_step: float


def training_config(
    base: BaseRef, preset: str | None, settings: Mapping[str, Any]
) -> tuple[str, TrainConfig]:
    """The preset, by default the base's, and the settings that it and ``settings`` make; raises UsageError.

    A preset's resolution is that of SDXL: on a base of smaller images, it is the base's own.
    """
    from unziplora_cli.sdxl.base import native_resolution

    preset = preset or default_preset(base.kind, settings.get("destyle"))
    config = resolve(preset, settings)
    if settings.get("resolution") is None:
        config = replace(config, resolution=min(config.resolution, native_resolution(base)))
    return preset, config


def read_sources(images: Sequence[Path], folder: str = "") -> tuple[SourceImage, ...]:
    """The records of training images, each one decoded once; raises UsageError for one that cannot be used.

    ``file`` is the name that the copy in the project will have, or in a ``folder`` of it.
    """
    from unziplora_cli.images import load_image

    sources = []
    for number, path in enumerate(images, start=1):
        loaded = load_image(path)
        ending = path.suffix.lower()
        plain = ending.isascii() and ending[1:].isalnum()
        stem = f"{folder}/{number:02}" if folder else "source" + (f"-{number}" if number > 1 else "")
        file = stem + (ending if plain else "")
        sources.append(SourceImage(file, files.sha256(path), *loaded.file_size, loaded.format))
    return tuple(sources)


def make_request(
    name: str,
    images: Sequence[Path],
    words: Words,
    base: BaseRef,
    config: TrainConfig,
    *,
    sources: tuple[SourceImage, ...] | None = None,
    texts: Mapping[str, str | None] | None = None,
    vae: str | None = None,
    replaces: bool = False,
    sheet: bool = True,
    **job: Any,
) -> TrainRequest:
    """The request of a new training, with the way to destyle chosen; ``job`` are other fields of the job.

    ``texts`` are complete prompts ("full_prompt", "content_prompt", "style_prompt") and the scene of the
    validation images ("validation_prompt"), where the user gave them. Raises UsageError for an image that
    cannot be read or an impossible prompt, and what
    :func:`~unziplora_cli.workflows.destyle.choose_way` raises.
    """
    from unziplora_cli.sdxl.base import absolute_spec

    config, destyled = choose_way(config, base, words.style)
    texts = texts or {}
    scene = texts.get("validation_prompt")
    given = {branch: texts.get(f"{branch}_prompt") for branch in ("full", "content", "style")}
    made = Job(
        name=name,
        created=now(),
        base=base.record(),
        images=sources or read_sources(images),
        words=words,
        destyled=read_sources(destyled, DESTYLED),
        settings=config,
        prompts=make_prompts(words, None, given),
        validation=None if scene is None else make_prompts(words, scene),
        vae=None if vae is None else absolute_spec(vae),
        **job,
    )
    check = subject_check(base, words, images)
    return TrainRequest(
        made, base, tuple(images), destyled, replaces=replaces, sheet=sheet, other_subject=check
    )


def input_cache_for(requests: Sequence[TrainRequest]) -> InputCache:
    """What several trainings share, so that nothing is loaded twice."""
    from unziplora_cli.training.inputs import InputCache

    return InputCache([request for request in requests if not request.resume])


def request_to_resume(
    store: ProjectStore, name: str, settings: Mapping[str, Any], device: str | None = None
) -> TrainRequest:
    """The request that resumes the unfinished training ``name``.

    ``settings`` are those that change, ``device`` is the one to use from now on. Raises ProjectError when
    there is nothing to resume, when a newer project has its name, or when the base, the version of unziplora
    or a setting that cannot change differs from what it began with.
    """
    check_settings(TrainConfig, settings)
    unfinished = store.unfinished(name)
    if unfinished is None:
        raise store.nothing_to_resume(name)
    recorded = unfinished.job
    if store.exists(name) and unfinished.folder != store.folder / name and not unfinished.record.replaces:
        raise ProjectError(
            f"There is a newer project {name!r}, which this training would replace.",
            Remedy("Rename it first", "rename", (name, f"{name}-2")),
        )
    base = recorded_base(recorded.base, recorded.vae)
    job = replace(
        recorded,
        name=name,
        tool_version=unziplora_cli.__version__,
        base=base.record(),
        device=device or recorded.device,
        settings=_settings(recorded, settings),
    )
    different = differences(job.identity(), recorded.identity())
    if different:
        mutable = ", ".join(setting.replace("_", "-") for setting in MUTABLE_ON_RESUME)
        raise ProjectError(
            f"The training of {name!r} began with other settings: {'; '.join(different)}. "
            f"Only these may change: {mutable}.",
            Remedy("Resume it as it began", "train", settings={"resume": name}),
            Remedy("Or train from the start", settings={"force": True}),
        )
    sheet = unfinished.record.sheet
    return recorded_request(job, base, unfinished.folder, resume=True, replaces=True, sheet=sheet)


def recorded_request(job: Job, base: BaseRef, folder: Path, **fields: Any) -> TrainRequest:
    """The request of a job whose images lie in ``folder``; ``fields`` are others of the request."""
    images, destyled = (
        tuple(folder / image.file for image in sources) for sources in (job.images, job.destyled)
    )
    check = subject_check(base, job.words, images)
    return TrainRequest(job, base, images, destyled, other_subject=check, **fields)


def recorded_base(record: BaseRecord, vae: str | None) -> BaseRef:
    """What is on this machine in place of a job's base; raises ModelError if nothing is."""
    from unziplora_cli.sdxl.base import resolve_base

    pinned = record.kind == "hub" and record.revision and record.spec != "sdxl"  # that one pins its own
    spec = f"{record.id}@{record.revision}" if pinned else record.location
    base, _ = resolve_base(spec, offline=True, vae=vae, prediction=record.prediction)
    return replace(base, spec=record.spec)


def _settings(recorded: Job, changes: Mapping[str, Any]) -> TrainConfig:
    try:
        return TrainConfig(**{**asdict(recorded.config), **changes})
    except UsageError as error:
        raise ProjectError(
            f"The training of {recorded.name!r} cannot be resumed with that: {error}"
        ) from error


def split_by_process(requests: Sequence[TrainRequest]) -> Sequence[TrainRequest]:
    """The requests that this process trains, each by itself; all processes train a single one together.

    The processes were started by ``torchrun`` or ``accelerate launch``.
    """
    if process_count() == 1 or len(requests) == 1:
        return requests
    rank, processes, local = leave_process_group()
    return [
        replace(request, job=replace(request.job, device=own_device(request.job.device, local)))
        for request in requests[rank::processes]
    ]


def own_device(device: str, local: int) -> str:
    """The device of one of several processes on a machine, which have a GPU each."""
    import torch

    return f"cuda:{local}" if device in ("auto", "cuda") and torch.cuda.is_available() else device


@dataclass(eq=False)
class Joined:
    """A training is ready to run at once with others; what runs them sets ``result``, and its ``events``."""

    request: TrainRequest
    events: list[Event] = field(default_factory=list)
    result: TrainResult | Exception | None = None


def join(request: TrainRequest) -> Generator[Any, None, TrainResult]:
    """Wait for the result of a training that another one runs."""
    joined = Joined(request)
    yield joined
    yield from joined.events
    if isinstance(joined.result, Exception):
        raise joined.result
    assert joined.result is not None
    return joined.result


def train(
    request: TrainRequest, store: ProjectStore, input_cache: InputCache | None = None, run: Run | None = None
) -> Generator[Event, None, TrainedProject | None]:
    """Run ``request``, make it a project of ``store`` and return it.

    ``input_cache`` shares inputs with trainings before and after it. Where several processes train together,
    only the first one returns the project, the others return None. ``run`` replaces the engine.

    When the user stops it, what was learned so far is kept as a project, or as an unfinished training if an
    older project has its name, and Interrupted is raised. Whatever else ends it, even the end of the process,
    it can be resumed from its last checkpoint; without one nothing is left. Raises every error of training,
    and ProjectError when the name is taken or the disk refuses.
    """
    from unziplora_cli.sdxl.base import check_trainable

    check_trainable(request.base)
    if not request.resume and (note := outside(request.images, request.base, request.job.words)):
        yield note
    with TemporaryDirectory(prefix="unziplora-") as scratch:
        (request,) = yield from destyle_requests([request], Path(scratch))
        if run is not None:
            return (yield from _train(request, store, run))
        from unziplora_cli.training.engine import train as engine

        return (yield from _train(request, store, partial(engine, input_cache=input_cache)))


def _train(
    request: TrainRequest, store: ProjectStore, run: Run
) -> Generator[Event, None, TrainedProject | None]:
    from unziplora_cli.training.trainer import stop_signals

    name, step_times = request.job.name, list[float]()
    if process_rank() > 0:
        with TemporaryDirectory() as scratch:
            reopened = store.reopen(name) if request.resume else None
            result = yield from _learn(request, Path(scratch), reopened, step_times, run)
        if result.steps < request.config.steps:
            raise Interrupted("Stopped.")
        return None
    prepare = None if request.resume else partial(_prepare, request)
    former = store.former_versions(name)
    with (
        files.translated(partial(_disk_error, store, name)),
        store.training(name, prepare, force=request.replaces) as folder,
    ):
        record = read_record(folder)
        job = replace(
            request.job, created=record.job.created, images=record.job.images, destyled=record.job.destyled
        )
        request = replace(request, job=job)
        if request.resume:
            write_record(folder, replace(record, job=job))
        result = yield from _learn(request, folder, folder, step_times, run)
        job = replace(job, destyled=read_record(folder).job.destyled)
        with stop_signals():  # a signal during these last moments would only cost what was learned
            (folder / manifest.FILE_NAME).unlink(missing_ok=True)
            artifacts = _write_weights(job, result, folder)
            manifest.write(folder, _manifest(job, result, artifacts))
    if result.steps < request.config.steps:
        raise _stopped(job, store)
    yield from map(Notice, store.replaced_notes(name, former))
    project = store.open(name)
    typical = sorted(step_times)[len(step_times) // 2] if step_times else 0.0
    return TrainedProject(project, project.manifest.seconds, typical)


def _prepare(request: TrainRequest, folder: Path) -> UnfinishedRecord:
    copy_images(request.images, request.job.images, folder)
    copy_images(request.destyled, request.job.destyled, folder)
    return UnfinishedRecord(job=request.job, replaces=request.replaces, sheet=request.sheet)


def copy_images(images: Sequence[Path], sources: Sequence[SourceImage], folder: Path) -> None:
    """Copy training images into the folder of a project, so that it does not depend on the originals."""
    for path, source in zip(images, sources, strict=True):
        copy = folder / source.file
        with files.translated(partial(files.disk_error, folder=path, outcome="Nothing was changed.")):
            copy.parent.mkdir(exist_ok=True)
            with files.atomic_write(copy) as temporary:
                shutil.copyfile(path, temporary)
        if files.sha256(copy) != source.sha256:
            raise ProjectError(f"{path} changed while it was being copied.")


def _stopped(job: Job, store: ProjectStore) -> Interrupted:
    """The error that tells the user what is left of a training that they stopped."""
    resume = Remedy("Resume", "train", settings={"resume": job.name})
    unfinished = store.unfinished(job.name)
    if unfinished is not None and unfinished.folder == store.folder / job.name:
        steps = store.open(job.name).manifest.steps_done
        return Interrupted(
            f"Stopped after step {steps} of {job.config.steps}; what was learned is kept.",
            resume,
            Remedy("Generate images with it", "combine", (job.name,)),
        )
    return Interrupted(
        f"Stopped before step {job.config.steps}; the older project {job.name!r} is still in place.",
        resume,
        Remedy("Discard it", "remove", (job.name,), {"unfinished": True}),
    )


def _learn(
    request: TrainRequest, folder: Path, training: Path | None, step_times: list[float], run: Run
) -> Generator[Event, None, TrainResult]:
    """Run ``request`` in ``folder``; ``training`` is the folder of the training that it resumes.

    The seconds of each step are added to ``step_times``.
    """
    from unziplora_cli.adapters.metadata import project_metadata
    from unziplora_cli.training.events import Destyled, Phase, StepDone

    images, destyled, latents = request.images, request.destyled, request.destyled_latents
    if training is not None and request.resume:
        kept = training / DESTYLED_LATENTS
        latents = kept if request.job.destyled and kept.exists() else None
        images = tuple(training / image.file for image in request.job.images)
        destyled = tuple(training / image.file for image in request.job.destyled)
    request = replace(
        request,
        images=images,
        destyled=destyled,
        destyled_latents=latents,
        folder=folder,
        checkpoints=None if training is None else training / CHECKPOINTS,
        metadata=project_metadata(request.job, images[0]),
    )
    noted = 0.0  # when the progress was written last

    def watch(event: Event) -> None:
        nonlocal noted
        match event:
            case Phase("load U-Net"):
                # The files of a stopped project change from here on: it is no project until they are whole.
                (folder / manifest.FILE_NAME).unlink(missing_ok=True)
            case Destyled(paths) if training is not None:
                record = read_record(folder)
                job = replace(record.job, destyled=read_sources(paths, DESTYLED))
                write_record(folder, replace(record, job=job))
            case StepDone():
                step_times.append(event.seconds)
                if training is not None and time.monotonic() - noted > 1:
                    noted = time.monotonic()
                    write_status(folder, event.step)

    return observe(run(request), watch)


def _disk_error(store: ProjectStore, name: str, error: OSError) -> ProjectError:
    """The error that says what is left of a training, and how to continue."""
    unfinished, older = None, False
    with suppress(ProjectError, OSError):
        unfinished, older = store.unfinished(name), store.exists(name)
    if unfinished is not None:
        outcome = f"What was learned up to step {unfinished.step} is kept."
        return store.disk_error(error, outcome, Remedy("Resume it", "train", settings={"resume": name}))
    outcome = "Nothing of the training was kept"
    return store.disk_error(error, f"{outcome}; the older project is unchanged." if older else f"{outcome}.")


def _write_weights(job: Job, result: TrainResult, folder: Path) -> tuple[Artifact, ...]:
    """Write the three weight files; returns the records of all files."""
    from unziplora_cli.adapters.metadata import project_metadata
    from unziplora_cli.training import callbacks
    from unziplora_cli.training.checkpoint import write_adapters

    write_adapters(folder, result, project_metadata(job, folder / job.images[0].file))
    rank = job.config.rank
    history = Artifact.of(folder, "history", callbacks.HISTORY_FILE, "csv")
    artifacts = (*manifest.adapter_artifacts(folder, rank, rank), history)
    if not (folder / DESTYLED_LATENTS).exists():
        return artifacts
    return (*artifacts, Artifact.of(folder, "destyled", DESTYLED_LATENTS, "safetensors"))


def _manifest(job: Job, result: TrainResult, artifacts: tuple[Artifact, ...]) -> Manifest:
    return Manifest(
        job=replace(job, device=result.device),
        state="complete" if result.steps == job.config.steps else "interrupted",
        steps_done=result.steps,
        seconds=round(result.seconds, 3),
        peak_memory_bytes=result.memory,
        versions={"python": platform.python_version(), **{name: version(name) for name in LIBRARIES}},
        metrics=_losses(result),
        artifacts=artifacts,
    )


def _losses(result: TrainResult) -> dict[str, float]:
    """Mean loss of the first and of the last tenth of the steps."""
    losses = [loss for loss in result.losses if isfinite(loss)]  # fp16 skips steps that overflow
    if not losses:
        return {}
    tenth = max(1, len(losses) // 10)
    return {"loss_first": sum(losses[:tenth]) / tenth, "loss_last": sum(losses[-tenth:]) / tenth}
