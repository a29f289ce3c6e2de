"""Typer options made of a configuration's documented fields, so that each is described once."""

import inspect
from collections.abc import Callable, Sequence
from dataclasses import Field, fields
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_type_hints

import typer

from unziplora_cli import paths
from unziplora_cli.cli._output import Session
from unziplora_cli.config import describe_range, plain_type

if TYPE_CHECKING:
    from unziplora_cli.projects.store import Project
    from unziplora_cli.sdxl.base import BaseRef


def config_options(
    config: type, into: str = "settings"
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give a command one option per field of `config`.

    The command receives those that the user gave, as a dict in its parameter `into`; the others keep their
    default or the value of the preset.
    """
    hints = get_type_hints(config)
    options = [_parameter(each, plain_type(hints[each.name])) for each in fields(config)]

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        signature = inspect.signature(command, eval_str=True)
        own = [each for each in signature.parameters.values() if each.name != into]

        @wraps(command)
        def with_settings(**arguments: Any) -> None:
            given = {each.name: arguments.pop(each.name) for each in options}
            arguments[into] = {name: value for name, value in given.items() if value is not None}
            command(**arguments)

        parameters = [each.replace(kind=inspect.Parameter.KEYWORD_ONLY) for each in own + options]
        with_settings.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
        with_settings.__annotations__ = {each.name: each.annotation for each in parameters}
        return with_settings

    return decorate


def _parameter(each: "Field[Any]", kind: type) -> inspect.Parameter:
    flag = "--" + each.name.replace("_", "-")
    limits = each.metadata
    notes = [_shown(each.default), describe_range(limits) if kind in (int, float) else ""]
    known = "; ".join(note for note in notes if note)
    option = typer.Option(
        f"{flag}/--no-{flag[2:]}" if kind is bool else flag,
        help=f"{limits['help']} ({known})" if known else limits["help"],
        metavar="|".join(limits["choices"]) if "choices" in limits else None,
        autocompletion=model_names if each.name == "base" else _among(limits.get("choices", ())),
        show_default=False,
        rich_help_panel=limits["group"],
    )
    return inspect.Parameter(
        each.name,
        inspect.Parameter.KEYWORD_ONLY,
        default=None,
        annotation=Annotated[kind | None, option],
    )


def _among(choices: Sequence[str]) -> Callable[[str], list[str]]:
    return lambda incomplete: [each for each in choices if each.startswith(incomplete)]


def _shown(default: object) -> str:
    if isinstance(default, bool):
        return "on" if default else "off"
    if default is None:
        return ""
    return f"{default:g}" if isinstance(default, float) else str(default)


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
    from unziplora_cli.hub import list_snapshots

    cached = dict.fromkeys(each.id for each in list_snapshots() if each.is_supported)
    return [name for name in ("mini", "sdxl", *cached) if name.startswith(incomplete)]


# Options and decisions that training and drawing share: the base, the device, the preset.


BASE = typer.Option(
    help="Base model: sdxl, mini (built in), a Hugging Face id, a folder, or a .safetensors file.",
    show_default=False,
    autocompletion=model_names,
)
VAE = typer.Option(
    help="Another autoencoder: a folder or an id, as madebyollin/sdxl-vae-fp16-fix.", show_default=False
)
DEVICE = typer.Option(help="auto, cpu, cuda, cuda:N or mps.")


def find_base(session: Session, spec: str | None) -> "BaseRef":
    """The base to use; says so when the choice was not the user's."""
    from unziplora_cli.sdxl.base import resolve_base

    base, notice = resolve_base(spec, offline=session.offline)
    if notice:
        session.output.message(notice)
    return base


def project_base(session: Session, spec: str | None, projects: "Sequence[Project]") -> "BaseRef":
    """The base that projects were trained on, or the one that ``spec`` names; says when it has changed."""
    from unziplora_cli.workflows.generate import shared_base

    found = find_base(session, spec or shared_base(projects))
    trained = projects[0].manifest.base.hash
    if spec is None and trained and found.fingerprint != trained:
        session.output.warning(f"The base {found.spec} is no longer what {projects[0].name} was trained on.")
    return found


def preset_for(base: "BaseRef") -> str:
    """The preset that fits a base: its own for the built-in one, else the paper's."""
    return "mini" if base.kind == "builtin" else "paper"
