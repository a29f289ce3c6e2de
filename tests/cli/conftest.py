"""Running a command line in this process, as the console script does."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest

from unziplora_cli.cli.app import run


@dataclass(frozen=True)
class Ended:
    """How a command ended."""

    code: int
    out: str
    err: str

    @property
    def envelope(self) -> dict[str, Any]:
        """What --json printed; fails when stdout carries anything else."""
        return json.loads(self.out)

    @property
    def said(self) -> str:
        """stderr without the line breaks that fit it to the terminal."""
        return " ".join(self.err.split())


@pytest.fixture
def unziplora(capsys: pytest.CaptureFixture[str]) -> Callable[..., Ended]:
    """Runs a command line in this process."""

    def invoke(*arguments: object) -> Ended:
        capsys.readouterr()
        code = run([str(each) for each in arguments])
        return Ended(code, *capsys.readouterr())

    return invoke
