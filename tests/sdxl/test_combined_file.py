"""A combined file against `combine`, in diffusers' own pipeline."""

from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionXLPipeline

from tests.sdxl.adapters import generated, random_branches
from unziplora_cli.adapters.lora_file import LayoutName, combine, write_lora
from unziplora_cli.config import GenerateConfig, Prompts
from unziplora_cli.sdxl.base import BaseRef
from unziplora_cli.sdxl.generate import ImageRequest
from unziplora_cli.sdxl.sampling import initial_noise

STEPS = 3
CPU = torch.device("cpu")


def difference(
    base: BaseRef,
    pipeline: StableDiffusionXLPipeline,
    folder: Path,
    prompts: Prompts,
    layout: LayoutName = "sd-scripts",
    negative: str = "",
) -> int:
    """The largest difference of any pixel between `combine` and the file with the full prompt."""
    both = random_branches(pipeline.unet, "content", "style")
    lora = combine(both.content or {}, both.style or {}, both.content_merge or {}, both.style_merge or {})
    write_lora(folder / "lora.safetensors", lora, layout=layout, dtype=torch.float32)
    config = GenerateConfig(steps=STEPS, guidance=5.0, width=64, height=48, negative_prompt=negative)
    request = ImageRequest(prompts, both, config)
    ours = generated(base, [request])[0].image
    pipeline.load_lora_weights(folder, weight_name="lora.safetensors")
    theirs = pipeline(
        prompts.full,
        negative_prompt=negative or None,
        latents=initial_noise([0], 4, 6, 8)[0],
        num_inference_steps=STEPS,
        guidance_scale=5.0,
        width=64,
        height=48,
    ).images[0]
    return int(np.abs(np.asarray(ours, dtype=int) - np.asarray(theirs, dtype=int)).max())


@pytest.mark.parametrize("layout", ["sd-scripts", "peft"])
def test_with_one_prompt_it_draws_what_combine_draws(
    base: BaseRef, pipeline: StableDiffusionXLPipeline, tmp_path: Path, layout: LayoutName
) -> None:
    one = Prompts("a fox in sketch style", "a fox in sketch style", "a fox in sketch style")
    assert difference(base, pipeline, tmp_path, one, layout) <= 1


def test_with_three_prompts_it_does_not(
    base: BaseRef, pipeline: StableDiffusionXLPipeline, tmp_path: Path
) -> None:
    three = Prompts("a monadikos fox in sketch style", "a monadikos fox", "a fox in sketch style")
    assert difference(base, pipeline, tmp_path, three) > 1


def test_with_a_negative_prompt_it_does_not(
    base: BaseRef, pipeline: StableDiffusionXLPipeline, tmp_path: Path
) -> None:
    one = Prompts("a fox", "a fox", "a fox")
    assert difference(base, pipeline, tmp_path, one, negative="sketch") > 1
