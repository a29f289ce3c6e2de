"""What a U-Net is made of, in the order of computation, from its configuration alone.

The network is built without numbers (torch's ``meta`` device), so nothing is loaded and any layout that
diffusers knows is counted as it is.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from diffusers import UNet2DConditionModel
from torch import nn

from unziplora_cli.accel.fused_lora import TEXT_PROJECTIONS
from unziplora_cli.method.inject import adapted_projections

Kind = Literal["convolution", "resnet", "entry", "block", "exit", "end"]
"""``entry`` and ``exit`` are what surrounds a stack of transformer blocks, ``end`` the last norm and
convolution."""


@dataclass(frozen=True, slots=True)
class Linear:
    """A linear layer or convolution [out, in]; ``taps`` are the pixels that one output sees.

    ``reads`` says what it is applied to: every pixel, every token of the text, or one vector per picture.
    """

    inputs: int
    outputs: int
    taps: int = 1
    reads: Literal["pixels", "text", "vector"] = "pixels"

    @property
    def weights(self) -> int:
        return self.inputs * self.outputs * self.taps


@dataclass(frozen=True, slots=True)
class ModuleProfile:
    """One step of the computation, whose output was halved ``level`` times.

    ``inputs`` and ``outputs`` are channels, ``inner`` the width inside the feed-forward layer. ``layers`` are
    frozen, ``projections`` adapted; ``weights`` counts every parameter of both. ``region`` is the stack of
    transformer blocks that it belongs to.
    """

    kind: Kind
    level: int
    inputs: int
    outputs: int
    weights: int
    layers: tuple[Linear, ...]
    projections: tuple[Linear, ...] = ()
    region: str = ""
    heads: int = 0
    inner: int = 0
    halves: bool = False
    """Its input was halved once less than its output."""


@dataclass(frozen=True, slots=True)
class UNetProfile:
    """All parts of a U-Net; ``timing`` are the layers that embed time and size, ``weights`` counts all
    parameters."""

    parts: tuple[ModuleProfile, ...]
    timing: tuple[Linear, ...]
    weights: int

    def projections(self) -> Iterator[Linear]:
        """All projections that the method adapts."""
        for part in self.parts:
            yield from part.projections

    def layers(self) -> Iterator[Linear]:
        """All linear layers and convolutions, adapted or not."""
        yield from self.timing
        for part in self.parts:
            yield from (*part.layers, *part.projections)

    def learning(self) -> tuple[ModuleProfile, ...]:
        """The parts that gradients pass: all from the first adapted projection on."""
        first = next(i for i, part in enumerate(self.parts) if part.projections)
        return self.parts[first:]


def profile_unet(config: Mapping[str, Any]) -> UNetProfile:
    """The parts of the U-Net that diffusers makes of ``config``."""
    with torch.device("meta"):
        unet = UNet2DConditionModel.from_config(dict(config))
    adapted = set(adapted_projections(unet).values())
    parts: list[ModuleProfile] = []

    def add(kind: Kind, level: int, *modules: nn.Module | None, **more: Any) -> None:
        found = [each for each in modules if each is not None]
        parts.append(_part(kind, level, found, adapted, **more))

    add("convolution", 0, unet.conv_in)
    level = 0
    blocks = [
        *((f"down_blocks.{i}", block) for i, block in enumerate(unet.down_blocks)),
        *((("mid_block", unet.mid_block),) if unet.mid_block is not None else ()),
        *((f"up_blocks.{i}", block) for i, block in enumerate(unet.up_blocks)),
    ]
    for name, block in blocks:
        attentions = [a for a in getattr(block, "attentions", ()) if hasattr(a, "transformer_blocks")]
        resnets = list(block.resnets)
        if name == "mid_block":  # one more, in front
            add("resnet", level, resnets.pop(0))
        for i in range(max(len(resnets), len(attentions))):
            after = name == "mid_block"
            if not after and i < len(resnets):
                add("resnet", level, resnets[i])
            if i < len(attentions):
                stack, region = attentions[i], f"{name}.attentions.{i}"
                add("entry", level, stack.norm, stack.proj_in, region=region)
                for each in stack.transformer_blocks:
                    heads, inner = each.attn1.heads, each.ff.net[2].in_features
                    add("block", level, each, region=region, heads=heads, inner=inner)
                add("exit", level, stack.proj_out, region=region)
            if after and i < len(resnets):
                add("resnet", level, resnets[i])
        for sampler in getattr(block, "downsamplers", None) or ():
            level += 1
            add("convolution", level, sampler, halves=True)
        for sampler in getattr(block, "upsamplers", None) or ():
            level -= 1
            add("convolution", level, sampler)
    add("end", 0, unet.conv_norm_out, unet.conv_out)
    timing = tuple(
        _linear(each, "vector")
        for module in (unet.time_embedding, getattr(unet, "add_embedding", None))
        if module is not None
        for each in module.modules()
        if isinstance(each, nn.Linear)
    )
    weights = sum(each.numel() for each in unet.parameters())
    return UNetProfile(tuple(parts), timing, weights)


def _part(
    kind: Kind, level: int, modules: list[nn.Module], adapted: set[nn.Linear], **more: Any
) -> ModuleProfile:
    named = [(name, each) for module in modules for name, each in module.named_modules()]
    layers: list[Linear] = []
    projections: list[Linear] = []
    for name, each in named:
        if isinstance(each, nn.Linear | nn.Conv2d):
            text = f".{name}".endswith(TEXT_PROJECTIONS)
            reads = "text" if text else "vector" if name.endswith("time_emb_proj") else "pixels"
            (projections if each in adapted else layers).append(_linear(each, reads))
    main = [each for each in (*layers, *projections) if each.reads == "pixels"]
    if kind == "block":
        inputs = outputs = projections[0].inputs
    else:
        inputs, outputs = main[0].inputs, main[-1 if kind != "resnet" else 0].outputs
    weights = sum(each.numel() for module in modules for each in module.parameters())
    return ModuleProfile(kind, level, inputs, outputs, weights, tuple(layers), tuple(projections), **more)


def _linear(module: nn.Linear | nn.Conv2d, reads: Any) -> Linear:
    if isinstance(module, nn.Linear):
        return Linear(module.in_features, module.out_features, reads=reads)
    inputs, outputs = module.in_channels // module.groups, module.out_channels
    return Linear(inputs, outputs, module.kernel_size[0] * module.kernel_size[1], reads)
