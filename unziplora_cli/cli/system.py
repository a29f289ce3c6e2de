"""doctor: what this machine can do, and the exact line that mends it."""

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from unziplora_cli import paths
from unziplora_cli.cli._options import DEVICE
from unziplora_cli.cli._output import Session, Table, format_duration
from unziplora_cli.errors import UsageError

if TYPE_CHECKING:
    from unziplora_cli.workflows.doctor import DoctorReport


BLOCKED = 1
"""Exit code when something blocks training."""


def register_doctor(app: typer.Typer) -> None:
    """Add the command to the program."""
    app.command("doctor", rich_help_panel="Machine")(doctor)


def doctor(
    ctx: typer.Context,
    online: Annotated[bool, typer.Option("--online", help="Also ask whether the model hub answers.")] = False,
) -> None:
    """Check this machine: Python, torch and its GPU, memory, disks, libraries and bases.

    Exit code 1 when something blocks training or keeps it off the GPU.
    """
    from unziplora_cli.workflows.doctor import diagnose

    session: Session = ctx.obj
    if online and session.offline:
        raise UsageError(
            "--online asks the model hub, but this run is offline.",
            hint="Leave out --offline and unset HF_HUB_OFFLINE.",
        )
    session.output.message("Looking at this machine; importing torch may take a while.")
    found = diagnose(paths.home(session.home), online=online)
    session.output.result(
        {
            "blocked": found.blocked,
            "checks": [asdict(check) for check in found.checks],
            "environment": asdict(found.environment),
        },
        table=Table(("check", "state", ""), [[each.name, each.level, each.message] for each in found.checks]),
        text=_closing(found),
    )
    if found.blocked:
        raise typer.Exit(BLOCKED)


def _closing(found: "DoctorReport") -> str:
    """The lines to type, unbroken, and the verdict."""
    mends = [f"{check.name}:\n  {check.fix}" for check in found.checks if check.fix]
    verdict = "Something blocks training: see above." if found.blocked else "This machine can train."
    return "\n".join([*(["To fix:", *mends] if mends else []), verdict])


# demo: the whole flow in a few minutes, offline.


def register_demo(app: typer.Typer) -> None:
    """Add the command to the program."""
    app.command("demo", rich_help_panel="Pictures")(demo)


def demo(
    ctx: typer.Context,
    out: Annotated[Path, typer.Option("--out", "-o", help="The sheet's file, or a folder for it.")] = Path(
        "unziplora-demo.png"
    ),
    device: Annotated[str, DEVICE] = "auto",
) -> None:
    """Take two shipped pictures apart and put them together again, on the built-in base, onto one sheet."""
    from unziplora_cli.cli._output import ProgressDisplay
    from unziplora_cli.workflows.demo import Demonstrated
    from unziplora_cli.workflows.demo import demo as run
    from unziplora_cli.workflows.train import TrainedProject

    session: Session = ctx.obj
    finished: Demonstrated | None = None
    with ProgressDisplay(session.output, "demo") as display:
        for event in run(session.store(), out, device=device):
            if isinstance(event, Demonstrated):
                finished = event
            elif isinstance(event, TrainedProject):
                display.message(f"{event.project.name}: learned in {format_duration(event.seconds)}")
            else:
                display.event(event)
    assert finished is not None
    first, second = finished.projects
    session.output.result(
        {
            "sheet": str(finished.sheet),
            "projects": list(finished.projects),
            "pictures": finished.pictures,
            "seconds": round(finished.seconds, 1),
        },
        text=(
            f"{finished.sheet}: two trainings and {finished.pictures} pictures "
            f"in {format_duration(finished.seconds)}\n"
            f'Next: unziplora combine {first} {second} --prompt "on a beach"'
        ),
    )
