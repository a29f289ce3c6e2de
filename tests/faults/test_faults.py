"""The fault campaign, in a process that has no threads before it forks."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="trials fork")

ROOT = Path(__file__).parents[2]


def campaign(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the campaign."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "tests.faults.campaign", *arguments]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)


def test_a_few_faults_lose_nothing() -> None:
    faults = "at a file|forced training|while resuming$|SIGINT$|flipped|two co|rename against"
    completed = campaign("--kills=4", "--others=1", "--disk=0", f"--only={faults}")
    assert completed.returncode == 0, completed.stdout + completed.stderr


@pytest.mark.slow
def test_fifty_kills_and_six_of_every_other_fault_lose_nothing() -> None:
    completed = campaign("--kills=50", "--others=6", "--disk=0", "--seed=1")
    assert completed.returncode == 0, completed.stdout + completed.stderr


@pytest.mark.slow
def test_every_command_that_writes_survives_every_failing_call() -> None:
    completed = campaign("--kills=0", "--others=0", "--disk=2", "--seed=1")
    assert completed.returncode == 0, completed.stdout + completed.stderr
