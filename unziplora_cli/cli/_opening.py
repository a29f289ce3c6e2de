"""Open files and folders in the program that the platform has for them, and the option for that."""

import os
import shutil
import subprocess
import sys
import webbrowser
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Annotated, Any

import typer

from unziplora_cli import preferences
from unziplora_cli.cli._options import add_parameters, parameter
from unziplora_cli.cli._output import Output, Session

FAILURE_TIME = 2.0
"""Seconds in which an opener ends if it fails; some run as long as the program that they start."""


def openable(command: Callable[..., None]) -> Callable[..., None]:
    """Add the option ``--open`` to a command that makes something, and names it in its result."""
    option = typer.Option("--open/--no-open", help="Open the result when it is done.")

    @wraps(command)
    def with_open(open_result: bool | None = None, **arguments: Any) -> None:
        session: Session = arguments["ctx"].obj
        session.output.opener = lambda path: open_made(session.output, path, open_result)
        command(**arguments)

    add_parameters(with_open, [parameter("open_result", Annotated[bool | None, option])])
    return with_open


def open_made(output: Output, path: Path | str, given: bool | None) -> bool:
    """Open what a command has made, if an option or the user's preference says so; whether it was opened."""
    by_itself = given is None and not output.json and sys.stdout.isatty() and preferences.load().open
    if not (given or by_itself):
        return False
    opened = open_path(path)
    if not opened:
        output.warning(f"There is no program to open {path} with; open the file yourself.")
    return opened


def open_path(path: Path | str) -> bool:
    """Open a page or a URL in the browser, all else with the platform's opener; False if that fails."""
    if isinstance(path, str):
        return webbrowser.open(path)
    if path.suffix == ".html":
        return webbrowser.open(path.absolute().as_uri())
    if sys.platform == "win32":
        os.startfile(path)
        return True
    names = ("open",) if sys.platform == "darwin" else ("xdg-open", "wslview")
    program = next(filter(None, map(shutil.which, names)), None)
    if program is None:
        return False
    command, nothing = [program, str(path.absolute())], subprocess.DEVNULL
    try:
        process = subprocess.Popen(
            command, stdin=nothing, stdout=nothing, stderr=nothing, start_new_session=True
        )
        return process.wait(timeout=FAILURE_TIME) == 0
    except subprocess.TimeoutExpired:
        return True
    except OSError:
        return False
