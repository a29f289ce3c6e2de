"""From picture files to a project: train, write the weights, write the manifest."""

from __future__ import annotations

import errno
import os
import platform
import shutil
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from importlib.metadata import version
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING, Any

import unziplora_cli
from unziplora_cli import files
from unziplora_cli.config import Prompts, TrainConfig, Words
from unziplora_cli.errors import Interrupted, ProjectError
from unziplora_cli.files import fsync
from unziplora_cli.projects import manifest
from unziplora_cli.projects.manifest import Artifact, Manifest, Role, SourceImage
from unziplora_cli.projects.store import Project, ProjectStore
from unziplora_cli.projects.unfinished import CHECKPOINTS, Plan, read_plan, write_plan
from unziplora_cli.workflows.provenance import base_record, origin

if TYPE_CHECKING:
    from unziplora_cli.job import TrainRequest
    from unziplora_cli.sdxl.base import BaseRef
    from unziplora_cli.training.events import Event, TrainResult
    from unziplora_cli.training.inputs import InputCache

LIBRARIES = ("torch", "diffusers", "transformers", "peft", "accelerate", "safetensors")
LORA_FORMAT, MERGE_FORMAT = "kohya", "unziplora-merge"
DISK_ERRORS = tuple(
    getattr(errno, name) for name in ("ENOSPC", "EDQUOT", "EROFS", "EFBIG") if hasattr(errno, name)
)


@dataclass(frozen=True)
class TrainOrder:
    """One project to be made.

    ``pictures`` is one file, or a few that show the same subject in the same style; ``validation`` are the
    prompts of the pictures drawn on the way, by default those of training. ``created`` is the time that the
    files and the manifest tell, by default now: equal trainings of equal times make equal files. ``resume``
    goes on with the unfinished training of that name. ``typed`` are the words of the command, which hints
    repeat, and ``given`` the settings among them.
    """

    name: str
    pictures: tuple[Path, ...]
    words: Words
    prompts: Prompts
    base: BaseRef
    config: TrainConfig
    device: str = "auto"
    vae: str | None = None
    validation: Prompts | None = None
    force: bool = False
    created: str | None = None
    resume: bool = False
    typed: Sequence[str] = ()
    given: Mapping[str, Any] | None = None


@dataclass(frozen=True)
class TrainedProject:
    """The finished project; the last thing that :func:`train` tells."""

    project: Project
    seconds: float
    seconds_per_step: float


@dataclass
class _Outcome:
    """What a training left; ``complete`` unless the user stopped it."""

    result: TrainResult | None = None
    complete: bool = False
    step_times: list[float] = field(default_factory=list)


def check_images(pictures: Sequence[Path]) -> None:
    """Read every picture once, so that none is refused when others are trained already; raises UsageError."""
    from unziplora_cli.images import load_image

    for picture in pictures:
        load_image(picture)


def input_cache_for(orders: Sequence[TrainOrder]) -> InputCache:
    """What the trainings of ``orders`` share: nothing is loaded twice."""
    from unziplora_cli.training.inputs import InputCache

    return InputCache([_request(order, Path(), order.pictures) for order in orders if not order.resume])


