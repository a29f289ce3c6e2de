"""Text encoding, the conditioning of SDXL's U-Net, and the call that predicts the noise."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor, nn

from unziplora_cli.accel.cuda_graph import GraphedFunction
from unziplora_cli.sdxl.attention import branch_texts


@dataclass(frozen=True, slots=True)
class TextEncoders:
    """SDXL's two tokenizers and two CLIP text encoders.

    ``zeros_for_empty``: the base was trained with zeros, instead of an encoded empty prompt, for "no text".
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
        """The embeddings of prompt ``i``, with a batch of 1."""
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
    """The embeddings of "no text", for guidance without a negative prompt; None stands for zeros."""
    return None if encoders.zeros_for_empty else encode(encoders, [""])


def truncation_note(encoders: TextEncoders, text: str) -> str:
    """One sentence that quotes the end of ``text`` that the encoders ignore; empty if it fits."""
    tokenizer = encoders.tokenizers[0]
    limit = tokenizer.model_max_length
    spans = tokenizer(text, truncation=False, verbose=False, return_offsets_mapping=True).offset_mapping
    if len(spans) <= limit:
        return ""
    ignored = text[spans[limit - 1][0] :].strip()
    return f'The prompt "{text[:40]}…" is longer than {limit} tokens; the base ignores: "{ignored}"'


def time_ids(height: int, width: int) -> Tensor:
    """SDXL's size conditioning for an image that is not cropped, [1, 6]."""
    return torch.tensor([[height, width, 0, 0, height, width]], dtype=torch.float32)


@dataclass(frozen=True, slots=True)
class Conditioning:
    """The three prompts and the size conditioning of the U-Net.

    ``full``, ``content``, ``style`` are token embeddings [batch, tokens, text width]; ``pooled`` [batch,
    pooled width] is that of the full prompt; ``time_ids`` [batch, 6] is (height, width, top, left, height,
    width). A batch of 1 is expanded to the batch of the images.
    """

    full: Tensor
    content: Tensor
    style: Tensor
    pooled: Tensor
    time_ids: Tensor

    @classmethod
    def from_prompt(cls, tokens: Tensor, pooled: Tensor, time_ids: Tensor) -> Conditioning:
        """The same prompt for the base and both branches."""
        return cls(full=tokens, content=tokens, style=tokens, pooled=pooled, time_ids=time_ids)

    def to(self, *, device: torch.device | None = None, dtype: torch.dtype | None = None) -> Conditioning:
        """All five tensors on ``device`` in ``dtype``."""
        return Conditioning(
            **{f.name: getattr(self, f.name).to(device=device, dtype=dtype) for f in fields(self)}
        )

    def expand(self, batch: int) -> Conditioning:
        """All five tensors repeated to ``batch`` images."""
        if self.full.shape[0] == batch:
            return self
        return Conditioning(
            **{f.name: getattr(self, f.name).repeat_interleave(batch, 0) for f in fields(self)}
        )


def unconditional(cond: Conditioning, negative: TextEmbeddings | None = None) -> Conditioning:
    """The unconditional counterpart of ``cond``: zeros, or ``negative`` [1, ...] for the base's prompt.

    The branches never get the negative prompt, as in the paper's release.
    """
    tokens = torch.zeros_like(cond.full) if negative is None else negative.tokens
    pooled = torch.zeros_like(cond.pooled) if negative is None else negative.pooled
    return Conditioning(
        full=tokens.expand_as(cond.full),
        content=torch.zeros_like(cond.content),
        style=torch.zeros_like(cond.style),
        pooled=pooled.expand_as(cond.pooled),
        time_ids=cond.time_ids,
    )


def concat_conditionings(first: Conditioning, second: Conditioning) -> Conditioning:
    """Both conditionings along the batch, for one call with classifier-free guidance."""
    return Conditioning(
        **{f.name: torch.cat([getattr(first, f.name), getattr(second, f.name)]) for f in fields(Conditioning)}
    )


def predict_noise(unet: nn.Module, noisy: Tensor, timesteps: Tensor, conditioning: Conditioning) -> Tensor:
    """The U-Net's estimate of the noise in ``noisy`` [batch, channels, height, width] at ``timesteps``
    [batch].

    The U-Net's attention must be prepared by :func:`~unziplora_cli.sdxl.attention.separate_prompts`.
    """
    cond = conditioning.expand(noisy.shape[0])
    return _predict(
        unet, noisy, timesteps, cond, cross_attention_kwargs=branch_texts(cond.content, cond.style)
    )


def predict_noise_merged(unet: nn.Module, noisy: Tensor, timesteps: Tensor, cond: Conditioning) -> Tensor:
    """The noise estimate of a U-Net whose branches, if any, are fused into its weights and cached texts.

    ``cond`` has the batch of ``noisy``; ``timesteps`` is a scalar or [batch].
    """
    return _predict(unet, noisy, timesteps, cond)


def _predict(unet: nn.Module, noisy: Tensor, timesteps: Tensor, cond: Conditioning, **kwargs: Any) -> Tensor:
    prediction: Tensor = unet(
        noisy,
        timesteps,
        encoder_hidden_states=cond.full,
        added_cond_kwargs={"text_embeds": cond.pooled, "time_ids": cond.time_ids},
        return_dict=False,
        **kwargs,
    )[0]
    return prediction


class GraphedUNet:
    """:func:`predict_noise_merged` of ``unet``, float32 in and out, replayed from a CUDA graph if possible.

    The weights and the cached texts may change between calls, but only in place. See
    :class:`~unziplora_cli.accel.cuda_graph.GraphedFunction`; ``enabled=False`` launches every kernel.
    """

    def __init__(self, unet: Any, *, enabled: bool = True) -> None:
        self.unet = unet
        self._function = GraphedFunction(self._predict, enabled=enabled)

    def __call__(self, noisy: Tensor, timestep: Tensor, conditioning: Conditioning) -> Tensor:
        """``noisy`` [batch, channels, height, width], ``timestep`` [] or [batch] -> noise of that shape."""
        tensors = (getattr(conditioning, part.name) for part in fields(conditioning))
        return self._function(noisy, timestep.to(noisy.device), *tensors)

    def _predict(self, noisy: Tensor, timestep: Tensor, *tensors: Tensor) -> Tensor:
        noisy = noisy.to(self.unet.dtype)
        return predict_noise_merged(self.unet, noisy, timestep, Conditioning(*tensors)).float()
