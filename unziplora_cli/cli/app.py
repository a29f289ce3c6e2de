"""The program `unziplora`: its commands and global options.

Heavy libraries are imported in command bodies.
"""

import contextlib
import io
import os
from pathlib import Path
from typing import Annotated

import typer

from unziplora_cli import __version__
from unziplora_cli.cli import (
    adapters,
    describe,
    evaluate,
    generate,
    models,
    projects,
    publish,
    settings,
    system,
    train,
    ui,
)
from unziplora_cli.cli._help import Program
from unziplora_cli.cli._output import Session
from unziplora_cli.paths import check_environment, hub_is_offline, process_rank

app = Program(
    name="unziplora",
    help="Split one image into a content LoRA and a style LoRA, and recombine them.",
    context_settings={"help_option_names": ["-h", "--help"]},
    pretty_exceptions_enable=False,
)

COMMANDS = {
    "train": ("Images", train.train),
    "describe": ("Images", describe.describe),
    "destyle": ("Images", describe.destyle),
    "content": ("Images", generate.content),
    "style": ("Images", generate.style),
    "combine": ("Images", generate.combine),
    "cross": ("Images", generate.cross),
    "ui": ("Images", ui.ui),
    "demo": ("Images", system.demo),
    "list": ("Projects", projects.list_projects),
    "show": ("Projects", projects.show),
    "verify": ("Projects", projects.verify),
    "rename": ("Projects", projects.rename),
    "remove": ("Projects", projects.remove),
    "open": ("Projects", projects.open_project),
    "export": ("Import and export", adapters.export),
    "import": ("Import and export", adapters.import_),
    "check": ("Import and export", adapters.check),
    "eval": ("Projects", evaluate.evaluate),
    "replay": ("Projects", evaluate.replay),
    "doctor": ("Machine", system.doctor),
    "report": ("Projects", publish.report),
    "push": ("Projects", publish.push),
}
"""The commands, each with its panel of the help."""

for _name, (_panel, _command) in COMMANDS.items():
    app.command(_name, rich_help_panel=_panel)(_command)
app.add_typer(models.models, name="models", rich_help_panel="Models")
app.add_typer(settings.config, name="config", rich_help_panel="Machine")
app.add_typer(settings.presets, name="presets", rich_help_panel="Models")


@app.command("help", rich_help_panel="Machine")
def show_help(
    ctx: typer.Context,
    command: Annotated[
        list[str] | None,
        typer.Argument(metavar="COMMAND...", help="A command, such as train or models pull."),
    ] = None,
) -> None:
    """Show the help of the program or of a command."""
    root, session = ctx.find_root(), ctx.obj
    text = io.StringIO()
    with contextlib.redirect_stdout(text) if session.output.json else contextlib.nullcontext():
        root.command.main([*(command or []), "--help"], "unziplora", standalone_mode=False, obj=Session())
    if session.output.json:
        session.output.result({"help": text.getvalue()})


GLOBAL_OPTIONS = {
    "--home": True,
    "--json": False,
    "--quiet": False,
    "-q": False,
    "--verbose": False,
    "-v": False,
    "--offline": False,
}
"""Options that may stand before or after the command; True: the option takes a value."""


def _show_version(value: bool) -> None:
    if value:
        typer.echo(f"unziplora {__version__}")
        raise typer.Exit


@app.callback()
def _global_options(
    ctx: typer.Context,
    home: Annotated[
        Path | None,
        typer.Option(help="Folder of all projects (default: $UNZIPLORA_HOME, or your data folder)."),
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object instead of text.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print no progress and no messages.")] = False,
    verbose: Annotated[
        bool, typer.Option("--verbose", "-v", help="Print tracebacks and more detail.")
    ] = False,
    offline: Annotated[bool, typer.Option("--offline", help="Never use the network.")] = False,
    version: Annotated[
        bool,
        typer.Option(
            "--version", "-V", callback=_show_version, is_eager=True, help="Show the version and exit."
        ),
    ] = False,
) -> None:
    session = ctx.obj = ctx.obj or Session()
    check_environment()
    session.home = home
    session.offline = offline or hub_is_offline()
    session.output.json = json
    other_process = process_rank() > 0  # of one training over several
    session.output.quiet = quiet or json or other_process
    session.output.verbose = verbose
    session.output.command = ctx.invoked_subcommand or ""
    # Only commands that call Session.use_network reach the hub.
    os.environ["HF_HUB_OFFLINE"] = "1"
    os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
    if session.offline:
        os.environ["WANDB_MODE"] = "offline"
