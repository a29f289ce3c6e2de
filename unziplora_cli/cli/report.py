"""report: one page of HTML about a project."""

from pathlib import Path
from typing import Annotated

import typer

from unziplora_cli.cli.projects import NAME, PANEL
from unziplora_cli.cli.render import size
from unziplora_cli.cli.session import Session


def register(app: typer.Typer) -> None:
    """Add the command to the program."""
    app.command("report", rich_help_panel=PANEL)(report)


def report(
    ctx: typer.Context,
    project: Annotated[str, NAME],
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            "-o",
            help="An .html file, or a folder; left out: report.html in the project.",
            show_default=False,
        ),
    ] = None,
    open_browser: Annotated[bool, typer.Option("--open", help="Show it in the browser.")] = False,
) -> None:
    """Put all about a project on one page: pictures, curves, scores, and how to use the files elsewhere."""
    from unziplora_cli.workflows.report import report as run

    session: Session = ctx.obj
    made = run(session.store().open(project), out)
    for note in made.notes:
        session.output.warning(note)
    opened = open_browser and _open(made.file)
    if open_browser and not opened:
        session.output.warning("No browser could be started; open the file yourself.")
    bytes = made.file.stat().st_size
    session.output.result(
        {
            "report": str(made.file),
            "bytes": bytes,
            "pictures": made.pictures,
            "opened": opened,
        },
        text=f"{made.file}: {made.pictures} pictures, {size(bytes)}",
    )


def _open(file: Path) -> bool:
    import webbrowser

    return webbrowser.open(file.absolute().as_uri())
