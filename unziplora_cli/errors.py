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

from typing import ClassVar


class UnziploraError(Exception):
    """A failure with a message that says what happened and a hint that says what to do next."""

    exit_code: ClassVar[int] = 1

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


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
