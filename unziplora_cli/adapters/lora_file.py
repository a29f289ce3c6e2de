"""LoRA files: read in whichever known format, written in the one that is asked for.

=============  ====================================================================  =============
``kohya``      ``lora_unet_down_blocks_1_attentions_0_….lora_down.weight``, alpha     read, written
``ldm``        ``lora_unet_input_blocks_4_1_….lora_down.weight``, alpha               read, written
``diffusers``  ``unet.down_blocks.1.attentions.0.….lora.down.weight``                 read, written
``peft``       ``unet.down_blocks.1.attentions.0.….lora_A.weight``                    read, written
``comfyui``    ``diffusion_model.input_blocks.4.1.….lora_A.weight``                   read
``paper``      ``unet.unet.down_blocks.1.attentions.0.….lora.down.weight``            read
=============  ====================================================================  =============
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from unziplora_cli.adapters import comfyui, diffusers, kohya
from unziplora_cli.adapters.tensors import nonzero_layers, read_tensors, summarize, write_tensors
from unziplora_cli.adapters.unsupported import refuse_unsupported
from unziplora_cli.errors import AdapterError
from unziplora_cli.method.lora import LoRA, LoRAWeights, MergeWeights

LayoutName = Literal["kohya", "ldm", "diffusers", "peft"]
"""The formats that can be written."""

DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32}
"""The number formats of a file, by their short names."""


@dataclass(frozen=True, slots=True)
class LoadedLoRA:
    """A LoRA in float32 on the CPU, and the file it was in.

    ``layout`` is the file's format, ``keys`` its tensors, ``dtype`` the coarsest number format of any.
    """

    lora: dict[str, LoRAWeights]
    metadata: Mapping[str, str]
    layout: str
    keys: tuple[str, ...]
    dtype: str

    @property
    def rank(self) -> int:
        """The largest rank of any layer."""
        return max((weights.rank for weights in self.lora.values()), default=0)


def read_lora(path: Path) -> LoadedLoRA:
    """Read a LoRA in any known format; raises AdapterError."""
    tensors, metadata = read_tensors(path)
    refuse_unsupported(path.name, tensors)
    lora: dict[str, LoRAWeights] = {}
    layout = "kohya"
    if kohya.recognises(tensors):
        lora, layout = kohya.parse(tensors), kohya.layout(tensors)
    elif comfyui.recognises(tensors):
        lora, layout = comfyui.parse(tensors), "comfyui"
    elif diffusers.recognises(tensors):
        lora, layout = diffusers.parse(tensors, metadata), diffusers.layout(tensors)
    elif tensors or not {"ss_network_module", "modelspec.architecture"} & metadata.keys():
        raise AdapterError(
            f"{path.name} is not a LoRA in a known format; it holds {summarize(list(tensors)) or 'nothing'}.",
            hint="Known: kohya's (lora_unet_down_blocks_...) and diffusers' (unet.down_blocks....).",
        )
    return LoadedLoRA(lora, metadata, layout, tuple(tensors), _coarsest(tensors.values()))


def write_lora(
    path: Path,
    lora: LoRA,
    metadata: Mapping[str, str] | None = None,
    *,
    layout: LayoutName = "kohya",
    dtype: torch.dtype = torch.float16,
) -> None:
    """Write a LoRA whole or not at all; layers that change nothing are left out.

    The file's own hashes join the metadata.
    """
    tensors, own = encode(lora, layout, dtype)
    write_tensors(path, tensors, {**own, **(metadata or {})}, hashed=True)


def encode(lora: LoRA, layout: LayoutName, dtype: torch.dtype) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors of a file, and the metadata that its format asks for."""
    match layout:
        case "kohya" | "ldm":
            return kohya.encode(lora, dtype, ldm=layout == "ldm")
        case "diffusers":
            return diffusers.encode(lora, dtype)
        case "peft":
            return diffusers.encode_peft(lora, dtype)


def exact_dtype(lora: LoRA) -> torch.dtype:
    """The smallest number format in which a file of the layout ``kohya`` holds a LoRA without rounding."""
    layers = nonzero_layers(lora)
    for dtype in (torch.float16, torch.bfloat16):
        again = kohya.parse(kohya.encode(lora, dtype)[0])
        if all(
            torch.equal(again[layer].down, weights.down) and torch.equal(again[layer].up, weights.up)
            for layer, weights in layers.items()
        ):
            return dtype
    return torch.float32


def _coarsest(tensors: Iterable[Tensor]) -> str:
    kinds = {tensor.dtype for tensor in tensors if tensor.is_floating_point() and tensor.ndim > 1}
    if torch.bfloat16 in kinds:
        return "bf16"
    return "fp16" if torch.float16 in kinds else "fp32"


# Content and style in one LoRA, the merge weights folded in.


def combine(
    content: LoRA, style: LoRA, content_merge: MergeWeights, style_merge: MergeWeights
) -> dict[str, LoRAWeights]:
    """The LoRA of rank r_c + r_s whose update of every layer is the sum of both branches' (paper, 3.5).

    ``down = [A_c; A_s]`` [r_c + r_s, in], ``up = [diag(m_c) B_c | diag(m_s) B_s]`` [out, r_c + r_s]; a layer
    that has no merge weight has the weight one. It is exact for whoever shows both branches the same text.
    """
    sides = ((content, content_merge), (style, style_merge))
    combined = {}
    for layer in dict.fromkeys((*content, *style)):
        parts = [(lora[layer], merge.get(layer)) for lora, merge in sides if layer in lora]
        combined[layer] = LoRAWeights(
            down=torch.cat([weights.down for weights, _ in parts]),
            up=torch.cat([weights.up if m is None else weights.up * m[:, None] for weights, m in parts], 1),
        )
    return combined
