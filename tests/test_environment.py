"""OpenMP's threads must not spin, unless the user says so."""

import os
import subprocess
import sys

import pytest

from unziplora_cli.paths import set_openmp_wait_policy


def test_the_users_own_choice_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_WAIT_POLICY", "ACTIVE")
    monkeypatch.delenv("GOMP_SPINCOUNT", raising=False)
    monkeypatch.setenv("KMP_BLOCKTIME", "5")
    set_openmp_wait_policy()
    assert os.environ["OMP_WAIT_POLICY"] == "ACTIVE"
    assert os.environ["GOMP_SPINCOUNT"] == "0"
    assert os.environ["KMP_BLOCKTIME"] == "5"


def test_it_needs_no_torch() -> None:
    code = (
        "import sys, unziplora_cli.paths as t; t.set_openmp_wait_policy(); sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
