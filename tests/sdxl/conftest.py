"""The tiny base, found and loaded."""

import shutil
from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusionXLPipeline

from tests.sdxl.checkpoint import write_checkpoint
from unziplora_cli.sdxl import base as bases
from unziplora_cli.sdxl.base import BaseRef, resolve_base
from unziplora_cli.sdxl.load import load_text_encoders
from unziplora_cli.sdxl.text import TextEncoders


@pytest.fixture(scope="session")
def base(tiny_base: Path) -> BaseRef:
    return resolve_base(str(tiny_base), offline=True)[0]


@pytest.fixture(scope="session")
def _checkpoint(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("checkpoint")
    shutil.copytree(tiny_base, folder / "sizes", ignore=shutil.ignore_patterns("*.safetensors", "tokenizer*"))
    return write_checkpoint(tiny_base, folder / "photo.safetensors")


@pytest.fixture
def checkpoint(_checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The tiny base as one file in SDXL's original layout, with its sizes instead of those of SDXL."""
    monkeypatch.setattr(bases, "SDXL_CONFIG", _checkpoint.with_name("sizes"))
    return _checkpoint


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
