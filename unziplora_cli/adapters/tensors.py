"""Safetensors files: read with clear errors, written whole or not at all."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from math import isfinite
from pathlib import Path
from typing import Literal

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from unziplora_cli.adapters.metadata import encode_header, weight_hashes
from unziplora_cli.errors import AdapterError
from unziplora_cli.files import atomic_write
from unziplora_cli.method.lora import LoRA, LoRAWeights


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """All tensors of a file, on the CPU, and its metadata; raises AdapterError."""
    if not path.is_file():
        raise AdapterError(f"There is no file {path}.")
    try:
        with safe_open(path, framework="pt") as file:
            return {key: file.get_tensor(key) for key in file.keys()}, dict(file.metadata() or {})  # noqa: SIM118
    except (SafetensorError, OSError, AttributeError, ValueError, TypeError) as error:
        raise AdapterError(
            f"{path} is not a whole safetensors file: {error}.", hint="Fetch or export the file again."
        ) from error


def write_tensors(
    path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str], *, hashed: bool = False
) -> None:
    """Write a file with string metadata; an older file of that name stays until the new one is whole.

    Equal tensors and metadata are equal bytes. With ``hashed`` the metadata also tells the hashes of the
    weights.
    """
    whole = {key: tensor.detach().cpu().contiguous() for key, tensor in tensors.items()}
    file = save(whole, metadata={"format": "pt", **metadata})
    end = 8 + int.from_bytes(file[:8], "little")
    header, payload = json.loads(file[8:end]), memoryview(file)[end:]
    if hashed:
        header["__metadata__"] |= weight_hashes(header, payload)
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    # Not save_file: the file it makes can be read by its owner alone, whatever the umask.
    with atomic_write(path) as temporary, temporary.open("wb") as out:
        out.write(encode_header(header))
        out.write(payload)


def summarize(names: list[str], limit: int = 3) -> str:
    """The first few of ``names``, for an error message."""
    return ", ".join(names[:limit]) + (f" and {len(names) - limit} more" if len(names) > limit else "")


# What all LoRA formats share: a ``down`` and an ``up`` tensor for each adapted layer.


Part = Literal["down", "up", "alpha"]


def nonzero_layers(lora: LoRA) -> dict[str, LoRAWeights]:
    """The layers that change anything; the others need not be written."""
    return {layer: weights for layer, weights in lora.items() if bool(torch.any(weights.up != 0))}


@dataclass(slots=True)
class LoRATensors:
    """The tensors of a file, sorted by layer; ``unknown`` are the keys that name no layer."""

    downs: dict[str, Tensor] = field(default_factory=dict)
    ups: dict[str, Tensor] = field(default_factory=dict)
    alphas: dict[str, float] = field(default_factory=dict)
    unknown: list[str] = field(default_factory=list)

    def put(self, key: str, layer: str | None, part: Part | None, tensor: Tensor) -> None:
        """File one tensor under its layer; raises AdapterError when it cannot be what its name says."""
        if layer is None or part is None:
            self.unknown.append(key)
            return
        if part == "alpha":
            place: dict[str, Tensor] | dict[str, float] = self.alphas
            value: Tensor | float = _number(key, tensor)
        else:
            place, value = (self.downs, tensor) if part == "down" else (self.ups, tensor)
            if not tensor.is_floating_point():
                kind = str(tensor.dtype).removeprefix("torch.")
                raise AdapterError(f"{key} holds {kind} numbers, not a weight.", hint="The file is damaged.")
        if layer in place:
            raise AdapterError(f"The file has two tensors for {layer} ({part}).", hint="It is damaged.")
        place[layer] = value  # type: ignore[assignment]

    def join(self) -> dict[str, LoRAWeights]:
        """AdapterPair ``down`` [rank, in] and ``up`` [out, rank] of each layer, in float32 at scale 1.

        A layer's alpha over its rank goes into ``up``; without alpha the scale is 1. Raises AdapterError when
        a key is unknown, a half is missing, the tensors do not fit, or a number is not finite.
        """
        if self.unknown:
            raise AdapterError(
                f"The file adapts more than the attention of SDXL's U-Net: {summarize(self.unknown)}.",
                hint="Only LoRAs of SDXL's attention projections can be used.",
            )
        whole = self.downs.keys() & self.ups.keys()
        single = sorted((self.downs.keys() | self.ups.keys() | self.alphas.keys()) - whole)
        if single:
            raise AdapterError(
                f"The file holds only one half of the LoRA for {summarize(single)}.",
                hint="The file is damaged.",
            )
        return {layer: self._weights(layer) for layer in self.downs}

    def _weights(self, layer: str) -> LoRAWeights:
        down, up = self.downs[layer], self.ups[layer]
        if down.ndim != 2 or up.ndim != 2 or down.shape[0] != up.shape[1] or down.shape[0] == 0:
            raise AdapterError(
                f"The tensors of the LoRA for {layer} do not fit: down is {tuple(down.shape)}, "
                f"up is {tuple(up.shape)}.",
                hint="The file is damaged, or it is not a LoRA of linear layers.",
            )
        down, up = down.float(), up.float()
        if not (torch.isfinite(down).all() and torch.isfinite(up).all()):
            raise AdapterError(
                f"The LoRA for {layer} holds infinite or undefined numbers.",
                hint="Its training went wrong, or the file is damaged; use another one.",
            )
        scale = self.alphas.get(layer, float(down.shape[0])) / down.shape[0]
        return LoRAWeights(down=down, up=up if scale == 1 else up * scale)


def _number(key: str, tensor: Tensor) -> float:
    if tensor.numel() != 1 or tensor.is_complex() or not isfinite(float(tensor)):
        raise AdapterError(f"{key} is not one finite number.", hint="The file is damaged.")
    return float(tensor)
