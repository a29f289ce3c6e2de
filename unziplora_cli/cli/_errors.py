"""One table from an exception to its message, its hint and its exit code."""

import shlex

from unziplora_cli.errors import Interrupted, OutOfMemory, Remedy, UnziploraError

UNEXPECTED = "This is a defect of unziplora, or of a library beneath it. To see where, add -v."

BROKEN = "See which, and the line that mends it: unziplora doctor"

SMALLER = "Close other programs, or ask for less: a smaller picture, a lower rank, half precision."


def hint(error: UnziploraError) -> str:
    """The remedies of an error as sentences and command lines."""
    return "   ".join(remedy_text(remedy) for remedy in error.remedies)


def remedy_text(remedy: Remedy) -> str:
    """A remedy as text: its advice, and the command or the options to type."""
    words = [*(["unziplora", *remedy.command.split()] if remedy.command else []), *remedy.arguments]
    for name, value in remedy.settings.items():
        option = name.replace("_", "-")
        if value is True or value is None:
            words.append(f"--{option}")
        elif value is False:
            words.append(f"--no-{option}")
        else:
            words += [f"--{option}", f"{value:.3g}" if isinstance(value, float) else str(value)]
    line = shlex.join(words)
    return (
        ": ".join(part for part in (remedy.advice.removesuffix("."), line) if part) if line else remedy.advice
    )


def describe(error: BaseException) -> tuple[str, str, int]:
    """The message, the hint and the exit code for any exception that ends a command."""
    if isinstance(error, UnziploraError):
        return error.message, hint(error), error.exit_code
    if hasattr(error, "format_message"):  # the command line's own errors; Typer keeps their class private
        context = getattr(error, "ctx", None)
        command = context.command_path if context else "unziplora"
        return error.format_message(), f"{command} --help", 2
    if isinstance(error, KeyboardInterrupt | EOFError) or type(error).__name__ == "Abort":
        return "Interrupted.", "", Interrupted.exit_code
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":  # torch's, not imported
        return "There is not enough memory for this.", SMALLER, OutOfMemory.exit_code
    if isinstance(error, ImportError) and not (error.name or "").startswith("unziplora_cli"):
        return f"A library cannot be loaded: {error}.", BROKEN, 1
    if isinstance(error, OSError):
        where = f": {error.filename}" if error.filename else ""
        return f"{error.strerror or error}{where}.", "To see where, add -v.", 1
    return f"{type(error).__name__}: {error}".strip(": "), UNEXPECTED, 1
