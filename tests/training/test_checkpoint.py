"""Checkpoints that are damaged or do not match, and what resuming restores."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from tests.adapters.test_bad_files import assert_usable_once_shortened
from tests.training.conftest import Parts
from unziplora_cli.config import SCHEDULERS, TrainConfig
from unziplora_cli.errors import ProjectError
from unziplora_cli.training.checkpoint import FORMAT, TrainingState
from unziplora_cli.training.optimizer import build_lr_scheduler


@pytest.fixture
def state(make_parts: Callable[[], Parts]) -> TrainingState:
    parts = make_parts()
    return TrainingState(parts.layers, parts.step.optimizer, parts.step.lr_scheduler)


def test_other_files_are_refused_as_checkpoint(state: TrainingState, tmp_path: Path) -> None:
    damaged, other = tmp_path / "damaged.safetensors", tmp_path / "other.safetensors"
    damaged.write_bytes(b"\x00" * 20)
    save_file({"x": torch.zeros(1)}, other)
    for path in (damaged, other, tmp_path / "missing.safetensors"):
        with pytest.raises(ProjectError, match=path.name):
            state.load(path, {})


def test_a_checkpoint_that_is_shortened_while_it_is_loaded_costs_nothing(tmp_path: Path) -> None:
    path, metadata = tmp_path / "step-000001.safetensors", {"format": FORMAT, "state": "{}"}
    assert_usable_once_shortened("unziplora_cli.training.checkpoint", "_read", path, metadata)


def test_checkpoint_of_another_network_is_refused(state: TrainingState, tmp_path: Path) -> None:
    path = tmp_path / "state.safetensors"
    state.save(path, 3, {})
    fewer = dict(list(state.layers.items())[1:])
    smaller = TrainingState(fewer, state.optimizer, state.lr_scheduler)
    with pytest.raises(ProjectError, match="another base or rank"):
        smaller.load(path, {})


@pytest.mark.parametrize("name", SCHEDULERS)
def test_every_schedule_resumes_at_the_same_rate(
    name: str, state: TrainingState, make_parts: Callable[[], Parts], tmp_path: Path
) -> None:
    config = TrainConfig(lr_scheduler=name, lr_warmup_steps=3, steps=10)
    path = tmp_path / "state.safetensors"

    def scheduled(source: TrainingState) -> TrainingState:
        return TrainingState(source.layers, source.optimizer, build_lr_scheduler(config, source.optimizer))

    first = scheduled(state)
    for step in range(10):
        if step == 4:
            first.save(path, step, {})
        first.optimizer.step()
        first.lr_scheduler.step()

    parts = make_parts()
    second = scheduled(TrainingState(parts.layers, parts.step.optimizer, parts.step.lr_scheduler))
    assert second.load(path, {}) == 4
    for _ in range(6):
        second.optimizer.step()
        second.lr_scheduler.step()
    assert second.lr_scheduler.get_last_lr() == first.lr_scheduler.get_last_lr()
