"""Images to latents and back through the VAE."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor


@dataclass(frozen=True, slots=True)
class LatentDistribution:
    """The VAE's posterior of each crop of an image: mean and standard deviation, [crops, channels, h, w]."""

    mean: Tensor
    std: Tensor

    @property
    def crops(self) -> int:
        return self.mean.shape[0]

    def sample(self, crop: Tensor, noise: Tensor) -> Tensor:
        """One latent [batch, channels, h, w] per entry of ``crop`` [batch]; ``noise`` is standard normal."""
        return self.mean[crop] + self.std[crop] * noise


def latent_scale(vae: Any) -> tuple[Tensor, Tensor]:
    """Shift and factor of an autoencoder's latents, [1, channels, 1, 1] or scalars, float32 on the CPU.

    The U-Net takes (latents - shift) * factor. SDXL's VAE only has a factor; some others give the mean and
    the standard deviation of each channel, and factor = scaling factor / standard deviation.
    """
    factor = torch.tensor(float(vae.config.scaling_factor))
    mean, std = (getattr(vae.config, f"latents_{name}", None) for name in ("mean", "std"))
    if mean is None or std is None:
        return torch.tensor(0.0), factor
    return torch.tensor(mean).view(1, -1, 1, 1), factor / torch.tensor(std).view(1, -1, 1, 1)


def crop_boxes(size: tuple[int, int], crops: int) -> list[tuple[float, float, float, float]]:
    """Squares (left, top, right, bottom) as wide as the shorter side, evenly spaced along the longer one.

    A single crop is the central one; a square image has only one.
    """
    width, height = size
    side, slack = min(size), abs(width - height)
    count = 1 if slack == 0 else crops
    offsets = [slack * (i / (count - 1) if count > 1 else 0.5) for i in range(count)]
    if width >= height:
        return [(offset, 0, offset + side, side) for offset in offsets]
    return [(0, offset, side, offset + side) for offset in offsets]


def crop_image(image: Image.Image, resolution: int, crops: int) -> Tensor:
    """The crops of :func:`crop_boxes`, resized with antialiasing, [crops, 3, resolution, resolution] in
    [-1, 1].

    Training picks one of these crops at random in each step. Random crops would need the VAE in every step;
    these are encoded once, and the VAE is freed before the U-Net is loaded.
    """
    pixels = [
        np.asarray(image.resize((resolution, resolution), Image.Resampling.BILINEAR, box=box))
        for box in crop_boxes(image.size, crops)
    ]
    return torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2).float().div_(127.5).sub_(1.0)


def crop_note(size: tuple[int, int], resolution: int, crops: int) -> str:
    """What the user should know about the cropping or scaling of an image of ``size``; else empty."""
    width, height = size
    side, longer = min(size), max(size)
    kept = min(1.0, len(crop_boxes(size, crops)) * side / longer)
    if kept < 0.75:
        where = "the middle" if crops == 1 else f"{crops} squares along it"
        return f"{width} x {height} px: only {where} is used, {kept:.0%} of the image."
    if side < resolution / 2:
        return f"{width} x {height} px is small: it is enlarged to {resolution} px."
    return ""


@torch.no_grad()
def encode_latents(vae: Any, pixels: Tensor) -> LatentDistribution:
    """The VAE's scaled posterior of ``pixels`` [crops, 3, H, W], one crop at a time, float32 on the CPU."""
    parts = [vae.encode(crop.to(vae.device, vae.dtype)).latent_dist for crop in torch.split(pixels, 1)]
    mean, std = (torch.cat([getattr(p, name) for p in parts]).float().cpu() for name in ("mean", "std"))
    shift, factor = latent_scale(vae)
    return LatentDistribution((mean - shift) * factor, std * factor)


@torch.no_grad()
def decode_latents(vae: Any, latents: Tensor) -> list[Image.Image]:
    """RGB images of ``latents`` [n, channels, height, width], decoded one at a time.

    Images of more than twice the VAE's native size are decoded in tiles.
    """
    if max(latents.shape[-2:]) * 2 ** (len(vae.config.block_out_channels) - 1) > 2 * vae.config.sample_size:
        vae.enable_tiling()
    shift, factor = (scale.to(latents.device) for scale in latent_scale(vae))
    images = []
    for latent in torch.split(latents, 1):
        images += to_images(vae.decode((latent / factor + shift).to(vae.dtype), return_dict=False)[0])
    return images


def to_images(pixels: Tensor) -> list[Image.Image]:
    """RGB images of ``pixels`` [n, 3, height, width] in [-1, 1]."""
    levels = pixels.float().add(1).mul(127.5).clamp(0, 255).round().to(torch.uint8)
    return [Image.fromarray(image) for image in levels.permute(0, 2, 3, 1).cpu().numpy()]
