"""config and presets: what the user prefers in every command, and the shipped settings of a training."""

from contextlib import suppress
from dataclasses import asdict, fields
from typing import Annotated

import typer

from unziplora_cli import preferences, resources
from unziplora_cli.cli._help import Program
from unziplora_cli.cli._options import complete_from, name_the_command, preset_names
from unziplora_cli.cli._output import Session, Table
from unziplora_cli.config import GenerateConfig, TrainConfig, load_preset
from unziplora_cli.paths import config_file

KEY = typer.Argument(
    metavar="KEY",
    help="output-folder, base, describer or open.",
    autocompletion=complete_from(preferences.KEYS),
)


config = Program(help="Your preferences: default base, output folder, and more.", callback=name_the_command)
presets = Program(help="The shipped settings of a training.", callback=name_the_command)


@config.command("list")
def list_preferences(ctx: typer.Context) -> None:
    """List all preferences, and where each value comes from."""
    session: Session = ctx.obj
    values = {key.replace("_", "-"): value for key, value in asdict(preferences.load()).items()}
    in_file, variables = preferences.read_file(), preferences.variables()
    sources = {
        key: variables.get(key) or ("file" if key in in_file else "default") for key in preferences.KEYS
    }
    help_texts = {
        entry.name.replace("_", "-"): entry.metadata["help"] for entry in fields(preferences.Preferences)
    }
    rows = [[key, _shown(value), sources[key], help_texts[key]] for key, value in values.items()]
    session.output.result(
        {"file": config_file(), "preferences": values, "sources": sources},
        table=Table(("preference", "value", "from", ""), rows),
        text=f"File: {config_file()}",
    )


@config.command("set")
def set_preference(
    ctx: typer.Context,
    key: Annotated[str, KEY],
    value: Annotated[str, typer.Argument(help="true or false for open, else a text.")],
) -> None:
    """Set a preference for all further commands."""
    session: Session = ctx.obj
    parsed = preferences.parse(key, value)
    if key == "base":
        from unziplora_cli.sdxl.base import BaseNotCached, resolve_base

        with suppress(BaseNotCached):  # it may be downloaded later
            resolve_base(str(parsed), offline=session.offline)
    file = preferences.store(key, parsed)
    session.output.result(
        {"key": key, "value": parsed, "file": file}, text=f"{key} is {_shown(parsed)} from now on."
    )
    if key in preferences.variables():
        session.output.warning(f"The variable {preferences.variables()[key]} overrides it.")


@config.command("unset")
def unset_preference(ctx: typer.Context, key: Annotated[str, KEY]) -> None:
    """Return a preference to its default."""
    session: Session = ctx.obj
    file = preferences.store(key, None)
    session.output.result({"key": key, "value": None, "file": file}, text=f"{key} has its default again.")


@config.command("path")
def path(ctx: typer.Context) -> None:
    """Print the path of the file, which need not exist."""
    session: Session = ctx.obj
    session.output.result({"path": config_file()}, text=str(config_file()))


@presets.command("list")
def list_presets(ctx: typer.Context) -> None:
    """List the presets of a training."""
    session: Session = ctx.obj
    presets = [load_preset(name) for name in resources.preset_names()]
    session.output.result(
        {"presets": [{"name": preset.name, "description": preset.description} for preset in presets]},
        table=Table(("preset", "description"), [[preset.name, preset.description] for preset in presets]),
    )


@presets.command("show")
def show_preset(
    ctx: typer.Context,
    name: Annotated[
        str,
        typer.Argument(
            metavar="NAME", help="Name of a preset, or a .toml file.", autocompletion=preset_names
        ),
    ],
) -> None:
    """Show the settings of a preset, and which of them differ from the defaults."""
    session: Session = ctx.obj
    preset = load_preset(name)
    tables, data = [], {}
    for title, config, values in (
        ("train", TrainConfig, preset.train),
        ("generate", GenerateConfig, preset.generate),
    ):
        defaults = {entry.name: entry.default for entry in fields(config)}
        data[title] = {**defaults, **values}
        rows = [
            [setting.replace("_", "-"), _shown(value), _shown(defaults[setting])]
            for setting, value in values.items()
        ]
        if rows:
            tables.append(Table((f"{title} with", "value", "default"), rows))
    session.output.result(
        {"name": preset.name, "description": preset.description, **data},
        table=tables,
        text=preset.description,
    )


def _shown(value: object) -> str:
    match value:
        case None | "":
            return "none"
        case bool():
            return "true" if value else "false"
        case float():
            return f"{value:g}"
    return str(value)
