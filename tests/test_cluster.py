"""The templates for clusters start each shard of a list once, whether the cluster counts from 0 or from 1."""

import getpass
import os
import shutil
import signal
import socket
import subprocess
from collections.abc import Iterator
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


SLURM = """
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmdPort={ports[1]}
AuthInfo=socket={folder}/munge.socket
SlurmUser={user}
SlurmdUser={user}
StateSaveLocation={folder}
SlurmdSpoolDir={folder}
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
NodeName={host} NodeAddr=127.0.0.1 CPUs=2 RealMemory=1000
PartitionName=all Nodes=ALL Default=YES State=UP
"""


@pytest.fixture
def slurm_environment(program, tmp_path) -> Iterator[dict[str, str]]:
    """The environment of a Slurm controller and one node, on this machine."""
    if not all(map(shutil.which, ("munged", "slurmctld", "slurmd", "sbatch"))) or os.getuid() != 0:
        pytest.skip("needs Slurm and munge, and to be root")
    (tmp_path / "key").write_bytes(os.urandom(64))
    (tmp_path / "key").chmod(0o400)
    host, ports = socket.gethostname().partition(".")[0], []
    for server in (socket.socket(), socket.socket()):
        server.bind(("127.0.0.1", 0))
        ports.append(server.getsockname()[1])
        server.close()
    user = getpass.getuser()
    config = tmp_path / "slurm.conf"
    config.write_text(SLURM.format(host=host, ports=ports, folder=tmp_path, user=user))
    places = [f"--{name}-file={tmp_path}/{name}" for name in ("key", "log", "pid", "seed")]
    munged = ["munged", "--force", f"--socket={tmp_path}/munge.socket", *places]
    subprocess.run(munged, check=True, capture_output=True)
    daemons = []
    try:
        for daemon, ready in (("slurmctld", "Running as primary controller"), ("slurmd", "slurmd started")):
            words = [daemon, "-D", "-f", str(config)]
            process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
            daemons.append(process)
            assert process.stdout is not None
            lines = iter(process.stdout)
            assert any(ready in line for line in lines), f"{daemon} ended"
        yield program | {"SLURM_CONF": str(config)}
    finally:
        for process in reversed(daemons):
            process.terminate()
            process.communicate()
        os.kill(int((tmp_path / "pid").read_text()), signal.SIGTERM)


@pytest.mark.slow
def test_slurm_itself_runs_the_array(slurm_environment, tmp_path):
    fewer = ("--gres=none", "--mem=50", "--cpus-per-task=1", f"--output={tmp_path}/%a.log")
    words = ["sbatch", "--wait", "--array=0-2", *fewer, str(template("cluster/slurm.sh")), "list.csv"]
    subprocess.run(words, env=slurm_environment, check=True, timeout=300, cwd=tmp_path)
    logs = [(tmp_path / f"{number}.log").read_text() for number in range(3)]
    expected = "/home: --offline train --list list.csv --shard {}/3\n"
    assert logs == [expected.format(number) for number in (1, 2, 3)]


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
