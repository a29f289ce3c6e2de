"""models list, pull, verify, remove and path: base models on this disk."""

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from unziplora_cli.cli._options import model_names
from unziplora_cli.cli._output import Session, Table, format_size
from unziplora_cli.errors import Interrupted, ModelError, Remedy

if TYPE_CHECKING:
    from unziplora_cli.model_cache import Model

MODEL = typer.Argument(
    metavar="MODEL",
    help="sdxl, owner/name or owner/name@revision of the hub.",
    show_default=False,
    autocompletion=model_names,
)
PULL = "unziplora models pull"
ANY_MODEL = typer.Argument(
    metavar="MODEL",
    help="mini, sdxl, owner/name, owner/name@revision or a folder.",
    show_default=False,
    autocompletion=model_names,
)


def register(app: typer.Typer) -> None:
    """Add these commands to the program."""
    group = typer.Typer(help="Base models on this disk (the cache is Hugging Face's own).")
    group.callback()(_name_the_command)
    group.command("list")(list_models)
    group.command("pull")(pull)
    group.command("verify")(verify)
    group.command("remove")(remove)
    group.command("path")(path)
    app.add_typer(group, name="models", rich_help_panel="Models")


def _name_the_command(ctx: typer.Context) -> None:
    session: Session = ctx.obj
    session.output.command = f"models {ctx.invoked_subcommand}"


def list_models(ctx: typer.Context) -> None:
    """List the bases that are on this disk."""
    from unziplora_cli import model_cache, paths

    session: Session = ctx.obj
    models = model_cache.list_models()
    rows = [
        [
            f"{model.spec} (built in)" if model.spec == "mini" else model.spec,
            (model.revision or "")[:12],
            format_size(model.bytes),
            (model.last_used or "")[:10],
            "incomplete" if model.problem else "complete",
        ]
        for model in models
    ]
    notes = [f"{each.spec} is incomplete: {PULL} {each.spec}" for each in models if each.problem]
    if not any(model.spec == "sdxl" for model in models):
        notes.append(f"sdxl is not on this disk: {PULL} sdxl")
    session.output.result(
        {"cache": str(paths.hub_cache()), "models": [_summary(model) for model in models]},
        table=Table(("model", "revision", "size", "last used", "state"), rows),
        text="\n".join(notes),
    )


def pull(
    ctx: typer.Context,
    model: Annotated[str, MODEL],
    only: Annotated[
        Literal["tokenizers"] | None,
        typer.Option(
            help="Fetch nothing but the tokenizers, which a single-file base needs: a few MB.",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Download a base into Hugging Face's cache, or go on with a download that was cut off."""
    session: Session = ctx.obj
    session.use_network("Pulling a model")
    from unziplora_cli import hub, model_cache, paths

    download = hub.query_model(*model_cache.hub_id(model), only)
    missing = download.missing()
    rest = "" if missing == download.bytes else f", {format_size(missing)} of them still to come"
    session.output.message(
        f"{download.id}: {len(download.files)} files, {format_size(download.bytes)}{rest}; "
        f"{format_size(hub.free_space())} are free at {paths.hub_cache()}."
    )
    try:
        folder = hub.download(download, accept=model_cache.check_supported)
    except KeyboardInterrupt as stopped:
        raise Interrupted("Stopped; what was fetched is kept.", hint=f"Go on: {PULL} {model}") from stopped
    pulled = model_cache.describe_snapshot(download.id, folder.name)
    if pulled.problem and not only:
        raise ModelError(pulled.problem, hint=f"See what is there: unziplora models verify {model}")
    what = f"The {only} of {model} are" if only else f"{model} is"
    session.output.result(_summary(pulled), text=f"{what} at {folder}.")
    if model == "sdxl" and not only:
        session.output.message(f"For fp16 on SDXL, also: unziplora models pull {model_cache.VAE_FIX}")


def verify(ctx: typer.Context, model: Annotated[str, ANY_MODEL]) -> None:
    """Check that a base is complete and that its files have the hub's hashes."""
    from unziplora_cli import model_cache

    session: Session = ctx.obj
    session.output.message(f"Checking {model}; a large model takes a while.")
    found = model_cache.verify(model)
    if found.model.problem or found.problems:
        damage = [f"{each.path} {each.reason}" for each in found.problems] or [
            found.model.problem.rstrip(".")
        ]
        again = f"{PULL} {model}"
        hint = f"unziplora models remove {model}, then: {again}" if found.problems else again
        raise ModelError(f"{model}: {'; '.join(damage)}.", hint=hint if found.model.revision else "")
    if found.checked:
        how = f"{found.checked} files have the hub's hashes"
    else:
        how = "its files have no hash of the hub to compare with"
    if found.checked and found.unchecked:
        how += f"; {found.unchecked} have none to compare with"
    session.output.result(
        {**_summary(found.model), "checked": found.checked, "unchecked": found.unchecked},
        text=f"{model} is complete: {how}.",
    )


def remove(
    ctx: typer.Context,
    model: Annotated[str, MODEL],
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
) -> None:
    """Delete a base from Hugging Face's cache, for every program that uses it."""
    from unziplora_cli import model_cache

    session: Session = ctx.obj
    removal = model_cache.plan_removal(model_cache.find_cached(model))
    found = removal.snapshot
    shared = found.bytes() - removal.bytes
    kept = f"; {format_size(shared)} stay, which other commits use" if shared > 0 else ""
    question = (
        f"Delete {found.id} for every program that uses it, and free {format_size(removal.bytes)}{kept}?"
    )
    if not yes and not session.output.confirm(question, instead=Remedy(settings={"yes": True})):
        session.output.result({"removed": None}, text="Nothing was removed.")
        return
    removal.run()
    session.output.result(
        {"removed": found.id, "revision": found.revision, "bytes": removal.bytes},
        text=f"Removed {found.id}; {format_size(removal.bytes)} are free again.",
    )


def path(
    ctx: typer.Context,
    model: Annotated[
        str | None,
        typer.Argument(
            metavar="[MODEL]",
            help="mini, sdxl, owner/name or a folder; left out: the cache of all models.",
            show_default=False,
            autocompletion=model_names,
        ),
    ] = None,
) -> None:
    """Print the folder of a model, or of the whole model_cache."""
    from unziplora_cli import model_cache, paths

    session: Session = ctx.obj
    folder = paths.hub_cache() if model is None else model_cache.locate(model)
    session.output.result({"path": str(folder)}, text=str(folder))


def _summary(model: "Model") -> dict[str, object]:
    return {**asdict(model), "path": str(model.path), "complete": not model.problem}
