"""The estimated time against torch's FLOP counter and measurements; settings that fit."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import UNet2DConditionModel
from torch.utils.flop_counter import FlopCounterMode

from tests.training.small_unet import BATCH, CONFIG, SIDE, predict, small_base
from unziplora_cli.accel.fused_lora import fuse_lora
from unziplora_cli.cli._errors import hint
from unziplora_cli.config import TrainConfig, resolve
from unziplora_cli.errors import OutOfMemory
from unziplora_cli.method.inject import inject
from unziplora_cli.sdxl.attention import separate_prompts
from unziplora_cli.training import engine, estimate, inputs
from unziplora_cli.training.engine import train
from unziplora_cli.training.estimate import count_flops, estimate_time, find_fitting_settings, shipped_sdxl
from unziplora_cli.training.events import Notice, Phase
from unziplora_cli.training.memory import GIB, BaseProfile, Target, passes, profile_base

GPU = Target("cuda", "bf16", fused=True)
RATE = 790e12
"""FLOP/s that large products reach on an H200 and an H100."""


@pytest.fixture(scope="module")
def sdxl() -> BaseProfile:
    return profile_base(shipped_sdxl())


def test_flops_are_those_that_torch_counts() -> None:
    """Fusing is written out in the method's own operations; text projections run once per prompt."""
    unet = UNet2DConditionModel(**CONFIG).eval().requires_grad_(False)
    separate_prompts(unet)
    fuse_lora(unet, inject(unet, 4))
    counter = FlopCounterMode(display=False)
    predict(unet)
    with counter:
        predict(unet).sum().backward()
    settings = TrainConfig(rank=4, resolution=8 * SIDE, batch_size=BATCH)
    assert count_flops(small_base(), settings) == pytest.approx(counter.get_total_flops(), rel=0.15)


FITTED = {
    "large": ("paper", {}, 57.3),
    "small": ("paper", {"resolution": 512}, 31.1),
    "low": ("low-vram", {}, 104),
}
"""Milliseconds per step on an H200 at 1024 px in bf16 with torch 2.11; they determine the three constants."""
HELD_OUT = [
    ("fast", {}, 54.9),
    ("destyle", {}, 112),
    ("paper", {"rank": 4}, 53.8),
    ("paper", {"rank": 16}, 54.1),
    ("paper", {"rank": 128}, 62.1),
    ("paper", {"resolution": 768}, 42.2),
    ("paper", {"batch_size": 2}, 84.7),
    ("paper", {"batch_size": 4}, 150),
]


@pytest.fixture(scope="module")
def fitted(sdxl: BaseProfile) -> tuple[float, float, float]:
    """Efficiency and both intensities, solved from the three fitted measurements."""

    def equation(name: str) -> tuple[list[float], float]:
        preset, changes, milliseconds = FITTED[name]
        config = resolve(preset, changes)
        count = passes(config)
        flops, weights = count * count_flops(sdxl, config), count * sdxl.unet.parameters
        return [flops / RATE, weights / RATE], milliseconds / 1000

    (large, small, low) = (equation(name) for name in ("large", "small", "low"))
    per_flop, intensity = np.linalg.solve([large[0], small[0]], [large[1], small[1]])
    return 1 / per_flop, intensity, (low[1] - low[0][0] * per_flop) / low[0][1]


def test_the_constants_are_those_of_the_fit(fitted: tuple[float, float, float]) -> None:
    constants = (estimate.EFFICIENCY["cuda"], estimate.INTENSITY, estimate.INTENSITY_LOW_MEMORY)
    assert constants == pytest.approx(fitted, rel=0.07)


