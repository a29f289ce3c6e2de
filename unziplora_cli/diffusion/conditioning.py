"""What the U-Net is told beside the noisy picture, and the one call that asks it for the noise."""

from __future__ import annotations

from dataclasses import dataclass, fields

import torch
from torch import Tensor, nn

from unziplora_cli.diffusion.attention import branch_texts


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
    def one_prompt(cls, tokens: Tensor, pooled: Tensor, time_ids: Tensor) -> Conditioning:
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


def predict_noise(unet: nn.Module, noisy: Tensor, timesteps: Tensor, conditioning: Conditioning) -> Tensor:
    """The U-Net's estimate of the noise in ``noisy`` [batch, channels, height, width] at ``timesteps``
    [batch].

    The U-Net's attention must have been separated by
    :func:`~unziplora_cli.diffusion.attention.separate_prompts`.
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


def predict_plain(unet: nn.Module, noisy: Tensor, timesteps: Tensor, told: Conditioning) -> Tensor:
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
