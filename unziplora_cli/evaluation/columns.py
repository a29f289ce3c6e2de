"""Which output columns each branch uses: read from the weights alone, no network is run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from unziplora_cli.method.lora import LoRAPair, LoRAWeights
from unziplora_cli.projects.manifest import BlockColumns


@dataclass(frozen=True, slots=True)
class LayerColumns:
    """One projection: which columns are open to each branch, [out] boolean, and their merge weights [out].

    A closed column is an all-zero row of ``up``; its merge weight counts as zero.
    """

    content: Tensor
    style: Tensor
    content_merge: Tensor
    style_merge: Tensor


def read_columns(branches: LoRAPair) -> dict[str, LayerColumns]:
    """Every projection that either branch or its merge weights name, in the order of the files.

    A branch without merge weights for a layer acts there at full strength, as it does when drawing.
    """
    loras = (branches.content or {}, branches.style or {})
    weights = (branches.content_merge or {}, branches.style_merge or {})
    layers = {}
    for name in dict.fromkeys(name for each in (*weights, *loras) for name in each):
        parts = [_open(lora.get(name)) for lora in loras]
        merges = [merge.get(name) for merge in weights]
        width = next(len(part) for part in (*merges, *parts) if part is not None)
        opened = [torch.zeros(width, dtype=torch.bool) if part is None else part for part in parts]
        factors = [
            (torch.ones(width) if merge is None else merge.float()) * part
            for merge, part in zip(merges, opened, strict=True)
        ]
        layers[name] = LayerColumns(*opened, *factors)
    return layers


def count_by_block(layers: Mapping[str, LayerColumns]) -> tuple[BlockColumns, ...]:
    """The counts of each group of transformer blocks of the U-Net, in the order of the network."""
    groups: dict[str, list[LayerColumns]] = {}
    for name, layer in layers.items():
        groups.setdefault(name.split(".transformer_blocks.")[0], []).append(layer)
    return tuple(
        BlockColumns(
            block,
            content=sum(int(layer.content.sum()) for layer in groups[block]),
            style=sum(int(layer.style.sum()) for layer in groups[block]),
            shared=sum(int((layer.content & layer.style).sum()) for layer in groups[block]),
            total=sum(len(layer.content) for layer in groups[block]),
        )
        for block in sorted(groups, key=_place)
    )


def merge_cosine(layers: Mapping[str, LayerColumns]) -> float:
    """Cosine of the two branches' merge weights over all columns; 0 when they share none, 1 when equal."""
    content = torch.cat([layer.content_merge for layer in layers.values()])
    style = torch.cat([layer.style_merge for layer in layers.values()])
    norms = float(content.norm() * style.norm())
    return min(1.0, float(content @ style) / norms) if norms > 0.0 else 0.0


def shared_share(layers: Mapping[str, LayerColumns]) -> float:
    """Columns that both branches use, as a share of those that either uses."""
    either = sum(int((layer.content | layer.style).sum()) for layer in layers.values())
    both = sum(int((layer.content & layer.style).sum()) for layer in layers.values())
    return both / either if either else 0.0


def _open(weights: LoRAWeights | None) -> Tensor | None:
    return None if weights is None else weights.up.abs().amax(dim=1) > 0


def _place(block: str) -> tuple[int, str]:
    """Down, then the middle, then up."""
    return ("down", "mid", "up").index(block.split("_")[0]), block
