"""Write the reference pages of the documentation from the code.

python -m scripts.reference            # writes docs/reference/*.md; a test fails while they are out of date
"""

import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any, get_type_hints

import typer

from unziplora_cli import errors, resources
from unziplora_cli.checks import plain_type
from unziplora_cli.cli._errors import remedy_text
from unziplora_cli.cli._help import _TYPE, EXAMPLES, METAVARS, argument_usage, setting_facts
from unziplora_cli.cli.app import app
from unziplora_cli.config import ComputeConfig, GenerateConfig, TrainConfig, load_preset
from unziplora_cli.errors import UnziploraError
from unziplora_cli.packages import TORCH_BUILDS, install_with_torch
from unziplora_cli.preferences import Preferences

GUIDE = "quick-start.md"
CHECKOUT = Path(__file__).parents[1]
DOCS = CHECKOUT / "docs"
NOTE = "<!-- Written by `python -m scripts.reference`. Edit the code, not this page. -->\n\n"
CONTEXT = typer.Context(typer.main.get_command(app))
TYPES = {int: "whole number", float: "number", bool: "on or off", str: "text"}


def pages() -> dict[str, str]:
    """The text of every page by its path in the documentation."""
    guide = (DOCS / GUIDE).read_text(encoding="utf-8")
    return {
        "reference/commands.md": commands_page(),
        "reference/settings.md": settings_page(),
        "reference/manifest.md": manifest_page(),
        GUIDE: re.sub(r"(<!-- torch.*?-->\n).*(<!-- /torch)", rf"\1\n{torch_table()}\n\2", guide, flags=re.S),
    }


def torch_table() -> str:
    """The lines that install the program with the build of torch for a GPU, as the doctor words them."""
    rows = []
    for gpu, build in TORCH_BUILDS.items():
        uv, pipx = (remedy_text(install_with_torch(installer, build)) for installer in ("uv tool", "pipx"))
        rows.append((gpu, f"`{uv}`", f"`{pipx}`"))
    return table(("GPU", "uv", "pipx"), rows)


