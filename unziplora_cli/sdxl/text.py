"""Prompts to embeddings, as SDXL reads them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor, nn

from unziplora_cli.sdxl.attention import branch_texts


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
    """Encode prompts, padded and truncated to the encoders' length.

    Tokens are the penultimate hidden states of both encoders, concatenated; pooled is the projected output of
    the second encoder. Each text is encoded in a batch of its own: matrix products round differently for
    different batch sizes, and an embedding must not depend on what else is encoded.
    """
    embeddings = [_encode_one(encoders, text) for text in texts]
    return TextEmbeddings(
        torch.cat([e.tokens for e in embeddings]), torch.cat([e.pooled for e in embeddings])
    )


def _encode_one(encoders: TextEncoders, text: str) -> TextEmbeddings:
    states, pooled = [], None
    for tokenizer, model in zip(encoders.tokenizers, encoders.models, strict=True):
        ids = tokenizer(
            text,
            padding="max_length",
            max_length=tokenizer.model_max_length,
            truncation=True,
            return_tensors="pt",
        ).input_ids
        output = model(ids.to(model.device), output_hidden_states=True)
        states.append(output.hidden_states[-2])
        pooled = output[0]  # the second encoder's is the projection, [1, pooled width]
    assert pooled is not None
    return TextEmbeddings(torch.cat(states, dim=-1), pooled)


def encode_unconditional(encoders: TextEncoders) -> TextEmbeddings | None:
    """What guidance moves away from when there is no negative prompt; None stands for zeros."""
    return None if encoders.zeros_for_empty else encode(encoders, [""])


def truncated(encoders: TextEncoders, text: str) -> str:
    """The end of ``text`` that the encoders will not see; empty when it fits."""
    tokenizer = encoders.tokenizers[0]
    ids = tokenizer(text, truncation=False, verbose=False).input_ids
    cut = ids[tokenizer.model_max_length - 1 : -1]
    return str(tokenizer.decode(cut)).strip() if len(ids) > tokenizer.model_max_length else ""


def truncation_note(encoders: TextEncoders, text: str) -> str:
    """One sentence on what of ``text`` the encoders will not see; empty when it fits."""
    end, limit = truncated(encoders, text), encoders.tokenizers[0].model_max_length
    if not end:
        return ""
    return f'The prompt "{text[:40]}…" is longer than {limit} tokens; the base does not read: "{end}"'


# What the U-Net is told beside the noisy picture, and the one call that asks it for the noise.


@dataclass(frozen=True, slots=True)
class Conditioning:
    """Three texts and the numbers that SDXL takes with them.

    ``full``, ``content``, ``style`` are token embeddings [batch, tokens, text width]; ``pooled`` [batch,
    pooled width] is the full prompt's alone; ``time_ids`` [batch, 6] is (height, width, top, left, height,
    width). A batch of 1 is stretched to the batch of the picture.
    """

    full: Tensor
    content: Tensor
    style: Tensor
    pooled: Tensor
    time_ids: Tensor

    @classmethod
    def from_prompt(cls, tokens: Tensor, pooled: Tensor, time_ids: Tensor) -> Conditioning:
        """The same text for the base and both branches."""
        return cls(full=tokens, content=tokens, style=tokens, pooled=pooled, time_ids=time_ids)

    def to(self, *, device: torch.device | None = None, dtype: torch.dtype | None = None) -> Conditioning:
        """All five tensors on ``device`` in ``dtype``."""
        return Conditioning(
            **{f.name: getattr(self, f.name).to(device=device, dtype=dtype) for f in fields(self)}
        )

    def expand(self, batch: int) -> Conditioning:
        """All five tensors repeated to ``batch`` pictures."""
        if self.full.shape[0] == batch:
            return self
        return Conditioning(
            **{f.name: getattr(self, f.name).repeat_interleave(batch, 0) for f in fields(self)}
        )


def time_ids(height: int, width: int) -> Tensor:
    """What SDXL is told about the size of an uncropped picture, [1, 6]."""
    return torch.tensor([[height, width, 0, 0, height, width]], dtype=torch.float32)


def predict_noise(unet: nn.Module, noisy: Tensor, timesteps: Tensor, conditioning: Conditioning) -> Tensor:
    """The U-Net's estimate of the noise in ``noisy`` [batch, channels, height, width] at ``timesteps``
    [batch].

    The U-Net's attention must have been separated by
    :func:`~unziplora_cli.sdxl.attention.separate_prompts`.
    """
    told = conditioning.expand(noisy.shape[0])
    prediction: Tensor = unet(
        noisy,
        timesteps,
        encoder_hidden_states=told.full,
        added_cond_kwargs={"text_embeds": told.pooled, "time_ids": told.time_ids},
        cross_attention_kwargs=branch_texts(told.content, told.style),
        return_dict=False,
    )[0]
    return prediction


def predict_noise_merged(unet: nn.Module, noisy: Tensor, timesteps: Tensor, told: Conditioning) -> Tensor:
    """What an ordinary U-Net makes of ``noisy`` [batch, channels, height, width] under the full prompt alone.

    Its branches, if any, are folded into its weights and its cached texts. ``told`` has the same batch;
    ``timesteps`` is a scalar or [batch].
    """
    prediction: Tensor = unet(
        noisy,
        timesteps,
        encoder_hidden_states=told.full,
        added_cond_kwargs={"text_embeds": told.pooled, "time_ids": told.time_ids},
        return_dict=False,
    )[0]
    return prediction
