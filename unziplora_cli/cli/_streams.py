"""Standard streams that do not end a command: other encodings, closed pipes, full disks, untrusted text."""

import os
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import IO, Any, cast

Clean = Callable[[str], str]


class Stream:
    """A text stream that remembers the first failed write in `lost`, and ignores what is written after it."""

    def __init__(self, stream: IO[str], clean: Clean | None = None) -> None:
        self._stream = stream
        self._clean = clean
        self.lost: OSError | None = None
        self.uncleaned = self if clean is None else Stream(stream)

    def write(self, text: str) -> int:
        """Write the text, cleaned if this stream cleans."""
        if self.lost is None:
            try:
                self._stream.write(self._clean(text) if self._clean else text)
            except OSError as error:
                self.lost = error
        return len(text)

    def flush(self) -> None:
        """Write what is buffered."""
        if self.lost is None:
            try:
                self._stream.flush()
            except OSError as error:
                self.lost = error

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def prepare(clean: Clean) -> None:
    """Replace the streams of this process: nothing that is written to them raises.

    What a stream's encoding lacks is written as an escape sequence of Python. What libraries write to stderr
    passes through `clean`.
    """
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:  # closed by the caller
            setattr(sys, name, Path(os.devnull).open(mode, encoding="utf-8"))  # noqa: SIM115
    escape_unencodable()
    sys.stdout = cast(IO[str], Stream(sys.stdout))
    sys.stderr = cast(IO[str], Stream(sys.stderr, clean))


def escape_unencodable() -> None:
    """Let the streams escape what their encoding lacks, and replace bytes that are not text."""
    for stream, errors in (
        (sys.stdin, "replace"),
        (sys.stdout, "backslashreplace"),
        (sys.stderr, "backslashreplace"),
    ):
        reconfigure = getattr(stream, "reconfigure", None)
        if reconfigure is not None:
            with suppress(OSError, ValueError):  # closed, or read already
                reconfigure(errors=errors)


def uncleaned(stream: IO[str]) -> IO[str]:
    """The stream for text that was cleaned already, and may hold escape sequences of Rich."""
    stream = getattr(stream, "rich_proxied_file", stream)
    return cast(IO[str], getattr(stream, "uncleaned", stream))


def is_unicode(stream: IO[str]) -> bool:
    """Whether the stream can hold every character."""
    return (getattr(stream, "encoding", None) or "utf-8").lower().replace("-", "").startswith("utf")


def finish(code: int) -> int:
    """Flush the streams before the process ends; returns the exit code, which is 1 if the result was lost."""
    sys.stdout.flush()
    sys.stderr.flush()
    lost = getattr(sys.stdout, "lost", None)
    for number, stream in ((1, sys.stdout), (2, sys.stderr)):
        if getattr(stream, "lost", None) is not None:  # the interpreter flushes it once more
            with suppress(OSError):
                os.dup2(os.open(os.devnull, os.O_WRONLY), number)
    if lost is None:
        return code
    if not isinstance(lost, BrokenPipeError):
        sys.stderr.write(f"Error: Cannot write to the standard output: {lost.strerror or lost}.\n")
        sys.stderr.flush()
    return code or 1
