"""The console script, and `python -m unziplora_cli`: run one command line and end with its exit code."""

import sys
from collections.abc import Sequence

from unziplora_cli.cli._errors import describe
from unziplora_cli.cli._output import Session, slow_paths_as_notes
from unziplora_cli.cli.app import GLOBAL_OPTIONS, app
from unziplora_cli.errors import Interrupted
from unziplora_cli.paths import set_openmp_wait_policy


def main() -> None:
    """Run the command line of this process."""
    sys.exit(run(sys.argv[1:]))


def run(arguments: Sequence[str]) -> int:
    """Run one command line; returns the exit code. Every exception becomes a message."""
    set_openmp_wait_policy()
    session = Session(command_line=tuple(arguments))
    arguments = _global_options_first(arguments) or ["--help"]
    # Errors in the options themselves are reported before the options are parsed.
    session.output.json = "--json" in arguments
    session.output.verbose = "-v" in arguments or "--verbose" in arguments
    try:
        with slow_paths_as_notes(session.output):
            code = app(args=arguments, prog_name="unziplora", standalone_mode=False, obj=session)
        if code == Interrupted.exit_code:  # Typer catches Ctrl-C and returns this code
            raise KeyboardInterrupt
    except (Exception, KeyboardInterrupt) as error:
        message, hint, code = describe(error)
        session.output.error(error, message, hint, code)
    return code if isinstance(code, int) else 0


def _global_options_first(arguments: Sequence[str]) -> list[str]:
    """Move global options to the front, so that they may also follow the command: `unziplora list --json`."""
    first, rest = [], list(arguments)
    position = 0
    while position < len(rest) and rest[position] != "--":
        name = rest[position].split("=")[0] if rest[position].startswith("--") else rest[position]
        if name in GLOBAL_OPTIONS:
            count = 2 if GLOBAL_OPTIONS[name] and "=" not in rest[position] else 1
            first += rest[position : position + count]
            del rest[position : position + count]
        else:
            position += 1
    return first + rest


if __name__ == "__main__":
    main()
