"""What the shell offers while a line is typed: names of projects and models, without heavy imports."""

from pathlib import Path

import typer

from unziplora_cli import paths


def project_names(ctx: typer.Context, incomplete: str) -> list[str]:
    """The projects of the home that the line names, else of the usual one."""
    return sorted(name for name in _folders(ctx) if name.startswith(incomplete) and not name.startswith("."))


def unfinished_names(ctx: typer.Context, incomplete: str) -> list[str]:
    """The trainings that were cut off."""
    hidden = [name for name in _folders(ctx) if name.startswith(".") and name.endswith(".unfinished")]
    names = sorted(name[1:].removesuffix(".unfinished") for name in hidden)
    return [name for name in names if name.startswith(incomplete)]


def _folders(ctx: typer.Context) -> list[str]:
    given = ctx.find_root().params.get("home")
    home = Path(given) if given else None
    try:
        return [entry.name for entry in paths.projects_dir(paths.home(home)).iterdir() if entry.is_dir()]
    except OSError:
        return []


def model_names(ctx: typer.Context, incomplete: str) -> list[str]:
    """`mini`, `sdxl` and the models in Hugging Face's cache."""
    from unziplora_cli.hub_cache import snapshots

    cached = dict.fromkeys(each.id for each in snapshots() if each.ours)
    return [name for name in ("mini", "sdxl", *cached) if name.startswith(incomplete)]
