import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from tests.sdxl.cached import put_in_cache
from unziplora_cli.cli._errors import hint
from unziplora_cli.errors import ModelError
from unziplora_cli.sdxl.base import SDXL_ID, predicts_velocity, resolve_base
from unziplora_cli.sdxl.load import alphas_cumprod, load_scheduler
from unziplora_cli.sdxl.single_file import find_tokenizers

KEYS = (
    "model.diffusion_model.label_emb.0.0.weight",
    "conditioner.embedders.0.transformer.text_model.x",
    "conditioner.embedders.1.model.x",
    "first_stage_model.decoder.x",
)
FILE = Path("photo.safetensors")


def checkpoint(path: Path, *marks: str, **metadata: str) -> Path:
    tensors = {key: torch.zeros(1) for key in KEYS} | {mark: torch.zeros(0) for mark in marks}
    tensors["model.diffusion_model.input_blocks.0.0.weight"] = torch.zeros(1, 4, 1, 1)
    save_file(tensors, path, metadata=metadata or None)
    return path


@pytest.mark.parametrize(
    ("marks", "metadata", "velocity", "pure"),
    [
        ((), {}, False, False),
        ((), {"modelspec.prediction_type": "epsilon"}, False, False),
        (("v_pred",), {}, True, False),
        (("v_pred", "ztsnr"), {}, True, True),
        ((), {"modelspec.prediction_type": "v"}, True, False),
        ((), {"modelspec.predict_key": "v"}, True, False),
    ],
)
def test_marks_determine_the_prediction_type(
    tmp_path: Path, marks: tuple[str, ...], metadata: dict[str, str], velocity: bool, pure: bool
) -> None:
    base, _ = resolve_base(str(checkpoint(tmp_path / "x.safetensors", *marks, **metadata)), offline=True)
    assert predicts_velocity(base) is velocity
    assert load_scheduler(base).config.prediction_type == ("v_prediction" if velocity else "epsilon")
    assert (alphas_cumprod(base)[-1] == 0) == pure


def vocabulary(base: Path) -> int:
    return len(json.loads((base / "tokenizer/vocab.json").read_text()))


def test_tokenizers_come_from_any_cached_sdxl(tiny_base: Path) -> None:
    with pytest.raises(ModelError, match="tokenizers") as error:
        find_tokenizers(FILE, vocabulary(tiny_base))
    assert hint(error.value).startswith("unziplora models pull sdxl --only tokenizers")
    only = shutil.ignore_patterns("unet", "vae", "text_encoder*", "scheduler")
    tokenizers = shutil.copytree(tiny_base, tiny_base.parent / "tokenizers alone", ignore=only)
    folder = put_in_cache(tokenizers, SDXL_ID, "ef" * 20)
    shutil.rmtree(tokenizers)
    assert find_tokenizers(FILE, vocabulary(tiny_base)) == folder


def test_tokenizers_come_from_the_folder_in_the_environment(
    tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put_in_cache(tiny_base, SDXL_ID, "ef" * 20)
    monkeypatch.setenv("UNZIPLORA_TOKENIZERS", str(tiny_base))
    assert find_tokenizers(FILE, vocabulary(tiny_base)) == tiny_base
    monkeypatch.setenv("UNZIPLORA_TOKENIZERS", str(tmp_path))
    with pytest.raises(ModelError, match="UNZIPLORA_TOKENIZERS"):
        find_tokenizers(FILE, vocabulary(tiny_base))


@pytest.mark.parametrize(
    "missing", ["tokenizer_2/vocab.json", "tokenizer/merges.txt", "tokenizer/tokenizer_config.json"]
)
def test_incomplete_or_other_tokenizers_are_ignored(
    tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, missing: str
) -> None:
    folder = shutil.copytree(tiny_base, tmp_path / "copy")
    monkeypatch.setenv("UNZIPLORA_TOKENIZERS", str(folder))
    with pytest.raises(ModelError, match="no tokenizers of 49408 tokens"):
        find_tokenizers(FILE, 49408)
    (folder / missing).unlink()
    with pytest.raises(ModelError):
        find_tokenizers(FILE, vocabulary(tiny_base))
