from dataclasses import replace

import pytest

from tests.doctor.machines import SOUND, WITH_GPU
from unziplora_cli.doctor.environment import Torch
from unziplora_cli.workflows import doctor as workflow


@pytest.fixture
def on(monkeypatch):
    """Puts the command on a faked machine; returns what it was asked."""
    asked = []

    def put(machine):
        def collect_environment(home, *, online):
            asked.append((home, online))
            return machine

        monkeypatch.setattr(workflow, "collect_environment", collect_environment)
        return asked

    return put


def test_a_sound_machine_ends_well(unziplora, on, isolated_home, monkeypatch):
    asked = on(WITH_GPU)
    completed = unziplora("doctor")
    assert completed.code == 0
    assert "This machine can train." in completed.out
    assert "To fix" not in completed.out
    assert asked == [(isolated_home, False)]
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    unziplora("doctor", "--online")
    assert asked[1] == (isolated_home, True)


def test_what_blocks_training_ends_with_1_and_a_line_that_can_be_copied(unziplora, on, monkeypatch):
    monkeypatch.setenv("COLUMNS", "60")
    on(replace(WITH_GPU, torch=Torch("2.13.0+cpu"), installer="pipx"))
    completed = unziplora("doctor")
    line = (
        "pipx runpip unziplora uninstall -y torch && pipx runpip unziplora install "
        '"torch>=2.11.0" --index-url https://download.pytorch.org/whl/cu130'
    )
    assert (completed.code, completed.out.count(line)) == (1, 1)
    completed = unziplora("doctor", "--json")
    result = completed.envelope["result"]
    assert (completed.code, result["blocked"]) == (1, True)
    (check,) = (each for each in result["checks"] if each["name"] == "gpu")
    assert (check["level"], check["fix"]) == ("problem", line)
    assert result["environment"]["gpus"][0]["name"] == "NVIDIA H200"


def test_online_and_offline_exclude_each_other(unziplora, on):
    on(SOUND)
    completed = unziplora("doctor", "--online", "--offline")
    assert (completed.code, "Leave out --offline" in completed.message) == (2, True)


def test_it_works_with_a_broken_torch_and_a_home_that_is_a_file(unziplora, tmp_path, monkeypatch):
    """The machine is not faked here: torch is looked for in a process of its own."""
    (tmp_path / "torch").mkdir()
    (tmp_path / "torch/__init__.py").write_text("raise ImportError('libtorch.so')")
    (tmp_path / "home").write_text("a file")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    completed = unziplora("doctor", f"--home={tmp_path / 'home'}", "--json")
    levels = {each["name"]: each["level"] for each in completed.envelope["result"]["checks"]}
    assert completed.code == 1
    assert (levels["torch"], levels["home"], levels["cache"]) == ("problem", "problem", "ok")


@pytest.mark.slow
def test_this_machine_can_train(unziplora, isolated_home):
    completed = unziplora("doctor", "--json")
    assert completed.code == 0, completed.out
    assert not isolated_home.exists()
