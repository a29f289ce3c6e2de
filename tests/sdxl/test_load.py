import json
import shutil
from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusionXLPipeline
from safetensors.torch import load, load_file, save_file

from tests.sdxl.cached import put_in_cache
from unziplora_cli.errors import ModelError
from unziplora_cli.sdxl import base as bases
from unziplora_cli.sdxl.base import BaseRef, resolve_base
from unziplora_cli.sdxl.folder import check_unet, read_json
from unziplora_cli.sdxl.load import alphas_cumprod, load_scheduler, load_text_encoders, load_unet, load_vae


def same_weights(ours: torch.nn.Module, theirs: torch.nn.Module) -> bool:
    state, expected = ours.state_dict(), theirs.state_dict()
    return state.keys() == expected.keys() and all(torch.equal(state[name], expected[name]) for name in state)


def test_every_component_has_the_weights_of_the_base_and_is_frozen(
    base: BaseRef, pipeline: StableDiffusionXLPipeline, capfd: pytest.CaptureFixture[str]
) -> None:
    capfd.readouterr()
    encoders = load_text_encoders(base, device="cpu", dtype=torch.float32)
    parts = [
        (encoders.models[0], pipeline.text_encoder),
        (encoders.models[1], pipeline.text_encoder_2),
        (load_vae(base, device="cpu"), pipeline.vae),
        (load_unet(base, device="cpu", dtype=torch.float32), pipeline.unet),
    ]
    for ours, theirs in parts:
        assert same_weights(ours, theirs)
        assert not ours.training
        assert not any(p.requires_grad for p in ours.parameters())
    assert capfd.readouterr() == ("", "")


