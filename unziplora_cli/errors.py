"""Exceptions with a message, remedies and an exit code.

    UnziploraError          exit 1
    ├── UsageError          exit 2    an argument, option, preset or input image
    ├── ProjectError        exit 3    a project, its manifest or its files
    ├── ModelError          exit 4    a base model or the model cache
    ├── OutOfMemory         exit 5    the device or the machine has too little memory
    ├── AdapterError        exit 6    a LoRA or merge-weight file
    └── Interrupted         exit 130  the user stopped the command

Any other exception is a bug and ends with exit code 1.
"""

import errno
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar


@dataclass(frozen=True)
class Remedy:
    """One way to fix an error, as data; only `cli/_errors` turns it into a command line.

    `advice` is a plain sentence without commands or options. `command` is the path of a subcommand, such as
    "models pull", with its positional `arguments`; `program` names another program than this one. `settings`
    maps names of settings to the values to use, as in {"content_lr": 1e-5}: True and False are flags, None
    names a setting without a value, a list repeats it, a mapping is settings of another program in one value.
    `extra` is an optional dependency to install.
    """

    advice: str = ""
    command: str = ""
    arguments: tuple[str | Path, ...] = ()
    settings: Mapping[str, Any] = field(default_factory=dict)
    program: str = "unziplora"
    extra: str = ""


def count(number: int, noun: str) -> str:
    """A number with its noun: `1 image`, `3 images`."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


class UnziploraError(Exception):
    """A failure: what happened (`message`) and what to do next (`remedies`)."""

    exit_code: ClassVar[int] = 1

    def __init__(self, message: str, *remedies: Remedy) -> None:
        super().__init__(message)
        self.message = message
        self.remedies = remedies


class UsageError(UnziploraError):
    """An argument, an option, a preset or an input image is invalid."""

    exit_code = 2


class ProjectError(UnziploraError):
    """A project is missing, damaged, in use or cannot be written."""

    exit_code = 3


class ModelError(UnziploraError):
    """A base model is missing, incomplete or of an unsupported architecture."""

    exit_code = 4


class OutOfMemory(UnziploraError):
    """The device or the machine has too little memory."""

    exit_code = 5


class AdapterError(UnziploraError):
    """A LoRA or merge-weight file cannot be read or does not fit."""

    exit_code = 6


class Interrupted(UnziploraError):
    """The user stopped the command; files written before are kept."""

    exit_code = 130


def first_line(error: BaseException) -> str:
    """The first line of an error's message without its full stop, or the type of the error."""
    return str(error).strip().split("\n")[0].rstrip(".") or type(error).__name__


def system_errno(error: BaseException | None) -> int | None:
    """The errno of an exception or of its cause; Rust and C++ put it at the end of a message."""
    while error is not None:
        if isinstance(error, OSError) and error.errno:
            return error.errno
        match = re.search(r"(?:\(|os error )([0-9]+)\)\W*$", str(error))
        if match and os.strerror(int(match[1])) in str(error):
            return int(match[1])
        error = error.__cause__ or error.__context__
    return None


_ADVICE = {
    errno.ENOSPC: "Free space on that disk.",
    errno.EDQUOT: "Free space, or raise your quota on that disk.",
    errno.EACCES: "Check the permissions of the file and its folder.",
    errno.EIO: "Check the disk and its connection.",
    errno.ESTALE: "Connect the network drive again.",
    errno.EMFILE: "Close other programs, or raise the limit of open files.",
    errno.ENFILE: "Close other programs, or raise the limit of open files.",
}


def disk_advice(error: BaseException) -> Remedy | None:
    """What to do about an exception that is the disk's fault, and not the file's."""
    advice = _ADVICE.get(system_errno(error) or 0)
    return Remedy(advice) if advice else None
