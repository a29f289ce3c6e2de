"""report and push: show a project on one HTML page, publish it on the Hugging Face hub."""

from pathlib import Path
from typing import Annotated

import typer

from unziplora_cli.cli._errors import remedy_text
from unziplora_cli.cli._opening import openable
from unziplora_cli.cli._options import PROJECT
from unziplora_cli.cli._output import Session, format_size
from unziplora_cli.errors import Remedy, UsageError, count


@openable
def report(
    ctx: typer.Context,
    project: Annotated[str, PROJECT],
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", help="An .html file or a folder. Default: report.html in the project."),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace the file if it exists.")] = False,
) -> None:
    """Write an HTML report about a project.

    It shows images, curves and scores, and how to use the LoRAs in other programs.
    """
    from unziplora_cli.workflows.report import report as run

    session: Session = ctx.obj
    result = run(session.store().open(project), out, force=force, word=remedy_text)
    for note in result.notes:
        session.output.warning(note)
    opened = session.output.opener is not None and session.output.opener(result.file)
    size = result.file.stat().st_size
    session.output.result(
        {"report": result.file, "bytes": size, "images": result.images, "opened": opened},
        text=f"{result.file}: {count(result.images, 'image')}, {format_size(size)}",
        links=(result.file,),
    )


@openable
def push(
    ctx: typer.Context,
    project: Annotated[str, PROJECT],
    repository: Annotated[str, typer.Argument(metavar="REPO", help="The model on the hub: owner/name.")],
    private: Annotated[bool, typer.Option("--private", help="Make the model private.")] = False,
    license: Annotated[
        str | None,
        typer.Option(help="License of the LoRAs, by its name on the hub: openrail++, cc-by-4.0, ..."),
    ] = None,
    image: Annotated[
        list[Path] | None,
        typer.Option(
            help="An image for the model card; may be repeated. Default: the newest that this project alone "
            "generated."
        ),
    ] = None,
    no_image: Annotated[
        bool,
        typer.Option(
            "--no-image", "--no-picture", help="Publish no image, nor thumbnails in the LoRA files."
        ),
    ] = False,
    plan: Annotated[
        bool, typer.Option("--plan", "--dry-run", help="Only write the folder that would be uploaded.")
    ] = False,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Folder for --plan. Default: the name of REPO.")
    ] = None,
) -> None:
    """Publish a project on the Hugging Face hub.

    Uploads both LoRAs, the merge weights, images and a model card. The LoRA files contain a thumbnail of the
    training image, unless --no-image is given.
    """
    from unziplora_cli.workflows.publish import PushRequest, write_folder
    from unziplora_cli.workflows.publish import push as run

    session: Session = ctx.obj
    store = session.store()
    if out is not None and not plan:
        raise UsageError("--out is only used by --plan.", Remedy("Add", settings={"plan": True}))
    if image and no_image:
        raise UsageError("--image and --no-image exclude each other.", Remedy("Give one of them."))
    images = tuple(image) if image else None
    request = PushRequest(store.open(project), repository, private, license, images, pictures=not no_image)
    if plan:
        result = write_folder(request, store, out or Path(repository.split("/")[1]))
    else:
        session.use_network("Pushing a project")
        session.output.message(f"Uploading {project} to {repository}{' (private)' if private else ''}.")
        result = run(request, store)
    session.output.result(
        {
            "repository": repository,
            "url": result.url,
            "folder": result.folder,
            "private": private,
            "files": list(result.files),
        },
        text=f"{result.folder or result.url}: {', '.join(result.files)}",
        made=result.folder or result.url,
    )
    if license is None:
        hint = "" if request.project.job.base.kind == "builtin" else " SDXL's own is --license openrail++."
        session.output.message(f"The model card names no license.{hint}")
