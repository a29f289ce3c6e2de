"""train --plan: tells what a training would take, and starts nothing."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from unziplora_cli.config import TrainConfig
from unziplora_cli.sdxl import load
from unziplora_cli.training import estimate, inputs, memory
from unziplora_cli.training.estimate import PRESETS
from unziplora_cli.training.memory import estimate_memory, profile_base, required_memory
from unziplora_cli.workflows.estimate import estimate_training, shipped_sdxl

GB = 10**9


@pytest.fixture(autouse=True)
def no_loading(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fails a test that loads a part of a base, or asks for words."""

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a plan needs no weights and no words")

    for module in (load, inputs):
        for name in ("load_unet", "load_vae", "load_text_encoders"):
            monkeypatch.setattr(module, name, refuse, raising=False)
    monkeypatch.setattr(estimate, "SECONDS_OF_MEASURING", 0.001)

    class Terminal:
        isatty = staticmethod(lambda: True)
        readline = refuse

    monkeypatch.setattr(sys, "stdin", Terminal())


@pytest.fixture
def free(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Pretends that so many bytes are free."""
    return lambda number: monkeypatch.setattr(memory, "free_memory", lambda _: int(number))


def test_a_plan_tells_and_writes_nothing(unziplora, photos, settings, isolated_home):
    completed = unziplora("train", photos / "fox.png", *settings, "--plan")
    assert completed.code == 0
    assert "It fits." in completed.out
    assert "must be free" in completed.out
    assert "checkpoints up to" in completed.out
    assert "under 0.1 s" in completed.out
    assert not isolated_home.exists()


def test_a_plan_is_an_envelope(unziplora, photos, settings):
    envelope = unziplora("train", *photos.glob("*"), *settings, "--plan", "--json").envelope
    plan = envelope["result"]["plan"]
    assert (plan["device"], plan["precision"], plan["projects"]) == ("cpu", "fp32", 2)
    assert plan["fits"]
    assert plan["proposal"] is None
    parts = plan["memory"]
    steps = sum(parts[name] for name in ("frozen", "state", "saved", "working"))
    assert plan["peak_memory_bytes"] == parts["process"] + max(steps, parts["texts"], parts["pictures"])


def test_sdxl_is_planned_before_it_is_fetched(unziplora, photos, free):
    free(64 * GB)
    completed = unziplora("train", photos / "fox.png", "--base=sdxl", "--device=cpu", "--plan")
    assert completed.code == 0
    assert "unziplora models pull sdxl" in completed.message
    assert "sdxl, rank 64, 1024 px" in completed.out


@pytest.mark.parametrize("preset", PRESETS)
def test_what_would_fit_is_a_line_that_works(
    preset: str, unziplora: Callable[..., Any], photos: Path, free: Callable[[float], None]
) -> None:
    """The line that is proposed, typed with --plan, says that it fits."""
    free(enough_for(preset))
    words = ["train", str(photos / "fox.png"), "--base=sdxl", "--device", "cpu", "--seed", "5"]
    completed = unziplora(*words, "--plan")
    assert completed.code == 0
    assert "It will probably not fit. This would: " in completed.out
    line = shlex.split(completed.out.split("This would: ")[1])
    assert line == ["unziplora", *words, "--preset", preset]
    again = unziplora(*line[1:], "--plan")
    assert "It fits." in again.out


def test_where_no_preset_fits_the_picture_shrinks(unziplora, photos, free):
    free(enough_for("low-vram") - 0.8 * GB)
    words = ["train", str(photos / "fox.png"), "--base=sdxl", "--device", "cpu"]
    plan = unziplora(*words, "--plan", "--json").envelope["result"]["plan"]
    assert not plan["fits"]
    smaller = ["unziplora", *words, "--preset", "low-vram", "--resolution"]
    assert plan["proposal"].startswith(shlex.join(smaller))
    free(GB)
    hopeless = unziplora(*words, "--plan")
    assert "lower --resolution or --rank" in hopeless.out


def test_a_training_that_goes_on_takes_no_plan(unziplora):
    completed = unziplora("train", "--resume=fox", "--plan")
    assert completed.code == 2
    assert "--plan" in completed.message


def test_a_picture_that_is_none_is_refused(unziplora, settings, tmp_path):
    assert unziplora("train", tmp_path / "none.png", *settings, "--plan").code == 2


def enough_for(preset: str) -> int:
    """The bytes that SDXL needs with ``preset`` on a CPU, and a little."""
    from unziplora_cli.config import resolve
    from unziplora_cli.training.memory import Target

    target = Target("cpu", "fp32")
    known = profile_base(shipped_sdxl())
    return required_memory(estimate_memory(known, resolve(preset, {}), target), target) + GB // 100


def test_the_plan_is_what_the_model_says(tmp_path):
    plan = estimate_training(shipped_sdxl(), TrainConfig(rank=8), "cpu", {"rank": 8})
    assert plan.fits == (plan.needed <= plan.free)
    assert plan.seconds > plan.config.steps * plan.step_seconds
