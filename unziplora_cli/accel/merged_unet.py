"""Fuse the two branches into a U-Net for generation, so that a step costs no more than the base's own.

Every projection that sees the picture takes the update into its weight. Keys and values of cross-attention
see only the three texts, which stay the same from step to step: they are computed once and handed over.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
import torch.nn.functional as F
from diffusers.models.attention_processor import Attention
from torch import Tensor, nn

from unziplora_cli.accel.fused_lora import TEXT_PROJECTIONS
from unziplora_cli.errors import AdapterError
from unziplora_cli.method.inject import adapted_projections
from unziplora_cli.method.lora import LoRA, LoRAPair
from unziplora_cli.sdxl.text import Conditioning


def check_fit(network: nn.Module, branches: LoRAPair) -> None:
    """Raise AdapterError unless every weight of ``branches`` has its place in ``network``."""
    projections = adapted_projections(network)
    for name in branches.names:
        lora: LoRA = getattr(branches, name)
        unknown = [layer for layer in lora if layer not in projections]
        if unknown:
            raise AdapterError(
                f"The {name} LoRA adapts {len(unknown)} layers that this base lacks, as {unknown[0]}.",
                hint="Use the base that the LoRA was trained on (--base).",
            )
        for layer, weights in lora.items():
            wanted = (projections[layer].out_features, projections[layer].in_features)
            given = (weights.up.shape[0], weights.down.shape[1])
            merge = (getattr(branches, f"{name}_merge") or {}).get(layer)
            if given != wanted or (merge is not None and merge.shape != wanted[:1]):
                raise AdapterError(
                    f"The {name} LoRA does not fit this base: {layer} is {wanted[0]} x {wanted[1]}, "
                    f"the LoRA is made for {given[0]} x {given[1]}.",
                    hint="Use the base that the LoRA was trained on (--base).",
                )


@torch.no_grad()
def fuse(network: nn.Module, branches: LoRAPair, *, keep: bool = True) -> dict[str, Tensor]:
    """Add the updates of ``branches`` to the weights of ``network``, in place, all but the text projections.

    Returns copies of the weights as they were, on the CPU, for :func:`restore`; none with ``keep`` off.
    """
    originals = {}
    for layer, linear in adapted_projections(network).items():
        updates = [] if layer.endswith(TEXT_PROJECTIONS) else list(branches.updates(layer))
        if not updates:
            continue
        weight = linear.weight
        if keep:
            originals[layer] = weight.detach().to("cpu", copy=True)
        down = torch.cat([down for _, down, _ in updates]).to(weight.device)  # [1 or 2 ranks, in]
        up = torch.cat([up for _, _, up in updates], dim=1).to(weight.device)  # [out, 1 or 2 ranks]
        weight.copy_(torch.addmm(weight.float(), up, down))
    return originals


@torch.no_grad()
def restore(network: nn.Module, originals: Mapping[str, Tensor]) -> None:
    """Undo :func:`fuse`, exactly."""
    projections = adapted_projections(network)
    for layer, weight in originals.items():
        projections[layer].weight.copy_(weight)


class CachedTextProcessor:
    """Cross-attention on keys and values [batch, heads, tokens, head width] that are known beforehand."""

    def __init__(self, key: Tensor, value: Tensor) -> None:
        self.key = key
        self.value = value

    def fill(self, key: Tensor, value: Tensor) -> None:
        """Take others of the same shape, in place: a recording reads them there."""
        self.key.copy_(key)
        self.value.copy_(value)

    def __call__(
        self,
        attn: Attention,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        temb: Tensor | None = None,
    ) -> Tensor:
        """``hidden_states`` [batch, pixels, width] -> the same shape; the text given here is not read."""
        query = attn.to_q(hidden_states).unflatten(-1, (attn.heads, -1)).transpose(1, 2)
        attended = F.scaled_dot_product_attention(query, self.key, self.value)
        return attn.to_out[1](attn.to_out[0](attended.transpose(1, 2).flatten(-2)))  # type: ignore[no-any-return]


@torch.no_grad()
def cache_text(network: nn.Module, branches: LoRAPair, told: Conditioning) -> None:
    """Compute the keys and values of cross-attention from the texts of ``told``, and use them from now on."""
    texts = {"content": told.content.float(), "style": told.style.float()}
    for name, attn in _cross_attentions(network):
        pair = []
        for projection in ("to_k", "to_v"):
            linear = attn.get_submodule(projection)
            summed = linear(told.full.to(linear.weight.dtype)).float()  # [batch, tokens, width]
            for branch, down, up in branches.updates(f"{name}.{projection}"):
                text = texts[branch]
                summed = summed + F.linear(F.linear(text, down.to(text.device)), up.to(text.device))
            heads = summed.unflatten(-1, (attn.heads, -1)).transpose(1, 2)
            pair.append(heads.to(linear.weight.dtype).contiguous())
        cached = attn.processor
        if isinstance(cached, CachedTextProcessor) and cached.key.shape == pair[0].shape:
            cached.fill(*pair)
        else:
            attn.set_processor(CachedTextProcessor(*pair))


def _cross_attentions(network: nn.Module) -> Iterator[tuple[str, Attention]]:
    for name, module in network.named_modules():
        if isinstance(module, Attention) and name.endswith(".attn2"):
            yield name, module
