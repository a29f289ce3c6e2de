"""The U-Net replayed from a CUDA graph against the same network launched kernel by kernel."""

import pytest
import torch
from diffusers import UNet2DConditionModel
from torch import Tensor

from tests.sdxl.adapters import random_branches
from unziplora_cli.accel.fused_lora import cache_text, fuse_pair
from unziplora_cli.sdxl.base import BaseRef
from unziplora_cli.sdxl.load import load_unet
from unziplora_cli.sdxl.text import Conditioning, GraphedUNet, predict_noise_merged

pytestmark = pytest.mark.gpu
GPU = torch.device("cuda")


@pytest.fixture
def unet(base: BaseRef) -> UNet2DConditionModel:
    return load_unet(base, device=GPU, dtype=torch.float32)


def random(*shape: int) -> Tensor:
    return torch.randn(shape, device=GPU)


def texts(unet: UNet2DConditionModel, batch: int = 1) -> Conditioning:
    shape = unet.config
    tokens = random(batch, 77, shape.cross_attention_dim)
    pooled = shape.projection_class_embeddings_input_dim - 6 * shape.addition_time_embed_dim
    return Conditioning.from_prompt(tokens, random(batch, pooled), random(batch, 6))


@torch.no_grad()
def compare(predict: GraphedUNet, cond: Conditioning, side: int = 8, first: float = 900) -> None:
    """Four calls, the last three replayed, each with its own latents and timestep."""
    for timestep in torch.tensor([first, first - 300, first - 600, first - 899]):
        noisy = random(len(cond.full), 4, side, side)
        expected = predict_noise_merged(predict.unet, noisy, timestep, cond)
        torch.testing.assert_close(predict(noisy, timestep, cond), expected, rtol=1e-4, atol=1e-4)


def test_replays_use_the_latents_texts_and_shapes_of_the_call(unet: UNet2DConditionModel) -> None:
    predict = GraphedUNet(unet)
    for batch, side in [(1, 8), (1, 8), (2, 8), (2, 16), (1, 8)]:
        compare(predict, texts(unet, batch), side)
    compare(predict, texts(unet), first=900.5)


def test_replays_use_changed_weights_and_cached_texts(unet: UNet2DConditionModel) -> None:
    predict = GraphedUNet(unet)
    for _ in range(2):
        pair = random_branches(unet, "content", "style")
        cond = texts(unet)
        fuse_pair(unet, pair)
        cache_text(unet, pair, cond.full, cond.content, cond.style)
        compare(predict, cond)
