"""What the shell offers while a line is typed: names of projects and models, without heavy imports."""

import re
from collections.abc import Iterator
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
    """`sdxl`, `mini` and the models in Hugging Face's cache."""
    return [name for name in ("mini", "sdxl", *_cached_models()) if name.startswith(incomplete)]


def _cached_models() -> Iterator[str]:
    for folder in sorted(paths.hub_cache().glob("models--*--*/snapshots/*/")):
        if _is_image_model(folder):
            yield folder.parents[1].name.removeprefix("models--").replace("--", "/", 1)


def _is_image_model(folder: Path) -> bool:
    """Whether the folder holds a pipeline or an autoencoder; what else is cached cannot be a base."""
    try:
        config = next(
            file for file in (folder / "model_index.json", folder / "config.json") if file.is_file()
        )
        return re.search(r'"(StableDiffusionXL\w*|AutoencoderKL)"', config.read_text("utf-8")) is not None
    except (OSError, StopIteration, UnicodeDecodeError):
        return False
