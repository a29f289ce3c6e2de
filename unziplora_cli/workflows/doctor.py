"""What this machine can do: look at it, and judge what was seen."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from unziplora_cli.doctor.checks import examine
from unziplora_cli.doctor.environment import Check, Environment
from unziplora_cli.doctor.inspect import look


@dataclass(frozen=True)
class Examination:
    """The checks, and the environment that they judged."""

    environment: Environment
    checks: tuple[Check, ...]

    @property
    def blocked(self) -> bool:
        """Whether something keeps this machine, or its GPU, from training."""
        return any(check.level == "problem" for check in self.checks)


def diagnose(home: Path, *, online: bool = False) -> Examination:
    """Examine this machine; the network is used only when ``online``."""
    environment = look(home, online=online)
    return Examination(environment, examine(environment))
