"""Line charts and histograms for the report, as SVG paths, rectangles and axis labels."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

WIDTH, HEIGHT = 360.0, 220.0
LEFT, RIGHT, TOP, BOTTOM = 42.0, 348.0, 12.0, 190.0
"""Size of a chart and the frame of its curves, in SVG units."""

BUCKETS = 300
"""Maximum number of points of a line."""


@dataclass(frozen=True, slots=True)
class Tick:
    """A label on an axis at position ``place``."""

    place: float
    label: str


@dataclass(frozen=True, slots=True)
class Line:
    """One curve as an SVG path, with its first and last value; ``raw`` is the path before smoothing."""

    name: str
    path: str
    first: float
    last: float
    raw: str = ""


@dataclass(frozen=True, slots=True)
class LineChart:
    """Curves over training steps."""

    lines: tuple[Line, ...]
    x: tuple[Tick, ...]
    y: tuple[Tick, ...]


@dataclass(frozen=True, slots=True)
class Bar:
    """A vertical bar for ``count`` values."""

    name: str
    x: float
    y: float
    width: float
    height: float
    count: int


@dataclass(frozen=True, slots=True)
class Histogram:
    """Bars over values from 0 to 1."""

    bars: tuple[Bar, ...]
    x: tuple[Tick, ...]
    y: tuple[Tick, ...]


Points = Sequence[tuple[int, float | None]]
"""Steps and values; None where nothing was measured."""


def line_chart(curves: Mapping[str, Points], *, smooth: bool, top: float | None = None) -> LineChart | None:
    """Draw curves with a vertical axis from 0 to ``top`` (default: their maximum).

    With ``smooth`` each curve is a running mean over a twelfth of its length, drawn over its raw values.
    Returns None if there is no value.
    """
    last = float(max((step for points in curves.values() for step, _ in points), default=1)) or 1.0
    thin = {name: _buckets(points) for name, points in curves.items()}
    thin = {name: points for name, points in thin.items() if _values(points)}
    values = sorted(value for points in thin.values() for value in _values(points))
    if not values:
        return None
    if top is None:
        # A few outliers among the raw values would flatten the smoothed line.
        top = 1.1 * values[int(0.98 * (len(values) - 1))] if smooth else values[-1]
    top = top if top > 0 else 1.0

    def path(points: Sequence[tuple[float, float | None]]) -> str:
        text, command = "", "M"
        for step, value in points:
            if value is not None:
                text += f"{command}{_x(step / last):.1f} {_y(max(0.0, min(value / top, 1.0))):.1f}"
            command = "M" if value is None else "L"
        return text

    lines = []
    for name, raw in thin.items():
        points = _smoothed(raw) if smooth else raw
        finite = _values(points)
        lines.append(Line(name, path(points), finite[0], finite[-1], path(raw) if smooth else ""))
    return LineChart(
        tuple(lines),
        tuple(Tick(_x(step / last), f"{step:,.0f}") for step in _round_steps(last, 4, whole=True)),
        tuple(Tick(_y(value / top), f"{value:g}") for value in _round_steps(top, 4)),
    )


def histogram(groups: Mapping[str, Sequence[float]], bins: int = 20) -> Histogram | None:
    """Count the values in [0, 1] of each group, bars side by side; None if there is no value."""
    counts = {name: _count(values, bins) for name, values in groups.items()}
    highest = max(map(max, counts.values()), default=0)
    if highest == 0:
        return None
    slot = (RIGHT - LEFT) / bins
    width = slot * 0.86 / len(counts)
    bars = []
    for place, (name, numbers) in enumerate(counts.items()):
        for position, number in enumerate(numbers):
            x = LEFT + slot * (position + 0.07) + place * width
            y = _y(number / highest)
            bars.append(Bar(name, round(x, 1), round(y, 1), round(width, 1), round(BOTTOM - y, 1), number))
    return Histogram(
        tuple(bars),
        tuple(Tick(_x(value / 4), f"{value / 4:g}") for value in range(5)),
        tuple(Tick(_y(count / highest), f"{count:,.0f}") for count in _round_steps(highest, 4, whole=True)),
    )


def _count(values: Sequence[float], bins: int) -> list[int]:
    numbers = [0] * bins
    for value in values:
        numbers[min(bins - 1, max(0, int(value * bins)))] += 1
    return numbers


def _x(fraction: float) -> float:
    return LEFT + fraction * (RIGHT - LEFT)


def _y(fraction: float) -> float:
    return BOTTOM - fraction * (BOTTOM - TOP)


def _buckets(points: Points) -> list[tuple[float, float | None]]:
    """Reduce to at most BUCKETS points, each a mean of neighbors; None and infinite values are gaps."""
    size = max(1, math.ceil(len(points) / BUCKETS))
    thin: list[tuple[float, float | None]] = []
    for first in range(0, len(points), size):
        part = points[first : first + size]
        finite = [value for _, value in part if value is not None and math.isfinite(value)]
        thin.append((fmean(step for step, _ in part), fmean(finite) if finite else None))
    return thin


def _smoothed(points: Sequence[tuple[float, float | None]]) -> list[tuple[float, float | None]]:
    half_window = len(points) // 24
    smooth: list[tuple[float, float | None]] = []
    for index, (step, value) in enumerate(points):
        near = _values(points[max(0, index - half_window) : index + half_window + 1])
        smooth.append((step, None if value is None else fmean(near)))
    return smooth


def _values(points: Sequence[tuple[float, float | None]]) -> list[float]:
    return [value for _, value in points if value is not None]


def _round_steps(end: float, about: int, *, whole: bool = False) -> list[float]:
    """Round numbers from 0 to ``end``, at most ``about`` besides 0; integers with ``whole``."""
    power = 10.0 ** math.floor(math.log10(end / about))
    step = next(factor * power for factor in (1, 2, 5, 10) if end / (factor * power) <= about)
    step = max(1.0, step) if whole else step
    return [number * step for number in range(math.floor(end / step * (1 + 1e-9)) + 1)]