def table(header: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """A Markdown table."""
    cells = [[cell.replace("|", "\\|").replace("\n", " ") for cell in row] for row in (header, *rows)]
    lines = [f"| {' | '.join(row)} |" for row in cells]
    lines.insert(1, "|---" * len(cells[0]) + "|")
    return "\n".join(lines) + "\n"


def escaped(text: str) -> str:
    """Text in which Markdown and HTML have no meaning, except code in backticks."""
    parts = re.split(r"(`[^`]*`)", text)
    return "".join(part if part.startswith("`") else re.sub(r"([<>*_\[\]])", r"\\\1", part) for part in parts)


# Commands


def commands_page() -> str:
    root: Any = typer.main.get_command(app)
    text = NOTE + (
        "# Commands\n\nThe options of every command, with the defaults of the preset `paper` where a preset "
        "sets them; other presets are compared in [Settings](settings.md).\n\n"
        "## Global options\n\nThey may stand before or after a command.\n\n" + options_table(root)
    )
    for name, command in root.commands.items():
        if not command.hidden:
            text += "".join(command_sections(command, name))
    return text + "\n## Exit codes\n\n" + exit_codes() + "\n## Preferences\n\n" + preferences()


def command_sections(command: Any, path: str) -> Iterator[str]:
    """The section of a command, or of a group and its commands."""
    subcommands = getattr(command, "commands", {})
    yield (
        f"\n## {path}\n\n{description(command)}\n"
        if " " not in path
        else f"\n### {path}\n\n{description(command)}\n"
    )
    for name, subcommand in subcommands.items():
        yield from command_sections(subcommand, f"{path} {name}")
    if subcommands:
        return
    arguments = " ".join(
        argument_usage(param) for param in command.params if param.param_type_name == "argument"
    )
    usage = f"unziplora {path} [OPTIONS] {arguments}".rstrip()
    yield f"\n```text\n{usage}\n```\n"
    yield f"\n{options_table(command)}"
    if examples := EXAMPLES.get(path):
        lines = "\n".join(f"unziplora {line}" for line in examples)
        yield f"\n```sh\n{lines}\n```\n"


def description(command: Any) -> str:
    paragraphs = (command.help or "").split("\n\n")
    return "\n\n".join(escaped(" ".join(paragraph.split())) for paragraph in paragraphs)


def options_table(command: Any) -> str:
    """The arguments and options of a command, with a row for the title of each group."""
    config = getattr(command.callback, "preset_config", None)
    groups: dict[str, list[tuple[str, str]]] = {}
    for param in command.params:
        if getattr(param, "hidden", False) or param.name in ("help", "help_all"):
            continue
        if param.param_type_name == "argument":
            groups.setdefault("Arguments", []).append(
                (f"`{argument_usage(param)}`", escaped(param.help or ""))
            )
        else:
            panel = getattr(param, "rich_help_panel", None)
            title = panel if isinstance(panel, str) else "Options"
            groups.setdefault(title, []).append((f"`{flags(param)}`", escaped(option_help(param, config))))
    rows: list[tuple[str, str]] = []
    for title, entries in groups.items():
        rows += [(f"**{title}**", ""), *entries] if len(groups) > 1 else entries
    return table(("", ""), rows) if rows else ""


def flags(param: Any) -> str:
    """The names of an option with its value, as in `--rank N` or `--fuse / --no-fuse`."""
    record = param.get_help_record(CONTEXT)
    name = _TYPE.sub(lambda match: METAVARS.get(match[2], match[2].upper()), record[0]) if record else ""
    return name.replace("<int range>", "N").replace("<float range>", "X").strip("<> ").replace(" <", " ")


def option_help(param: Any, config: Any) -> str:
    """The help of an option with its default, range and choices."""
    text = param.help or ""
    settings = {setting.name: setting for setting in fields(config)} if config else {}
    if param.name in settings:
        facts = setting_facts(settings[param.name], get_type_hints(config)[param.name])
        return f"{text.removesuffix('.')} ({facts})." if facts else text
    if param.is_flag or param.default in (None, MISSING) or not getattr(param, "show_default", True):
        return text
    default = getattr(param.default, "value", param.default)
    shown = isinstance(default, str | int | float | Path) and str(default)
    return f"{text.removesuffix('.')} (default: {shown})." if shown else text


def exit_codes() -> str:
    rows = [("0", "Done."), ("1", "Something unexpected; `doctor`: something blocks training.")]
    # Other modules add classes of exit code 1 once they are imported.
    classes = [error for error in UnziploraError.__subclasses__() if error.__module__ == errors.__name__]
    for error in sorted(classes, key=lambda error: error.exit_code):
        rows.append((str(error.exit_code), (error.__doc__ or "").split("\n")[0]))
    return table(("code", "meaning"), rows)


def preferences() -> str:
    rows = [
        (
            f"`{entry.name.replace('_', '-')}`",
            f"`UNZIPLORA_{entry.name.upper()}`",
            escaped(entry.metadata["help"]),
        )
        for entry in fields(Preferences)
    ]
    return (
        "`unziplora config set KEY VALUE` keeps a preference. A variable overrides it, and an option "
        "overrides both.\n\n" + table(("key", "variable", ""), rows)
    )


# Settings


def settings_page() -> str:
    presets = {name: load_preset(name) for name in resources.preset_names()}
    order = sorted(presets, key=lambda name: (name != "paper", name))
    text = NOTE + (
        "# Settings\n\nEvery setting is an option of the same name, with dashes, and a key of a preset file, "
        "with underscores. An option overrides the preset, and the preset overrides the default.\n\n"
        "## Presets\n\n"
    )
    text += table(("preset", ""), [(f"`{name}`", presets[name].description) for name in order])
    text += "\nWhere they differ:\n\n"
    rows = []
    for config, part in ((TrainConfig, "train"), (GenerateConfig, "generate")):
        for entry in fields(config):
            values = [getattr(presets[name], part).get(entry.name, entry.default) for name in order]
            if len(set(map(repr, values))) > 1:
                label = f"`{entry.name}`" + (" of images" if part == "generate" else "")
                rows.append((label, *(escaped(value_text(value)) for value in values)))
    text += table(("setting", *(f"`{name}`" for name in order)), rows)
    for config, title in (
        (TrainConfig, "Settings of a training"),
        (GenerateConfig, "Settings of generation"),
        (ComputeConfig, "Base and device of generation and evaluation"),
    ):
        text += f"\n## {title}\n"
        text += "".join(setting_tables(config))
    return text


def setting_tables(config: type) -> Iterator[str]:
    """A table for each group of settings."""
    hints = get_type_hints(config)
    groups: dict[str, list[tuple[str, str, str, str]]] = {}
    for entry in fields(config):
        kind = TYPES[plain_type(hints[entry.name])]
        facts = setting_facts(entry, hints[entry.name]).split("; ")
        default = next((fact.removeprefix("default: ") for fact in facts if fact.startswith("default: ")), "")
        limits = "; ".join(fact for fact in facts if not fact.startswith("default: ")) or kind
        row = (f"`{entry.name}`", escaped(default), escaped(limits), escaped(entry.metadata["help"]))
        groups.setdefault(entry.metadata["group"], []).append(row)
    for title, rows in groups.items():
        if len(groups) > 1:
            yield f"\n### {title}\n"
        yield "\n" + table(("setting", "default", "values", "what it does"), rows)


def value_text(value: object) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return "on" if value else "off"
    return f"{value:g}" if isinstance(value, float) else str(value)


# The manifest


def manifest_page() -> str:
    schema = json.loads(resources.template("manifest.schema.json").read_text(encoding="utf-8"))
    text = NOTE + (
        "# Manifest\n\nThe keys of `manifest.json` in a project, from `templates/manifest.schema.json`, a "
        "JSON Schema. An unknown key is an error, an older schema is migrated, a newer one is refused.\n"
    )
    for name, record in {"Manifest": schema, **schema["$defs"]}.items():
        about = " ".join(re.sub(r"``", "`", record.get("description", "")).split())
        text += f"\n## {name}\n\n{escaped(about)}\n\n"
        if name == "TrainConfig":
            text += "The keys are the [settings of a training](settings.md#settings-of-a-training).\n"
            continue
        required = record.get("required", ())
        rows = [
            (f"`{key}`", schema_type(value), "" if key in required else "optional")
            for key, value in record["properties"].items()
        ]
        text += table(("key", "value", ""), rows)
    return text


def schema_type(value: Any) -> str:
    """The type of a key, as text."""
    if "$ref" in value:
        name = value["$ref"].rpartition("/")[2]
        return f"[{name}](#{name.lower()})"
    if "anyOf" in value:
        return " or ".join(schema_type(option) for option in value["anyOf"])
    if "enum" in value:
        return ", ".join(f"`{choice}`" for choice in value["enum"])
    if "const" in value:
        return f"`{value['const']}`"
    kind = value.get("type", "any")
    if kind == "array":
        items = value.get("items") or next(iter(value.get("prefixItems", [])), {})
        return f"list of {schema_type(items)}"
    if kind == "object":
        inner = value.get("additionalProperties")
        return f"map of text to {schema_type(inner)}" if isinstance(inner, dict) else "map"
    if value.get("pattern") == "^[0-9a-f]{64}$":
        return "SHA-256"
    return {"string": "text", "integer": "whole number", "boolean": "true or false"}.get(kind, kind)


if __name__ == "__main__":
    for name, text in pages().items():
        (DOCS / name).parent.mkdir(exist_ok=True)
        (DOCS / name).write_text(text, encoding="utf-8")