def split_by_process(orders: Sequence[TrainOrder]) -> Sequence[TrainOrder]:
    """Of several pictures, those that this process trains, each by itself; a single one is everybody's.

    The processes were started by ``torchrun`` or ``accelerate launch``.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1 or len(orders) == 1:
        return orders
    import torch

    rank, processes, local = (int(os.environ.pop(name)) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"))
    on_gpu = torch.cuda.is_available()
    return [
        replace(
            order, device=f"cuda:{local}" if on_gpu and order.device in ("auto", "cuda") else order.device
        )
        for order in orders[rank::processes]
    ]


def train(
    order: TrainOrder, store: ProjectStore, input_cache: InputCache | None = None
) -> Iterator[Event | TrainedProject]:
    """Train ``order`` and make it a project of ``store``, telling events and at last TrainedProject.

    A ``input_cache`` is what it shares with trainings before and after it.

    Stopped by the user, the project is kept with what was learned so far, or stays an unfinished training
    where an older project has its name; Interrupted is raised. Whatever else ends it, even the process, the
    training can go on after its last checkpoint; without one nothing is left behind. Raises every error of
    training, and ProjectError when the name is taken or the disk refuses.
    """
    from unziplora_cli.sdxl.base import check_trainable
    from unziplora_cli.training.trainer import StopRequest, signals_as_keyboard_interrupt

    check_trainable(order.base)
    outcome = _Outcome()
    if int(os.environ.get("RANK", "0")) > 0:
        with tempfile.TemporaryDirectory() as scratch:
            reopened = store.reopen(order.name) if order.resume else None
            yield from _learn(order, Path(scratch), reopened, outcome, input_cache)
        return
    prepare = None if order.resume else partial(_prepare, order)
    with (
        signals_as_keyboard_interrupt(),
        disk_errors(store.home, partial(_kept, store, order.name)),
        store.training(order.name, prepare, force=order.force) as folder,
    ):
        plan = read_plan(folder)
        order = replace(order, created=plan.created)
        if order.resume:
            write_plan(folder, replace(plan, training=asdict(order.config)))
        try:
            yield from _learn(order, folder, folder, outcome, input_cache)
        except Interrupted:
            if outcome.result is None:
                raise
        with StopRequest():  # it is nearly done: a signal now would only cost what was learned
            (folder / manifest.FILE_NAME).unlink(missing_ok=True)
            assert outcome.result is not None
            record = _write_weights(order, outcome.result, folder)
            manifest.write(folder, _manifest(order, plan.source, outcome.result, record))
    if not outcome.complete:
        raise _stopped(order, store)
    project = store.open(order.name)
    typical = sorted(outcome.step_times)[len(outcome.step_times) // 2] if outcome.step_times else 0.0
    yield TrainedProject(project, project.manifest.seconds, typical)


def plan_of(order: TrainOrder, source: tuple[SourceImage, ...]) -> Plan:
    """What has to be known to go on with ``order``."""
    return Plan(
        created=order.created or manifest.now(),
        tool_version=unziplora_cli.__version__,
        base=base_record(order.base),
        source=source,
        words=order.words,
        prompts=order.prompts,
        training=asdict(order.config),
        device=order.device,
        vae=order.vae,
        validation=order.validation,
        replaces=order.force,
    )


def _prepare(order: TrainOrder, folder: Path) -> Plan:
    return plan_of(order, copy_images(order.pictures, folder))


def _kept(store: ProjectStore, name: str) -> str:
    """The command that goes on with what a failed training left, if it left anything."""
    return f"unziplora train --resume {name}" if store.unfinished(name) else ""


def _stopped(order: TrainOrder, store: ProjectStore) -> Interrupted:
    """What to tell when the user stopped the training."""
    go_on = f"Go on: unziplora train --resume {order.name}"
    unfinished = store.unfinished(order.name)
    if unfinished is not None and unfinished.folder == store.folder / order.name:
        steps = store.open(order.name).manifest.steps_done
        return Interrupted(
            f"Stopped after step {steps} of {order.config.steps}; what was learned is kept.",
            hint=f"{go_on}   Look at it: unziplora combine {order.name}",
        )
    return Interrupted(
        f"Stopped before step {order.config.steps}; the older project {order.name!r} stays until then.",
        hint=f"{go_on}   Give it up: unziplora remove {order.name} --unfinished",
    )


def _metadata(order: TrainOrder) -> Mapping[str, Mapping[str, str]]:
    """What each file of weights says about itself."""
    from unziplora_cli.adapters.metadata import project_metadata

    return project_metadata(
        origin(
            order.name,
            base_record(order.base),
            order.words,
            order.prompts,
            resolution=order.config.resolution,
            picture=order.pictures[0],
            created=order.created,
        )
    )


def _request(order: TrainOrder, folder: Path, pictures: tuple[Path, ...]) -> TrainRequest:
    from unziplora_cli.job import TrainRequest

    return TrainRequest(
        base=order.base,
        pictures=pictures,
        prompts=order.prompts,
        config=order.config,
        folder=folder,
        device=order.device,
        validation=order.validation,
        vae=order.vae,
        name=order.name,
        resume=order.resume,
        typed=order.typed,
        given=order.given,
    )


def _learn(
    order: TrainOrder,
    folder: Path,
    training: Path | None,
    outcome: _Outcome,
    input_cache: InputCache | None,
) -> Iterator[Event]:
    """Run ``order`` in ``folder``; ``training`` is the folder of the training that it goes on with."""
    from unziplora_cli.training.engine import train as run
    from unziplora_cli.training.events import Finished, Phase, StepDone, Stopped

    pictures, identity = order.pictures, {}
    if training is not None:
        source = read_plan(training).source
        identity = plan_of(order, source).identity()
        if order.resume:
            pictures = tuple(training / each.file for each in source)
    request = replace(
        _request(order, folder, pictures),
        metadata=_metadata(replace(order, pictures=pictures)),
        identity=identity,
        checkpoints=None if training is None else training / CHECKPOINTS,
    )
    for event in run(request, input_cache):
        match event:
            case Finished(result):
                outcome.result, outcome.complete = result, True
            case Stopped(result):
                outcome.result = result
            case Phase("load U-Net"):
                # The project that was stopped begins to change: it is none until its files are whole again.
                (folder / manifest.FILE_NAME).unlink(missing_ok=True)
                yield event
            case StepDone():
                outcome.step_times.append(event.seconds)
                yield event
            case _:
                yield event


@contextmanager
def disk_errors(home: Path, kept: Callable[[], str] = str) -> Iterator[None]:
    """A disk that is full, failing or read-only as ProjectError; safetensors tells it in words alone.

    ``kept`` says the command that goes on with what is left.
    """
    from safetensors import SafetensorError

    try:
        yield
    except (OSError, SafetensorError) as error:
        words = [os.strerror(number) for number in DISK_ERRORS]
        reason = next((each for each in words if each in str(error)), None)
        if reason is None:
            raise
        go_on = kept()
        raise ProjectError(
            f"Cannot write the project: {reason}. "
            + ("What was learned up to its last checkpoint is kept." if go_on else "Nothing of it was kept."),
            hint=f"Make room on the disk of {home}, "
            + (f"then go on: {go_on}" if go_on else "or choose another place with --home FOLDER."),
        ) from error


def copy_images(pictures: tuple[Path, ...], folder: Path) -> tuple[SourceImage, ...]:
    """Keep the very files that were trained on, so that the project stands alone."""
    from PIL import Image

    check_images(pictures)
    sources = []
    for number, picture in enumerate(pictures):
        ending = picture.suffix.lower()
        plain = ending.isascii() and ending[1:].isalnum()
        file = "source" + (f"-{number + 1}" if number else "") + (ending if plain else "")
        try:
            shutil.copyfile(picture, folder / file)
            fsync(folder / file)
        except OSError as error:
            raise ProjectError(f"Cannot copy {picture} into the project: {error.strerror}.") from error
        with warnings.catch_warnings(action="ignore"), Image.open(folder / file) as image:
            sources.append(
                SourceImage(
                    file, files.sha256(folder / file), image.width, image.height, image.format or "unknown"
                )
            )
    return tuple(sources)


def _write_weights(order: TrainOrder, learned: TrainResult, folder: Path) -> tuple[Artifact, ...]:
    """Write the three files of weights; returns the record of all files."""
    from unziplora_cli.training import callbacks
    from unziplora_cli.training.checkpoint import write_adapters

    picture = folder / read_plan(folder).source[0].file
    write_adapters(
        folder,
        learned.content,
        learned.style,
        learned.content_merge,
        learned.style_merge,
        _metadata(replace(order, pictures=(picture,))),
    )
    rank = order.config.rank
    return (
        _artifact(folder, "content", "content.safetensors", LORA_FORMAT, rank),
        _artifact(folder, "style", "style.safetensors", LORA_FORMAT, rank),
        _artifact(folder, "merge", "merge.safetensors", MERGE_FORMAT),
        _artifact(folder, "history", callbacks.HISTORY_FILE, "csv"),
    )


def _artifact(folder: Path, role: Role, path: str, format: str, rank: int | None = None) -> Artifact:
    file = folder / path
    return Artifact(role, path, files.sha256(file), file.stat().st_size, format, rank)


def _manifest(
    order: TrainOrder,
    sources: tuple[SourceImage, ...],
    result: TrainResult,
    artifacts: tuple[Artifact, ...],
) -> Manifest:
    return Manifest(
        name=order.name,
        created=order.created or manifest.now(),
        tool_version=unziplora_cli.__version__,
        base=base_record(order.base),
        source=sources,
        words=order.words,
        prompts=order.prompts,
        training=asdict(order.config),
        seed=order.config.seed,
        device=result.device,
        versions={"python": platform.python_version(), **{name: version(name) for name in LIBRARIES}},
        seconds=round(result.seconds, 3),
        steps_done=result.steps,
        state="complete" if result.steps == order.config.steps else "interrupted",
        artifacts=artifacts,
        vae=order.vae,
        peak_memory_bytes=result.memory,
        metrics=_losses(result),
    )


def _losses(result: TrainResult) -> dict[str, float]:
    """Mean loss of the first and the last tenth of the steps."""
    losses = [loss for loss in result.losses if isfinite(loss)]  # fp16 leaves out steps that overflow
    if not losses:
        return {}
    tenth = max(1, len(losses) // 10)
    return {"loss_first": sum(losses[:tenth]) / tenth, "loss_last": sum(losses[-tenth:]) / tenth}
