"""Random LoRAs and merge weights, large enough to change every image of the tiny base."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from unziplora_cli.method.inject import adapted_projections
from unziplora_cli.method.lora import LoRAPair, LoRAWeights
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
