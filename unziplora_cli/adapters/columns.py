"""Which output columns of the U-Net's projections each branch uses: counts, overlaps and maps.

Everything is read from the weights; no network runs. "Columns" are the output features of a projection, as in
the paper (section 3.3): the rows of a LoRA's ``up``.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from unziplora_cli.method.lora import LoRAPair

OWNERS = ("free", "style", "content", "both")
COLORS = ((238, 238, 238), (217, 132, 52), (56, 119, 190), (134, 78, 160))
"""RGB color of each owner on a column map, in the order of OWNERS."""


@dataclass(frozen=True, slots=True)
class LayerColumns:
    """The columns of one projection.

    Attributes:
        content, style: boolean [out], the columns that the branch uses. A column whose row of ``up`` is all
            zero is unused.
        content_merge, style_merge: [out], the merge weights; zero for an unused column.
    """

    content: Tensor
    style: Tensor
    content_merge: Tensor
    style_merge: Tensor


@dataclass(frozen=True, slots=True)
class ColumnCounts:
    """How many columns each branch uses; ``shared`` are used by both."""

    content: int
    style: int
    shared: int
    total: int

    def owned_by(self, owner: str) -> int:
        """Columns of one of OWNERS."""
        return {
            "free": self.total - self.content - self.style + self.shared,
            "style": self.style - self.shared,
            "content": self.content - self.shared,
            "both": self.shared,
        }[owner]

    def percent(self, owner: str) -> float:
        """Columns of one of OWNERS, in percent of all."""
        return 100 * self.owned_by(owner) / self.total


def read_columns(loras: LoRAPair) -> dict[str, LayerColumns]:
    """The columns of every projection that a LoRA or merge weights name, in the order of the files.

    Without merge weights a branch acts at full strength, as it does in generation.
    """
    branches = (loras.content or {}, loras.style or {})
    merges = (loras.content_merge or {}, loras.style_merge or {})
    layers = {}
    for name in dict.fromkeys(name for weights in (*merges, *branches) for name in weights):
        masks = [lora[name].up.any(dim=1) if name in lora else None for lora in branches]
        weights = [merge.get(name) for merge in merges]
        width = next(len(column) for column in (*weights, *masks) if column is not None)
        used = [torch.zeros(width, dtype=torch.bool) if mask is None else mask for mask in masks]
        factors = [
            mask.float() if weight is None else weight.float() * mask
            for weight, mask in zip(weights, used, strict=True)
        ]
        layers[name] = LayerColumns(*used, *factors)
    return layers


def group_by_block(layers: Mapping[str, LayerColumns]) -> dict[str, dict[str, LayerColumns]]:
    """The projections of each attention group, such as ``mid_block.attentions.0``, in the U-Net's order."""
    blocks: dict[str, dict[str, LayerColumns]] = {}
    for name in sorted(layers, key=_unet_order):
        blocks.setdefault(name.split(".transformer_blocks.")[0], {})[name] = layers[name]
    return blocks


def count_columns(layers: Mapping[str, LayerColumns]) -> ColumnCounts:
    """The columns of all ``layers`` together."""
    columns = list(layers.values())
    return ColumnCounts(
        content=sum(int(layer.content.sum()) for layer in columns),
        style=sum(int(layer.style.sum()) for layer in columns),
        shared=sum(int((layer.content & layer.style).sum()) for layer in columns),
        total=sum(len(layer.content) for layer in columns),
    )


def merge_cosine(layers: Mapping[str, LayerColumns]) -> float:
    """Cosine of the branches' merge weights over all columns: 0 if they share none, 1 if they are equal."""
    content = torch.cat([layer.content_merge for layer in layers.values()])
    style = torch.cat([layer.style_merge for layer in layers.values()])
    norms = float(content.norm() * style.norm())
    return min(1.0, float(content @ style) / norms) if norms > 0.0 else 0.0


def shared_share(layers: Mapping[str, LayerColumns]) -> float:
    """Columns that both branches use, as a share of those that either uses (intersection over union)."""
    counts = count_columns(layers)
    either = counts.content + counts.style - counts.shared
    return counts.shared / either if either else 0.0


def column_map(masks: Mapping[str, tuple[Tensor, Tensor]], *, min_width: int, min_height: int) -> Image.Image:
    """Draw the owner of every column: one band per projection, one vertical strip per column.

    Args:
        masks: (content, style) boolean [out] of each projection, from top to bottom. Projections with fewer
            columns than the widest are stretched to its width.
        min_width, min_height: the map is enlarged by whole factors to about this size in pixels.

    Returns:
        A palette image with COLORS; index 0 is free.
    """
    widest = max(len(content) for content, _ in masks.values())
    width = widest * max(1, -(-min_width // widest))
    bands = []
    for content, style in masks.values():
        owners = (2 * content.int() + style.int()).cpu().numpy()
        bands.append(owners[np.arange(width) * len(owners) // width])
    height = max(2, min_height // len(bands))
    image = Image.fromarray(np.repeat(np.stack(bands), height, axis=0).astype(np.uint8)).convert("P")
    image.putpalette([level for color in COLORS for level in color])
    return image


def _unet_order(layer: str) -> list[tuple[int, str]]:
    """Sort key: down, mid, up; then by number, so that block 10 follows block 9."""
    return [(int(part), "") if part.isdigit() else (0, part) for part in re.split(r"[._]", layer)]
