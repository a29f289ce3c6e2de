"""report: one page of HTML about a project."""

from pathlib import Path
from typing import Annotated

import typer

from unziplora_cli.cli._output import Session, format_size
from unziplora_cli.cli.projects import NAME, PANEL
from unziplora_cli.errors import UsageError


def register_report(app: typer.Typer) -> None:
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
        text=f"{made.file}: {made.pictures} pictures, {format_size(bytes)}",
    )


def _open(file: Path) -> bool:
    import webbrowser

    return webbrowser.open(file.absolute().as_uri())


# push: a project onto the Hugging Face hub.


def register_push(app: typer.Typer) -> None:
    """Add the command to the program."""
    app.command("push", rich_help_panel=PANEL)(push)


def push(
    ctx: typer.Context,
    project: Annotated[str, NAME],
    repository: Annotated[
        str, typer.Argument(metavar="REPO", help="owner/name on the hub.", show_default=False)
    ],
    private: Annotated[bool, typer.Option("--private", help="For your eyes only.")] = False,
    licence: Annotated[
        str | None,
        typer.Option(
            "--license",
            help="Licence of the LoRAs, as the hub names it: openrail++, cc-by-4.0, ...",
            show_default=False,
        ),
    ] = None,
    picture: Annotated[
        list[Path] | None,
        typer.Option(
            help="A picture for the model card; may be repeated. Left out: the newest of the project.",
            show_default=False,
        ),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Write the folder that would be uploaded, and upload nothing.")
    ] = False,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out", "-o", help="The folder of --dry-run; left out: the name of REPO.", show_default=False
        ),
    ] = None,
) -> None:
    """Publish a project on the Hugging Face hub: both LoRAs, the merge weights and a model card.

    The LoRAs carry a small picture of what they were trained on.
    """
    from unziplora_cli.workflows.publish import PushRequest, push, write_folder

    session: Session = ctx.obj
    store = session.store()
    if out is not None and not dry_run:
        raise UsageError("--out is where --dry-run writes.", hint="Add --dry-run, or leave --out out.")
    found = store.open(project)
    order = PushRequest(found, repository, private, licence, tuple(picture) if picture else None)
    if dry_run:
        pushed = write_folder(order, store, out or Path(repository.split("/")[1]))
        text = f"{pushed.folder}: {', '.join(pushed.files)}"
    else:
        session.use_network("Pushing a project")
        session.output.message(f"Uploading {project} to {repository}{' (private)' if private else ''}.")
        pushed = push(order, store)
        text = f"{pushed.url}: {', '.join(pushed.files)}"
    session.output.result(
        {
            "repository": repository,
            "url": pushed.url,
            "folder": str(pushed.folder) if pushed.folder else None,
            "private": private,
            "files": list(pushed.files),
        },
        text=text,
    )
    if licence is None:
        session.output.message("The model card names no licence: --license openrail++ is SDXL's own.")
