"""doctor: the report, its exit code and the commands to copy."""

from dataclasses import replace

import pytest

from tests.doctor.machines import CPU_MACHINE, GPU_MACHINE
from unziplora_cli.doctor import environment
from unziplora_cli.doctor.environment import Torch


@pytest.fixture
def use_machine(monkeypatch):
    """Replaces the machine; returns the list of calls that collected it."""
    calls = []

    def use(machine):
        def collect_environment(home, *, online):
            calls.append((home, online))
            return machine

        monkeypatch.setattr(environment, "collect_environment", collect_environment)
        return calls

    return use


def test_a_good_machine_can_train(unziplora, use_machine, isolated_home, monkeypatch):
    calls = use_machine(GPU_MACHINE)
    completed = unziplora("doctor")
    assert completed.code == 0
    assert completed.out.strip().endswith("This machine can train.")
    assert calls == [(isolated_home, False)]
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    unziplora("doctor", "--online")
    assert calls[1] == (isolated_home, True)


def test_a_problem_exits_with_1_and_a_command_to_copy(unziplora, use_machine, monkeypatch):
    monkeypatch.setenv("COLUMNS", "60")
    use_machine(replace(GPU_MACHINE, torch=Torch("2.13.0+cpu"), installer="pipx"))
    completed = unziplora("doctor")
    lines = [
        "pipx install unziplora --force --pip-args '--extra-index-url https://download.pytorch.org/whl/cu130'"
    ]
    assert completed.code == 1
    assert [completed.out.count(line) for line in lines] == [1]
    completed = unziplora("doctor", "--json")
    result = completed.envelope["result"]
    assert (completed.code, result["blocked"]) == (1, True)
    (check,) = (check for check in result["checks"] if check["name"] == "gpu")
    assert (check["level"], check["fixes"]) == ("problem", lines)
    assert result["environment"]["gpus"][0]["name"] == "NVIDIA H200"


def test_online_and_offline_exclude_each_other(unziplora, use_machine):
    use_machine(CPU_MACHINE)
    completed = unziplora("doctor", "--online", "--offline")
    assert completed.code == 2
    assert "Remove --offline" in completed.message


def test_it_works_with_a_broken_torch_and_a_home_that_is_a_file(unziplora, tmp_path, monkeypatch):
    """This machine is checked; torch is imported in a process of its own."""
    (tmp_path / "torch").mkdir()
    (tmp_path / "torch/__init__.py").write_text("raise ImportError('libtorch.so')")
    (tmp_path / "home").write_text("a file")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    completed = unziplora("doctor", f"--home={tmp_path / 'home'}", "--json")
    levels = {check["name"]: check["level"] for check in completed.envelope["result"]["checks"]}
    assert completed.code == 1
    assert (levels["torch"], levels["home"], levels["cache"]) == ("problem", "problem", "ok")


@pytest.mark.slow
def test_this_machine_can_train(unziplora, isolated_home):
    completed = unziplora("doctor", "--json")
    assert completed.code == 0, completed.out
    assert not isolated_home.exists()
