"""What the layers have learned, taken out of them and written as files."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from unziplora_cli.adapters.lora_file import write_lora
from unziplora_cli.adapters.merge_weights import write_merge
from unziplora_cli.method.inject import extract, extract_merge
from unziplora_cli.method.lora import LoRA, MergeWeights
from unziplora_cli.method.separation import Layers

Metadata = Mapping[str, Mapping[str, str]]
"""What each file says about itself: ``content``, ``style`` and ``merge``."""


@contextmanager
def closed(layers: Layers) -> Iterator[None]:
    """Let only the chosen columns take part for as long as this lasts."""
    branches = [branch for layer in layers.values() for branch in layer.branches()]
    gates = [branch.gate.clone() for branch in branches]
    for branch in branches:
        branch.close()
    try:
        yield
    finally:
        for branch, gate in zip(branches, gates, strict=True):
            branch.gate.copy_(gate)


def write_adapters(
    folder: Path,
    content: LoRA,
    style: LoRA,
    content_merge: MergeWeights,
    style_merge: MergeWeights,
    metadata: Metadata,
) -> None:
    """Write content.safetensors, style.safetensors and merge.safetensors into ``folder``."""
    folder.mkdir(parents=True, exist_ok=True)
    write_lora(folder / "content.safetensors", content, metadata.get("content"))
    write_lora(folder / "style.safetensors", style, metadata.get("style"))
    write_merge(folder / "merge.safetensors", content_merge, style_merge, metadata.get("merge"))


def write_layers(folder: Path, layers: Layers, metadata: Metadata, *, chosen: bool) -> None:
    """Write the live layers as a finished training would: with chosen columns alone once there are any."""
    if chosen:
        with closed(layers):
            write_layers(folder, layers, metadata, chosen=False)
        return
    parts = (extract(layers, "content"), extract(layers, "style"))
    merges = (extract_merge(layers, "content"), extract_merge(layers, "style"))
    write_adapters(folder, *parts, *merges, metadata)
