import pytest
import torch
from diffusers import AutoencoderKL, StableDiffusionXLPipeline
from PIL import Image, ImageChops

from unziplora_cli.sdxl.latents import decode_latents, encode_latents, latent_scale

MEAN, STD = [0.5, -1.0, 0.0, 2.0], [0.5, 1.0, 2.0, 4.0]


@pytest.mark.parametrize("latent_statistics", [{}, {"latents_mean": MEAN, "latents_std": STD}])
def test_latents_decode_to_the_image_of_the_diffusers_pipeline(
    pipeline: StableDiffusionXLPipeline, latent_statistics: dict[str, list[float]]
) -> None:
    pipeline.vae.register_to_config(**latent_statistics)
    noise = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    arguments = {"prompt": "fox", "num_inference_steps": 2, "latents": noise}
    latents = pipeline(**arguments, output_type="latent").images
    expected: Image.Image = pipeline(**arguments).images[0]
    (image,) = decode_latents(pipeline.vae, latents)
    assert max(high for _, high in ImageChops.difference(image, expected).getextrema()) <= 1


def test_encoding_and_decoding_are_inverse(pipeline: StableDiffusionXLPipeline) -> None:
    vae: AutoencoderKL = pipeline.vae
    vae.register_to_config(latents_mean=MEAN, latents_std=STD)
    pixels = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0)) * 2 - 1
    with torch.no_grad():
        posterior = vae.encode(pixels).latent_dist
    latents = encode_latents(vae, pixels)
    shift, factor = latent_scale(vae)
    torch.testing.assert_close(latents.mean / factor + shift, posterior.mean)
    torch.testing.assert_close(latents.std / factor, posterior.std)
