"""The templates for clusters start each shard of a list once, whether the cluster counts from 0 or from 1."""

import os
import shutil
import signal
import subprocess
from pathlib import Path

import pytest
import yaml

from unziplora_cli.resources import template

pytestmark = pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")


@pytest.fixture
def program(tmp_path: Path) -> dict[str, str]:
    """An environment in which `unziplora` prints its arguments, and ends with 130 when it is stopped."""
    (tmp_path / "unziplora").write_text(
        '#!/bin/bash\ntrap "exit 130" TERM\necho "$UNZIPLORA_HOME: $*"\n'
        'if [ -n "${SLOW:-}" ]; then while :; do read -r -t 1 <> <(:) || :; done; fi\n'
    )
    (tmp_path / "unziplora").chmod(0o755)
    return {"PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}", "HOME": "/h", "UNZIPLORA_HOME": "/home"}


def slurm(first: int, number: int, count: int) -> dict[str, str]:
    values = {"MIN": first, "ID": first + number, "COUNT": count}
    return {f"SLURM_ARRAY_TASK_{name}": str(value) for name, value in values.items()}


@pytest.mark.parametrize("first", [0, 1])
def test_a_slurm_array_trains_every_shard_once(program, first):
    shards = []
    for number in range(3):
        words = ["bash", str(template("cluster/slurm.sh")), "my list.csv", "--style", "two words"]
        run = subprocess.run(
            words, env=program | slurm(first, number, 3), capture_output=True, text=True, check=True
        )
        shards.append(run.stdout)
    expected = "/home: --offline train --list my list.csv --shard {}/3 --style two words\n"
    assert shards == [expected.format(number) for number in (1, 2, 3)]


def test_slurms_warning_before_the_time_limit_reaches_the_training(program):
    words = ["bash", str(template("cluster/slurm.sh")), "list.csv"]
    environment = program | slurm(1, 0, 1) | {"SLOW": "1"}
    with subprocess.Popen(words, env=environment, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert "--shard 1/1" in process.stdout.readline()
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=60) == 130


def test_every_node_of_a_skypilot_task_trains_its_shard(program):
    task = yaml.safe_load(template("cluster/skypilot.yaml").read_text(encoding="utf-8"))
    shards = []
    for rank in range(2):
        environment = program | task["envs"] | {"SKYPILOT_NODE_RANK": str(rank), "SKYPILOT_NUM_NODES": "2"}
        run = subprocess.run(
            ["bash", "-ec", task["run"]], env=environment, capture_output=True, text=True, check=True
        )
        shards.append(run.stdout)
    expected = "/h/unziplora: --offline train --list pictures.csv --shard {}/2\n"
    assert shards == [expected.format(number) for number in (1, 2)]
