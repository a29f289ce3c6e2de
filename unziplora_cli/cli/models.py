"""The commands models list, pull, verify, remove and path."""

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from unziplora_cli.cli._errors import remedy_text
from unziplora_cli.cli._help import Program
from unziplora_cli.cli._options import model_names, name_the_command
from unziplora_cli.cli._output import Session, Table, format_size
from unziplora_cli.errors import Interrupted, ModelError, Remedy, count

if TYPE_CHECKING:
    from unziplora_cli.model_cache import Model

MODEL = typer.Argument(
    metavar="MODEL",
    help="sdxl, describer, or owner/name or owner/name@revision on the hub.",
    autocompletion=model_names,
)
ANY_MODEL = typer.Argument(
    metavar="MODEL",
    help="mini, sdxl, owner/name, owner/name@revision, a folder or a file.",
    autocompletion=model_names,
)


models = Program(help="Base models on this disk, in Hugging Face's cache.", callback=name_the_command)


@models.command("list")
def list_models(ctx: typer.Context) -> None:
    """List the base models on this disk."""
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
    notes = [f"{m.spec} is incomplete: {_pull_command(m.spec)}" for m in models if m.problem]
    if not any(model.spec == "sdxl" for model in models):
        notes.append(f"sdxl is not on this disk: {_pull_command('sdxl')}")
    session.output.result(
        {"cache": paths.hub_cache(), "models": [_summary(model) for model in models]},
        table=Table(("model", "revision", "size", "last used", "state"), rows),
        text="\n".join(notes),
    )


@models.command("show")
def show(ctx: typer.Context, model: Annotated[str, ANY_MODEL]) -> None:
    """Show what a base model is, and for mini what it knows, from which pictures, and what it is not for."""
    from unziplora_cli import resources, vocabulary
    from unziplora_cli.files import size_and_links
    from unziplora_cli.sdxl.base import native_resolution, resolve_base

    session: Session = ctx.obj
    base, _ = resolve_base(model, offline=True)
    size = size_and_links(base.path)[0] if base.path.is_dir() else base.path.stat().st_size
    sources: list[dict[str, str]] = []
    facts: dict[str, Any] = {
        "resolution": f"{native_resolution(base)} px",
        "size": format_size(size),
        "revision": base.revision,
        "path": str(base.path),
    }
    if base.kind == "builtin":
        words = vocabulary.mini()
        facts = {
            "what it is": resources.MINI_DESCRIPTION,
            "for real use": f"train SDXL on a GPU: {_pull_command('sdxl')}",
            "subjects": ", ".join(sorted(words.subjects)),
            "styles": ", ".join(words.styles),
            "places": ", ".join(filter(None, words.contexts)),
            "markings": ", ".join(words.markings),
            "colors": ", ".join(words.colors),
            **facts,
        }
        sources = vocabulary.mini_sources()
    rows = [[name, value] for name, value in facts.items() if value]
    rows += [["pictures from", " · ".join(filter(None, source.values()))] for source in sources]
    session.output.result(
        {"model": base.spec, **facts, **({"sources": sources} if sources else {})},
        table=Table((base.spec, ""), rows),
    )


@models.command("pull")
def pull(
    ctx: typer.Context,
    model: Annotated[str, MODEL],
    only: Annotated[
        Literal["tokenizers"] | None,
        typer.Option(help="Download only the tokenizers, a few MB, which a single-file base needs."),
    ] = None,
) -> None:
    """Download a base model into Hugging Face's cache, or resume an interrupted download.

    `describer` is a model that proposes subject and style of an image (Apache-2.0, 4.3 GB).
    """
    from unziplora_cli import hub, model_cache, paths
    from unziplora_cli.sdxl.base import VAE_FIX

    session: Session = ctx.obj
    id, revision = model_cache.hub_id(model)
    session.use_network("Pulling a model")
    session.output.message(f"Asking {hub.endpoint()} for the files of {id}.")
    query = hub.query_describer() if id == hub.DESCRIBER else hub.query_model(id, revision, only)
    missing = query.missing()
    rest = "" if missing == query.bytes else f", {format_size(missing)} of them missing"
    session.output.message(
        f"{query.id}: {count(len(query.files), 'file')}, {format_size(query.bytes)}{rest}; "
        f"{format_size(hub.free_space())} free at {paths.hub_cache()}."
    )
    try:
        folder = session.run("pull", hub.download(query, accept=model_cache.check_supported))
    except KeyboardInterrupt as interrupt:
        raise Interrupted(
            "Stopped; what was downloaded is kept.",
            Remedy("Resume", command="models pull", arguments=(model,)),
        ) from interrupt
    pulled = model_cache.describe_snapshot(query.id, folder.name)
    if pulled.problem and not only:
        raise ModelError(
            pulled.problem, Remedy("Check its files", command="models verify", arguments=(model,))
        )
    what = f"The {only} of {model} are" if only else f"{model} is"
    session.output.result(_summary(pulled), text=f"{what} at {folder}.")
    if model == "sdxl" and not only:
        session.output.message(f"To use SDXL in fp16, also run: {_pull_command(VAE_FIX)}")


