"""Prompt separation: each branch has its own prompt in an unmodified diffusers U-Net (paper, section 3.2)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from diffusers.models.attention_processor import Attention
from torch import Tensor, nn

from unziplora_cli.accel.fused_lora import project_qkv


class DualPromptProcessor:
    """Scaled-dot-product attention whose keys and values are the sum of a base, a content and a style term.

    The three texts are added inside the key and value projections, token by token; one ordinary attention
    follows. Self-attention, and cross-attention without branch texts, equal diffusers' own.
    """

    def __call__(
        self,
        attn: Attention,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        temb: Tensor | None = None,
        content_states: Tensor | None = None,
        style_states: Tensor | None = None,
    ) -> Tensor:
        """``hidden_states`` [batch, pixels, width] -> the same shape; texts [batch, tokens, text width]."""
        if encoder_hidden_states is None:
            query, key, value = project_qkv(attn.to_q, attn.to_k, attn.to_v, hidden_states)
        elif content_states is None and style_states is None:
            query = attn.to_q(hidden_states)
            key, value = attn.to_k(encoder_hidden_states), attn.to_v(encoder_hidden_states)
        else:
            query = attn.to_q(hidden_states)
            texts = (encoder_hidden_states, content_states, style_states)
            key, value = attn.to_k(*texts), attn.to_v(*texts)
        output: Tensor = attn.to_out[1](attn.to_out[0](attend(query, key, value, attn.heads)))
        return output


def attend(query: Tensor, key: Tensor, value: Tensor, heads: int) -> Tensor:
    """Multi-head attention of [batch, pixels, width] to [batch, tokens, width]; returns the former shape."""
    query, key, value = (torch.unflatten(t, -1, (heads, -1)).transpose(1, 2) for t in (query, key, value))
    return F.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(-2)


def separate_prompts(unet: nn.Module) -> None:
    """Make every attention of ``unet`` accept ``content_states`` and ``style_states``.

    Pass them, each [batch, tokens, text width], to the U-Net's forward through ``cross_attention_kwargs``.
    """
    unet.set_attn_processor(DualPromptProcessor())  # type: ignore[operator]
