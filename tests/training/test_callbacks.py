"""History files, the divergence check, and what trackers receive."""

import csv
import math
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from tests.training.conftest import Parts
from unziplora_cli.errors import ProjectError
from unziplora_cli.training.callbacks import (
    HISTORY_COLUMNS,
    DivergenceMonitor,
    HistoryRow,
    Validation,
    append_history,
    merge_weight_curves,
    read_history,
    truncate_history,
)


def make_row(step: int, **changes: float | None) -> HistoryRow:
    values = {"loss": step / 7, "reconstruction": 0.1, "overlap": None, "grad_norm": 1.5}
    merges = {"merge_content": 1.0, "merge_style": 0.9, "seconds": 0.01}
    return HistoryRow(step, **{**values, **merges, **changes})


def test_history_is_read_as_written(tmp_path: Path) -> None:
    path = tmp_path / "history.csv"
    append_history(path, [make_row(1), make_row(2, overlap=0.25)])
    append_history(path, [make_row(3, loss=1 / 3)])
    assert read_history(path) == (make_row(1), make_row(2, overlap=0.25), make_row(3, loss=1 / 3))


def test_history_is_plain_csv(tmp_path: Path) -> None:
    path = tmp_path / "history.csv"
    append_history(path, [make_row(1, grad_norm=math.inf, merge_style=None)])
    with path.open(newline="") as file:
        (row,) = csv.DictReader(file)
    assert list(row) == [
        *("step", "loss", "reconstruction", "overlap", "grad_norm"),
        *("merge_content", "merge_style", "seconds"),
    ]
    assert (row["step"], row["overlap"], row["grad_norm"], row["merge_style"]) == ("1", "", "", "")


def test_truncated_history_has_no_gap_duplicate_or_half_line(tmp_path: Path) -> None:
    path = tmp_path / "history.csv"
    append_history(path, [make_row(step) for step in range(1, 6)])
    with path.open("a") as file:
        file.write("6,0.5,0.")
    assert [row.step for row in truncate_history(path, 9)] == [1, 2, 3, 4, 5]
    assert [row.step for row in truncate_history(path, 3)] == [1, 2, 3]
    append_history(path, [make_row(4)])
    assert read_history(path) == tuple(make_row(step) for step in range(1, 5))
    assert truncate_history(tmp_path / "none.csv", 3) == ()


@pytest.mark.parametrize("text", ["", "a,b\n1,2\n", ",".join(HISTORY_COLUMNS) + "\n1,2\n", "\udcff"])
def test_other_files_are_refused_as_history(tmp_path: Path, text: str) -> None:
    path = tmp_path / "history.csv"
    path.write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(ProjectError, match="history"):
        read_history(path)


def feed(monitor: DivergenceMonitor, losses: list[float], grad_norm: float = 1.0) -> list[str | None]:
    return [monitor.update(step, loss, loss, grad_norm) for step, loss in enumerate(losses, start=1)]


def test_noisy_losses_are_no_divergence() -> None:
    losses = [0.02, 0.9, 0.1, 1.8, 0.05] * 40  # the loss of a step depends on the timestep
    assert not any(feed(DivergenceMonitor(), losses))


def test_an_untrained_base_is_no_divergence() -> None:
    assert not any(feed(DivergenceMonitor(), [1.3, 1.1, 1.2] * 40))


def test_rising_above_the_loss_of_predicting_zero_is_divergence() -> None:
    problems = feed(DivergenceMonitor(), [0.2] * 50 + [1.5] * 50)
    first = next(step for step, problem in enumerate(problems, start=1) if problem)
    assert 50 < first <= 70
    assert "diverged" in str(problems[first - 1])
    assert f"up to step {first}" in str(problems[first - 1])


@pytest.mark.parametrize(("loss", "norm"), [(math.nan, 1.0), (math.inf, 1.0), (0.1, math.nan)])
def test_nan_is_divergence_at_once(loss: float, norm: float) -> None:
    monitor = DivergenceMonitor()
    assert not any(feed(monitor, [0.1] * 4))
    assert monitor.update(5, loss, loss, norm) == "The loss is NaN or infinite at step 5."


def test_fp16_overflows_are_divergence_only_in_a_row() -> None:
    monitor = DivergenceMonitor(scaled=True)
    assert not any(feed(monitor, [0.1] * 3, grad_norm=math.inf))
    assert not any(feed(monitor, [math.nan] * 19 + [0.1]))
    last = feed(monitor, [math.nan] * 20)[-1]
    assert last == "The loss was NaN or infinite for 20 steps up to step 20."


def test_merge_weight_curves_are_mean_and_minimum_of_each_block(make_parts: Callable[[], Parts]) -> None:
    layers = make_parts().layers
    block = [name for name in layers if name.startswith("mid_block.attentions.0.")]
    with torch.no_grad():
        layers[block[0]].style.merge[0] = 0.25
    curves = merge_weight_curves(layers)
    columns = sum(layers[name].out_features for name in block)
    assert curves["merge/style/mid_block.attentions.0/min"] == 0.25
    assert curves["merge/style/mid_block.attentions.0/mean"] == pytest.approx(1 - 0.75 / columns)
    assert curves["merge/content/mid_block.attentions.0/min"] == 1.0
    assert len(curves) == 2 * 2 * 11  # statistics, branches, attention groups of SDXL's U-Net


def test_validation_images_make_no_folder_of_a_training_that_is_gone(tmp_path: Path) -> None:
    validation = Validation(SimpleNamespace(folder=tmp_path / "home/fox"), None, None, None)
    with pytest.raises(FileNotFoundError):
        validation.generate(3)
    assert list(tmp_path.iterdir()) == []