@models.command("verify")
def verify(ctx: typer.Context, model: Annotated[str, ANY_MODEL]) -> None:
    """Check that a base model is complete and its files match the hashes of the hub."""
    from unziplora_cli import model_cache

    session: Session = ctx.obj
    session.output.message(f"Checking {model}; a large model takes a while.")
    verified = model_cache.verify(model)
    problems = [f"{problem.path} {problem.reason}" for problem in verified.problems]
    if problems or verified.model.problem:
        remedies = [Remedy("Download it again", command="models pull", arguments=(model,))]
        if problems:
            remedies.insert(0, Remedy("Remove it", command="models remove", arguments=(model,)))
        reasons = "; ".join(problems or [verified.model.problem.rstrip(".")])
        raise ModelError(f"{model}: {reasons}.", *(remedies if verified.model.revision else ()))
    if verified.checked:
        verb = "matches" if verified.checked == 1 else "match"
        result = f"{count(verified.checked, 'file')} {verb} the hashes of the hub"
        if verified.unchecked:
            result += f"; {verified.unchecked} have no hash to compare with"
    else:
        result = "its files have no hash of the hub to compare with"
    session.output.result(
        {**_summary(verified.model), "checked": verified.checked, "unchecked": verified.unchecked},
        text=f"{model} is complete: {result}.",
    )


@models.command("remove")
def remove(
    ctx: typer.Context,
    model: Annotated[str, MODEL],
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask for confirmation.")] = False,
) -> None:
    """Delete a base model from Hugging Face's cache, for every program that uses it."""
    from unziplora_cli import model_cache

    session: Session = ctx.obj
    snapshot = model_cache.find_cached(model)
    size = model_cache.removable_bytes(snapshot)
    freed, shared = format_size(size), snapshot.bytes() - size
    kept = f"; {format_size(shared)} are shared with other commits and stay" if shared > 0 else ""
    question = f"Delete {snapshot.id} for every program that uses it, and free {freed}{kept}?"
    if not yes and not session.output.confirm(question, instead=Remedy("Confirm it", settings={"yes": True})):
        session.output.result({"removed": None}, text="Nothing was removed.")
        return
    model_cache.remove(snapshot)
    session.output.result(
        {"removed": snapshot.id, "revision": snapshot.revision, "bytes": size},
        text=f"Removed {snapshot.id} and freed {freed}.",
    )


@models.command("path")
def path(
    ctx: typer.Context,
    model: Annotated[
        str | None,
        typer.Argument(
            metavar="[MODEL]",
            help="mini, sdxl, owner/name, a folder or a file; default: the cache of all models.",
            autocompletion=model_names,
        ),
    ] = None,
) -> None:
    """Print where a model is, or the folder of the whole cache."""
    from unziplora_cli import model_cache, paths

    session: Session = ctx.obj
    folder = paths.hub_cache() if model is None else model_cache.locate(model)
    session.output.result({"path": folder}, text=str(folder))


def _summary(model: "Model") -> dict[str, object]:
    return {**asdict(model), "path": model.path, "complete": not model.problem}


def _pull_command(spec: str) -> str:
    return remedy_text(Remedy(command="models pull", arguments=(spec,)))
