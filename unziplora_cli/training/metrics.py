"""The numbers of every step as a CSV file, for curves and for spreadsheets."""

from __future__ import annotations

import csv
import math
from collections import deque
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path

from unziplora_cli.errors import ProjectError
from unziplora_cli.files import atomic_write

FILE_NAME = "history.csv"


@dataclass(frozen=True, slots=True)
class Row:
    """One step, counted from 1. What is unknown, or no finite number, is None and an empty cell.

    ``overlap`` is the unweighted penalty, None while it does not count; ``grad_norm`` the joint norm before
    clipping; ``merge_content`` and ``merge_style`` the mean merge weight of a branch over all its columns
    after the step; ``seconds`` how long the step took.
    """

    step: int
    loss: float | None
    reconstruction: float | None
    overlap: float | None
    grad_norm: float | None
    merge_content: float | None
    merge_style: float | None
    seconds: float | None


COLUMNS = tuple(field.name for field in fields(Row))


def read(path: Path) -> tuple[Row, ...]:
    """All rows of a history; raises ProjectError when it is none."""
    try:
        with path.open(encoding="utf-8", newline="") as file:
            lines = csv.reader(file, strict=True)
            if tuple(next(lines, ())) != COLUMNS:
                raise ProjectError(f"{path} is not a history of a training: its first line is another.")
            return tuple(_row(line) for line in lines)
    except (OSError, ValueError, csv.Error) as error:
        raise ProjectError(f"The history {path} cannot be read: {error}.") from error


def append(path: Path, rows: Iterable[Row]) -> None:
    """Add rows to a history, which begins with them when there is none yet."""
    with path.open("a", encoding="utf-8", newline="") as file:
        lines = csv.writer(file, lineterminator="\n")
        if file.tell() == 0:
            lines.writerow(COLUMNS)
        lines.writerows(_cells(row) for row in rows)


def cut(path: Path, steps: int) -> tuple[Row, ...]:
    """Keep the first ``steps`` steps of a history, and return them.

    A training that was killed may have told steps that it has to make again, and may have left half a line.
    """
    if not path.exists():
        return ()
    whole = path.read_bytes()
    rows = []
    for line in csv.reader(whole[: whole.rfind(b"\n") + 1].decode("utf-8", "replace").splitlines()[1:]):
        try:
            row = _row(line)
        except ValueError:
            break
        if row.step != len(rows) + 1 or row.step > steps:
            break
        rows.append(row)
    with atomic_write(path) as temporary:
        append(temporary, rows)
    return tuple(rows)


def _row(cells: list[str]) -> Row:
    if len(cells) != len(COLUMNS):
        raise ValueError(f"a line has {len(cells)} cells instead of {len(COLUMNS)}")
    return Row(int(cells[0]), *(float(cell) if cell else None for cell in cells[1:]))


def _cells(row: Row) -> list[str]:
    return [
        "" if value is None or not math.isfinite(value) else repr(value) for value in asdict(row).values()
    ]


# Noticing that a training is lost: its loss is no number, or worse than that of knowing nothing.


WINDOW = 20
"""Steps to judge by. It is also more than fp16's scaler needs to halve its scale of 65536 to 1."""

KNOWING_NOTHING = 1.0
"""The mean square of the noise, which is the denoising loss of always guessing zero."""


@dataclass(slots=True)
class Watch:
    """Looks at the numbers of every step.

    ``scaled`` says that fp16's loss scaler leaves out the steps whose gradients overflow; then only many of
    them in a row count.
    """

    scaled: bool = False
    _first: list[float] = field(default_factory=list)
    _last: deque[float] = field(default_factory=lambda: deque(maxlen=WINDOW))
    _overflows: int = 0

    def see(self, step: int, loss: float, reconstruction: float, grad_norm: float) -> str | None:
        """What went wrong, in a sentence, if anything did."""
        if not math.isfinite(loss) or not (self.scaled or math.isfinite(grad_norm)):
            self._overflows += 1
            if not self.scaled:
                return f"The loss is no longer a number at step {step}."
            if self._overflows == WINDOW:
                return f"For {WINDOW} steps up to step {step} the loss was no number."
            return None
        self._overflows = 0
        if len(self._first) < WINDOW:
            self._first.append(reconstruction)
        self._last.append(reconstruction)
        mean, began = sum(self._last) / len(self._last), sum(self._first) / len(self._first)
        if len(self._last) == WINDOW and began < KNOWING_NOTHING < mean:
            return (
                f"The loss exploded: over the {WINDOW} steps up to step {step} it is {mean:.2g}, "
                f"and guessing no noise at all has {KNOWING_NOTHING:.2g}."
            )
        return None
