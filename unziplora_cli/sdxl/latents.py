"""From what an autoencoder says to what the U-Net reads, and back."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKL
from PIL import Image
from torch import Tensor


def latent_scale(vae: Any) -> tuple[Tensor, Tensor]:
    """Shift and factor of an autoencoder's latents, [1, channels, 1, 1] or scalars, float32 on the CPU.

    The U-Net reads (latents - shift) * factor. SDXL's VAE has a factor alone; some others give the mean and
    the standard deviation of each channel, and factor = scaling factor / standard deviation.
    """
    factor = torch.tensor(float(vae.config.scaling_factor))
    mean, std = (getattr(vae.config, f"latents_{name}", None) for name in ("mean", "std"))
    if mean is None or std is None:
        return torch.tensor(0.0), factor
    return torch.tensor(mean).view(1, -1, 1, 1), factor / torch.tensor(std).view(1, -1, 1, 1)


# One picture to the latents that training draws from.


@dataclass(frozen=True, slots=True)
class LatentDistribution:
    """What the VAE says of each crop of one picture: a mean and a spread, [crops, channels, h, w], scaled."""

    mean: Tensor
    std: Tensor

    @property
    def crops(self) -> int:
        return self.mean.shape[0]

    def sample(self, crop: Tensor, noise: Tensor) -> Tensor:
        """One latent [batch, channels, h, w] per entry of ``crop`` [batch]; ``noise`` is standard normal."""
        return self.mean[crop] + self.std[crop] * noise


def crop_boxes(size: tuple[int, int], crops: int) -> list[tuple[float, float, float, float]]:
    """Squares (left, top, right, bottom) as wide as the shorter side, evenly spaced along the longer one.

    One crop is the central one; a square picture has only one.
    """
    width, height = size
    side, slack = min(size), abs(width - height)
    count = 1 if slack == 0 else crops
    offsets = [slack * (i / (count - 1) if count > 1 else 0.5) for i in range(count)]
    if width >= height:
        return [(o, 0, o + side, side) for o in offsets]
    return [(0, o, side, o + side) for o in offsets]


def prepare(image: Image.Image, resolution: int, crops: int) -> Tensor:
    """``image`` as [crops, 3, resolution, resolution] in [-1, 1], scaled with antialiasing.

    Training on random crops would encode a new one at every step; these are spaced along the picture and
    encoded once, and the randomness of each step picks one of them. The VAE can then leave memory before the
    U-Net comes.
    """
    pixels = [
        np.asarray(image.resize((resolution, resolution), Image.Resampling.BILINEAR, box=box))
        for box in crop_boxes(image.size, crops)
    ]
    return torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2).float().div_(127.5).sub_(1.0)


def crop_note(size: tuple[int, int], resolution: int, crops: int) -> str:
    """What scaling and cropping do to a picture of ``size``, when the user would want to know; else empty."""
    width, height = size
    side, longer = min(size), max(size)
    kept = min(1.0, len(crop_boxes(size, crops)) * side / longer)
    if kept < 0.75:
        where = "the middle" if crops == 1 else f"{crops} squares along it"
        return f"{width} x {height} px: only {where} is used, {kept:.0%} of the picture."
    if side < resolution / 2:
        return f"{width} x {height} px is small: it is enlarged to {resolution} px."
    return ""


@torch.no_grad()
def encode_latents(vae: Any, pixels: Tensor) -> LatentDistribution:
    """The VAE's posterior of ``pixels`` [crops, 3, H, W], one crop at a time, in the VAE's precision.

    Mean and spread are scaled as the U-Net reads them; both are float32 on the CPU.
    """
    parts = [vae.encode(crop.to(vae.device, vae.dtype)).latent_dist for crop in pixels.split(1)]
    mean, std = (torch.cat([getattr(p, name) for p in parts]).float().cpu() for name in ("mean", "std"))
    shift, factor = latent_scale(vae)
    return LatentDistribution((mean - shift) * factor, std * factor)


@torch.no_grad()
def decode_latents(vae: AutoencoderKL, latents: Tensor) -> list[Image.Image]:
    """Latents [n, channels, height, width] to RGB pictures, one at a time."""
    if max(latents.shape[-2:]) * 2 ** (len(vae.config.block_out_channels) - 1) > 2 * vae.config.sample_size:
        vae.enable_tiling()
    shift, factor = (each.to(latents.device) for each in latent_scale(vae))
    pictures = []
    for latent in latents.split(1):
        pixels = vae.decode((latent / factor + shift).to(vae.dtype), return_dict=False)[0]
        levels = (
            pixels.float().add(1).mul(127.5).clamp(0, 255).round().to(torch.uint8)
        )  # [1, 3, height, width]
        pictures.append(Image.fromarray(levels[0].permute(1, 2, 0).cpu().numpy()))
    return pictures
