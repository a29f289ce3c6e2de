"""Put the two branches into a U-Net, take them out again, and carry their weights in and out."""

from __future__ import annotations

import torch
from torch import nn

from unziplora_cli.accel.fused_lora import unfuse_lora
from unziplora_cli.method.layer import DualLoRALinear, LoRAStart
from unziplora_cli.method.lora import LoRA, LoRAWeights, MergeWeights
from unziplora_cli.method.separation import Layers

PROJECTIONS = ("to_q", "to_k", "to_v", "to_out.0")


def adapted_projections(network: nn.Module) -> dict[str, nn.Linear]:
    """The query, key, value and output projections of every attention in ``network``, by name.

    SDXL's U-Net has 560 of them. Feed-forward, convolutions and text encoders are left alone.
    """
    return {
        name: module
        for name, module in network.named_modules()
        if isinstance(module, nn.Linear) and ".attn" in name and name.endswith(PROJECTIONS)
    }


def inject(
    network: nn.Module, rank: int, *, seed: int = 0, start: LoRAStart = "noise"
) -> dict[str, DualLoRALinear]:
    """Replace every adapted projection by a dual one and freeze the rest; returns the new layers by name.

    The start values depend on ``seed`` alone, whatever the device and precision of ``network``. Raises
    ValueError when there is nothing to adapt or the network is adapted already.
    """
    projections = adapted_projections(network)
    if not projections:
        raise ValueError("this network has no attention projections to adapt, or is adapted already")
    network.requires_grad_(False)
    generator = torch.Generator().manual_seed(seed)
    layers = {}
    for name, linear in projections.items():
        layer = DualLoRALinear(linear, rank, generator, start)
        for branch in layer.branches():
            branch.to(linear.weight.device)
        network.set_submodule(name, layer)
        layers[name] = layer
    return layers


def eject(network: nn.Module) -> None:
    """Undo :func:`inject`, and any folding: every dual layer gives way to the very linear layer it wraps."""
    unfuse_lora(network)
    for name, module in list(network.named_modules()):
        if isinstance(module, DualLoRALinear):
            network.set_submodule(name, module.base)


def extract(layers: Layers, branch: str) -> dict[str, LoRAWeights]:
    """The LoRA of one branch, closed columns zeroed, merge weights *not* applied; detached copies in float32
    on CPU."""
    lora = {}
    for name, layer in layers.items():
        part = layer.content if branch == "content" else layer.style
        up = part.up.detach() * part.gate[:, None]
        lora[name] = LoRAWeights(down=part.down.detach().float().cpu().clone(), up=up.float().cpu().clone())
    return lora


def extract_merge(layers: Layers, branch: str) -> dict[str, torch.Tensor]:
    """The merge weights of one branch; detached float32 copies on CPU."""
    parts = {n: layer.content if branch == "content" else layer.style for n, layer in layers.items()}
    return {name: part.merge.detach().float().cpu().clone() for name, part in parts.items()}


@torch.no_grad()
def load_branch(layers: Layers, branch: str, lora: LoRA, merge: MergeWeights | None = None) -> None:
    """Fill one branch from saved weights with all columns open; a layer that ``lora`` lacks becomes zero.

    Raises ValueError when a weight does not fit its layer.
    """
    for name, layer in layers.items():
        part = layer.content if branch == "content" else layer.style
        part.open()
        part.merge.fill_(1.0)
        if name not in lora:
            part.up.zero_()
            continue
        weights = lora[name]
        if weights.down.shape != part.down.shape or weights.up.shape != part.up.shape:
            raise ValueError(
                f"{name}: the LoRA is {tuple(weights.up.shape)} x {tuple(weights.down.shape)}, "
                f"the layer wants {tuple(part.up.shape)} x {tuple(part.down.shape)}"
            )
        part.down.copy_(weights.down)
        part.up.copy_(weights.up)
        if merge is not None and name in merge:
            part.merge.copy_(merge[name])
