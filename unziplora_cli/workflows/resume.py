"""Resume a training that was cut off, or explain why that is impossible."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, replace
from typing import Any

import unziplora_cli
from unziplora_cli.config import MUTABLE_ON_RESUME, TrainConfig, check_settings
from unziplora_cli.errors import ProjectError, Remedy, UsageError
from unziplora_cli.job import Job, differences
from unziplora_cli.projects.store import ProjectStore
from unziplora_cli.training.request import TrainRequest
from unziplora_cli.workflows.provenance import base_record


def request_to_resume(
    store: ProjectStore, name: str, settings: Mapping[str, Any], device: str | None = None
) -> TrainRequest:
    """The request that resumes the unfinished training ``name``.

    ``settings`` are those that change, ``device`` is the one to use from now on. Raises ProjectError when
    there is nothing to resume, when a newer project has its name, or when the base, the version of unziplora
    or a setting that cannot change differs from what it began with.
    """
    from unziplora_cli.sdxl.base import resolve_base

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
    spec = recorded.base.id if recorded.base.kind in ("folder", "file") else recorded.base.spec
    base = replace(resolve_base(spec, offline=True)[0], spec=recorded.base.spec)
    job = replace(
        recorded,
        name=name,
        tool_version=unziplora_cli.__version__,
        base=base_record(base),
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
    images = tuple(unfinished.folder / image.file for image in job.images)
    return TrainRequest(job, base, images, resume=True, replaces=True)


def _settings(recorded: Job, changes: Mapping[str, Any]) -> TrainConfig:
    try:
        return TrainConfig(**{**asdict(recorded.config), **changes})
    except UsageError as error:
        raise ProjectError(
            f"The training of {recorded.name!r} cannot be resumed with that: {error}"
        ) from error
