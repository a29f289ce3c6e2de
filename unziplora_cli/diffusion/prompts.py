"""Prompts to embeddings, as SDXL reads them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class TextEncoders:
    """SDXL's two tokenizers and two CLIP text encoders.

    ``zeros_for_empty``: the base was trained with zeros, not an encoded empty prompt, as "no text".
    """

    tokenizers: tuple[Any, Any]
    models: tuple[Any, Any]
    zeros_for_empty: bool = True


@dataclass(frozen=True, slots=True)
class TextEmbeddings:
    """Of n prompts: ``tokens`` [n, tokens, text width] for cross-attention, ``pooled`` [n, pooled width]."""

    tokens: Tensor
    pooled: Tensor

    def __getitem__(self, i: int) -> TextEmbeddings:
        """The embeddings of prompt ``i``, still with a batch of 1."""
        return TextEmbeddings(self.tokens[i : i + 1], self.pooled[i : i + 1])

    def to(self, *, device: torch.device | None = None, dtype: torch.dtype | None = None) -> TextEmbeddings:
        """Both tensors on ``device`` in ``dtype``."""
        return TextEmbeddings(
            self.tokens.to(device=device, dtype=dtype), self.pooled.to(device=device, dtype=dtype)
        )


@torch.no_grad()
def encode(encoders: TextEncoders, texts: Sequence[str]) -> TextEmbeddings:
    """Encode prompts, padded and cut to the encoders' length.

    Tokens are the penultimate hidden states of both encoders side by side; pooled is the second encoder's
    projected one.
    """
    states, pooled = [], None
    for tokenizer, model in zip(encoders.tokenizers, encoders.models, strict=True):
        ids = tokenizer(
            list(texts),
            padding="max_length",
            max_length=tokenizer.model_max_length,
            truncation=True,
            return_tensors="pt",
        ).input_ids
        output = model(ids.to(model.device), output_hidden_states=True)
        states.append(output.hidden_states[-2])
        pooled = output[0]  # the second encoder's is the projection, [n, pooled width]
    assert pooled is not None
    return TextEmbeddings(torch.cat(states, dim=-1), pooled)


def no_text(encoders: TextEncoders) -> TextEmbeddings | None:
    """What guidance moves away from when there is no negative prompt; None stands for zeros."""
    return None if encoders.zeros_for_empty else encode(encoders, [""])


def truncated(encoders: TextEncoders, text: str) -> str:
    """The end of ``text`` that the encoders will not see; empty when it fits."""
    tokenizer = encoders.tokenizers[0]
    ids = tokenizer(text, truncation=False, verbose=False).input_ids
    cut = ids[tokenizer.model_max_length - 1 : -1]
    return str(tokenizer.decode(cut)).strip() if len(ids) > tokenizer.model_max_length else ""


def cut_note(encoders: TextEncoders, text: str) -> str:
    """One sentence on what of ``text`` the encoders will not see; empty when it fits."""
    end, limit = truncated(encoders, text), encoders.tokenizers[0].model_max_length
    if not end:
        return ""
    return f'The prompt "{text[:40]}…" is longer than {limit} tokens; the base does not read: "{end}"'
