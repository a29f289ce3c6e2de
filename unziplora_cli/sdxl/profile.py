"""The modules of a U-Net in the order of computation, from its configuration alone.

The estimate of memory and time is computed from this profile. The U-Net is built on torch's ``meta`` device,
so no weights are loaded and every layout that diffusers supports is counted as it is.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any, Literal

import torch
from diffusers import UNet2DConditionModel
from torch import nn

from unziplora_cli.accel.fused_lora import TEXT_PROJECTIONS
from unziplora_cli.method.inject import adapted_projections

ModuleKind = Literal[
    "convolution", "resnet", "transformer_in", "transformer_block", "transformer_out", "output"
]
"""``transformer_in`` and ``transformer_out`` surround a stack of transformer blocks; ``output`` is the last
norm and convolution."""
LayerInput = Literal["pixels", "text", "vector"]
"""What a layer is applied to: every pixel, every token of the prompt, or one vector per image."""


@dataclass(frozen=True, slots=True)
class LayerProfile:
    """A linear layer or convolution [out, in]; ``kernel`` is the number of input pixels per output pixel."""

    inputs: int
    outputs: int
    kernel: int = 1
    applied_to: LayerInput = "pixels"

    @property
    def weights(self) -> int:
        return self.inputs * self.outputs * self.kernel


@dataclass(frozen=True, slots=True)
class ModuleProfile:
    """One module of the U-Net, at a resolution halved ``level`` times.

    ``inputs`` and ``outputs`` are channels, ``feed_forward`` is the inner width of the feed-forward layer.
    ``frozen`` layers are not adapted, ``adapted`` projections are. ``region`` names the stack of transformer
    blocks that the module belongs to. ``downsamples``: the input has twice the resolution of the output.
    """

    kind: ModuleKind
    level: int
    inputs: int
    outputs: int
    frozen: tuple[LayerProfile, ...]
    adapted: tuple[LayerProfile, ...] = ()
    region: str = ""
    heads: int = 0
    feed_forward: int = 0
    downsamples: bool = False


@dataclass(frozen=True, slots=True)
class UNetProfile:
    """A U-Net: its modules, the layers that embed timestep and image size, and the parameter count."""

    modules: tuple[ModuleProfile, ...]
    embeddings: tuple[LayerProfile, ...]
    parameters: int

    def projections(self) -> Iterator[LayerProfile]:
        """All projections that the method adapts."""
        for module in self.modules:
            yield from module.adapted

    def layers(self) -> Iterator[LayerProfile]:
        """All linear layers and convolutions, adapted or not."""
        yield from self.embeddings
        for module in self.modules:
            yield from (*module.frozen, *module.adapted)

    def first_adapted(self) -> int:
        """The index of the first module with adapted projections; the backward pass ends there."""
        return next(i for i, module in enumerate(self.modules) if module.adapted)


def profile_unet(config: Mapping[str, Any]) -> UNetProfile:
    """The profile of the U-Net that diffusers builds from ``config``."""
    with torch.device("meta"):
        unet = UNet2DConditionModel.from_config(dict(config))
    names = {module: name for name, module in unet.named_modules()}
    adapted = set(adapted_projections(unet).values())
    profiles: list[ModuleProfile] = []
    level = 0

    def add(kind: ModuleKind, *modules: nn.Module | None, **details: Any) -> None:
        frozen: list[LayerProfile] = []
        trained: list[LayerProfile] = []
        for module in modules:
            for name, layer in module.named_modules() if module is not None else ():
                if isinstance(layer, nn.Linear | nn.Conv2d):
                    (trained if layer in adapted else frozen).append(_profile_layer(layer, _input_of(name)))
        if kind == "transformer_block":
            inputs = outputs = trained[0].inputs
        else:
            main = [layer for layer in frozen if layer.applied_to == "pixels"]
            inputs, outputs = main[0].inputs, main[0 if kind == "resnet" else -1].outputs
        profiles.append(ModuleProfile(kind, level, inputs, outputs, tuple(frozen), tuple(trained), **details))

    add("convolution", unet.conv_in)
    for block in (*unet.down_blocks, unet.mid_block, *unet.up_blocks):
        for module in () if block is None else _in_order(block, middle=block is unet.mid_block):
            if not hasattr(module, "transformer_blocks"):
                add("resnet", module)
                continue
            region = names[module]
            add("transformer_in", module.norm, module.proj_in, region=region)
            for transformer in module.transformer_blocks:
                heads, width = transformer.attn1.heads, transformer.ff.net[2].in_features
                add("transformer_block", transformer, region=region, heads=heads, feed_forward=width)
            add("transformer_out", module.proj_out, region=region)
        for sampler in getattr(block, "downsamplers", None) or ():
            level += 1
            add("convolution", sampler, downsamples=True)
        for sampler in getattr(block, "upsamplers", None) or ():
            level -= 1
            add("convolution", sampler)
    add("output", unet.conv_norm_out, unet.conv_out)
    embeddings = tuple(
        _profile_layer(layer, "vector")
        for module in (unet.time_embedding, getattr(unet, "add_embedding", None))
        if module is not None
        for layer in module.modules()
        if isinstance(layer, nn.Linear)
    )
    return UNetProfile(tuple(profiles), embeddings, sum(parameter.numel() for parameter in unet.parameters()))


def _in_order(block: nn.Module, *, middle: bool) -> Iterator[Any]:
    """Resnets and transformers of a block, alternating; the middle block begins with one more resnet."""
    resnets = list(block.resnets)  # type: ignore[arg-type]
    attentions = getattr(block, "attentions", ())
    transformers = [module for module in attentions if hasattr(module, "transformer_blocks")]
    if middle:
        yield resnets.pop(0)
    for pair in zip_longest(transformers, resnets) if middle else zip_longest(resnets, transformers):
        yield from (module for module in pair if module is not None)


def _input_of(name: str) -> LayerInput:
    if f".{name}".endswith(TEXT_PROJECTIONS):
        return "text"
    return "vector" if name.endswith("time_emb_proj") else "pixels"


def _profile_layer(layer: nn.Linear | nn.Conv2d, applied_to: LayerInput) -> LayerProfile:
    if isinstance(layer, nn.Linear):
        return LayerProfile(layer.in_features, layer.out_features, applied_to=applied_to)
    kernel = layer.kernel_size[0] * layer.kernel_size[1]
    return LayerProfile(layer.in_channels // layer.groups, layer.out_channels, kernel, applied_to)
