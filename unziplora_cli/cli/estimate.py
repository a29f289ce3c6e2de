"""train --plan: what a training needs of this machine, and the command that fits if it does not."""

import shlex
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from unziplora_cli.checks import check_settings
from unziplora_cli.cli._errors import remedy_text
from unziplora_cli.cli._options import find_base
from unziplora_cli.cli._output import ProgressDisplay, Session, Table, format_duration, format_size
from unziplora_cli.config import TrainConfig
from unziplora_cli.errors import Remedy, count
from unziplora_cli.events import Notice

if TYPE_CHECKING:
    from unziplora_cli.sdxl.base import BaseRef
    from unziplora_cli.training.estimate import TrainingEstimate

NOT_REPEATED = ("--plan", "--estimate", "--dry-run", "--json", "--quiet", "-q", "--verbose", "-v")


def show_estimate(
    session: Session,
    projects: int,
    base: tuple[str | None, ...],
    preset: str | None,
    device: str,
    settings: dict[str, Any],
) -> None:
    """Print the estimate for ``projects`` trainings, one after the other.

    ``base`` are the arguments of ``find_base``: the base, the VAE and the prediction.
    """
    from unziplora_cli.workflows.train import training_config

    check_settings(TrainConfig, settings)
    ref = _find_base(session, *base)
    preset, config = training_config(ref, preset, settings)
    estimated = make_estimate(session, ref, config, device)
    command = _fitting_command(session, estimated)
    session.output.result(
        {"plan": _summary(estimated, preset, projects, command)},
        table=Table(("", preset), _rows(estimated, projects)),
        text=_conclusion(estimated, command),
    )


def make_estimate(session: Session, base: "BaseRef", config: TrainConfig, device: str) -> "TrainingEstimate":
    """The estimate of a training, which takes a moment: this imports torch and measures its speed."""
    with ProgressDisplay(session.output, "estimate"):
        from unziplora_cli.training.estimate import estimate_training

        return estimate_training(base, config, device)


def _find_base(session: Session, *spec: str | None) -> "BaseRef":
    """The base; SDXL can be estimated before it is downloaded."""
    from unziplora_cli.sdxl.base import SDXL_ID, SDXL_REVISION, BaseNotCached
    from unziplora_cli.training.estimate import shipped_sdxl

    try:
        return find_base(session, *spec)
    except BaseNotCached as error:
        if error.id != SDXL_ID or error.revision not in (None, SDXL_REVISION):
            raise
        session.output.notice(Notice(error.message, error.remedies))
        return shipped_sdxl()


def _fitting_command(session: Session, estimate: "TrainingEstimate") -> str | None:
    """The command of this run with settings that fit."""
    if estimate.fitting_settings is None or estimate.too_slow:
        return None
    words = [word for word in session.command_line if word not in NOT_REPEATED]
    options = remedy_text(Remedy(settings=estimate.fitting_settings))
    end = words.index("--") if "--" in words else len(words)  # what follows it is no option
    return f"unziplora {shlex.join(words[:end])} {options} {shlex.join(words[end:])}".rstrip()


def _rows(estimate: "TrainingEstimate", projects: int) -> list[list[str]]:
    config, memory = estimate.config, estimate.memory
    step, total = "over a minute", "several days or more"
    if not estimate.too_slow:
        step = f"about {estimate.time.step:.2g} s"
        total = f"about {format_duration(estimate.time.total * projects)}"
    per_image = f" for each of {projects} images" if projects > 1 else ""
    return [
        ["base", f"{estimate.base}, rank {config.rank}, {config.resolution} px, batch {config.batch_size}"],
        ["device", f"{estimate.device} ({estimate.device_name}), {estimate.precision}"],
        ["peak memory", f"about {format_size(memory.peak)}"],
        ["", f"{format_size(memory.frozen_weights)} frozen weights"],
        ["", f"{format_size(memory.trained_state)} trained parameters"],
        ["", f"{format_size(memory.activations)} activations"],
        ["", f"{format_size(memory.temporary)} temporary"],
        *([["", f"{format_size(memory.process)} Python and torch"]] if memory.process else []),
        ["required", f"about {format_size(estimate.required_bytes)} free"],
        ["free now", f"{format_size(estimate.free_bytes)} of {format_size(estimate.total_bytes)}"],
        ["step", step],
        ["training", f"{count(config.steps, 'step')}{per_image}: {total}"],
        ["disk", f"{format_size(estimate.project_bytes)}{per_image}"],
        ["", f"checkpoints: up to {format_size(estimate.checkpoint_bytes)} until the training completes"],
    ]


def _conclusion(estimate: "TrainingEstimate", command: str | None) -> str:
    if estimate.too_slow:
        return (
            f"{estimate.base} needs a GPU: a CPU is too slow. The built-in base trains on a CPU in minutes: "
            "--base mini"
        )
    required, free = format_size(estimate.required_bytes), format_size(estimate.free_bytes)
    if estimate.fits:
        return f"Fits: needs about {required}, and {free} are free."
    text = f"Does not fit: needs about {required}, but {free} are free."
    if command is not None:
        return f"{text} Settings that fit:\n  {command}"
    if estimate.device == "cpu":
        return f"{text} Lower --resolution or --rank, or use a smaller base: --base mini"
    return (
        f"{text} Lower --resolution or --rank, or close other programs that use this memory "
        "(nvidia-smi lists them)."
    )


def _summary(estimate: "TrainingEstimate", preset: str, projects: int, command: str | None) -> dict[str, Any]:
    summary = asdict(estimate)
    for name in ("config", "time", "fitting_settings"):
        del summary[name]
    return {
        **summary,
        "preset": preset,
        "projects": projects,
        "steps": estimate.config.steps,
        "fits": estimate.fits,
        "too_slow": estimate.too_slow,
        "peak_memory_bytes": estimate.memory.peak,
        "flops_per_step": estimate.time.flops,
        "seconds_per_step": None if estimate.too_slow else round(estimate.time.step, 4),
        "seconds": None if estimate.too_slow else round(estimate.time.total * projects, 1),
        "fitting_command": command,
    }
