"""Which branch owns which columns in which block of the U-Net, as pictures and numbers."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from unziplora_cli.images import DataURI, data_uri

Columns = tuple[NDArray[np.bool_], NDArray[np.bool_]]
"""Which of a projection's output columns are open to content, and which to style, [out] each."""

OWNERS = ("free", "style", "content", "both")
COLORS = ((0, 0, 0), (217, 132, 52), (56, 119, 190), (134, 78, 160))
"""Of the owners in that order; free columns are transparent."""

WIDTH, HEIGHT = 720, 56
"""Pixels that a map has at least, so that a browser need not enlarge it."""


@dataclass(frozen=True, slots=True)
class BlockMap:
    """One group of transformer blocks: a map with one row per projection, and its columns by owner."""

    block: str
    picture: DataURI
    counts: Mapping[str, int]

    @property
    def total(self) -> int:
        """All columns of the block."""
        return sum(self.counts.values())

    def share(self, owner: str) -> float:
        """The part of the columns that belongs to an owner, in percent."""
        return 100 * self.counts[owner] / self.total


def block_maps(layers: Mapping[str, Columns]) -> tuple[BlockMap, ...]:
    """One map per block, in the order of the network."""
    blocks: dict[str, list[NDArray[np.int_]]] = {}
    for name in sorted(layers, key=_place):
        content, style = layers[name]
        blocks.setdefault(name.split(".transformer_blocks.")[0], []).append(2 * content.astype(int) + style)
    return tuple(BlockMap(block, _picture(rows), _counts(rows)) for block, rows in blocks.items())


def totals(maps: tuple[BlockMap, ...]) -> Mapping[str, int]:
    """The columns of the whole U-Net by owner."""
    return {owner: sum(each.counts[owner] for each in maps) for owner in OWNERS}


def _counts(rows: list[NDArray[np.int_]]) -> Mapping[str, int]:
    numbers = np.bincount(np.concatenate(rows), minlength=len(OWNERS))
    return {owner: int(number) for owner, number in zip(OWNERS, numbers, strict=True)}


def _picture(rows: list[NDArray[np.int_]]) -> DataURI:
    """Projections from top to bottom, their columns from left to right; narrow projections are stretched."""
    widest = max(map(len, rows))
    width = widest * max(1, -(-WIDTH // widest))
    height = max(2, HEIGHT // len(rows))
    stretched = [row[np.arange(width) * len(row) // width] for row in rows]
    image = Image.fromarray(np.repeat(np.stack(stretched), height, axis=0).astype(np.uint8)).convert("P")
    image.putpalette([level for color in COLORS for level in color])
    return data_uri(image)


def _place(layer: str) -> list[Any]:
    """Down, middle, up; numbers by size."""
    return [int(part) if part.isdigit() else part for part in re.split(r"[._]", layer)]
