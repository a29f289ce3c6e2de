import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.sdxl.cached import notice_text, put_in_cache
from tests.sdxl.checkpoint import altered
from unziplora_cli.cli._errors import hint
from unziplora_cli.errors import ModelError
from unziplora_cli.sdxl.base import SDXL_ID, BaseRef, check_trainable, predicts_velocity, resolve_base
from unziplora_cli.sdxl.load import alphas_cumprod, load_scheduler
from unziplora_cli.sdxl.single_file import find_tokenizers

FILE = Path("photo.safetensors")
LORA = {f"lora_unet_mid_block_{i}__lora_down__weight": torch.zeros(1) for i in range(9)}


def resolve(path: Path, **options: str) -> tuple[BaseRef, str]:
    base, notice = resolve_base(str(path), offline=True, **options)
    return base, notice_text(notice) if notice else ""


@pytest.mark.parametrize(
    ("marks", "metadata", "prediction", "pure"),
    [
        ((), {}, None, False),
        ((), {"modelspec.prediction_type": "epsilon"}, "epsilon", False),
        (("v_pred",), {}, "v_prediction", False),
        (("v_pred", "ztsnr"), {}, "v_prediction", True),
        ((), {"modelspec.prediction_type": "v"}, "v_prediction", False),
        ((), {"modelspec.prediction_type": "v_prediction"}, "v_prediction", False),
        ((), {"modelspec.predict_key": "v"}, "v_prediction", False),
    ],
)
def test_marks_determine_the_prediction_type(
    checkpoint: Path,
    tmp_path: Path,
    marks: tuple[str, ...],
    metadata: dict[str, str],
    prediction: str | None,
    pure: bool,
) -> None:
    tensors = load_file(checkpoint) | {mark: torch.zeros(0) for mark in marks}
    save_file(tensors, tmp_path / "x.safetensors", metadata=metadata or None)
    base, note = resolve(tmp_path / "x.safetensors")
    assert predicts_velocity(base) is (prediction == "v_prediction")
    assert load_scheduler(base).config.prediction_type == (prediction or "epsilon")
    assert (alphas_cumprod(base)[-1] == 0) == pure
    assert ("--prediction v_prediction" in note) == (prediction is None)


def test_the_user_may_say_what_a_file_predicts(checkpoint: Path) -> None:
    base, note = resolve(checkpoint, prediction="v_prediction")
    assert predicts_velocity(base)
    assert note == ""
    assert base.record().prediction == "v_prediction"


@pytest.mark.parametrize(
    ("without", "added", "says"),
    [
        ("^conditioner.embedders.0", {"cond_stage_model__transformer__x": 1}, "is Stable Diffusion 1"),
        ("^conditioner", {"cond_stage_model__model__x": 1}, "is Stable Diffusion 2"),
        ("^conditioner.embedders.0", {"conditioner__embedders__0__model__x": 1}, "is the refiner of SDXL"),
        (".", {"model__diffusion_model__joint_blocks__0__x": 1}, "is Stable Diffusion 3"),
        (".", {"double_blocks__0__img_attn__x": 1}, "is FLUX"),
        ("^$", {"edm_mean": 1, "edm_std": 1}, "is Playground 2.5: .* EDM"),
        ("^$", {"edm_vpred__sigma_max": 1}, "is CosXL: .* EDM"),
        ("^$", {"model__diffusion_model__time_embed__cond_proj__weight": 1}, r"consistency model \(LCM\)"),
        (".", {"control_model__x": 1}, "is a ControlNet"),
        ("^$", {"scaled_fp8": 1}, "fp8 weights with scales"),
        ("^$", {"model__diffusion_model__out__2__scale_weight": 1}, "fp8 weights with scales"),
        ("^$", {"model__diffusion_model__out__2__weight__absmax": 1}, "NF4"),
        (".", LORA, "is a LoRA"),
        ("^(model|conditioner)", {}, "is a VAE"),
        ("input_blocks.8.1.transformer_blocks.1", {}, "lacks 20 of its .* weights, .*SSD-1B"),
        ("^first_stage_model.encoder", {}, "The VAE of .* lacks"),
        ("embedders.0.*layers.2", {}, "The first text encoder of .* lacks 16 of"),
        ("embedders.1.*resblocks.2", {}, "The second text encoder of .* lacks 16 of"),
        ("model.label_emb|model.time_embed", {}, "The U-Net of .* lacks"),
        ("^model", {}, "lacks the U-Net"),
        ("^conditioner", {}, "lacks CLIP-L, OpenCLIP-bigG"),
        ("^$", {"model__diffusion_model__out__2__bias": 3}, r"has the shape \[3\], not \[4\]"),
    ],
)
def test_a_file_that_cannot_be_trained_is_named_as_what_it_is(
    checkpoint: Path, tmp_path: Path, without: str, added: dict[str, Any], says: str
) -> None:
    tensors = {key: torch.zeros(size) if isinstance(size, int) else size for key, size in added.items()}
    path = altered(checkpoint, tmp_path / "model.safetensors", without, **tensors)
    with pytest.raises(ModelError, match=says) as error:
        resolve(path)
    assert error.value.remedies


