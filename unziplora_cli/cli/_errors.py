"""Messages, hints and exit codes of exceptions; the only module that writes command lines as hints."""

import errno
import os
import re
import shlex
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from unziplora_cli.errors import Interrupted, OutOfMemory, Remedy, UnziploraError, UsageError, disk_advice
from unziplora_cli.packages import installer

BUG = Remedy("This is a bug in unziplora or in a library. Show the traceback", settings={"verbose": True})
DOCTOR = Remedy("Find out what is broken and how to fix it", command="doctor")
CHECK_PATH = Remedy("Check the path; each name in it may have 255 bytes.")
UNUSABLE_PATHS = (errno.ENAMETOOLONG, errno.ELOOP)
"""What the system answers to paths that no file can have, wherever they come from."""
TRACEBACK = Remedy("Show the traceback", settings={"verbose": True})
USE_LESS_MEMORY = Remedy("Close other programs, or use a smaller resolution, a lower rank or half precision.")


def describe(error: BaseException) -> tuple[str, str, int]:
    """The message, the hint and the exit code of any exception that ends a command."""
    if isinstance(error, UnziploraError):
        return error.message, hint(error), error.exit_code
    if hasattr(error, "format_message"):  # a parse error; Typer keeps its class private
        context = getattr(error, "ctx", None)
        command = context.command_path if context else "unziplora"
        wrong = r"Invalid value for (.+): Input should (.+?)(, unable to parse .+)?"
        return re.sub(f"^{wrong}$", r"\1 must \2.", error.format_message()), f"{command} --help", 2
    if isinstance(error, KeyboardInterrupt | EOFError) or type(error).__name__ == "Abort":
        return "Interrupted.", "", Interrupted.exit_code
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":  # torch is not imported
        return "Not enough memory.", remedy_text(USE_LESS_MEMORY), OutOfMemory.exit_code
    if isinstance(error, ImportError) and not (error.name or "").startswith("unziplora_cli"):
        return f"A library cannot be imported: {error}.", remedy_text(DOCTOR), 1
    if isinstance(error, OSError) and error.errno in UNUSABLE_PATHS and error.filename:
        path = os.fsdecode(error.filename)
        shown = path if len(path) < 300 else f"{path[:140]}...{path[-140:]}"
        return f"{error.strerror}: {shown}.", remedy_text(CHECK_PATH), UsageError.exit_code
    if isinstance(error, OSError):
        file = f": {error.filename}" if error.filename else ""
        return f"{error.strerror or error}{file}.", remedy_text(disk_advice(error) or TRACEBACK), 1
    return f"{type(error).__name__}: {error}".strip(": "), remedy_text(BUG), 1


def hint(error: UnziploraError) -> str:
    """The remedies of an error, one line each."""
    return "\n".join(remedy_text(remedy).replace("\n", "\\n") for remedy in error.remedies)


def remedy_text(remedy: Remedy) -> str:
    """The advice of a remedy, followed by the command or the options to type, quoted for a POSIX shell."""
    if remedy.extra:
        words = install_command(remedy.extra)
    else:
        words = [remedy.program, *remedy.command.split()] if remedy.command else []
        given = map(str, remedy.arguments)  # of this program files and names, and no options
        words += given if remedy.program != "unziplora" else (re.sub("^-", "./-", word) for word in given)
        for name, value in remedy.settings.items():
            words += _option(name.replace("_", "-"), value)
    if not words:
        return remedy.advice
    line = shlex.join(words)
    return f"{remedy.advice.removesuffix('.')}: {line}" if remedy.advice else line


def install_command(extra: str) -> list[str]:
    """The words that add an extra of this program, for the installer that installed it."""
    requirement = f"unziplora[{extra}]"
    match installer(Path(sys.prefix)):
        case "pipx":
            return ["pipx", "runpip", "unziplora", "install", requirement]
        case "uv tool":
            return ["uv", "tool", "install", requirement]
        case "uv":
            return ["uv", "pip", "install", "--python", sys.executable, requirement]
    return ["pip", "install", requirement]


def _option(name: str, value: Any) -> list[str]:
    if value is True or value is None:
        return [f"--{name}"]
    if value is False:
        return [f"--no-{name}"]
    if isinstance(value, list | tuple):
        return [word for item in value for word in _option(name, item)]
    if isinstance(value, Mapping):  # options for another program
        value = shlex.join(word for key in value for word in _option(key.replace("_", "-"), value[key]))
    return [f"--{name}", _number(value) if isinstance(value, float) else str(value)]


def _number(value: float) -> str:
    """Three significant digits, the exponent without padding: 0.5, 1e-5."""
    return re.sub(r"e([+-])0+", r"e\1", f"{value:.3g}").replace("e+", "e")
