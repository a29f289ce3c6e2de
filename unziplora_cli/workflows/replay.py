"""Train a project again from its manifest alone, and tell how far the result is from the recorded one."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING

from unziplora_cli import files
from unziplora_cli.config import TrainConfig
from unziplora_cli.errors import Interrupted, ProjectError, UsageError
from unziplora_cli.projects.store import Project, ProjectStore
from unziplora_cli.projects.verify import inside
from unziplora_cli.workflows.generate import shared_base
from unziplora_cli.workflows.train import TrainedProject, TrainOrder, train

if TYPE_CHECKING:
    from unziplora_cli.sdxl.base import BaseRef
    from unziplora_cli.training.events import Event

SCRATCH = "replays"
"""The folder of the home where a replay that nobody keeps is trained."""


@dataclass(frozen=True)
class FileDistance:
    """How far one file is from the recorded one.

    ``identical`` is byte for byte. Of LoRAs ``relative`` is |D' - D| / max(|D|, |D'|) over all updates, and
    ``columns`` the share of the columns open in either that are open in both; of merge weights ``largest`` is
    the largest difference.
    """

    role: str
    identical: bool
    relative: float | None = None
    columns: float | None = None
    largest: float | None = None


@dataclass(frozen=True)
class ReplayResult:
    """What a replay came to; ``losses`` are the recorded and the new value of each metric.

    ``changed`` names what was not as it was in the first training, ``unrecorded`` what the manifest does not
    say; either may be why the results differ. ``kept`` is the new project, None when it was thrown away.
    """

    project: str
    files: tuple[FileDistance, ...]
    losses: dict[str, tuple[float, float]]
    changed: tuple[str, ...]
    unrecorded: tuple[str, ...]
    seconds: float
    kept: Path | None

    @property
    def identical(self) -> bool:
        """Whether every file came out byte for byte."""
        return all(each.identical for each in self.files)


def replay(
    store: ProjectStore, name: str, *, keep: str | None = None, device: str | None = None
) -> Iterator[Event | ReplayResult]:
    """Train the project ``name`` again, telling events and at last ReplayResult.

    ``keep`` is the name of the new project; without it the new files are deleted after the comparison.
    ``device`` is the recorded one unless given. The project is locked meanwhile. Raises ProjectError when its
    files, its picture or its base are not the recorded ones, or it was not wholly trained here.
    """
    with ExitStack() as stack:
        project = store.open(name)
        stack.enter_context(store.lock(name))
        order, unrecorded = again(store, project, device)
        target = store
        if keep is None:
            scratch = store.home / SCRATCH / name
            _clear(scratch)
            stack.callback(_clear, scratch)
            stack.enter_context(_nothing_kept(name))
            target = ProjectStore(scratch)
            order = replace(order, config=replace(order.config, checkpoint_every=0))
        else:
            order = replace(order, name=keep, created=None)
        trained: TrainedProject | None = None
        for event in train(order, target):
            if isinstance(event, TrainedProject):
                trained = event
            else:
                yield event
        if trained is None:
            return  # another process of this training compares
        new = trained.project
        yield ReplayResult(
            project=name,
            files=tuple(compare(project, new)),
            losses={
                metric: (value, new.manifest.metrics[metric])
                for metric, value in project.manifest.metrics.items()
                if metric in new.manifest.metrics
            },
            changed=tuple(_changes(project, new)),
            unrecorded=unrecorded,
            seconds=trained.seconds,
            kept=None if keep is None else new.folder,
        )


def again(
    store: ProjectStore, project: Project, device: str | None = None
) -> tuple[TrainOrder, tuple[str, ...]]:
    """The order that makes a project again, and what its manifest does not say; raises ProjectError.

    Pictures on the way, saved models and trackers are left out: they change nothing.
    """
    recorded = project.manifest
    if recorded.state != "complete":
        raise ProjectError(
            f"The training of {project.name!r} was stopped after step {recorded.steps_done}.",
            hint=f"Finish it first: unziplora train --resume {project.name}",
        )
    if not recorded.source or not recorded.training:
        raise ProjectError(f"The project {project.name!r} was not trained here: it cannot be trained again.")
    damage = store.verify(project.name).problems
    if damage:
        listed = "; ".join(f"{each.path} {each.reason}" for each in damage)
        raise ProjectError(
            f"The project {project.name!r} is not as it was recorded: {listed}.",
            hint="Restore it from a copy.",
        )
    known = {each.name for each in fields(TrainConfig)}
    unrecorded = [
        f"the setting {each.replace('_', '-')}" for each in sorted(known - recorded.training.keys())
    ]
    try:
        config = TrainConfig(**recorded.training)  # type: ignore[arg-type]
    except (UsageError, TypeError) as error:
        raise ProjectError(
            f"This version of unziplora cannot repeat the training of {project.name!r}: {error}",
            hint=f"It was made by unziplora {recorded.tool_version}.",
        ) from error
    folders = filter(None, (config.prior_content, config.prior_style))
    unrecorded += [f"the class pictures in {folder}" for folder in folders]
    order = TrainOrder(
        name=project.name,
        pictures=tuple(inside(project.folder, each.file) for each in recorded.source),
        words=recorded.words,
        prompts=recorded.prompts,
        base=_base(project),
        config=replace(config, validate_every=0, save_every=0, tracker="none"),
        device=device or recorded.device,
        vae=recorded.vae,
        created=recorded.created,
    )
    return order, tuple(unrecorded)


def compare(recorded: Project, new: Project) -> Iterator[FileDistance]:
    """How far the weights of one project are from those of another."""
    from unziplora_cli.adapters.lora_file import read_lora
    from unziplora_cli.adapters.merge_weights import read_merge
    from unziplora_cli.evaluation.metrics import lora_distance, merge_distance

    for role in ("content", "style"):
        ours, theirs = recorded.path(role), new.path(role)
        distance = lora_distance(read_lora(ours).lora, read_lora(theirs).lora)
        yield FileDistance(
            role, _identical(ours, theirs), relative=distance.relative, columns=distance.columns
        )
    ours, theirs = recorded.path("merge"), new.path("merge")
    old_merge, new_merge = read_merge(ours), read_merge(theirs)
    largest = max(
        merge_distance(old_merge.content, new_merge.content), merge_distance(old_merge.style, new_merge.style)
    )
    yield FileDistance("merge", _identical(ours, theirs), largest=largest)


@contextmanager
def _nothing_kept(name: str) -> Iterator[None]:
    """Tell of a replay that was stopped what is true of it: there is nothing to go on with."""
    try:
        yield
    except Interrupted as error:
        raise Interrupted(
            f"The replay of {name!r} was stopped; nothing of it is kept.",
            hint="One that is kept can go on: --name NEW",
        ) from error


def _base(project: Project) -> BaseRef:
    """The base that a project was trained on; raises ProjectError when another has its place."""
    from unziplora_cli.sdxl.base import resolve_base

    recorded = project.manifest.base
    spec = shared_base([project])
    if recorded.kind == "hub" and recorded.revision:
        spec = f"{recorded.id}@{recorded.revision}"
    base, _ = resolve_base(spec, offline=True)
    if recorded.hash and base.fingerprint != recorded.hash:
        raise ProjectError(
            f"The base {recorded.id} is not the one that {project.name!r} was trained on: "
            f"it is {base.fingerprint}, was {recorded.hash}.",
            hint=f"Put the recorded one back at {base.path}.",
        )
    return base


def _changes(recorded: Project, new: Project) -> Iterator[str]:
    """Where and with what it was trained, as far as that differs."""
    before, now = recorded.manifest, new.manifest
    pairs = {"unziplora": (before.tool_version, now.tool_version), "device": (before.device, now.device)}
    for library, version in before.versions.items():
        pairs[library] = (version, now.versions.get(library, "not there"))
    for what, (then, here) in pairs.items():
        if then != here:
            yield f"{what} was {then}, is {here}"


def _identical(ours: Path, theirs: Path) -> bool:
    return files.sha256(ours) == files.sha256(theirs)


def _clear(scratch: Path) -> None:
    """Delete what a replay trained, and the folder of replays with the last one."""
    shutil.rmtree(scratch, ignore_errors=True)
    with suppress(OSError):
        scratch.parent.rmdir()
