"""LoRA files: read in any known layout, written in a chosen one; and LoRAs combined or reduced in rank."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from unziplora_cli.adapters.layouts import LayoutName, encode, nonzero_layers, parse, refuse_unsupported
from unziplora_cli.adapters.tensors import is_safetensors, read_tensors, summarize, write_tensors
from unziplora_cli.errors import AdapterError, Remedy
from unziplora_cli.method.lora import LoRA, LoRAWeights, MergeWeights

STANDARD_NAMES = ("pytorch_lora_weights.safetensors", "adapter_model.safetensors")
"""The names of a LoRA in a folder written by diffusers or PEFT."""

DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32}


@dataclass(frozen=True, slots=True)
class LoadedLoRA:
    """A LoRA in float32 on the CPU, and what is known of its file.

    ``layouts`` are nearly always one; ``dtype`` is the least precise one of any tensor.
    """

    lora: dict[str, LoRAWeights]
    metadata: Mapping[str, str]
    layouts: tuple[str, ...]
    keys: tuple[str, ...]
    dtype: str

    @property
    def layout(self) -> str:
        """The name of the layout; of a mixed file, all names."""
        return "+".join(self.layouts)

    @property
    def rank(self) -> int:
        """The largest rank of any layer."""
        return max((weights.rank for weights in self.lora.values()), default=0)


def read_lora(path: Path) -> LoadedLoRA:
    """Read a LoRA in any known layout; raises AdapterError."""
    tensors, metadata = read_tensors(path)
    refuse_unsupported(path.name, tensors)
    try:
        layouts, lora = parse(tensors, metadata, path)
    except AdapterError as error:
        raise AdapterError(f"{path.name}: {error.message}", *error.remedies) from error
    if not layouts and (tensors or not {"ss_network_module", "modelspec.architecture"} & metadata.keys()):
        raise AdapterError(
            f"{path.name} is not a LoRA in a known layout; it holds {summarize(list(tensors)) or 'nothing'}.",
            Remedy(
                "Known layouts: those of sd-scripts (lora_unet_...), diffusers (unet....), ComfyUI "
                "(diffusion_model....), LyCORIS, OneTrainer and PEFT."
            ),
        )
    return LoadedLoRA(
        lora, metadata, layouts or ("sd-scripts",), tuple(tensors), _least_precise(tensors.values())
    )


def lora_in(path: Path) -> Path:
    """The one LoRA file in a folder, or ``path`` itself if it is no folder; raises AdapterError."""
    if not path.is_dir():
        return path
    candidates = sorted(file for file in path.iterdir() if is_safetensors(file))
    standard = [file for file in candidates if file.name in STANDARD_NAMES]
    files = standard or candidates
    if len(files) != 1:
        listed = f"it holds {len(files)} safetensors files: {summarize([file.name for file in files])}"
        raise AdapterError(
            f"{path} is a folder, and {listed if files else 'there is no safetensors file in it'}.",
            Remedy("Name one LoRA file."),
        )
    return files[0]


def write_lora(
    path: Path,
    lora: LoRA,
    metadata: Mapping[str, str] | None = None,
    *,
    layout: LayoutName = "sd-scripts",
    dtype: torch.dtype = torch.float16,
) -> None:
    """Write a LoRA atomically, without layers whose update is zero; adds hashes to the metadata."""
    tensors, required = encode(lora, layout, dtype)
    write_tensors(path, tensors, {**required, **(metadata or {})}, hashed=True)


def exact_dtype(lora: LoRA) -> torch.dtype:
    """The smallest dtype in which a file holds a LoRA without rounding."""
    for dtype in (torch.float16, torch.bfloat16):
        tensors, metadata = encode(lora, "sd-scripts", dtype)
        _, rounded = parse(tensors, metadata)
        if all(
            torch.equal(rounded[layer].down, weights.down) and torch.equal(rounded[layer].up, weights.up)
            for layer, weights in nonzero_layers(lora).items()
        ):
            return dtype
    return torch.float32


def combine(
    content: LoRA, style: LoRA, content_merge: MergeWeights, style_merge: MergeWeights
) -> dict[str, LoRAWeights]:
    """One LoRA of rank r_c + r_s whose update is the weighted sum of both branches (paper, 3.5).

    ``down = [A_c; A_s]`` [r_c + r_s, in], ``up = [diag(m_c) B_c | diag(m_s) B_s]`` [out, r_c + r_s]; a layer
    without merge weights has weight one. Exact where both branches see the same prompt.
    """
    branches = ((content, content_merge), (style, style_merge))
    combined = {}
    for layer in dict.fromkeys((*content, *style)):
        parts = [(lora[layer], merge.get(layer)) for lora, merge in branches if layer in lora]
        combined[layer] = LoRAWeights(
            down=torch.cat([weights.down for weights, _ in parts]),
            up=torch.cat([weights.up if m is None else weights.up * m[:, None] for weights, m in parts], 1),
        )
    return combined


def reduce_rank(lora: LoRA, rank: int) -> tuple[dict[str, LoRAWeights], float]:
    """The nearest LoRA (in the Frobenius norm) of at most this rank, layer by layer, and its relative error.

    With ``up = Q_u R_u`` and ``down^T = Q_d R_d`` the update is ``Q_u (R_u R_d^T) Q_d^T``, so the singular
    values come from a matrix of the old rank; the out x in matrix is never formed. Both new factors get the
    square root of the singular values. Layers of that rank or less are unchanged.

    The error is the norm of what was cut off, over all layers, divided by the norm of all layers.
    """
    reduced, lost, total = {}, 0.0, 0.0
    for layer, weights in lora.items():
        q_up, r_up = torch.linalg.qr(weights.up)  # [out, k], [k, old rank]
        q_down, r_down = torch.linalg.qr(weights.down.T)  # [in, l], [l, old rank]
        left, values, right = torch.linalg.svd((r_up @ r_down.T).double(), full_matrices=False)
        total += float(values.square().sum())
        if weights.rank <= rank:
            reduced[layer] = weights
            continue
        lost += float(values[rank:].square().sum())
        root = values[:rank].sqrt()
        reduced[layer] = LoRAWeights(
            down=(root[:, None] * right[:rank]).float() @ q_down.T,  # [rank, in]
            up=q_up @ (left[:, :rank] * root).float(),  # [out, rank]
        )
    return reduced, (lost / total) ** 0.5 if total else 0.0


def _least_precise(tensors: Iterable[Tensor]) -> str:
    dtypes = {tensor.dtype for tensor in tensors if tensor.is_floating_point() and tensor.ndim > 1}
    if torch.bfloat16 in dtypes:
        return "bf16"
    return "fp16" if torch.float16 in dtypes else "fp32"
