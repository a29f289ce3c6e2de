"""Put the two branches into a U-Net, remove them, and extract their weights."""

from __future__ import annotations

import torch
from torch import nn

from unziplora_cli.method.layer import Branch, DualLoRALinear, LoRAStart
from unziplora_cli.method.lora import LoRAPair, LoRAWeights
from unziplora_cli.method.separation import Layers

PROJECTIONS = ("to_q", "to_k", "to_v", "to_out.0")


def adapted_projections(network: nn.Module) -> dict[str, nn.Linear]:
    """The query, key, value and output projections of every attention in ``network``, by name.

    SDXL's U-Net has 560 of them. Feed-forward layers, convolutions and text encoders are not adapted.
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

    The start values depend only on ``seed``, not on the device or dtype of ``network``. Raises ValueError if
    there is nothing to adapt or the network is adapted already.
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


def inject_pair(network: nn.Module, pair: LoRAPair) -> None:
    """Replace every adapted projection by a dual one that holds its updates of ``pair``, for generation."""
    for name, linear in adapted_projections(network).items():
        layer = DualLoRALinear(linear, 1, start="zero")  # an absent branch stays zero
        for branch, down, up in pair.updates(name):
            setattr(layer, branch, Branch(down, up))
        for part in layer.branches():
            part.to(linear.weight.device)
        network.set_submodule(name, layer.requires_grad_(False))


def eject(network: nn.Module) -> None:
    """Undo :func:`inject` or :func:`inject_pair`: replace every dual layer by its linear one."""
    for name, module in list(network.named_modules()):
        if isinstance(module, DualLoRALinear):
            network.set_submodule(name, module.base)


def extract(layers: Layers, branch: str) -> dict[str, LoRAWeights]:
    """The LoRA of one branch, closed columns zeroed, without merge weights; float32 copies on the CPU."""
    lora = {}
    for name, layer in layers.items():
        part = getattr(layer, branch)
        up = part.up.detach() * part.gate[:, None]
        lora[name] = LoRAWeights(down=part.down.detach().float().cpu().clone(), up=up.float().cpu().clone())
    return lora


def extract_merge(layers: Layers, branch: str) -> dict[str, torch.Tensor]:
    """The merge weights of one branch; float32 copies on the CPU."""
    merges = {name: getattr(layer, branch).merge for name, layer in layers.items()}
    return {name: merge.detach().float().cpu().clone() for name, merge in merges.items()}
