"""Crops, scaling, and the VAE's posterior."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from unziplora_cli.sdxl.base import resolve_base
from unziplora_cli.sdxl.latents import LatentDistribution, crop_boxes, crop_image, crop_note, encode_latents
from unziplora_cli.sdxl.load import load_vae


def test_crops_are_spread_from_end_to_end() -> None:
    assert crop_boxes((500, 100), 3) == [(0, 0, 100, 100), (200, 0, 300, 100), (400, 0, 500, 100)]
    assert crop_boxes((100, 300), 1) == [(0, 100, 100, 200)]
    assert crop_boxes((100, 100), 8) == [(0, 0, 100, 100)]


def test_a_crop_equals_scaling_the_whole_image_first() -> None:
    image = Image.effect_noise((256, 128), 90).convert("RGB")
    pixels = crop_image(image, 64, 3)
    whole = np.asarray(image.resize((128, 64), Image.Resampling.BILINEAR), dtype=np.float32) / 127.5 - 1
    for crop, left in zip(pixels, (0, 32, 64), strict=True):
        assert np.abs(crop.permute(1, 2, 0).numpy() - whole[:, left : left + 64]).max() <= 1 / 127.5 + 1e-6


def test_pixels_span_minus_one_to_one() -> None:
    image = Image.new("RGB", (64, 64), (0, 255, 0))
    pixels = crop_image(image, 32, 1)
    assert pixels.shape == (1, 3, 32, 32)
    assert pixels[0, :, 0, 0].tolist() == [-1.0, 1.0, -1.0]


@pytest.mark.parametrize(
    ("size", "crops", "note"),
    [
        ((1000, 1000), 1, ""),
        ((1000, 1100), 1, ""),
        ((20_000, 100), 1, "only the middle is used, 0%"),
        ((2000, 1000), 1, "only the middle is used, 50%"),
        ((2000, 1000), 8, ""),
        ((20_000, 1000), 8, "only 8 squares along it is used, 40%"),
        ((100, 100), 1, "enlarged to 1024"),
    ],
)
def test_crop_note_says_what_is_cut(size: tuple[int, int], crops: int, note: str) -> None:
    result = crop_note(size, 1024, crops)
    assert (note in result) if note else not result


def test_latents_are_the_scaled_posterior(tiny_base: Path) -> None:
    vae = load_vae(resolve_base(str(tiny_base), offline=True)[0], device="cpu")
    pixels = torch.rand(3, 3, 64, 64) * 2 - 1
    latents = encode_latents(vae, pixels)
    with torch.no_grad():
        expected = vae.encode(pixels).latent_dist
    factor = vae.config.scaling_factor
    assert latents.crops == 3
    torch.testing.assert_close(latents.mean, expected.mean * factor, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(latents.std, expected.std * factor, rtol=1e-4, atol=1e-5)


def test_a_sample_has_the_posteriors_mean_and_spread() -> None:
    latents = LatentDistribution(torch.tensor([1.0, 5.0]).view(2, 1, 1, 1), torch.full((2, 1, 1, 1), 0.5))
    drawn = latents.sample(torch.tensor([1, 0]), torch.full((2, 1, 1, 1), 2.0))
    assert drawn.flatten().tolist() == [6.0, 2.0]
