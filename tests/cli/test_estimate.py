"""train --plan: prints the estimate and starts nothing."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from unziplora_cli.cli._output import Session
from unziplora_cli.cli.estimate import _fitting_command
from unziplora_cli.config import resolve
from unziplora_cli.resources import samples
from unziplora_cli.sdxl import load
from unziplora_cli.training import estimate, inputs
from unziplora_cli.training.estimate import shipped_sdxl
from unziplora_cli.training.memory import Target, estimate_memory, profile_base, required_memory

GB = 10**9
PROCESS = 500_000_000
LOW_MEMORY = ("--gradient-checkpointing", "--quantize", "int8")


@pytest.fixture(autouse=True)
def no_loading(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fails a test that loads a part of a base, or reads from the terminal."""

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("an estimate needs no weights and no words")

    for module in (load, inputs):
        for name in ("load_unet", "load_vae", "load_text_encoders"):
            monkeypatch.setattr(module, name, refuse, raising=False)
    monkeypatch.setattr(estimate, "MEASURING", 0.001)
    monkeypatch.setattr(estimate, "process_memory", lambda: PROCESS)

    class Terminal:
        isatty = staticmethod(lambda: True)
        readline = refuse

    monkeypatch.setattr(sys, "stdin", Terminal())


@pytest.fixture
def free(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Sets the number of bytes that are free."""
    return lambda number: monkeypatch.setattr(estimate, "free_memory", lambda _: int(number))


@pytest.fixture
def fast_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """A CPU that is fast enough for SDXL."""
    monkeypatch.setattr(estimate, "measure_rate", lambda *_, **__: 1e15)


def required(**changes: Any) -> int:
    """The bytes that SDXL requires with ``changes`` of the preset ``paper`` on a CPU."""
    target = Target("cpu", "fp32")
    memory = estimate_memory(profile_base(shipped_sdxl()), resolve("paper", changes), target, PROCESS)
    return required_memory(memory, target)


def test_an_estimate_writes_nothing(unziplora, photos, settings, isolated_home):
    completed = unziplora("train", photos / "fox.png", *settings, "--plan")
    assert completed.code == 0
    assert "Fits: needs about" in completed.out
    assert "checkpoints: up to" in completed.out
    assert not isolated_home.exists()


@pytest.mark.parametrize("option", ["--plan", "--estimate", "--dry-run"])
def test_an_estimate_as_json(option, unziplora, photos, settings):
    envelope = unziplora("train", *photos.glob("*"), *settings, option, "--json").envelope
    plan = envelope["result"]["plan"]
    assert (plan["device"], plan["precision"], plan["projects"]) == ("cpu", "fp32", 2)
    assert plan["fits"]
    assert plan["fitting_command"] is None
    parts = plan["memory"]
    step = sum(parts[name] for name in ("frozen_weights", "trained_state", "activations", "temporary"))
    assert plan["peak_memory_bytes"] == parts["process"] + max(step, parts["text_encoders"], parts["vae"])


def test_sdxl_is_estimated_before_it_is_downloaded(unziplora, photos, free, fast_cpu):
    free(64 * GB)
    completed = unziplora("train", photos / "fox.png", "--base=sdxl", "--device=cpu", "--plan")
    assert completed.code == 0
    assert "unziplora models pull sdxl" in completed.message
    assert "sdxl, rank 64, 1024 px" in completed.out


@pytest.mark.parametrize("options", [LOW_MEMORY[:1], LOW_MEMORY])
def test_the_command_that_fits_fits(
    options: tuple[str, ...],
    unziplora: Callable[..., Any],
    photos: Path,
    free: Callable[[float], None],
    fast_cpu: None,
) -> None:
    """The suggested command, with --plan, reports that it fits."""
    changes: dict[str, Any] = {"gradient_checkpointing": True}
    free(required(**changes, **({"quantize": "int8"} if options == LOW_MEMORY else {})))
    words = ["train", str(photos / "fox.png"), "--base=sdxl", "--device", "cpu", "--seed", "5"]
    completed = unziplora(*words, "--plan")
    assert completed.code == 0
    assert "Does not fit: needs about" in completed.out
    command = shlex.split(completed.out.split("Settings that fit:")[1])
    assert command == ["unziplora", *words, *options]
    assert "Fits: needs about" in unziplora(*command[1:], "--plan").out


def test_the_rank_is_lowered_if_nothing_else_fits(unziplora, photos, free, fast_cpu):
    free(required(gradient_checkpointing=True, quantize="int8") - 0.5 * GB)
    words = ["train", str(photos / "fox.png"), "--base=sdxl", "--device", "cpu"]
    plan = unziplora(*words, "--plan", "--json").envelope["result"]["plan"]
    assert not plan["fits"]
    assert plan["fitting_command"].startswith(shlex.join(["unziplora", *words, *LOW_MEMORY, "--rank"]))
    free(GB)
    completed = unziplora(*words, "--plan")
    assert "Lower --resolution or --rank" in completed.out
    assert "Settings that fit" not in completed.out


@pytest.mark.parametrize("gigabytes", [1, 64])
def test_a_cpu_is_too_slow_for_sdxl_whatever_fits(unziplora, photos, free, monkeypatch, gigabytes):
    """No days and no settings that fit are printed beside it."""
    free(gigabytes * GB)
    monkeypatch.setattr(estimate, "measure_rate", lambda *_, **__: 1e11)
    words = ["train", photos / "fox.png", "--base=sdxl", "--device=cpu", "--plan"]
    completed = unziplora(*words)
    assert "sdxl needs a GPU" in completed.out
    assert not any(text in completed.out for text in ("Fits:", "Does not fit", "Settings that fit"))
    plan = unziplora(*words, "--json").envelope["result"]["plan"]
    assert (plan["too_slow"], plan["fits"]) == (True, False)
    assert [plan[name] for name in ("fitting_command", "seconds", "seconds_per_step")] == [None] * 3


@pytest.mark.slow
def test_the_estimate_of_main_memory_holds(tmp_path):
    """Of a whole command in a process of its own, as the operating system counts it."""
    program = (
        "import resource, sys\n"
        "from unziplora_cli.__main__ import run\n"
        "code = run(sys.argv[1:])\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024, file=sys.stderr)\n"
        "sys.exit(code)"
    )
    words = ["--base=mini", "--subject=fox", "--style=watercolor", "--steps=19", "--destyle-images=1"]
    command = [sys.executable, "-c", program, "train", str(samples()["fox"].image), *words, "--json"]
    ran = partial(subprocess.run, capture_output=True, text=True, check=True)
    plan = json.loads(ran([*command, "--plan"]).stdout)["result"]["plan"]
    used = int(ran(command).stderr.splitlines()[-1])
    assert plan["peak_memory_bytes"] == pytest.approx(used, rel=0.15)


def test_a_resumed_training_has_no_estimate(unziplora):
    completed = unziplora("train", "--resume=fox", "--plan")
    assert completed.code == 2
    assert "accepts no plan" in completed.message


def test_a_missing_image_is_refused(unziplora, settings, tmp_path):
    assert unziplora("train", tmp_path / "none.png", *settings, "--plan").code == 2


def test_suggested_options_stand_before_file_names_that_look_like_options():
    session = Session(command_line=("train", "--plan", "--", "--help.jpg"))
    fitting = SimpleNamespace(fitting_settings={"rank": 4}, too_slow=False)
    assert _fitting_command(session, fitting) == "unziplora train --rank 4 -- --help.jpg"


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (("--subject={fox}",), "The subject '{fox}' contains '{'"),
        (("--style=style",), "The style is empty"),
        (("--subject=fox", "--trigger=fox"), "The trigger 'fox' is a word of the subject"),
        (("--subject=fox", "--subject=cat"), "subject is given 2 times for 1 image"),
        (("--features=a\x1bb",), "The features contains the control character"),
        (("--full-prompt= ",), "The prompt is empty"),
        (("--validation-prompt={x}",), "The prompt '{x}' contains '{x}'"),
    ],
)
def test_words_and_prompts_that_a_training_refuses_are_refused(unziplora, photos, options, says):
    completed = unziplora("train", photos / "fox.png", *options, "--base=mini", "--plan")
    assert (completed.code, completed.out) == (2, "")
    assert says in completed.message


def test_options_for_a_single_image_are_refused_for_several(unziplora, photos):
    completed = unziplora("train", photos, "--name=fox", "--base=mini", "--plan")
    assert completed.code == 2
    assert "--name names one project" in completed.message


def test_mini_says_before_training_how_long_it_takes_here(unziplora, photos, monkeypatch):
    from unziplora_cli.cli import train

    monkeypatch.setattr(estimate, "measure_rate", lambda *_, **__: 1e10)
    monkeypatch.setattr(train, "_finish", lambda *_, **__: None)
    words = ["--subject=fox", "--style=ink", "--no-describe", "--base=mini", "--device=cpu"]
    images = [photos / "fox.png", photos / "rose.jpg"]
    durations = [
        re.search(r"This training takes about (?:(\d+) min )?([\d.]+) s\.", completed.message)
        for completed in (unziplora("train", *paths, *words) for paths in (images[:1], images))
    ]
    one, two = (60 * int(match[1] or 0) + float(match[2]) for match in durations if match)
    plan = unziplora("train", images[0], *words, "--plan", "--json").envelope["result"]["plan"]
    assert one == pytest.approx(plan["seconds"], rel=0.1)
    assert two == pytest.approx(2 * one, rel=0.1)
