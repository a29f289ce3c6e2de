"""From picture files to a project: train, write the weights, write the manifest."""

from __future__ import annotations

import errno
import os
import platform
import shutil
import tempfile
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

import unziplora_cli
from unziplora_cli.config import Prompts, TrainConfig, Words
from unziplora_cli.errors import Interrupted, ProjectError
from unziplora_cli.project import files, manifest
from unziplora_cli.project.manifest import Artifact, Manifest, Role, SourcePicture
from unziplora_cli.project.store import Project, ProjectStore
from unziplora_cli.workflows.provenance import base_record, origin

if TYPE_CHECKING:
    from unziplora_cli.diffusion.base import BaseRef
    from unziplora_cli.training.events import Event, TrainResult

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
    files and the manifest tell, by default now: equal trainings of equal times make equal files.
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


@dataclass(frozen=True)
class Trained:
    """The finished project; the last thing that :func:`train` tells."""

    project: Project
    seconds: float
    seconds_per_step: float


@dataclass
class _Outcome:
    """What a training left: its result, or how far it came before it was stopped."""

    result: TrainResult | None = None
    saved: Path | None = None
    steps: int = 0
    seconds: float = 0.0
    memory: int = 0
    step_times: list[float] = field(default_factory=list)


def check_pictures(pictures: Sequence[Path]) -> None:
    """Read every picture once, so that none is refused when others are trained already; raises UsageError."""
    from unziplora_cli.training.pictures import load_picture

    for picture in pictures:
        load_picture(picture)


