"""demo: the whole flow in a few minutes, offline."""

from pathlib import Path
from typing import Annotated

import typer

from unziplora_cli.cli.choices import DEVICE
from unziplora_cli.cli.render import duration
from unziplora_cli.cli.session import Session


def register(app: typer.Typer) -> None:
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
    from unziplora_cli.cli.progress import Display
    from unziplora_cli.workflows.demo import Demonstrated
    from unziplora_cli.workflows.demo import demo as run
    from unziplora_cli.workflows.training import Trained

    session: Session = ctx.obj
    finished: Demonstrated | None = None
    with Display(session.output, "demo") as display:
        for event in run(session.store(), out, device=device, on_progress=display.progress):
            if isinstance(event, Demonstrated):
                finished = event
            elif isinstance(event, Trained):
                display.say(f"{event.project.name}: learned in {duration(event.seconds)}")
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
            f"in {duration(finished.seconds)}\n"
            f'Next: unziplora combine {first} {second} --prompt "on a beach"'
        ),
    )
