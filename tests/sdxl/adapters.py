"""Random LoRAs and merge weights, large enough to change every image of the tiny base."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from unziplora_cli.method.inject import adapted_projections
from unziplora_cli.method.lora import LoRA, LoRAPair, LoRAWeights, MergeWeights
from unziplora_cli.method.separation import Layers
from unziplora_cli.sdxl.base import BaseRef
from unziplora_cli.sdxl.generate import GeneratedImage, ImageRequest, generate


def random_lora(network: nn.Module, seed: int, rank: int = 4) -> dict[str, LoRAWeights]:
    """A LoRA on every adapted projection, exact in float16."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> torch.Tensor:
        return (torch.randn(*shape, generator=generator) * 0.25).half().float()

    return {
        name: LoRAWeights(down=draw(rank, linear.in_features), up=draw(linear.out_features, rank))
        for name, linear in adapted_projections(network).items()
    }


@torch.no_grad()
def load_branch(layers: Layers, branch: str, lora: LoRA, merge: MergeWeights | None = None) -> None:
    """Fill one branch with saved weights and open all columns; a layer missing from ``lora`` becomes zero."""
    for name, layer in layers.items():
        part = layer.content if branch == "content" else layer.style
        part.open()
        part.merge.copy_((merge or {}).get(name, torch.ones_like(part.merge)))
        if name not in lora:
            part.up.zero_()
            continue
        part.down.copy_(lora[name].down)
        part.up.copy_(lora[name].up)


def random_merge(network: nn.Module, seed: int) -> dict[str, torch.Tensor]:
    """Merge weights in [0, 1]."""
    generator = torch.Generator().manual_seed(seed)
    return {
        name: torch.rand(linear.out_features, generator=generator)
        for name, linear in adapted_projections(network).items()
    }


def random_branches(network: nn.Module, *names: str) -> LoRAPair:
    """The named branches, with merge weights for both."""
    return LoRAPair(
        content=random_lora(network, 1) if "content" in names else None,
        style=random_lora(network, 2) if "style" in names else None,
        content_merge=random_merge(network, 3),
        style_merge=random_merge(network, 4),
    )


def generated(
    base: BaseRef, requests: Sequence[ImageRequest], *, dtype: torch.dtype = torch.float32, **options: Any
) -> list[GeneratedImage]:
    """The images of all requests, generated on the CPU."""
    events = generate(base, requests, device=torch.device("cpu"), dtype=dtype, **options)
    return [event for event in events if isinstance(event, GeneratedImage)]
