"""Options shared by commands, options generated from configuration fields, and shell completion."""

import inspect
import os
import re
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import Field, fields
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_type_hints

import typer

from unziplora_cli import paths, preferences, resources
from unziplora_cli.checks import plain_type
from unziplora_cli.cli._help import HELP_ALL, setting_facts
from unziplora_cli.cli._output import ProgressDisplay, Session
from unziplora_cli.config import GenerateConfig, TrainConfig
from unziplora_cli.errors import UnziploraError

if TYPE_CHECKING:
    from unziplora_cli.config import ComputeConfig
    from unziplora_cli.projects.store import Project
    from unziplora_cli.sdxl.base import BaseRef


def config_options(
    config: type, into: str = "settings", only: Sequence[str] = ()
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Add one option per field of `config` to a command, or `only` some fields or groups.

    The command receives the options that the user gave, as a dict in its parameter `into`. All others keep
    the value of the preset or the default of the field.
    """
    hints = get_type_hints(config)
    has_preset = config in (TrainConfig, GenerateConfig)
    options = [
        _parameter(field, hints[field.name], "" if has_preset else setting_facts(field, hints[field.name]))
        for field in fields(config)
        if not only or {field.name, field.metadata["group"]} & set(only)
    ]

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        @wraps(command)
        def with_settings(**arguments: Any) -> None:
            arguments.pop("help_all", None)
            values = {option.name: arguments.pop(option.name) for option in options}
            arguments[into] = {name: value for name, value in values.items() if value is not None}
            command(**arguments)

        add_parameters(with_settings, [*options, *([_HELP_ALL] if has_preset else [])], without=into)
        if has_preset:
            with_settings.preset_config = config  # type: ignore[attr-defined]
        return with_settings

    return decorate


def add_parameters(
    wrapper: Callable[..., None], added: Sequence[inspect.Parameter], *, without: str = ""
) -> None:
    """Let Typer see the parameters of the wrapped command but one, and those that its wrapper adds."""
    wrapped = inspect.signature(wrapper, eval_str=True).parameters.values()
    parameters = [
        parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY)
        for parameter in (*wrapped, *added)
        if parameter.name != without
    ]
    wrapper.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    wrapper.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}


def parameter(name: str, annotation: Any, default: object = None) -> inspect.Parameter:
    """A parameter that a wrapper adds to a command."""
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)


_HELP_ALL = parameter("help_all", Annotated[bool, HELP_ALL], False)


def _parameter(field: "Field[Any]", hint: Any, facts: str) -> inspect.Parameter:
    flag = "--" + field.name.replace("_", "-")
    limits, kind = field.metadata, plain_type(hint)
    choices = limits.get("choices", ())
    option = typer.Option(
        f"{flag}/--no-{flag[2:]}" if kind is bool else flag,
        help=f"{limits['help'].removesuffix('.')} ({facts})." if facts else limits["help"],
        metavar="NAME" if choices else None,
        autocompletion=model_names if field.name == "base" else complete_from(choices),
        rich_help_panel=limits["group"],
    )
    return parameter(field.name, Annotated[kind | None, option])


def complete_from(choices: Sequence[str]) -> Callable[[str], list[str]]:
    """Complete one of these."""
    return lambda incomplete: [choice for choice in choices if choice.startswith(incomplete)]


def project_names(ctx: typer.Context, incomplete: str) -> list[str]:
    """Complete the name of a project in the home that the command line selects."""
    return _names(ctx, incomplete, "", "", ("manifest.json",))


def unfinished_names(ctx: typer.Context, incomplete: str) -> list[str]:
    """Complete the name of an unfinished training."""
    return _names(ctx, incomplete, ".", ".unfinished", ("training.json", "plan.json"))


def _names(
    ctx: typer.Context, incomplete: str, prefix: str, suffix: str, files: tuple[str, ...]
) -> list[str]:
    """The valid names of the folders that hold one of the files."""
    from unziplora_cli.projects.names import is_name

    names = []
    with suppress(OSError, UnziploraError):
        option = ctx.find_root().params.get("home")
        for folder in paths.projects_dir(paths.home(Path(option) if option else None)).iterdir():
            name = folder.name.removeprefix(prefix).removesuffix(suffix)
            if folder.name == f"{prefix}{name}{suffix}" and name.startswith(incomplete) and is_name(name):
                names += [name] if any(os.path.lexists(folder / file) for file in files) else []
    return sorted(names)


def model_names(ctx: typer.Context, incomplete: str) -> list[str]:
    """Complete `mini`, `sdxl` and the models in the Hugging Face cache."""
    from unziplora_cli.hub import list_snapshots

    cached = dict.fromkeys(snapshot.id for snapshot in list_snapshots() if snapshot.is_supported)
    plain = [name for name in cached if re.fullmatch(r"[\w./-]+", name, re.ASCII)]
    return [name for name in ("mini", "sdxl", *plain) if name.startswith(incomplete)]


def preset_names(incomplete: str) -> list[str]:
    """Complete the name of a shipped preset."""
    return [name for name in resources.preset_names() if name.startswith(incomplete)]


def name_the_command(ctx: typer.Context) -> None:
    """The callback of a group: record the path of the subcommand for the envelope."""
    session: Session = ctx.obj
    session.output.command = f"{ctx.info_name} {ctx.invoked_subcommand}"


PROJECT = typer.Argument(metavar="PROJECT", help="Name of a project.", autocompletion=project_names)
BASE = typer.Option(
    help="Base model: sdxl, mini (built in), a Hugging Face id, a folder, or a .safetensors file.",
    autocompletion=model_names,
)


VAE = typer.Option(
    help="Another VAE: a file, a folder or a Hugging Face id, such as madebyollin/sdxl-vae-fp16-fix."
)
PREDICTION = typer.Option(
    help="What the base's U-Net predicts, if its files do not say: the noise or the velocity."
)
DEVICE = typer.Option(help="Device: auto, cpu, cuda, cuda:N or mps.")


def find_base(
    session: Session, spec: str | None, vae: str | None = None, prediction: str | None = None
) -> "BaseRef":
    """Resolve the base model; prints a message if it was chosen automatically."""
    from unziplora_cli.sdxl.base import resolve_base

    spec = spec or preferences.load().base
    with ProgressDisplay(session.output, "base"):  # this imports torch to look for a GPU
        base, notice = resolve_base(spec, offline=session.offline, vae=vae, prediction=prediction)
    if notice:
        session.output.notice(notice)
    return base


def project_base(
    session: Session, compute: "ComputeConfig", projects: "Sequence[Project]"
) -> "tuple[ComputeConfig, BaseRef]":
    """The base model in `compute`, otherwise that of the projects with its VAE; warns if it has changed."""
    from unziplora_cli.workflows import generate

    recorded, is_named = projects[0].job.base, compute.base is not None
    with ProgressDisplay(session.output, "base"):  # this imports torch
        compute, base, notice = generate.project_base(projects, compute, offline=session.offline)
    if notice:
        session.output.notice(notice)
    if not is_named and recorded.hash and base.fingerprint != recorded.hash:
        session.output.warning(
            f"The base {base.spec} has changed since {projects[0].name} was trained on it. "
            "Its LoRAs may fit less well now: train it again."
        )
    return compute, base