@pytest.mark.parametrize("channels", [8, 9])
def test_inpainting_and_edit_models_are_refused(checkpoint: Path, tmp_path: Path, channels: int) -> None:
    weight = {"model__diffusion_model__input_blocks__0__0__weight": torch.zeros(8, channels, 3, 3)}
    with pytest.raises(ModelError, match=f"takes {channels} channels"):
        resolve(altered(checkpoint, tmp_path / "inpaint.safetensors", **weight))


def test_integer_weights_are_refused(checkpoint: Path, tmp_path: Path) -> None:
    weight = {"model__diffusion_model__out__2__bias": torch.zeros(4, dtype=torch.int8)}
    with pytest.raises(ModelError, match="integer weights"):
        resolve(altered(checkpoint, tmp_path / "int8.safetensors", **weight))


def test_one_stray_lora_key_does_not_make_a_lora(checkpoint: Path, tmp_path: Path) -> None:
    stray = altered(checkpoint, tmp_path / "x.safetensors", lora_te1__alpha=torch.zeros(1))
    assert resolve(stray)[0].kind == "file"


@pytest.mark.parametrize(
    ("content", "says", "advice"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0", "Git LFS pointer", "git lfs pull"),
        (b"<!DOCTYPE html><html>", "web page", "log in"),
        (b"GGUF\3\0\0\0", "GGUF", "safetensors"),
        (b"PK\3\4", "pickle", "Convert it"),
        (b"", "empty", "Download"),
        (bytes(100), "another kind", "safetensors"),
        (b"\7\0\0\0\0\0\0\0{", "damaged", "Download"),
    ],
)
def test_other_contents_are_named_whatever_the_name(
    tmp_path: Path, content: bytes, says: str, advice: str
) -> None:
    for name in ("a.safetensors", "a.ckpt"):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ModelError, match=says) as error:
            resolve(tmp_path / name)
        assert advice in hint(error.value)


@pytest.mark.parametrize("name", ["sd_xl_turbo_1.0_fp16", "sdxl_lightning_4step", "Hyper-SDXL-8steps", "x"])
def test_a_few_step_file_is_refused_for_training(checkpoint: Path, tmp_path: Path, name: str) -> None:
    """By its name, or by its title."""
    path = tmp_path / f"{name}.safetensors"
    save_file(load_file(checkpoint), path, metadata={"modelspec.title": "Turbo"} if name == "x" else None)
    base, note = resolve(path)
    assert "--steps 4" in note
    with pytest.raises(ModelError, match="its name says") as error:
        check_trainable(base)
    assert "--base sdxl" in hint(error.value)


def test_a_file_without_a_vae_needs_another_one(checkpoint: Path, tiny_base: Path, tmp_path: Path) -> None:
    path = altered(checkpoint, tmp_path / "x.safetensors", "^first_stage_model")
    with pytest.raises(ModelError, match="contains no VAE") as error:
        resolve(path)
    assert "--vae madebyollin/sdxl-vae-fp16-fix" in hint(error.value)
    resolve(path, vae=str(tiny_base))
    resolve(path, vae=str(checkpoint))
    with pytest.raises(ModelError, match="contains no VAE"):
        resolve(path, vae=str(path))


def test_a_vae_of_another_model_is_refused(checkpoint: Path, tiny_base: Path, tmp_path: Path) -> None:
    weights = load_file(tiny_base / "vae/diffusion_pytorch_model.safetensors")
    shape = list(weights["decoder.conv_in.weight"].shape)
    save_file(
        {**weights, "decoder.conv_in.weight": torch.zeros(shape[0], 16, *shape[2:])}, tmp_path / "flux.sft"
    )
    with pytest.raises(ModelError, match="16 latent channels"):
        resolve(tiny_base, vae=str(tmp_path / "flux.sft"))
    with pytest.raises(ModelError, match="There is no VAE"):
        resolve(tiny_base, vae=str(tmp_path / "none.safetensors"))


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
