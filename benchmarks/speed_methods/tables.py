"""The tables as Markdown."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from benchmarks.speed_methods.measurement import Measurement

Results = Mapping[str, Measurement]
EMPTY = "-"
FLOOR = "floor"


def training(results: Results) -> str:
    """Time, memory, start-up and share of the floor of every training method."""
    floor = results.get(FLOOR, Measurement()).seconds
    return _table(
        "training",
        results,
        {
            "ms per step": _milliseconds,
            "peak GiB": _gibibytes,
            "s before": lambda row: _number(row.before, 1),
            "whole min": lambda row: _number(None if row.whole is None else row.whole / 60, 1),
            "of the floor": lambda row: _share(floor, row.seconds),
            "note": lambda row: row.note or EMPTY,
        },
    )


def generation(results: Results) -> str:
    """Time and memory of a denoising step, relative to the first row."""
    first = next(iter(results.values()), Measurement()).seconds
    return _table(
        "generation",
        results,
        {
            "ms per step": _milliseconds,
            "of the first": lambda row: _ratio(row.seconds, first),
            "peak GiB": _gibibytes,
            "note": lambda row: row.note or EMPTY,
        },
    )


def scaling(results: Results) -> str:
    """Time and memory of our training by size."""
    return _table(
        "scaling",
        results,
        {
            "ms per step": _milliseconds,
            "peak GiB": _gibibytes,
            "note": lambda row: row.note or EMPTY,
        },
    )


def _table(title: str, results: Results, columns: Mapping[str, Callable[[Measurement], str]]) -> str:
    lines = [f"| {title} | " + " | ".join(columns) + " |", "|---" * (1 + len(columns)) + "|"]
    for name, row in results.items():
        cells = [cell(row).replace("|", "/") for cell in columns.values()]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def _milliseconds(row: Measurement) -> str:
    if row.seconds is None:
        return EMPTY
    return _number(1000 * row.seconds, 1 if row.seconds < 0.1 else 0)


def _gibibytes(row: Measurement) -> str:
    return EMPTY if row.memory is None else _number(row.memory / 2**30, 1)


def _share(floor: float | None, seconds: float | None) -> str:
    return EMPTY if floor is None or seconds is None else f"{floor / seconds:.0%}"


def _ratio(seconds: float | None, first: float | None) -> str:
    return EMPTY if first is None or seconds is None else f"{seconds / first:.2f}"


def _number(value: float | None, digits: int) -> str:
    return EMPTY if value is None else f"{value:.{digits}f}"
