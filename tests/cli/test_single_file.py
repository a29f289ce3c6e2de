"""A checkpoint file as base, from training to an image, offline."""

import shutil
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from tests.cli.conftest import SETTINGS
from tests.sdxl.checkpoint import write_checkpoint
from unziplora_cli.images import read_parameters
from unziplora_cli.projects.store import ProjectStore
from unziplora_cli.sdxl import base as bases


@pytest.fixture
def file(tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The tiny base as one file, with its configurations instead of those of SDXL."""
    only = shutil.ignore_patterns("*.safetensors", "tokenizer*")
    monkeypatch.setattr(bases, "SDXL_CONFIG", shutil.copytree(tiny_base, tmp_path / "sizes", ignore=only))
    return write_checkpoint(tiny_base, tmp_path / "photo.safetensors")


def test_a_single_file_trains_and_generates(
    unziplora, file, photos, tiny_base, monkeypatch, tmp_path, isolated_home
):
    """The checkpoint has no VAE and no mark of its v-prediction: both are given, and kept in the project."""
    whole = load_file(file)
    save_file({key: tensor for key, tensor in whole.items() if "first_stage" in key}, tmp_path / "vae.sft")
    save_file({key: tensor for key, tensor in whole.items() if "first_stage" not in key}, file)
    settings = [f"--{name}={value}" for name, value in {"base": file, **SETTINGS}.items()]
    train = ["train", photos / "fox.png", "--subject=fox", "--style=ink", *settings]
    completed = unziplora("--offline", *train)
    assert completed.code == 4
    assert "--vae" in completed.message
    monkeypatch.chdir(tmp_path)
    train += ["--vae=vae.sft", "--prediction=v_prediction"]

    completed = unziplora("--offline", *train)
    assert completed.code == 4
    assert "unziplora models pull sdxl --only tokenizers" in completed.message

    monkeypatch.setenv("UNZIPLORA_TOKENIZERS", str(tiny_base))
    assert unziplora("--offline", *train).code == 0
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    job = ProjectStore(isolated_home).open("fox").job
    assert (job.base.prediction, job.vae) == ("v_prediction", str(tmp_path / "vae.sft"))
    completed = unziplora("content", "fox", "--steps=2", "--device=cpu", "--out", tmp_path / "fox.png")
    assert completed.code == 0
    assert "Note" not in completed.message
    parameters = read_parameters(tmp_path / "fox.png")["base"]
    assert (parameters["kind"], parameters["id"]) == ("file", str(file))


def test_a_few_step_base_is_refused_before_training(unziplora, photos, tiny_base, tmp_path, home_files):
    turbo = shutil.copytree(tiny_base, tmp_path / "turbo")
    scheduler = turbo / "scheduler/scheduler_config.json"
    scheduler.write_text(scheduler.read_text().replace('"leading"', '"trailing"'))
    settings = [f"--{name}={value}" for name, value in {"base": turbo, **SETTINGS}.items()]
    completed = unziplora("train", photos / "fox.png", "--subject=fox", "--style=ink", *settings)
    assert completed.code == 4
    assert "cannot be trained" in completed.message
    assert home_files() == []
