"""From what an autoencoder says to what the U-Net reads, and back."""

from __future__ import annotations

from typing import Any

import torch
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