def test_variant_files_are_loaded(base: BaseRef, tiny_base: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(tiny_base, tmp_path / "variant")
    for weights in folder.glob("*/*.safetensors"):
        weights.rename(weights.with_suffix(".fp16.safetensors"))
    variant, _ = resolve_base(str(folder), offline=True)
    plain = load_unet(base, device="cpu", dtype=torch.float32)
    assert same_weights(load_unet(variant, device="cpu", dtype=torch.float32), plain)
    assert load_text_encoders(variant, device="cpu", dtype=torch.bfloat16).models[1].dtype == torch.bfloat16


@pytest.mark.parametrize("name", ["tiny.safetensors", "tiny.SFT"])
def test_a_single_checkpoint_file_gives_the_same_weights(
    base: BaseRef, checkpoint: Path, tiny_base: Path, tmp_path: Path, name: str
) -> None:
    put_in_cache(tiny_base, bases.SDXL_ID, "ef" * 20)
    path = Path(shutil.copyfile(checkpoint, tmp_path / name))
    file, _ = resolve_base(str(path), offline=True)
    assert file.kind == "file"
    dtype = torch.float32
    encoders, expected = (load_text_encoders(b, device="cpu", dtype=dtype) for b in (file, base))
    for ours, theirs in zip(encoders.models, expected.models, strict=True):
        assert same_weights(ours, theirs)
    unets = (load_unet(b, device="cpu", dtype=dtype) for b in (file, base))
    assert same_weights(*unets)
    vaes = (load_vae(b, device="cpu") for b in (file, base))
    assert same_weights(*vaes)
    assert type(load_scheduler(file)).__name__ == "EulerDiscreteScheduler"


def test_shipped_configurations_are_those_of_sdxl() -> None:
    """SDXL has 2.57 billion parameters in the U-Net, 84 million in the VAE, 123 and 695 million for text."""
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    folder = bases.SDXL_CONFIG
    with torch.device("meta"):
        parts = [
            UNet2DConditionModel.from_config(UNet2DConditionModel.load_config(folder / "unet")),
            AutoencoderKL.from_config(AutoencoderKL.load_config(folder / "vae")),
            CLIPTextModel(CLIPTextConfig.from_pretrained(folder / "text_encoder")),
            CLIPTextModelWithProjection(CLIPTextConfig.from_pretrained(folder / "text_encoder_2")),
        ]
    counts = [sum(p.numel() for p in part.parameters()) for part in parts]
    assert counts == [2_567_463_684, 83_653_863, 123_060_480, 694_659_840]
    check_unet(folder, read_json(folder / "unet/config.json"))


def test_another_vae_replaces_the_own_one_of_the_base(base: BaseRef, tiny_base: Path, tmp_path: Path) -> None:
    other = shutil.copytree(tiny_base / "vae", tmp_path / "vae")
    config = other / "config.json"
    config.write_text(config.read_text().replace("0.13025", "0.5"))
    assert load_vae(base, device="cpu", vae=str(other)).config.scaling_factor == 0.5


def test_a_vae_may_be_a_single_file(base: BaseRef, checkpoint: Path, tiny_base: Path, tmp_path: Path) -> None:
    """Alone in the original layout, alone in diffusers' layout, and within a whole checkpoint."""
    alone = {
        key.removeprefix("first_stage_model."): tensor
        for key, tensor in load_file(checkpoint).items()
        if key.startswith("first_stage_model.")
    }
    save_file(alone, tmp_path / "vae.sft")
    base_vae = tiny_base / "vae/diffusion_pytorch_model.safetensors"
    for path in (tmp_path / "vae.sft", base_vae, checkpoint):
        resolve_base(str(tiny_base), offline=True, vae=str(path))
        assert same_weights(load_vae(base, device="cpu", vae=str(path)), load_vae(base, device="cpu"))


def test_damaged_weights_are_refused_when_the_base_is_found(tiny_base: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(tiny_base, tmp_path / "damaged")
    weights = folder / "unet/diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(ModelError, match=r"diffusion_pytorch_model.safetensors is damaged"):
        resolve_base(str(folder), offline=True)


@pytest.mark.parametrize("part", ["unet", "vae", "text_encoder", "text_encoder_2"])
def test_missing_and_misshapen_weights_are_found_before_loading(
    tiny_base: Path, tmp_path: Path, part: str
) -> None:
    folder = shutil.copytree(tiny_base, tmp_path / "lacking")
    base, _ = resolve_base(str(folder), offline=True)
    file = next((folder / part).glob("*.safetensors"))
    weights = load(file.read_bytes())  # not mapped: the file is overwritten below
    name = sorted(weights)[5]
    save_file({**weights, name: torch.zeros(3)}, file, metadata={"format": "pt"})
    with pytest.raises(ModelError, match=rf"{name.removeprefix('text_model.')} has the shape \[3\], not \["):
        resolve_base(str(folder), offline=True)
    del weights[name]
    save_file(weights, file, metadata={"format": "pt"})
    with pytest.raises(ModelError, match=r"lacks 1 of its .* weights"):
        resolve_base(str(folder), offline=True)
    with pytest.raises(ModelError, match="lack 1 of its weights"):  # should the files change meanwhile
        load_unet(base, device="cpu", dtype=torch.float32)
        load_vae(base, device="cpu")
        load_text_encoders(base, device="cpu", dtype=torch.float32)


@pytest.mark.parametrize(
    ("file", "key", "value"),
    [
        ("tokenizer/merges.txt", None, "#version\nh"),
        ("tokenizer/special_tokens_map.json", None, "null"),
        ("tokenizer/tokenizer_config.json", None, "[]"),
        ("tokenizer_2/vocab.json", None, '{"a":'),
        ("text_encoder/config.json", "hidden_act", 3),
        ("text_encoder/config.json", "initializer_factor", None),
        ("text_encoder_2/config.json", "num_hidden_layers", "2"),
        ("scheduler/scheduler_config.json", "beta_start", "0.1"),
        ("scheduler/scheduler_config.json", "beta_schedule", [1]),
        ("scheduler/scheduler_config.json", "_class_name", []),
        ("scheduler/scheduler_config.json", "trained_betas", -1),
    ],
)
def test_wrong_values_in_configurations_are_named_as_damage(
    tiny_base: Path, tmp_path: Path, file: str, key: str | None, value: object
) -> None:
    folder = shutil.copytree(tiny_base, tmp_path / "damaged")
    path = folder / file
    path.write_text(str(value) if key is None else json.dumps({**read_json(path), key: value}))
    with pytest.raises(ModelError, match=r"Cannot load the text encoders|is damaged") as error:
        damaged, _ = resolve_base(str(folder), offline=True)
        load_text_encoders(damaged, device="cpu", dtype=torch.float32)
        load_scheduler(damaged)
    assert str(folder) in error.value.message
    assert error.value.remedies


def test_an_own_fault_is_not_called_damage(base: BaseRef, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("unziplora_cli.sdxl.load._complete", lambda model, missing: model.no_such_name)
    with pytest.raises(AttributeError, match="no_such_name"):
        load_unet(base, device="cpu", dtype=torch.float32)


def test_the_noise_schedule_is_sdxls(base: BaseRef) -> None:
    """sqrt(beta) runs linearly from sqrt(0.00085) to sqrt(0.012)."""
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
    expected = torch.cumprod(1 - betas, dim=0)
    torch.testing.assert_close(alphas_cumprod(base).double(), expected, rtol=1e-4, atol=0)


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        (None, "EulerDiscreteScheduler"),
        ("euler", "EulerDiscreteScheduler"),
        ("ddim", "DDIMScheduler"),
        ("ddpm", "DDPMScheduler"),
        ("dpm++", "DPMSolverMultistepScheduler"),
    ],
)
def test_every_sampler_keeps_the_schedule_of_the_base_and_never_clips(
    base: BaseRef, name: str | None, kind: str
) -> None:
    scheduler = load_scheduler(base, name)
    assert type(scheduler).__name__ == kind
    torch.testing.assert_close(scheduler.alphas_cumprod, alphas_cumprod(base))
    assert not getattr(scheduler.config, "clip_sample", False)