@pytest.mark.parametrize(("preset", "changes", "milliseconds"), HELD_OUT)
def test_three_measurements_predict_the_step_time_of_other_settings(
    sdxl: BaseProfile,
    fitted: tuple[float, float, float],
    preset: str,
    changes: dict[str, int],
    milliseconds: float,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    config = resolve(preset, changes)
    assert estimate_time(sdxl, config, GPU, RATE).step == pytest.approx(milliseconds / 1000, rel=0.1)
    monkeypatch.setitem(estimate.EFFICIENCY, "cuda", fitted[0])
    monkeypatch.setattr(estimate, "INTENSITY", fitted[1])
    assert estimate_time(sdxl, config, GPU, RATE).step == pytest.approx(milliseconds / 1000, rel=0.1)


@pytest.mark.parametrize(("preset", "seconds"), [("paper", 0.062), ("low-vram", 0.112)])
def test_the_estimate_holds_on_an_h100(sdxl: BaseProfile, preset: str, seconds: float) -> None:
    """Its large products are as fast as an H200's, its memory is slower."""
    assert estimate_time(sdxl, resolve(preset, {}), GPU, RATE).step == pytest.approx(seconds, rel=0.2)


def test_settings_that_fit_change_as_little_as_possible(sdxl: BaseProfile) -> None:
    def fitting(free_gib: float, target: Target = GPU, **settings: Any) -> Any:
        return find_fitting_settings(sdxl, resolve("paper", settings), target, int(free_gib * GIB))

    checkpointed = {"gradient_checkpointing": True}
    low_memory = {**checkpointed, "quantize": "int8"}
    assert fitting(10) == checkpointed
    assert fitting(8) == low_memory
    assert fitting(8, gradient_checkpointing=True) == {"quantize": "int8"}
    assert fitting(7.5, batch_size=16) == {**low_memory, "batch_size": 1}
    assert fitting(12, Target("cuda", "fp32", fused=True), precision="fp32") == {
        "precision": "bf16",
        **checkpointed,
    }
    assert fitting(6) == {**low_memory, "rank": 32}, "a smaller image would hardly lower the peak"
    assert fitting(7, resolution=2048, rank=2) == {**checkpointed, "resolution": 1024}
    assert fitting(1) is None


def test_out_of_memory_names_settings_that_need_less(
    make_request: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inputs, "load_unet", out_of_memory)
    monkeypatch.setattr(estimate, "find_fitting_settings", lambda *_: {"batch_size": 1})
    with pytest.raises(OutOfMemory) as caught:
        list(train(make_request(tmp_path, batch_size=8)))
    assert [remedy.settings for remedy in caught.value.remedies] == [{"batch_size": 1}, {"resolution": 32}]
    assert "--batch-size 1" in hint(caught.value)


def test_other_settings_replace_a_checkpoint(
    make_request: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without --force, the program would refuse to start again with other settings."""
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints/step-000004.safetensors").touch()
    monkeypatch.setattr(inputs, "load_unet", out_of_memory)
    with pytest.raises(OutOfMemory) as caught:
        list(train(make_request(tmp_path)))
    assert caught.value.remedies[0].settings["force"] is True


def test_a_resumed_training_keeps_its_settings(
    make_request: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inputs, "load_unet", out_of_memory)
    with pytest.raises(OutOfMemory) as caught:
        list(train(make_request(tmp_path, request={"resume": True, "name": "fox"})))
    assert "unziplora train --resume fox" in hint(caught.value)
    assert caught.value.remedies[1].settings == {"gradient_checkpointing": True, "force": True}


def test_a_warning_precedes_the_unet_if_the_training_may_not_fit(
    make_request: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The device is called a GPU here; the CPU computes."""
    monkeypatch.setattr(engine, "pick_device", lambda _: torch.device("cuda"))
    monkeypatch.setattr(estimate, "find_fitting_settings", lambda *_: {"gradient_checkpointing": True})
    events: dict[int, list[Any]] = {}
    for free in (10**8, 10**10):
        monkeypatch.setattr(engine, "free_memory", lambda _, free=free: free)
        events[free] = list(train(make_request(tmp_path / str(free))))
        assert events[free][-1] == Phase("finish")

    def warnings(free: int) -> list[Notice]:
        return [event for event in events[free] if isinstance(event, Notice) and "GPU" in event.text]

    assert warnings(10**10) == []
    (warning,) = warnings(10**8)
    assert "but 0.1 GB are free: it may run out of memory." in warning.text
    assert warning.text.endswith("Settings that fit: gradient-checkpointing on.")
    loads = next(e for e in events[10**8] if isinstance(e, Phase) and e.name == "load U-Net")
    assert events[10**8].index(warning) < events[10**8].index(loads)


def out_of_memory(*_: object, **__: object) -> None:
    raise torch.OutOfMemoryError("CUDA out of memory")
