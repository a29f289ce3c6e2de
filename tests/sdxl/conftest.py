"""The tiny base, found and loaded."""

from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusionXLPipeline

from unziplora_cli.sdxl.base import BaseRef, resolve_base
from unziplora_cli.sdxl.load import load_text_encoders
from unziplora_cli.sdxl.text import TextEncoders


@pytest.fixture(scope="session")
def base(tiny_base: Path) -> BaseRef:
    return resolve_base(str(tiny_base), offline=True)[0]


@pytest.fixture(scope="session")
def encoders(base: BaseRef) -> TextEncoders:
    return load_text_encoders(base, device="cpu", dtype=torch.float32)


@pytest.fixture
def pipeline(tiny_base: Path) -> StableDiffusionXLPipeline:
    """diffusers' own pipeline on the tiny base, in float32."""
    pipeline = StableDiffusionXLPipeline.from_pretrained(
        tiny_base, add_watermarker=False, local_files_only=True
    ).to(torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline
