"""The help of a single command: plain text in 80 columns, the usual options first, and examples.

`--help` shows the options that people use, `--help-all` every one, under the title of its group. The defaults
are those of the preset that would be used on this machine.
"""

import os
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import MISSING, Field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

import typer
from typer.core import MarkupMode, TyperCommand, TyperGroup

from unziplora_cli import resources
from unziplora_cli.checks import describe_range, plain_type
from unziplora_cli.cli._text import wrap
from unziplora_cli.config import SEED_MAX, TrainConfig, load_preset
from unziplora_cli.errors import Remedy, UnziploraError, UsageError
from unziplora_cli.paths import expand_user

if TYPE_CHECKING:
    from unziplora_cli.config import Preset

_OF_IMAGES = (
    *("prompt", "subject", "content", "style", "count", "seed", "steps", "guidance", "width"),
    *("height", "content_strength", "style_strength", "grid", "negative_prompt", "out", "force"),
    "open_result",
)
USUAL = {
    "train": (
        *("subject", "style", "features", "name", "base", "preset", "steps", "rank", "resolution"),
        *("together", "resume", "force", "sheet", "open_result", "plan"),
    ),
    "content": tuple(option for option in _OF_IMAGES if option != "style_strength"),
    "style": tuple(option for option in _OF_IMAGES if option != "content_strength"),
    **dict.fromkeys(("combine", "cross"), _OF_IMAGES),
}
"""The options that `--help` shows, by command; those of other commands are few enough to show them all."""

EXAMPLES = {
    "unziplora": ("demo", "train fox.png", "help train"),
    "train": (
        "train fox.png",
        "train fox.png --subject fox --style watercolor",
        "train fox.png --base mini",
        "train fox.png rose.jpg --subject fox --subject rose --style ink",
        "train --list pictures.csv",
        "train --resume fox",
    ),
    "describe": ("describe fox.png", "describe fox.png --json"),
    "destyle": ("destyle fox.png --out photos", "destyle fox.png --out photos --base mini"),
    "content": ('content fox --prompt "on a skateboard"', "content fox --count 4"),
    "style": ("style fox --subject house", 'style fox --subject owl --prompt "at night"'),
    "combine": (
        'combine fox --prompt "on a beach"',
        "combine fox rose",
        "combine fox --grid style-strength=0.4,0.6,0.8,1",
    ),
    "cross": ("cross fox rose lantern", "cross --content fox --style rose --style lantern"),
    "ui": ("ui", "ui --port 0 --no-open", "ui --host 0.0.0.0 --auth me:secret"),
    "demo": ("demo", "demo --out sheet.png"),
    "list": ("list", "list --json"),
    "show": ("show fox",),
    "verify": ("verify fox",),
    "rename": ("rename fox red-fox",),
    "remove": ("remove fox", "remove fox rose --yes"),
    "open": ("open fox", "open fox --what images"),
    "export": ("export fox --out loras", "export fox --part combined --out fox.safetensors"),
    "check": ("check fox-style.safetensors",),
    "import": ("import content.safetensors style.safetensors --subject fox",),
    "eval": ("eval fox", "eval fox --count 8"),
    "report": ("report fox", "report fox --out fox.html"),
    "replay": ("replay fox",),
    "models list": ("models list",),
    "models show": ("models show mini", "models show sdxl"),
    "models pull": ("models pull sdxl",),
    "models verify": ("models verify sdxl",),
    "models remove": ("models remove sdxl",),
    "models path": ("models path sdxl",),
    "doctor": ("doctor", "doctor --online"),
    "push": ("push fox you/fox-lora", "push fox you/fox-lora --plan --out folder"),
    "help": ("help train", "help models pull"),
    "config list": ("config list",),
    "config set": ("config set base mini", "config set output-folder ~/Pictures", "config set open true"),
    "config unset": ("config unset base",),
    "config path": ("config path",),
    "presets list": ("presets list",),
    "presets show": ("presets show paper",),
}
"""Command lines to type, by command, without the name of the program; first those to begin with."""

LONGEST_NAME = 26
"""Characters of a name beside its text; the text of a longer one begins on the next line."""

METAVARS = {"str": "TEXT", "int": "N", "float": "X", "path": "PATH", "Path": "PATH"}
_TYPE = re.compile(r"<(list\[)?(\w+)\]?(?: range)?>")
_OPTION = re.compile("--[a-z-]+=")
_RANGE, _LEAST = re.compile(r"(\d+)<=x<=(\d+)"), re.compile(r"x>=(\d+)")
"""Ranges as Typer words them."""

GPU = Path("/dev/nvidiactl")
"""What a machine with a usable NVIDIA GPU has; asking torch would import it."""

MAY_BE_EMPTY = {"negative_prompt", "features", "name", "resume"}
"""Options that mean something without a text, or whose check says more about one."""

PATHS = {"images", "image", "paths", "file"}
"""Arguments that are paths: an empty one would mean the current folder."""
WORDS = {"subject", "style", "trigger", "prompt", "path"}
"""What an empty text is called; another option by its own name."""


def refuse_empty(params: Iterable[Any], values: Mapping[str, Any]) -> None:
    """Raise UsageError for an option or a path that is given without a text, as by an unset variable."""
    for param in params:
        is_option = param.param_type_name == "option"
        if param.name in MAY_BE_EMPTY or not (is_option or param.name in PATHS):
            continue
        given = values.get(param.name)
        for text in given if isinstance(given, list | tuple) else [given]:
            if isinstance(text, str) and not text.strip():
                word = param.opts[0].lstrip("-").split("-")[-1] if is_option else "path"
                subject = f"The {word}" if word in WORDS else param.opts[0].lstrip("-")
                raise UsageError(f"{subject} is empty.", Remedy("Give it a value, or omit it."))


def path_of_url(text: str) -> str:
    """The path that a file URL names, as file managers write what is dragged; another text as it stands.

    Also behind ``--option=``, where shells do not expand ``~/`` either.
    """
    option = match[0] if (match := _OPTION.match(text)) else ""
    path = text.removeprefix(option)
    if path.startswith("file://"):
        path = path.removeprefix("file://").removeprefix("localhost")
        return option + unquote(path.removeprefix("/") if os.name == "nt" else path, errors="surrogateescape")
    return option + str(expand_user(path)) if option and path.startswith("~/") else text


def argument_usage(param: Any) -> str:
    """An argument as a usage line names it: ``PROJECT``, ``IMAGE...``, or ``[STYLE]`` if it is optional."""
    name: str = param.metavar or param.name.upper()
    return name if param.required else f"[{name}]"


class PlainHelp:
    """Checks and help of the program and of every command, before the class of Typer."""

    name: str | None
    callback: Any
    params: list[Any]
    make_parser: Callable[..., Any]
    rich_markup_mode: MarkupMode

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parse, and refuse what is given but empty."""
        args = [path_of_url(text) for text in args]
        if not ctx.resilient_parsing:
            ctx.meta["given"], _, _ = self.make_parser(ctx).parse_args(args=list(args))
            refuse_empty(self.params, ctx.meta["given"])
        return super().parse_args(ctx, args)  # type: ignore[misc,no-any-return]

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """Format without Rich, which takes long to import, and whose tables cut the names of options."""
        self.rich_markup_mode = None
        super().format_help(ctx, formatter)  # type: ignore[misc]

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """List the arguments, and the options under the titles of their groups."""
        usual = None if ctx.meta.get("help_all") else USUAL.get(self.name or "")
        config = getattr(self.callback, "preset_config", None)
        preset, note = _preset_at_hand(ctx) if config else (None, "")
        facts = dict(_facts(config, preset)) if config else {}
        groups: dict[str, list[tuple[str, str]]] = {}
        for param in self.get_params(ctx):  # type: ignore[attr-defined]
            record = param.get_help_record(ctx)
            is_argument = param.param_type_name == "argument"
            is_usual = is_argument or usual is None or param.name in (*usual, "help", "help_all")
            if record is None or not is_usual:
                continue
            panel = None if usual is not None else getattr(param, "rich_help_panel", None)
            title = "Arguments" if is_argument else panel if isinstance(panel, str) else "Options"
            text = _RANGE.sub(r"from \1 to \2", _LEAST.sub(r"at least \1", record[1]))
            if fact := facts.get(param.name):
                text = f"{text.removesuffix('.')} ({fact})."
            name = (
                argument_usage(param).strip("[]")
                if is_argument
                else _TYPE.sub(lambda match: METAVARS.get(match[2], match[2].upper()), record[0]).strip()
            )
            for alias in [flag for flag in param.opts if flag.startswith("--")][1:]:
                name = name.replace(f", {alias}", "")
            groups.setdefault(title, []).append((name, text))
        for title, rows in groups.items():
            write_rows(formatter, title, rows)
        if note:
            formatter.write_paragraph()
            formatter.write_text(note)

    def format_epilog(self, ctx: Any, formatter: Any) -> None:
        """Add the examples."""
        path = ctx.command_path.split(" ", 1)[-1]
        if examples := EXAMPLES.get(path):
            with formatter.section("Examples"):
                formatter.write("".join(f"  unziplora {line}\n" for line in examples))


def write_rows(formatter: Any, title: str, rows: list[tuple[str, str]]) -> None:
    """Write names and texts in two columns; unlike Typer's, the texts are broken between words only."""
    column = min(max(len(name) for name, _ in rows), LONGEST_NAME) + 4
    with formatter.section(title):
        for name, text in rows:
            lines = wrap(text, formatter.width - column)
            beside = f"  {name:{column - 2}}" if len(name) <= LONGEST_NAME else f"  {name}\n{'':{column}}"
            formatter.write(beside + f"\n{'':{column}}".join(lines) + "\n")


class Command(PlainHelp, TyperCommand):
    """A command with this module's help."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parse the command line; an error names this command, also where Click leaves that out."""
        try:
            return super().parse_args(ctx, args)
        except Exception as error:
            error.ctx = getattr(error, "ctx", None) or ctx  # type: ignore[attr-defined]
            raise

    def collect_usage_pieces(self, ctx: Any) -> list[str]:
        """The options and arguments as they are typed; Typer's own have braces and doubled dots."""
        arguments = [param for param in self.get_params(ctx) if param.param_type_name == "argument"]
        return ["[OPTIONS]", *map(argument_usage, arguments)]


class Group(PlainHelp, TyperGroup):
    """The program, or a command with commands of its own."""

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """List the options and the commands."""
        super().format_options(ctx, formatter)
        self.format_commands(ctx, formatter)

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """List the commands under the titles of their help panels."""
        panels: dict[str, list[tuple[str, str]]] = {}
        for name in self.list_commands(ctx):
            command = self.get_command(ctx, name)
            if command is not None and not command.hidden:
                panel = getattr(command, "rich_help_panel", None)
                rows = panels.setdefault(panel if isinstance(panel, str) else "Commands", [])
                rows.append((name, command.get_short_help_str(limit=80)))
        for title, rows in panels.items():
            write_rows(formatter, title, rows)

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """The command that is meant; raises UsageError for an image in its place."""
        if ctx.parent is None and self.get_command(ctx, args[0]) is None and Path(args[0]).suffix:
            raise UsageError(
                f"{args[0]!r} is not a command.", Remedy("To train on an image", "train", (args[0],))
            )
        return super().resolve_command(ctx, args)


class Program(typer.Typer):
    """A Typer program whose commands have this module's help."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**{"cls": Group, **options})

    def command(self, *arguments: Any, **options: Any) -> Callable[..., Any]:
        """Register a command."""
        return super().command(*arguments, **{"cls": Command, **options})


def _show_all(ctx: typer.Context, value: bool) -> None:
    if value:
        ctx.meta["help_all"] = True
        typer.echo(ctx.get_help())
        raise typer.Exit


HELP_ALL = typer.Option("--help-all", callback=_show_all, is_eager=True, help="Show every option and exit.")
"""The option of commands in :data:`USUAL`."""


def _preset_at_hand(ctx: Any) -> "tuple[Preset | None, str]":
    """The preset whose defaults apply: the one on the command line, or that of the base to be used."""
    from unziplora_cli import preferences
    from unziplora_cli.sdxl.base import resolve_base

    given = ctx.meta.get("given", {})
    try:
        spec = given.get("base") or preferences.load().base
        base = resolve_base(spec, offline=False, has_gpu=GPU.exists())[0]
        name = given.get("preset") or resources.default_preset(base.kind, given.get("destyle"))
        note = f"Defaults: those of the preset {name}, for the base {base.spec}."
    except UnziploraError:  # a base that has to be downloaded first
        name, note = given.get("preset") or "paper", ""
    try:
        return load_preset(name), note or f"Defaults: those of the preset {name}."
    except UnziploraError:
        return None, ""


def _facts(config: type, preset: "Preset | None") -> Iterable[tuple[str, str]]:
    """The default and the range of every setting, as text."""
    from typing import get_type_hints

    hints = get_type_hints(config)
    values = {} if preset is None else preset.train if config is TrainConfig else preset.generate
    for setting in fields(config):
        yield setting.name, setting_facts(setting, hints[setting.name], values.get(setting.name, MISSING))


def setting_facts(setting: "Field[Any]", hint: Any, default: Any = MISSING) -> str:
    """The default of a setting, its range and its choices, as text."""
    limits = setting.metadata
    notes = [_default_text(limits.get("default_text", setting.default) if default is MISSING else default)]
    if plain_type(hint) in (int, float) and limits["max"] < SEED_MAX - 1000:
        notes.append(describe_range(limits))
    if "choices" in limits:
        notes.append(f"one of {', '.join(limits['choices'])}")
    return "; ".join(note for note in notes if note)


def _default_text(default: object) -> str:
    if isinstance(default, bool):
        return "default: on" if default else "default: off"
    if default is None or default == "":
        return ""
    return f"default: {default:g}" if isinstance(default, float) else f"default: {default}"
