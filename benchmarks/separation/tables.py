"""The table as Markdown, and contact sheets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from PIL import Image

from benchmarks.separation.classification import COLUMNS, interval
from benchmarks.separation.scenes import SIZE, Sample

TILES = (
    ("content", 0),
    ("content", 1),
    ("context", 0),
    ("context", 1),
    ("style", 0),
    ("style", 1),
    ("combine", 0),
    ("combine", 1),
    ("scene", 0),
    ("cross", 0),
    ("cross", 1),
)
"""Columns of a sheet, after the training image and a rendered photo of the individual."""


def markdown(results: Mapping[str, Mapping[str, np.ndarray]]) -> str:
    """One row per method: the mean of every column with its 95 % interval."""
    measured = [c for c in COLUMNS if any(not np.isnan(columns[c]).all() for columns in results.values())]
    lines = ["| method | " + " | ".join(measured) + " |", "|---" * (len(measured) + 1) + "|"]
    for name, columns in results.items():
        cells = []
        for column in measured:
            mean, low, high = interval(columns[column])
            cells.append("" if np.isnan(mean) else f"{_short(mean)} ({_short(low)} to {_short(high)})")
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def by_style(samples: Sequence[Sample], results: Mapping[str, Mapping[str, np.ndarray]]) -> str:
    """One row per method and style: the means of mean, cross, identity and marking."""
    columns = ("mean", "cross", "scene", "identity", "marking")
    lines = ["| method | style | " + " | ".join(columns) + " |", "|---" * (len(columns) + 2) + "|"]
    for name, scores in results.items():
        for style in dict.fromkeys(sample.style for sample in samples):
            chosen = [number for number, sample in enumerate(samples) if sample.style == style]
            means = [interval(scores[column][chosen])[0] for column in columns]
            cells = ["" if np.isnan(mean) else _short(mean) for mean in means]
            lines.append(f"| {name} | {style} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def sheet(samples: Sequence[Sample], images: Mapping[tuple[str, int], Sequence[np.ndarray]]) -> Image.Image:
    """One row per sample: the training image, a rendered photo of the individual, then ``TILES``."""
    page = Image.new("RGB", ((len(TILES) + 2) * SIZE, len(samples) * SIZE), "white")
    for row, sample in enumerate(samples):
        tiles = [sample.image(), sample.photos(1)[0]]
        for purpose, number in TILES:
            generated = images.get((purpose, sample.number), ())
            tiles.append(
                generated[number] if number < len(generated) else np.full((SIZE, SIZE, 3), 255, np.uint8)
            )
        for column, tile in enumerate(tiles):
            page.paste(Image.fromarray(tile), (column * SIZE, row * SIZE))
    return page


def _short(value: float) -> str:
    return f"{value:.2f}".removeprefix("0") if value < 1 else f"{value:.2f}"
