"""What the modules of a U-Net hold and compute, in the order of computation.

The estimate of memory and time is computed from this profile. A U-Net on torch's ``meta`` device suffices,
so no weights are loaded and every layout that diffusers supports is counted as it is.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any

from diffusers import UNet2DConditionModel
from torch import nn

from unziplora_cli.accel.fused_lora import TEXT_PROJECTIONS
from unziplora_cli.accel.int8 import MIN_WEIGHTS
from unziplora_cli.method.inject import adapted_projections


@dataclass(frozen=True, slots=True, kw_only=True)
class ModuleProfile:
    """One module of the U-Net, at a resolution halved ``level`` times. All values are of one image.

    Values per pixel: ``inputs`` of the module; ``saved`` and ``copied`` by autograd, the latter once per copy
    that the module makes of its input; ``statistics`` saved in float32; ``gradients`` at a time.

    Weights: ``frozen`` and ``adapted`` ones are applied to every pixel, ``text`` ones to every token;
    ``large`` and ``large_text`` are those among all others and among the text's that int8 can hold.

    ``sides`` is the sum of inputs and outputs of the adapted ``projections``, ``columns`` that of their
    outputs. ``attention`` is the width of an attention, ``region`` the stack of transformer blocks that the
    module belongs to. ``recomputed``: gradient checkpointing computes its activations again.
    """

    level: int
    inputs: int
    gradients: int
    saved: int = 0
    copied: int = 0
    statistics: int = 0
    frozen: int = 0
    adapted: int = 0
    text: int = 0
    large: int = 0
    large_text: int = 0
    projections: int = 0
    sides: int = 0
    columns: int = 0
    attention: int = 0
    region: str = ""
    recomputed: bool = False


@dataclass(frozen=True, slots=True)
class UNetProfile:
    """A U-Net: its modules, the parameter count, and the ``large`` weights outside of the modules."""

    modules: tuple[ModuleProfile, ...]
    parameters: int
    large_embeddings: int

    def total(self, name: str) -> int:
        """The sum of a value over all modules."""
        return sum(getattr(module, name) for module in self.modules)

    def first_adapted(self) -> int:
        """The index of the first module with adapted projections; the backward pass ends there."""
        return next(i for i, module in enumerate(self.modules) if module.projections)


def profile_unet(unet: UNet2DConditionModel) -> UNetProfile:
    """The profile of a U-Net, whose weights are not read."""
    names = {module: name for name, module in unet.named_modules()}
    adapted = set(adapted_projections(unet).values())
    modules: list[ModuleProfile] = []
    level = 0

    def add(module: Any, **values: Any) -> None:
        weights = _weights(module, adapted)
        inputs, outputs = _sides(module)
        modules.append(
            ModuleProfile(
                **{"level": level, "inputs": inputs, "gradients": 2 * (inputs + outputs), **weights, **values}
            )
        )

    add(unet.conv_in, saved=_sides(unet.conv_in)[0])
    for block in filter(None, (*unet.down_blocks, unet.mid_block, *unet.up_blocks)):
        attentions = [m for m in getattr(block, "attentions", ()) if hasattr(m, "transformer_blocks")]
        for resnet, attention in zip_longest(block.resnets, attentions):
            if resnet is not None:
                add(resnet, copied=sum(_sides(resnet)), recomputed=True)
            if attention is None:
                continue
            region = names[attention]
            add(attention.proj_in, saved=_sides(attention.proj_in)[0], region=region)
            for transformer in attention.transformer_blocks:
                width, inner = _sides(transformer)[0], transformer.ff.net[2].in_features
                add(
                    transformer,
                    saved=11 * width,
                    copied=inner,
                    statistics=6 + 2 * transformer.attn1.heads,  # three layer norms; log-sums of attention
                    gradients=width + 3 * inner,
                    attention=width,
                    region=region,
                    recomputed=True,
                )
            add(attention.proj_out, region=region)
        for sampler in getattr(block, "downsamplers", None) or ():
            level += 1
            add(sampler, saved=4 * _sides(sampler)[0])
        for sampler in getattr(block, "upsamplers", None) or ():
            level -= 1
            add(sampler, saved=_sides(sampler)[0])
    add(unet.conv_out, copied=_sides(unet.conv_out)[0])
    embeddings = (unet.time_embedding, getattr(unet, "add_embedding", None))
    return UNetProfile(
        tuple(modules),
        unet.num_parameters(),
        sum(_weights(module, adapted)["large"] for module in embeddings if module is not None),
    )


def _layers(module: nn.Module) -> dict[str, nn.Linear | nn.Conv2d]:
    return {name: layer for name, layer in module.named_modules() if isinstance(layer, nn.Linear | nn.Conv2d)}


def _sides(module: nn.Module) -> tuple[int, int]:
    """Inputs and outputs of the first layer of a module."""
    outputs, inputs = next(iter(_layers(module).values())).weight.shape[:2]
    return inputs, outputs


def _weights(module: nn.Module, adapted: set[nn.Linear]) -> Counter[str]:
    """The weights and projections of a module, by the names of :class:`ModuleProfile`."""
    sums: Counter[str] = Counter()
    for name, layer in _layers(module).items():
        weights, text = layer.weight.numel(), f".{name}".endswith(TEXT_PROJECTIONS)
        if text:
            sums["text"] += weights
        elif not name.endswith("time_emb_proj"):  # applied to one vector
            sums["adapted" if layer in adapted else "frozen"] += weights
        if weights >= MIN_WEIGHTS:
            sums["large_text" if text else "large"] += weights
        if layer in adapted:
            sums["projections"] += 1
            sums["sides"] += layer.weight.shape[0] + layer.weight.shape[1]
            sums["columns"] += layer.weight.shape[0]
    return sums
