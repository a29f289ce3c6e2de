"""The console script, and `python -m unziplora_cli`: run one command line and end with its exit code.

Every other module is imported inside of `main`, so that Ctrl-C is handled from the first moment.
"""

import os
import sys

TYPE_CHECKING = False  # typing itself takes a moment to import
if TYPE_CHECKING:
    from collections.abc import Sequence

    from unziplora_cli.cli._output import Session

INTERRUPTED = 130


def main() -> None:
    """Run the command line of this process; no way to end it shows a traceback."""
    ending: list[int] = []
    try:
        import atexit
        import gc

        # torch and diffusers create a million objects that live as long as the process: collecting garbage
        # among them costs a second while they are imported, and freeing them two at the end.
        gc.set_threshold(100_000, 20, 100)
        atexit.register(lambda: os._exit(*ending) if ending else None)  # the first one registered runs last
        code = _main(sys.argv[1:])
        ending.append(code)
    except KeyboardInterrupt:
        code = INTERRUPTED
    except ImportError as error:  # of what every command needs
        sys.stderr.write(f"Error: A library cannot be imported: {error}.\n  -> Install unziplora again.\n")
        code = 1
    sys.exit(code)


def _main(arguments: "Sequence[str]") -> int:
    import _thread
    import signal
    import threading

    early: list[int] = []
    handler = signal.getsignal(signal.SIGINT)
    can_interrupt = handler is signal.default_int_handler  # a job in the background may ignore it
    if can_interrupt:  # an import that is interrupted can leave a library half loaded
        signal.signal(signal.SIGINT, lambda number, frame: early.append(number))
    from unziplora_cli.cli import _streams, app
    from unziplora_cli.cli._output import log_text
    from unziplora_cli.network import LIBRARY_CALL

    assert app
    _streams.prepare(log_text)
    show_unraisable = sys.unraisablehook

    def keep_interrupts(unraisable: "sys.UnraisableHookArgs") -> None:
        if unraisable.exc_type is KeyboardInterrupt:  # raised where Python drops exceptions
            threading.Timer(0.05, _thread.interrupt_main).start()  # once this hook has returned
        else:
            show_unraisable(unraisable)

    sys.unraisablehook = keep_interrupts
    if can_interrupt:
        signal.signal(signal.SIGINT, handler)
    endings = [getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]
    endings = [number for number in endings if signal.getsignal(number) is signal.SIG_DFL]
    for number in endings:  # they remove temporary files too
        signal.signal(number, signal.default_int_handler)
    try:
        code = _report(_session(arguments), KeyboardInterrupt()) if early else run(arguments)
    except SystemExit as ended:
        code = ended.code if isinstance(ended.code, int) else int(ended.code is not None)
    for number in (*endings, *([signal.SIGINT] if can_interrupt else [])):  # there is no result left to lose
        signal.signal(number, signal.SIG_DFL)
    code = _streams.finish(code)
    if any(thread.name == LIBRARY_CALL for thread in threading.enumerate()):
        os._exit(code)  # the interpreter would wait for what was given up, such as an upload
    return code


def run(arguments: "Sequence[str]") -> int:
    """Run one command line; returns the exit code. Every exception becomes a message."""
    from unziplora_cli import paths
    from unziplora_cli.cli import _streams
    from unziplora_cli.cli._output import slow_paths_as_notes
    from unziplora_cli.cli.app import GLOBAL_OPTIONS, app

    paths.set_openmp_wait_policy()
    paths.drop_useless_variables()
    _streams.escape_unencodable()
    session = _session(arguments)
    try:
        with slow_paths_as_notes(session.output):
            code = app(
                args=_global_options_first(arguments, GLOBAL_OPTIONS) or ["--help"],
                prog_name="unziplora",
                standalone_mode=False,
                obj=session,
            )
        if code == INTERRUPTED:  # Typer catches Ctrl-C and returns this code
            raise KeyboardInterrupt
    except (Exception, KeyboardInterrupt) as error:
        return _report(session, error)
    return code if isinstance(code, int) else 0


def _session(arguments: "Sequence[str]") -> "Session":
    """The session of a command line; errors in its options are reported before the options are parsed."""
    from unziplora_cli.cli._output import Session

    session = Session(command_line=tuple(arguments))
    session.output.json = "--json" in arguments
    session.output.verbose = "-v" in arguments or "--verbose" in arguments
    return session


def _report(session: "Session", error: BaseException) -> int:
    from unziplora_cli.cli._errors import describe

    message, hint, code = describe(error)
    session.output.error(error, message, hint, code)
    return code


def _global_options_first(arguments: "Sequence[str]", options: dict[str, bool]) -> list[str]:
    """Move global options to the front, so that they may also follow the command: `unziplora list --json`."""
    first, rest = [], list(arguments)
    position = 0
    while position < len(rest) and rest[position] != "--":
        name = rest[position].split("=")[0] if rest[position].startswith("--") else rest[position]
        if name in options:
            count = 2 if options[name] and "=" not in rest[position] else 1
            first += rest[position : position + count]
            del rest[position : position + count]
        else:
            position += 1
    return first + rest


if __name__ == "__main__":
    main()
