"""The history of a training: every step once, whatever happened."""

import csv
import math
from pathlib import Path

import pytest

from unziplora_cli.errors import ProjectError
from unziplora_cli.training import callbacks
from unziplora_cli.training.callbacks import HistoryRow


def row(step: int, **changes: float | None) -> HistoryRow:
    values = {"loss": step / 7, "reconstruction": 0.1, "overlap": None, "grad_norm": 1.5}
    merges = {"merge_content": 1.0, "merge_style": 0.9, "seconds": 0.01}
    return HistoryRow(step, **{**values, **merges, **changes})


def test_what_was_written_is_read_to_the_last_bit(tmp_path: Path) -> None:
    path = tmp_path / "history.csv"
    callbacks.append_history(path, [row(1), row(2, overlap=0.25)])
    callbacks.append_history(path, [row(3, loss=1 / 3)])
    assert callbacks.read_history(path) == (row(1), row(2, overlap=0.25), row(3, loss=1 / 3))


def test_a_spreadsheet_reads_it(tmp_path: Path) -> None:
    path = tmp_path / "history.csv"
    callbacks.append_history(path, [row(1, grad_norm=math.inf, merge_style=None)])
    with path.open(newline="") as file:
        (only,) = csv.DictReader(file)
    assert list(only) == [
        *("step", "loss", "reconstruction", "overlap", "grad_norm"),
        *("merge_content", "merge_style", "seconds"),
    ]
    assert (only["step"], only["overlap"], only["grad_norm"], only["merge_style"]) == ("1", "", "", "")


def test_a_cut_leaves_no_gap_no_double_and_no_half_line(tmp_path: Path) -> None:
    path = tmp_path / "history.csv"
    callbacks.append_history(path, [row(step) for step in range(1, 6)])
    with path.open("a") as file:
        file.write("6,0.5,0.")
    assert [kept.step for kept in callbacks.truncate_history(path, 9)] == [1, 2, 3, 4, 5]
    assert [kept.step for kept in callbacks.truncate_history(path, 3)] == [1, 2, 3]
    callbacks.append_history(path, [row(4)])
    assert callbacks.read_history(path) == tuple(row(step) for step in range(1, 5))
    assert callbacks.truncate_history(tmp_path / "none.csv", 3) == ()


@pytest.mark.parametrize(
    "text", ["", "a,b\n1,2\n", ",".join(callbacks.HISTORY_COLUMNS) + "\n1,2\n", "\udcff"]
)
def test_what_is_no_history_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "history.csv"
    path.write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(ProjectError, match="history"):
        callbacks.read_history(path)
