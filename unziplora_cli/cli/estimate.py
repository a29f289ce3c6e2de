"""train --plan: what a training would take of this machine, and the line to type where it does not fit."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from unziplora_cli.cli._errors import hint
from unziplora_cli.cli._options import find_base, preset_for
from unziplora_cli.cli._output import Session, Table, format_size
from unziplora_cli.config import TrainConfig, check_settings, resolve

if TYPE_CHECKING:
    from unziplora_cli.sdxl.base import BaseRef
    from unziplora_cli.workflows.estimate import TrainingEstimate

NOT_REPEATED = ("--plan", "--json", "--quiet", "-q", "--verbose", "-v")


def repeatable(typed: Sequence[str]) -> tuple[str, ...]:
    """The words of a command line that a proposal repeats."""
    return tuple(word for word in typed if word not in NOT_REPEATED)


def show_estimate(
    session: Session,
    projects: int,
    *,
    base: str | None,
    preset: str | None,
    device: str,
    settings: dict[str, Any],
) -> None:
    """Print the plan of ``projects`` trainings, one after the other."""
    from unziplora_cli.training.estimate import line
    from unziplora_cli.workflows.estimate import estimate_training

    check_settings(TrainConfig, settings)
    found = _base(session, base)
    preset = preset or preset_for(found)
    plan = estimate_training(found, resolve(preset, settings), device, settings)
    command = None if plan.changes is None else line(repeatable(session.command_line), plan.changes)
    session.output.result(
        {"plan": _summary(plan, preset, projects, command)},
        table=Table(("", preset), _rows(plan, projects)),
        text=_verdict(plan, command),
    )


def _base(session: Session, spec: str | None) -> "BaseRef":
    """The base; SDXL need not be on this disk for a plan."""
    from unziplora_cli.sdxl.base import SDXL_ID, SDXL_REVISION, BaseNotCached
    from unziplora_cli.workflows.estimate import shipped_sdxl

    try:
        return find_base(session, spec)
    except BaseNotCached as error:
        if error.id != SDXL_ID or error.revision not in (None, SDXL_REVISION):
            raise
        session.output.message(f"{error.message} Fetch it with: {hint(error)}")
        return shipped_sdxl()


def _rows(plan: "TrainingEstimate", projects: int) -> list[list[str]]:
    config, memory = plan.config, plan.memory
    about = "" if plan.step_class.startswith(("over", "under")) else "about "
    each = f" for each of {projects} pictures" if projects > 1 else ""
    return [
        ["base", f"{plan.base}, rank {config.rank}, {config.resolution} px, batch {config.batch_size}"],
        ["device", f"{plan.device} ({plan.name}), {plan.precision}"],
        ["memory", f"about {format_size(memory.peak)} at most"],
        ["", f"weights {format_size(memory.frozen)}, what is learned {format_size(memory.state)},"],
        ["", f"activations {format_size(memory.saved)}, at work {format_size(memory.working)}"],
        ["must be free", f"about {format_size(plan.needed)}"],
        ["is free", f"{format_size(plan.free)} of {format_size(plan.total)}"],
        ["a step", f"{about}{plan.step_class}"],
        ["all steps", f"{config.steps}: about {_roughly(plan.seconds * projects)}"],
        ["disk", f"{format_size(plan.project_bytes)}{each}"],
        ["", f"checkpoints up to {format_size(plan.checkpoint_bytes)} until it is complete"],
    ]


def _verdict(plan: "TrainingEstimate", command: str | None) -> str:
    if plan.fits:
        return "It fits."
    if command is not None:
        return f"It will probably not fit. This would: {command}"
    if plan.device == "cpu":
        return "It will probably not fit: lower --resolution or --rank, or use a smaller base: --base mini"
    return (
        "It will probably not fit, whatever the preset: lower --resolution or --rank further, or close what "
        "uses this memory (nvidia-smi shows that)."
    )


def _roughly(seconds: float) -> str:
    """A duration of about two figures."""
    if seconds < 60:
        return f"{max(5, round(seconds / 5) * 5)} s"
    if seconds < 3600:
        return f"{round(seconds / 60)} min"
    hours = seconds / 3600
    return f"{hours:.1f} h" if hours < 10 else f"{hours:.0f} h"


def _summary(plan: "TrainingEstimate", preset: str, projects: int, command: str | None) -> dict[str, Any]:
    memory = plan.memory
    return {
        "base": plan.base,
        "device": plan.device,
        "device_name": plan.name,
        "precision": plan.precision,
        "preset": preset,
        "projects": projects,
        "steps": plan.config.steps,
        "fits": plan.fits,
        "peak_memory_bytes": memory.peak,
        "memory": {
            "texts": memory.texts,
            "pictures": memory.pictures,
            "frozen": memory.frozen,
            "state": memory.state,
            "saved": memory.saved,
            "working": memory.working,
            "process": memory.process,
        },
        "needed_bytes": plan.needed,
        "free_bytes": plan.free,
        "total_bytes": plan.total,
        "operations_per_step": plan.operations,
        "operations_per_second": plan.rate,
        "seconds_per_step": round(plan.step_seconds, 4),
        "step_class": plan.step_class,
        "seconds": round(plan.seconds * projects, 1),
        "project_bytes": plan.project_bytes,
        "checkpoint_bytes": plan.checkpoint_bytes,
        "proposal": command,
    }