def train(order: TrainOrder, store: ProjectStore) -> Iterator[Event | Trained]:
    """Train ``order`` and make it a project of ``store``, telling events and at last Trained.

    Stopped by the user, the project is kept with what was learned so far, and Interrupted is raised. On any
    other failure nothing is left behind. Raises every error of training, and ProjectError when the name is
    taken or the disk refuses.
    """
    from unziplora_cli.diffusion.base import check_trainable

    check_trainable(order.base)
    if int(os.environ.get("RANK", "0")) > 0:
        with tempfile.TemporaryDirectory() as scratch:
            yield from _learn(order, Path(scratch), _Outcome())
        return
    outcome = _Outcome()
    with disk_errors(store.home), store.create(order.name, force=order.force) as folder:
        sources = copy_pictures(order.pictures, folder)
        try:
            yield from _learn(order, folder, outcome)
        except Interrupted:
            if outcome.saved is None:
                raise
        record = _write_weights(order, outcome, folder)
        manifest.write(folder, _manifest(order, sources, outcome, record))
    project = store.open(order.name)
    if outcome.result is None:
        raise Interrupted(
            f"Stopped after step {outcome.steps} of {order.config.steps}; what was learned is kept.",
            hint=f"Look at it: unziplora combine {order.name}   Train anew: unziplora train ... --force",
        )
    typical = sorted(outcome.step_times)[len(outcome.step_times) // 2] if outcome.step_times else 0.0
    yield Trained(project, outcome.seconds, typical)


def _metadata(order: TrainOrder) -> Mapping[str, Mapping[str, str]]:
    """What each file of weights says about itself."""
    from unziplora_cli.formats.metadata import describe_all

    return describe_all(
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


def _learn(order: TrainOrder, folder: Path, outcome: _Outcome) -> Iterator[Event]:
    from unziplora_cli.training.engine import train as run
    from unziplora_cli.training.events import Finished, Saved, StepDone
    from unziplora_cli.training.request import TrainRequest

    request = TrainRequest(
        base=order.base,
        pictures=order.pictures,
        prompts=order.prompts,
        config=order.config,
        folder=folder,
        device=order.device,
        validation=order.validation,
        vae=order.vae,
        metadata=_metadata(order),
    )
    for event in run(request):
        match event:
            case Finished(result):
                outcome.result, outcome.steps = result, result.steps
                outcome.seconds, outcome.memory = result.seconds, result.memory
                continue
            case Saved(step, saved):
                outcome.saved, outcome.steps = saved, step
            case StepDone():
                outcome.step_times.append(event.seconds)
                outcome.seconds = sum(outcome.step_times)
                outcome.memory = event.memory
        yield event


@contextmanager
def disk_errors(home: Path) -> Iterator[None]:
    """A disk that is full, failing or read-only as ProjectError; safetensors tells it in words alone."""
    from safetensors import SafetensorError

    try:
        yield
    except (OSError, SafetensorError) as error:
        words = [os.strerror(number) for number in DISK_ERRORS]
        reason = next((each for each in words if each in str(error)), None)
        if reason is None:
            raise
        raise ProjectError(
            f"Cannot write the project: {reason}. Nothing of it was kept.",
            hint=f"Make room on the disk of {home}, or choose another place with --home FOLDER.",
        ) from error


def copy_pictures(pictures: tuple[Path, ...], folder: Path) -> tuple[SourcePicture, ...]:
    """Keep the very files that were trained on, so that the project stands alone."""
    from PIL import Image

    check_pictures(pictures)
    sources = []
    for number, picture in enumerate(pictures):
        ending = picture.suffix.lower()
        plain = ending.isascii() and ending[1:].isalnum()
        file = "source" + (f"-{number + 1}" if number else "") + (ending if plain else "")
        try:
            shutil.copyfile(picture, folder / file)
        except OSError as error:
            raise ProjectError(f"Cannot copy {picture} into the project: {error.strerror}.") from error
        with warnings.catch_warnings(action="ignore"), Image.open(folder / file) as image:
            sources.append(
                SourcePicture(
                    file, files.sha256(folder / file), image.width, image.height, image.format or "unknown"
                )
            )
    return tuple(sources)


def _write_weights(order: TrainOrder, outcome: _Outcome, folder: Path) -> tuple[Artifact, ...]:
    """Write, or take from the last saved state, the three files of weights; returns the record of all files."""
    from unziplora_cli.training import history
    from unziplora_cli.training.export import write_adapters

    if outcome.result is not None:
        learned = outcome.result
        write_adapters(
            folder,
            learned.content,
            learned.style,
            learned.content_merge,
            learned.style_merge,
            _metadata(order),
        )
    elif outcome.saved is not None:
        for file in outcome.saved.glob("*.safetensors"):
            if file.stem in ("content", "style", "merge"):
                shutil.copyfile(file, folder / file.name)
    rank = order.config.rank
    return (
        _artifact(folder, "content", "content.safetensors", LORA_FORMAT, rank),
        _artifact(folder, "style", "style.safetensors", LORA_FORMAT, rank),
        _artifact(folder, "merge", "merge.safetensors", MERGE_FORMAT),
        _artifact(folder, "history", history.FILE_NAME, "csv"),
    )


def _artifact(folder: Path, role: Role, path: str, format: str, rank: int | None = None) -> Artifact:
    file = folder / path
    return Artifact(role, path, files.sha256(file), file.stat().st_size, format, rank)


def _manifest(
    order: TrainOrder,
    sources: tuple[SourcePicture, ...],
    outcome: _Outcome,
    artifacts: tuple[Artifact, ...],
) -> Manifest:
    result = outcome.result
    metrics = _losses(result) if result is not None else {}
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
        device=result.device if result is not None else order.device,
        versions={"python": platform.python_version(), **{name: version(name) for name in LIBRARIES}},
        seconds=round(outcome.seconds, 3),
        steps_done=outcome.steps,
        state="interrupted" if result is None else "complete",
        artifacts=artifacts,
        vae=order.vae,
        peak_memory_bytes=outcome.memory,
        metrics=metrics,
    )


def _losses(result: TrainResult) -> Mapping[str, float]:
    """Mean loss of the first and the last tenth of the steps."""
    tenth = max(1, len(result.losses) // 10)
    return {
        "loss_first": sum(result.losses[:tenth]) / tenth,
        "loss_last": sum(result.losses[-tenth:]) / tenth,
    }
