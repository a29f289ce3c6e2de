"""Settings of all rows, and the network and inputs of one training step for other implementations."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import diffusers
import torch
import torch.nn.functional as F
from diffusers import DDPMScheduler, UNet2DConditionModel
from torch import Tensor

from benchmarks.random_sdxl import random_weights
from unziplora_cli.accel.device import limit_threads, pick_dtype
from unziplora_cli.config import Prompts
from unziplora_cli.sdxl.base import BaseRef, component_config, vae_scale_factor

TOKENS = 77
PAPER_RANK = 64
PROMPTS = Prompts("a monadikos fox in watercolor style", "a monadikos fox", "a fox in watercolor style")
MAX_GRAD_NORM = 1.0
LEARNING_RATE = 5e-5


@dataclass(frozen=True)
class Setting:
    """Base, machine and size of all rows of one run.

    If ``rank`` is None, a preset uses its own rank, and all other rows 64. ``steps`` is the number of timed
    training steps, and of denoising steps per image.
    """

    base: BaseRef
    device: torch.device
    rank: int | None
    resolution: int
    steps: int

    @property
    def common_rank(self) -> int:
        """The rank of every row that has no preset."""
        return self.rank or PAPER_RANK

    @property
    def few(self) -> int:
        """Steps of the slower implementations."""
        return max(2, self.steps // 4)

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of ``--precision auto`` on this device."""
        return pick_dtype("auto", self.device)


def meta_unet(base: BaseRef) -> UNet2DConditionModel:
    """The base's U-Net without weights, on the meta device, frozen."""
    diffusers.logging.set_verbosity_error()
    with torch.device("meta"):
        unet = UNet2DConditionModel.from_config(dict(component_config(base, "unet")))
    return unet.eval().requires_grad_(False)


def pooled_width(unet: UNet2DConditionModel) -> int:
    """The width of the pooled text embedding, which the U-Net concatenates with six embedded numbers."""
    shape = unet.config
    return int(shape.projection_class_embeddings_input_dim - 6 * shape.addition_time_embed_dim)


def random_unet(setting: Setting) -> UNet2DConditionModel:
    """diffusers' U-Net of the base's shape, frozen, with random weights created on the device.

    The values of the weights do not change the time. Its layers are unmodified.
    """
    unet = random_weights(meta_unet(setting.base).to(setting.dtype), str(setting.device)).to(setting.dtype)
    limit_threads(unet)
    if setting.device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(setting.device)
    return unet


class Task:
    """A frozen U-Net of the base's shape, and the inputs of a training step.

    A CUDA graph reads its inputs from fixed addresses, so :meth:`randomize` fills the tensors in place.
    """

    def __init__(self, setting: Setting) -> None:
        self.device, self.dtype = setting.device, setting.dtype
        self.unet = random_unet(setting)
        shape = self.unet.config
        side = setting.resolution // vae_scale_factor(setting.base)
        self.latents = self._random(1, shape.in_channels, side, side)
        self.noise, self.noisy = torch.empty_like(self.latents), torch.empty_like(self.latents)
        self.timesteps = torch.zeros(1, dtype=torch.long, device=self.device)
        self.full, self.content, self.style = (
            self._random(1, TOKENS, shape.cross_attention_dim) for _ in range(3)
        )
        self.pooled = self._random(1, pooled_width(self.unet))
        self.time_ids = torch.full((1, 6), float(setting.resolution), device=self.device)
        schedule = DDPMScheduler.from_config(component_config(setting.base, "scheduler"))
        self.alphas_cumprod = schedule.alphas_cumprod.to(self.device)

    def randomize(self) -> None:
        """Sample the noise, the timestep and the noisy latents of the next step."""
        self.noise.normal_()
        self.timesteps.random_(0, len(self.alphas_cumprod))
        alphas_cumprod = self.alphas_cumprod[self.timesteps].view(-1, 1, 1, 1)
        self.noisy.copy_(alphas_cumprod.sqrt() * self.latents + (1.0 - alphas_cumprod).sqrt() * self.noise)

    def autocast(self) -> AbstractContextManager[None]:
        """Mixed precision without a cache of casts, which a CUDA graph cannot use."""
        mixed = self.dtype is not torch.float32
        return torch.autocast(self.device.type, self.dtype, enabled=mixed, cache_enabled=False)

    def loss(self, **texts: Tensor) -> Tensor:
        """The denoising loss; ``texts`` reach every attention layer beside the full prompt."""
        with self.autocast():
            prediction = self.unet(
                self.noisy,
                self.timesteps,
                encoder_hidden_states=self.full,
                added_cond_kwargs={"text_embeds": self.pooled, "time_ids": self.time_ids},
                cross_attention_kwargs=texts or None,
                return_dict=False,
            )[0]
        return F.mse_loss(prediction.float(), self.noise.float())

    def adamw(self, groups: Iterable[Any]) -> torch.optim.AdamW:
        """Fused AdamW that a CUDA graph can record."""
        return torch.optim.AdamW(groups, lr=LEARNING_RATE, fused=True, capturable=self.device.type == "cuda")

    def _random(self, *shape: int) -> Tensor:
        return torch.randn(shape, device=self.device, dtype=self.dtype)
