"""doctor: what this machine can do, and the exact line that mends it."""

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from unziplora_cli import paths
from unziplora_cli.cli.render import Table
from unziplora_cli.cli.session import Session
from unziplora_cli.errors import UsageError

if TYPE_CHECKING:
    from unziplora_cli.workflows.doctor import Examination

BLOCKED = 1
"""Exit code when something blocks training."""


def register(app: typer.Typer) -> None:
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
        table=Table(("check", "state", ""), [[each.name, each.level, each.says] for each in found.checks]),
        text=_closing(found),
    )
    if found.blocked:
        raise typer.Exit(BLOCKED)


def _closing(found: "Examination") -> str:
    """The lines to type, unbroken, and the verdict."""
    mends = [f"{check.name}:\n  {check.mend}" for check in found.checks if check.mend]
    verdict = "Something blocks training: see above." if found.blocked else "This machine can train."
    return "\n".join([*(["To mend:", *mends] if mends else []), verdict])
