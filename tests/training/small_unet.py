"""A small U-Net with SDXL's blocks, as the module profile and as a network to compare the estimate with."""

import torch
from torch import Tensor, nn

from tests.tiny_base import unet_config
from unziplora_cli.sdxl.folder import meta_module
from unziplora_cli.sdxl.profile import profile_unet
from unziplora_cli.sdxl.text import Conditioning, predict_noise
from unziplora_cli.training.memory import BaseProfile

BATCH, SIDE, TOKENS = 2, 16, 8
CONFIG = {**unet_config(), "block_out_channels": (32, 64, 96), "transformer_layers_per_block": (1, 2, 3)}


def small_base() -> BaseProfile:
    """The profile of a base with this U-Net."""
    unet = profile_unet(meta_module("unet", CONFIG))
    return BaseProfile(unet, 0, 0, vae_width=4, vae_scale_factor=8, tokens=TOKENS)


def predict(unet: nn.Module) -> Tensor:
    """A forward pass with a batch of two images and prompts for each branch."""
    torch.manual_seed(1)
    text = torch.randn(BATCH, TOKENS, 24)
    conditioning = Conditioning(text, text + 1, text + 2, torch.randn(BATCH, 16), torch.zeros(BATCH, 6))
    return predict_noise(unet, torch.randn(BATCH, 4, SIDE, SIDE), torch.tensor([3, 3]), conditioning)
