"""Going on with a training that was cut off, or finding out why that cannot be."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, replace
from typing import Any

from unziplora_cli import files
from unziplora_cli.config import TrainConfig, check_settings
from unziplora_cli.errors import ProjectError, UsageError
from unziplora_cli.projects.manifest import Scalar
from unziplora_cli.projects.store import ProjectStore
from unziplora_cli.projects.unfinished import MUTABLE_ON_RESUME, Plan, Unfinished, differences
from unziplora_cli.workflows.train import TrainOrder, plan_of


def order_to_resume(
    store: ProjectStore, name: str, settings: Mapping[str, Any], device: str | None = None
) -> TrainOrder:
    """The order that goes on with the unfinished training ``name``.

    ``settings`` are those that change, ``device`` where to compute from now on. Raises ProjectError when
    there is nothing to go on with, when an older project is in the way, or when the base, this version or
    ``settings`` are others than it began with.
    """
    from unziplora_cli.sdxl.base import resolve_base

    check_settings(TrainConfig, settings)
    unfinished = store.unfinished(name)
    if unfinished is None:
        raise store.nothing_to_resume(name)
    plan = unfinished.plan
    if store.exists(name) and unfinished.folder != store.folder / name and not plan.replaces:
        raise ProjectError(
            f"There is a project {name!r} by now, which this training would replace.",
            hint=f"Rename it first: unziplora rename {name} {name}-2",
        )
    base = replace(resolve_base(_spec(plan), offline=True)[0], spec=plan.base.spec)
    order = TrainOrder(
        name=name,
        pictures=tuple(unfinished.folder / each.file for each in plan.source),
        words=plan.words,
        prompts=plan.prompts,
        base=base,
        config=_config(plan, settings),
        device=device or plan.device,
        vae=plan.vae,
        validation=plan.validation,
        force=True,
        created=plan.created,
        resume=True,
    )
    different = differences(_identity(order), plan.identity())
    if different:
        raise ProjectError(
            f"The training of {name!r} began otherwise: {'; '.join(different)}.",
            hint=f"Go on as it began: unziplora train --resume {name}   Or train anew, with --force. "
            f"What may change: {', '.join(each.replace('_', '-') for each in MUTABLE_ON_RESUME)}.",
        )
    return order


def same_training(order: TrainOrder, unfinished: Unfinished) -> tuple[str, ...]:
    """Where ``order`` differs from an unfinished training, in words; empty when it would make the same."""
    changed = [
        name
        for name in MUTABLE_ON_RESUME
        if getattr(order.config, name) != unfinished.plan.training.get(name, getattr(order.config, name))
    ]
    retuned = tuple(
        f"{name.replace('_', '-')} is {getattr(order.config, name)}, was {unfinished.plan.training[name]}"
        for name in changed
    )
    return (*differences(_identity(order), unfinished.plan.identity()), *retuned)


def _identity(order: TrainOrder) -> dict[str, Scalar]:
    pictures = {f"picture {i}": files.sha256(each) for i, each in enumerate(order.pictures, start=1)}
    return {**plan_of(order, ()).identity(), **pictures}


def _spec(plan: Plan) -> str:
    """What finds the base of a plan again, from whatever folder."""
    if plan.base.kind in ("folder", "file"):
        return plan.base.id
    return plan.base.spec


def _config(plan: Plan, settings: Mapping[str, Any]) -> TrainConfig:
    known = {each.name for each in fields(TrainConfig)}
    try:
        if unknown := plan.training.keys() - known:
            raise UsageError(f"it has the settings {', '.join(sorted(unknown))}")
        values: dict[str, Any] = {**plan.training, **settings}
        return TrainConfig(**values)
    except (UsageError, TypeError) as error:
        raise ProjectError(
            f"This version of unziplora cannot go on with that training: {error}",
            hint=f"It was begun by unziplora {plan.tool_version}.",
        ) from error
