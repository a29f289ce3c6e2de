import shutil
from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusionXLPipeline
from safetensors.torch import load_file, save_file

from tests.sdxl.cached import put_in_cache
from tests.sdxl.checkpoint import write_checkpoint
from unziplora_cli.errors import ModelError
from unziplora_cli.sdxl import base as bases
from unziplora_cli.sdxl.base import BaseRef, resolve_base
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


def test_a_single_checkpoint_file_gives_the_same_weights(
    base: BaseRef, tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The tiny base in the original layout, its sizes instead of those of SDXL."""
    sizes = shutil.copytree(tiny_base, tmp_path / "sizes", ignore=shutil.ignore_patterns("*.safetensors"))
    monkeypatch.setattr(bases, "SDXL_CONFIG", sizes)
    put_in_cache(tiny_base, bases.SDXL_ID, bases.SDXL_REVISION)
    file, _ = resolve_base(str(write_checkpoint(tiny_base, tmp_path / "tiny.safetensors")), offline=True)
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
    bases.check_unet(folder, bases.read_json(folder / "unet/config.json"))


def test_another_vae_replaces_the_own_one_of_the_base(base: BaseRef, tiny_base: Path, tmp_path: Path) -> None:
    other = shutil.copytree(tiny_base / "vae", tmp_path / "vae")
    config = other / "config.json"
    config.write_text(config.read_text().replace("0.13025", "0.5"))
    assert load_vae(base, device="cpu", vae=str(other)).config.scaling_factor == 0.5


@pytest.mark.parametrize("part", ["unet", "vae", "text_encoder_2"])
def test_damaged_weights_give_a_one_line_error(tiny_base: Path, tmp_path: Path, part: str) -> None:
    folder = shutil.copytree(tiny_base, tmp_path / "damaged")
    weights = next((folder / part).glob("*.safetensors"))
    weights.write_bytes(weights.read_bytes()[:-100])
    base, _ = resolve_base(str(folder), offline=True)
    with pytest.raises(ModelError, match="Cannot load the") as error:
        load_unet(base, device="cpu", dtype=torch.float32)
        load_vae(base, device="cpu")
        load_text_encoders(base, device="cpu", dtype=torch.float32)
    assert "\n" not in error.value.message


@pytest.mark.parametrize("part", ["unet", "vae", "text_encoder", "text_encoder_2"])
def test_missing_weights_are_never_random(tiny_base: Path, tmp_path: Path, part: str) -> None:
    folder = shutil.copytree(tiny_base, tmp_path / "lacking")
    file = next((folder / part).glob("*.safetensors"))
    weights = load_file(file)
    name = sorted(weights)[5]
    save_file(
        {key: tensor for key, tensor in weights.items() if key != name}, file, metadata={"format": "pt"}
    )
    base, _ = resolve_base(str(folder), offline=True)
    load_all(base, f"lack 1 of its weights, such as .*{name.removeprefix('text_model.')}")


@pytest.mark.parametrize(
    "key",
    [
        "model.diffusion_model.input_blocks.8.1.transformer_blocks.1.",
        "first_stage_model.encoder.",
        "conditioner.embedders.0.transformer.text_model.encoder.layers.2.",
        "conditioner.embedders.1.model.transformer.resblocks.2.",
    ],
)
def test_a_file_of_fewer_layers_is_no_sdxl(
    tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, key: str
) -> None:
    monkeypatch.setattr(bases, "SDXL_CONFIG", tiny_base)
    monkeypatch.setenv("UNZIPLORA_TOKENIZERS", str(tiny_base))
    file = write_checkpoint(tiny_base, tmp_path / "tiny.safetensors")
    save_file({name: tensor for name, tensor in load_file(file).items() if not name.startswith(key)}, file)
    base, _ = resolve_base(str(file), offline=True)
    load_all(base, "lack .* of its weights")


def load_all(base: BaseRef, error: str) -> None:
    with pytest.raises(ModelError, match=error):
        load_unet(base, device="cpu", dtype=torch.float32)
        load_vae(base, device="cpu")
        load_text_encoders(base, device="cpu", dtype=torch.float32)


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
