"""Everything that can go wrong in a way that a person can mend.

    UnziploraError          exit 1
    ├── UsageError          exit 2    an argument, option, preset or input picture
    ├── ProjectError        exit 3    a project, its manifest or its files
    ├── ModelError          exit 4    a base model or the model cache
    ├── OutOfMemory         exit 5    the device or the machine has too little memory
    ├── AdapterError        exit 6    a LoRA or merge-weight file
    └── Interrupted         exit 130  the user stopped the command

Any other exception is a defect of the program and ends with exit code 1.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar


@dataclass(frozen=True)
class Remedy:
    """One way to fix an error, as data; only `cli/_errors` turns it into a command line.

    `advice` is a plain sentence without commands or options. `command` is the path of a subcommand, such as
    "models pull", with its positional `arguments`. `settings` maps names of settings to the values to use:
    {"content_lr": 1e-5}; True and False are flags, None means that the setting is named without a value.
    """

    advice: str = ""
    command: str = ""
    arguments: tuple[str, ...] = ()
    settings: Mapping[str, Any] = field(default_factory=dict)


class UnziploraError(Exception):
    """A failure with a message that says what happened, and remedies that say what to do next."""

    exit_code: ClassVar[int] = 1

    def __init__(self, message: str, *remedies: Remedy, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.remedies = (*remedies, Remedy(hint)) if hint else remedies


class UsageError(UnziploraError):
    """The command was asked for something that it cannot do: an option, a preset, an input picture."""

    exit_code = 2


class ProjectError(UnziploraError):
    """A project is missing, damaged, in use or cannot be written."""

    exit_code = 3


class ModelError(UnziploraError):
    """A base model is missing, incomplete or not of the supported shape."""

    exit_code = 4


class OutOfMemory(UnziploraError):
    """The device or the machine has too little memory for what was asked."""

    exit_code = 5


class AdapterError(UnziploraError):
    """A LoRA or merge-weight file cannot be read or does not fit."""

    exit_code = 6


class Interrupted(UnziploraError):
    """The user stopped the command; what was saved before stays."""

    exit_code = 130
