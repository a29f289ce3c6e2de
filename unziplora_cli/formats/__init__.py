"""LoRA files: read in whichever known format, written in the one that every program loads."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

from unziplora_cli.errors import AdapterError
from unziplora_cli.formats import diffusers, kohya
from unziplora_cli.formats.tensors import read_tensors, some
from unziplora_cli.method.lora import LoRA, LoRAWeights

Scheme = Literal["kohya", "peft"]
"""The formats that can be written."""


@dataclass(frozen=True, slots=True)
class LoadedLoRA:
    """A LoRA in float32 on the CPU, its file's metadata, and the format it was in.

    ``scheme`` is ``kohya``, ``peft``, ``older`` or ``paper``.
    """

    lora: dict[str, LoRAWeights]
    metadata: Mapping[str, str]
    scheme: str

    @property
    def rank(self) -> int:
        """The largest rank of any layer."""
        return max((weights.rank for weights in self.lora.values()), default=0)


def read_lora(path: Path) -> LoadedLoRA:
    """Read a LoRA in any known format; raises AdapterError."""
    tensors, metadata = read_tensors(path)
    if kohya.recognises(tensors) or (not tensors and "ss_network_module" in metadata):
        return LoadedLoRA(kohya.parse(tensors), metadata, "kohya")
    if diffusers.recognises(tensors):
        return LoadedLoRA(diffusers.parse(tensors, metadata), metadata, diffusers.scheme(tensors))
    raise AdapterError(
        f"{path.name} is not a LoRA in a known format; it holds {some(list(tensors)) or 'nothing'}.",
        hint="Known: kohya's (lora_unet_down_blocks_...) and diffusers' (unet.down_blocks....).",
    )


def write_lora(
    path: Path,
    lora: LoRA,
    metadata: Mapping[str, str] | None = None,
    *,
    scheme: Scheme = "kohya",
    dtype: torch.dtype = torch.float16,
) -> None:
    """Write a LoRA whole or not at all; layers that change nothing are left out."""
    writer = kohya.write if scheme == "kohya" else diffusers.write
    writer(path, lora, metadata or {}, dtype)
