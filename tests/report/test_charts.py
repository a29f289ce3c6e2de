"""Positions of curves, bars and labels, computed by hand from the frame."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from unziplora_cli.report.charts import BOTTOM, BUCKETS, LEFT, RIGHT, TOP, histogram, line_chart


def points(path: str) -> list[tuple[str, float, float]]:
    """The commands of an SVG path with their places."""
    return [(kind, float(x), float(y)) for kind, x, y in re.findall(r"([ML])([\d.]+) ([\d.]+)", path)]


def test_line_connects_the_values():
    chart = line_chart({"up": [(0, 0.0), (5, 0.5), (10, 1.0)]}, smooth=False, top=1.0)
    (line,) = chart.lines
    middle = ((LEFT + RIGHT) / 2, (TOP + BOTTOM) / 2)
    assert points(line.path) == [("M", LEFT, BOTTOM), ("L", *middle), ("L", RIGHT, TOP)]
    assert (line.first, line.last, line.raw) == (0.0, 1.0, "")
    assert [(tick.label, tick.place) for tick in chart.y] == [
        ("0", BOTTOM),
        ("0.5", middle[1]),
        ("1", TOP),
    ]


def test_missing_and_infinite_values_are_gaps():
    values = [1.0, None, 1.0, 1.0, float("nan"), float("inf"), 1.0]
    chart = line_chart({"gappy": list(enumerate(values, 1))}, smooth=True)
    kinds = [kind for kind, _, _ in points(chart.lines[0].path)]
    assert kinds == ["M", "M", "L", "M"]


def test_empty_curves_are_omitted():
    assert line_chart({"none": []}, smooth=True) is None
    assert line_chart({"none": [(1, None), (2, None)]}, smooth=False) is None
    chart = line_chart({"none": [(1, None)], "some": [(1, 0.5)]}, smooth=False)
    assert [line.name for line in chart.lines] == ["some"]


def test_long_curve_is_reduced_to_means():
    long = [(step, float(step % 2)) for step in range(1, 60_001)]
    chart = line_chart({"long": long}, smooth=False, top=1.0)
    drawn = points(chart.lines[0].path)
    assert len(drawn) <= BUCKETS
    assert {y for _, _, y in drawn} == {(TOP + BOTTOM) / 2}


def test_smoothing_keeps_a_constant_and_reduces_noise():
    noisy = [(step, float(step * 7 % 5)) for step in range(200)]
    chart = line_chart({"noisy": noisy, "flat": [(step, 2.0) for step in range(200)]}, smooth=True, top=4.0)
    noisy_line, flat = chart.lines
    assert {y for _, _, y in points(flat.path)} == {(TOP + BOTTOM) / 2}
    smooth = [y for _, _, y in points(noisy_line.path)]
    raw = [y for _, _, y in points(noisy_line.raw)]
    assert max(smooth) - min(smooth) < (max(raw) - min(raw)) / 4


@given(
    st.lists(st.none() | st.floats(width=32), min_size=1, max_size=700),
    st.booleans(),
    st.none() | st.floats(0.001, 1000),
)
def test_all_points_are_inside_the_frame(values, smooth, top):
    chart = line_chart({"any": list(enumerate(values, 1))}, smooth=smooth, top=top)
    if chart is None:
        return
    for line in chart.lines:
        for path in filter(None, (line.path, line.raw)):
            assert "nan" not in path
            drawn = points(path)
            assert len(drawn) == path.count("M") + path.count("L")
            assert all(LEFT <= x <= RIGHT and TOP <= y <= BOTTOM for _, x, y in drawn)
    for ticks, low, high in ((chart.x, LEFT, RIGHT), (chart.y, TOP, BOTTOM)):
        assert 1 <= len(ticks) <= 5
        assert all(low - 0.1 <= tick.place <= high + 0.1 for tick in ticks)
        assert len({tick.label for tick in ticks}) == len(ticks)


def test_bars_count_every_value_once():
    chart = histogram({"content": [0.0, 0.04, 1.0], "style": [0.5] * 6}, bins=20)
    counts = {(bar.name, round((bar.x - LEFT) / (RIGHT - LEFT) * 20 - 0.5)): bar.count for bar in chart.bars}
    assert {key: count for key, count in counts.items() if count} == {
        ("content", 0): 2,
        ("content", 19): 1,
        ("style", 10): 6,
    }
    tallest = max(chart.bars, key=lambda bar: bar.count)
    assert tallest.y == TOP
    third = next(bar for bar in chart.bars if bar.count == 2)
    assert third.height == pytest.approx(tallest.height / 3, abs=0.1)
    assert all(bar.y + bar.height == pytest.approx(BOTTOM, abs=0.1) for bar in chart.bars)
    assert histogram({"content": [], "style": []}) is None
