"""The program `unziplora`: its commands and global options.

Each group of commands is one module with a `register(app)`; heavy libraries are imported in command bodies.
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
train.register(app)
describe.register(app)
generate.register(app)
ui.register(app)
system.register_demo(app)
projects.register(app)
adapters.register(app)
evaluate.register(app)
models.register(app)
system.register_doctor(app)
settings.register(app)
publish.register(app)


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
