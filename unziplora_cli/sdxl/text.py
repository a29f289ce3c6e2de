"""Text encoding, the conditioning of SDXL's U-Net, and the call that predicts the noise."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any, Self, cast

import torch
from torch import Tensor, nn

from unziplora_cli.accel.cuda_graph import GraphedFunction


@dataclass(frozen=True, slots=True)
class TextEncoders:
    """SDXL's two tokenizers and two CLIP text encoders.

    ``zeros_for_empty``: the base was trained with zeros, instead of an encoded empty prompt, for "no text".
    """

    tokenizers: tuple[Any, Any]
    models: tuple[Any, Any]
    zeros_for_empty: bool = True


class Movable:
    """A dataclass of tensors, or of other movable ones."""

    def to(self, *, device: torch.device | None = None, dtype: torch.dtype | None = None) -> Self:
        """All of them on ``device`` in ``dtype``."""
        return type(self)(
            **{f.name: getattr(self, f.name).to(device=device, dtype=dtype) for f in fields(cast(Any, self))}
        )


@dataclass(frozen=True)
class TextEmbeddings(Movable):
    """Of n prompts: ``tokens`` [n, tokens, text width] for cross-attention, ``pooled`` [n, pooled width]."""

    tokens: Tensor
    pooled: Tensor


@torch.no_grad()
def encode(encoders: TextEncoders, texts: Sequence[str]) -> TextEmbeddings:
    """Encode prompts, padded and truncated to the encoders' length.

    Tokens are the penultimate hidden states of both encoders, concatenated; pooled is the projected output of
    the second encoder. Each text is encoded in a batch of its own: matrix products round differently for
    different batch sizes, and an embedding must not depend on what else is encoded.
    """
    tokens, pooled = [], []
    for text in texts:
        states = []
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
        tokens.append(torch.cat(states, dim=-1))
        pooled.append(output[0])  # the second encoder's projection, [1, pooled width]
    return TextEmbeddings(torch.cat(tokens), torch.cat(pooled))


def encode_unconditional(encoders: TextEncoders) -> TextEmbeddings | None:
    """The embeddings of "no text", for guidance without a negative prompt; None stands for zeros."""
    return None if encoders.zeros_for_empty else encode(encoders, [""])


def truncation_note(encoders: TextEncoders, text: str) -> str:
    """One sentence that quotes where the encoders begin to ignore ``text``; empty if it fits."""
    tokenizer = encoders.tokenizers[0]
    limit = tokenizer.model_max_length
    spans = tokenizer(text, truncation=False, verbose=False, return_offsets_mapping=True).offset_mapping
    if len(spans) <= limit:
        return ""
    ignored = text[spans[limit - 1][0] :].strip()
    return f'The prompt "{text[:40]}…" is longer than {limit} tokens; the base ignores: "{ignored[:80]}"'


def time_ids(height: int, width: int) -> Tensor:
    """SDXL's size conditioning for an image that is not cropped, [1, 6]."""
    return torch.tensor([[height, width, 0, 0, height, width]], dtype=torch.float32)


@dataclass(frozen=True)
class Conditioning(Movable):
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

    def expand(self, batch: int) -> Conditioning:
        """All five tensors repeated to ``batch`` images."""
        if self.full.shape[0] == batch:
            return self
        return Conditioning(
            **{f.name: getattr(self, f.name).repeat_interleave(batch, 0) for f in fields(self)}
        )


def unconditional(
    cond: Conditioning, negative: TextEmbeddings | None = None, *, single: bool = False
) -> Conditioning:
    """The unconditional counterpart of ``cond``: zeros, or ``negative`` [1, ...] for the base's prompt.

    The branches never get the negative prompt, as in the paper's release, unless there is a ``single`` one.
    """
    if negative is None:
        negative = TextEmbeddings(torch.zeros_like(cond.full), torch.zeros_like(cond.pooled))
    tokens, pooled = negative.tokens.expand_as(cond.full), negative.pooled.expand_as(cond.pooled)
    if single:
        return Conditioning.from_prompt(tokens, pooled, cond.time_ids)
    content, style = torch.zeros_like(cond.content), torch.zeros_like(cond.style)
    return Conditioning(tokens, content, style, pooled, cond.time_ids)


def concat_conditionings(*parts: Conditioning) -> Conditioning:
    """All conditionings along the batch, for one call of the U-Net."""
    return Conditioning(
        **{f.name: torch.cat([getattr(part, f.name) for part in parts]) for f in fields(Conditioning)}
    )


def predict_noise(unet: nn.Module, noisy: Tensor, timesteps: Tensor, conditioning: Conditioning) -> Tensor:
    """The U-Net's estimate of the noise in ``noisy`` [batch, channels, height, width] at ``timesteps``
    [batch].

    The U-Net's attention must be prepared by :func:`~unziplora_cli.sdxl.attention.separate_prompts`.
    """
    cond = conditioning.expand(noisy.shape[0])
    texts = {"content_states": cond.content, "style_states": cond.style}
    return predict_noise_merged(unet, noisy, timesteps, cond, cross_attention_kwargs=texts)


def predict_noise_merged(
    unet: nn.Module, noisy: Tensor, timesteps: Tensor, cond: Conditioning, **kwargs: Any
) -> Tensor:
    """The noise estimate of a U-Net whose branches, if any, are fused into its weights and cached texts.

    ``cond`` has the batch of ``noisy``; ``timesteps`` is a scalar or [batch].
    """
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
