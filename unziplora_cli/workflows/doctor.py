"""What this machine can do: collect_environment at it, and judge what was seen."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from unziplora_cli.doctor.checks import run_checks
from unziplora_cli.doctor.environment import Check, Environment
from unziplora_cli.doctor.inspect import collect_environment


@dataclass(frozen=True)
class DoctorReport:
    """The checks, and the environment that they judged."""

    environment: Environment
    checks: tuple[Check, ...]

    @property
    def blocked(self) -> bool:
        """Whether something keeps this machine, or its GPU, from training."""
        return any(check.level == "problem" for check in self.checks)


def diagnose(home: Path, *, online: bool = False) -> DoctorReport:
    """Examine this machine; the network is used only when ``online``."""
    environment = collect_environment(home, online=online)
    return DoctorReport(environment, run_checks(environment))
