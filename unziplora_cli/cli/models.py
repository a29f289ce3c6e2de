"""models list, pull, verify and remove: base models on this disk."""

import os
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from unziplora_cli.cli.completion import model_names
from unziplora_cli.cli.render import Table, size
from unziplora_cli.cli.session import Session
from unziplora_cli.errors import ModelError

if TYPE_CHECKING:
    from unziplora_cli.cache import Model

MODEL = typer.Argument(
    metavar="MODEL",
    help="sdxl, or owner/name[@revision] of the hub.",
    show_default=False,
    autocompletion=model_names,
)
ANY_MODEL = typer.Argument(
    metavar="MODEL",
    help="mini, sdxl, owner/name[@revision] or a folder.",
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
    app.add_typer(group, name="models", rich_help_panel="Models")


def _name_the_command(ctx: typer.Context) -> None:
    session: Session = ctx.obj
    session.output.command = f"models {ctx.invoked_subcommand}"


def list_models(ctx: typer.Context) -> None:
    """List the bases that are on this disk."""
    from unziplora_cli import cache

    session: Session = ctx.obj
    models = cache.list_models()
    rows = [
        [
            f"{model.spec} (built in)" if model.spec == "mini" else model.spec,
            (model.revision or "")[:12],
            size(model.bytes),
            "incomplete: unziplora models verify " + model.spec if model.problem else "complete",
        ]
        for model in models
    ]
    if not any(model.spec == "sdxl" for model in models):
        rows.append(["sdxl", "", "", "not on this disk: unziplora models pull sdxl"])
    session.output.result(
        {"models": [_summary(model) for model in models]},
        table=Table(("model", "revision", "size", "state"), rows),
    )


def pull(ctx: typer.Context, model: Annotated[str, MODEL]) -> None:
    """Download a base into Hugging Face's cache; the only command that uses the network."""
    session: Session = ctx.obj
    if session.offline:
        raise ModelError(
            "Pulling a model needs the network.", hint="Leave out --offline and unset HF_HUB_OFFLINE."
        )
    os.environ["HF_HUB_OFFLINE"] = "0"
    if session.output.quiet:
        os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"
    from unziplora_cli import cache

    download = cache.plan(model)
    session.output.message(f"Fetching {download.id}: {len(download.files)} files, {size(download.bytes)}.")
    pulled = cache.pull(download)
    if pulled.problem:
        raise ModelError(pulled.problem)
    session.output.result(_summary(pulled), text=f"{model} is at {pulled.path}.")
    if model == "sdxl":
        session.output.message(f"For fp16 on SDXL, also: unziplora models pull {cache.VAE_FIX}")


def verify(ctx: typer.Context, model: Annotated[str, ANY_MODEL]) -> None:
    """Check that a base is complete and its files are undamaged."""
    from unziplora_cli import cache

    session: Session = ctx.obj
    found, problems = cache.verify(model)
    if found.problem or problems:
        damage = [f"{each.path} {each.reason}" for each in problems] or [found.problem.rstrip(".")]
        hint = (
            f"unziplora models remove {model}, then: unziplora models pull {model}" if found.revision else ""
        )
        raise ModelError(f"{model}: {'; '.join(damage)}.", hint=hint)
    session.output.result(_summary(found), text=f"{model} is complete and undamaged.")


def remove(
    ctx: typer.Context,
    model: Annotated[str, MODEL],
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
) -> None:
    """Delete a base from Hugging Face's cache, for every program that uses it."""
    from unziplora_cli import cache

    session: Session = ctx.obj
    cached = cache.find(model)
    question = f"Delete {cached.id} ({size(cached.bytes())}) for every program that uses it?"
    if not yes and not session.output.confirm(question, instead="--yes"):
        session.output.result({"removed": None}, text="Nothing was removed.")
        return
    freed = cache.remove(cached)
    session.output.result(
        {"removed": cached.id, "revision": cached.revision, "bytes": freed},
        text=f"Removed {cached.id}; {size(freed)} are free again.",
    )


def _summary(model: "Model") -> dict[str, object]:
    return {**asdict(model), "path": str(Path(model.path)), "complete": not model.problem}
