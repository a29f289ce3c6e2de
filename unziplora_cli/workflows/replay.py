"""Train a project again from its manifest alone, and tell how far the result is from the recorded one."""

from __future__ import annotations

import shutil
from collections.abc import Generator, Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import unziplora_cli
from unziplora_cli import files
from unziplora_cli.errors import Interrupted, ProjectError, Remedy
from unziplora_cli.job import now
from unziplora_cli.projects.store import Project, ProjectStore
from unziplora_cli.training.request import TrainRequest
from unziplora_cli.workflows.train import recorded_base, recorded_request, train

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
        return all(file.identical for file in self.files)


def replay(
    store: ProjectStore, name: str, *, keep: str | None = None, device: str | None = None
) -> Generator[Event, None, ReplayResult | None]:
    """Train the project ``name`` again; None in other processes of the training than the one that compares.

    ``keep`` is the name of the new project; without it the new files are deleted after the comparison.
    ``device`` is the recorded one unless given. The project is locked meanwhile. Raises ProjectError when its
    files, its picture or its base are not the recorded ones, or it was not wholly trained here.
    """
    with ExitStack() as stack:
        stack.enter_context(store.home_errors(f"The project {name!r} is unchanged."))
        stack.enter_context(store.lock(name))
        project = store.open(name)
        request, unrecorded = request_to_replay(store, project, device)
        target, job = store, request.job
        if keep is None:
            scratch = store.home / SCRATCH / name
            _clear(scratch)
            stack.callback(_clear, scratch)
            target = ProjectStore(scratch)
            job = replace(job, settings=replace(job.config, checkpoint_every=0))
        else:
            job = replace(job, name=keep, created=now())
        try:
            trained = yield from train(replace(request, job=job), target)
        except Interrupted as error:
            if keep is not None:
                raise
            raise Interrupted(
                f"The replay of {name!r} was stopped; nothing of it is kept.",
                Remedy("A replay that keeps its result can be resumed", settings={"name": "NEW"}),
            ) from error
        if trained is None:
            return None
        new = trained.project
        return ReplayResult(
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


def request_to_replay(
    store: ProjectStore, project: Project, device: str | None = None
) -> tuple[TrainRequest, tuple[str, ...]]:
    """The request that trains a project again, and what its manifest does not record; raises ProjectError.

    Validation images, saved LoRAs and trackers are turned off: they do not change the result.
    """
    manifest, job = project.manifest, project.job
    if manifest.state != "complete":
        raise ProjectError(
            f"The training of {project.name!r} was stopped after step {manifest.steps_done}.",
            Remedy("Finish it first", "train", settings={"resume": project.name}),
        )
    config = job.config
    store.require_whole(project)
    folders = filter(None, (config.prior_content, config.prior_style))
    job = replace(
        job,
        tool_version=unziplora_cli.__version__,
        device=device or job.device,
        settings=replace(config, validate_every=0, save_every=0, tracker="none"),
    )
    latents = project.path("destyled") if manifest.artifact("destyled") else None
    request = recorded_request(job, _base(project), project.folder, destyled_latents=latents)
    return request, tuple(f"the class images in {path}" for path in folders)


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


def _base(project: Project) -> BaseRef:
    """The base that a project was trained on; raises ProjectError when another has its place."""
    recorded = project.job.base
    base = recorded_base(recorded, project.job.vae)
    if recorded.hash and base.fingerprint != recorded.hash:
        raise ProjectError(
            f"The base {recorded.id} is not the one that {project.name!r} was trained on: "
            f"it is {base.fingerprint}, was {recorded.hash}.",
            Remedy("Train it again: this version of unziplora comes with a newer mini.")
            if base.kind == "builtin"
            else Remedy(f"Put the recorded one back at {base.path}."),
        )
    return base


def _changes(recorded: Project, new: Project) -> Iterator[str]:
    """Where and with what it was trained, as far as that differs."""
    versions = new.manifest.versions
    pairs = {
        "unziplora": (recorded.job.tool_version, new.job.tool_version),
        "device": (recorded.job.device, new.job.device),
    }
    for library, version in recorded.manifest.versions.items():
        pairs[library] = (version, versions.get(library, "not there"))
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
