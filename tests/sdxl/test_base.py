"""Which base a spec means, and which bases are refused."""

import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusionXLPipeline
from PIL import ImageChops
from safetensors.torch import load_file, save_file

from tests.sdxl.adapters import generated
from tests.sdxl.cached import notice_text, put_in_cache
from unziplora_cli.cli._errors import hint
from unziplora_cli.config import GenerateConfig, Prompts
from unziplora_cli.errors import ModelError
from unziplora_cli.sdxl import base as bases
from unziplora_cli.sdxl.base import (
    BaseNotCached,
    check_trainable,
    find_vae,
    native_resolution,
    predicts_velocity,
    resolve_base,
)
from unziplora_cli.sdxl.folder import component_variant
from unziplora_cli.sdxl.generate import ImageRequest
from unziplora_cli.sdxl.load import alphas_cumprod, load_scheduler, load_vae
from unziplora_cli.sdxl.sampling import initial_noise


@pytest.fixture
def copy(tiny_base: Path, tmp_path: Path) -> Path:
    """A base that a test may damage."""
    return shutil.copytree(tiny_base, tmp_path / "copy")


@pytest.fixture
def mini(tiny_base: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The tiny base in the place of the built-in one."""
    monkeypatch.setattr(bases.resources, "mini_base", lambda: tiny_base)
    return tiny_base


def test_a_folder_is_resolved_and_its_fingerprint_depends_on_the_weights(copy: Path, tiny_base: Path) -> None:
    first, notice = resolve_base(str(copy), offline=True)
    assert (first.kind, first.path, notice) == ("folder", copy.resolve(), None)
    assert first.fingerprint == resolve_base(str(tiny_base), offline=True)[0].fingerprint
    file = copy / "unet/diffusion_pytorch_model.safetensors"
    weights = load_file(file)
    weights["conv_out.bias"][0] += 1
    save_file(weights, file, metadata={"format": "pt"})
    assert resolve_base(str(copy), offline=True)[0].fingerprint != first.fingerprint


@pytest.mark.parametrize(("offline", "gpu"), [(True, True), (True, False), (False, False)])
def test_mini_is_the_default_without_sdxl_and_gives_a_notice(mini: Path, offline: bool, gpu: bool) -> None:
    base, notice = resolve_base(None, offline=offline, has_gpu=gpu)
    assert (base.kind, base.path) == ("builtin", mini)
    assert notice is not None
    assert "unziplora models pull sdxl" in notice_text(notice)
    assert "\n" not in notice.text


def test_sdxl_is_the_default_if_it_can_be_used(tiny_base: Path) -> None:
    with pytest.raises(BaseNotCached) as missing:
        resolve_base(None, offline=False, has_gpu=True)
    assert hint(missing.value) == "unziplora models pull sdxl"
    folder = put_in_cache(tiny_base, bases.SDXL_ID, bases.SDXL_REVISION)
    base, notice = resolve_base(None, offline=True, has_gpu=False)
    assert (base.spec, base.kind, base.path, notice) == ("sdxl", "hub", folder, None)
    assert (base.revision, base.fingerprint) == (bases.SDXL_REVISION, bases.SDXL_REVISION)


@pytest.mark.parametrize("spec", ["owner/name", "owner/name@main", f"owner/name@{'ab' * 20}"])
def test_a_hub_id_is_looked_up_in_the_cache_only(tiny_base: Path, spec: str) -> None:
    with pytest.raises(BaseNotCached, match=r"owner/name is not on this disk") as missing:
        resolve_base(spec, offline=False)
    assert hint(missing.value) == f"unziplora models pull {spec}"
    folder = put_in_cache(tiny_base, "owner/name", "ab" * 20)
    base, _ = resolve_base(spec, offline=False)
    assert (base.id, base.path, base.revision) == ("owner/name", folder, "ab" * 20)


@pytest.mark.parametrize(
    "spec", ["nowhere", "./no/folder", "../up", "a b/c", "", "https://x.org/a.safetensors"]
)
def test_an_unknown_base_is_refused(spec: str) -> None:
    with pytest.raises(ModelError, match="no such folder") as error:
        resolve_base(spec, offline=True)
    assert "Give mini, sdxl, owner/name" in hint(error.value)


@pytest.mark.parametrize(
    "part",
    [
        "unet/config.json",
        "unet/diffusion_pytorch_model.safetensors",
        "vae",
        "text_encoder",
        "text_encoder_2/model.safetensors",
        "tokenizer/merges.txt",
        "tokenizer_2",
        "scheduler",
    ],
)
def test_a_missing_component_is_named(copy: Path, part: str) -> None:
    shutil.rmtree(copy / part) if (copy / part).is_dir() else (copy / part).unlink()
    with pytest.raises(ModelError, match="lacks") as error:
        resolve_base(str(copy), offline=True)
    assert part.split("/")[0] in error.value.message


def test_a_folder_of_something_else_is_not_a_base(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="is not a base"):
        resolve_base(str(tmp_path), offline=True)


def test_pickled_weights_are_refused(copy: Path) -> None:
    for weights in copy.glob("*/*.safetensors"):
        weights.rename(weights.with_suffix(".bin"))
    with pytest.raises(ModelError) as error:
        resolve_base(str(copy), offline=True)
    assert "can run code" in hint(error.value)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"addition_embed_type": None}, "pooled text"),
        ({"_class_name": "FluxTransformer2DModel"}, "FluxTransformer2DModel"),
        ({"in_channels": 9}, "inpainting"),
        ({"up_block_types": ["CrossAttnUpBlock2D", "UpBlock2D", "UpBlock2D"]}, r"up_blocks\.1\.attentions"),
        ({"layers_per_block": 1}, r"up_blocks\.0\.attentions\.2"),
    ],
)
def test_an_unsupported_unet_is_refused(copy: Path, changes: dict[str, object], reason: str) -> None:
    file = copy / "unet/config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))
    with pytest.raises(ModelError, match=f"not an SDXL-class model: .*{reason}"):
        resolve_base(str(copy), offline=True)


@pytest.mark.parametrize(
    ("file", "values"),
    [
        ("unet/config.json", {"layers_per_block": 10**9}),
        ("unet/config.json", {"transformer_layers_per_block": [1, 1, 10**9]}),
        ("unet/config.json", {"block_out_channels": [8, 16, 10**18]}),
        ("unet/config.json", {"norm_num_groups": 0}),
        ("vae/config.json", {"layers_per_block": 10**9}),
        ("text_encoder/config.json", {"num_hidden_layers": 10**9}),
        ("text_encoder_2/config.json", {"hidden_size": 10**12}),
        ("text_encoder/config.json", {"num_attention_heads": 0}),
    ],
)
def test_sizes_that_no_model_has_are_refused_at_once(
    copy: Path, file: str, values: dict[str, object]
) -> None:
    config = copy / file
    config.write_text(json.dumps(json.loads(config.read_text()) | values))
    with pytest.raises(ModelError):
        resolve_base(str(copy), offline=True)


@pytest.mark.parametrize("file", ["unet/config.json", "vae/diffusion_pytorch_model.safetensors"])
def test_a_pipe_or_a_huge_file_is_not_read(copy: Path, file: str) -> None:
    (copy / file).unlink()
    os.mkfifo(copy / file)
    with pytest.raises(ModelError, match="lacks"):
        resolve_base(str(copy), offline=True)
    (copy / file).unlink()
    (copy / file).touch()
    os.truncate(copy / file, 1 << 36)
    with pytest.raises(ModelError, match=r"Cannot read|another kind"):
        resolve_base(str(copy), offline=True)


def test_another_kind_of_pipeline_is_refused(copy: Path) -> None:
    (copy / "model_index.json").write_text(json.dumps({"_class_name": "FluxPipeline"}))
    with pytest.raises(ModelError, match="FluxPipeline"):
        resolve_base(str(copy), offline=True)


def test_a_broken_configuration_is_refused(copy: Path) -> None:
    (copy / "unet/config.json").write_text("{")
    with pytest.raises(ModelError, match="not valid JSON"):
        resolve_base(str(copy), offline=True)


@pytest.mark.parametrize(
    ("names", "preferred", "chosen"),
    [
        (["model.safetensors"], None, None),
        (["model.safetensors"], "fp16", None),
        (["model.fp16.safetensors"], None, "fp16"),
        (["model.fp16.safetensors", "model.safetensors"], "fp16", "fp16"),
        (["model.fp16.safetensors", "model.safetensors"], None, None),
        (["model.fp16-00001-of-00002.safetensors", "model.fp16-00002-of-00002.safetensors"], None, "fp16"),
        (["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"], "fp16", None),
    ],
)
def test_the_preferred_variant_is_chosen_if_present(
    tmp_path: Path, names: list[str], preferred: str | None, chosen: str | None
) -> None:
    for name in names:
        (tmp_path / name).touch()
    assert component_variant(tmp_path, preferred) == chosen


def test_another_vae_may_be_a_folder_a_base_or_a_hub_id(tiny_base: Path) -> None:
    assert find_vae(str(tiny_base)) == tiny_base / "vae"
    assert find_vae(str(tiny_base / "vae")) == tiny_base / "vae"
    with pytest.raises(ModelError) as error:
        find_vae("owner/vae")
    assert hint(error.value) == "unziplora models pull owner/vae"
    folder = put_in_cache(tiny_base / "vae", "owner/vae", "cd" * 20)
    assert find_vae("owner/vae") == folder


def test_resolution_and_scale_factor_of_sdxl() -> None:
    sdxl = bases.BaseRef("x.safetensors", "file", "x", Path("x.safetensors"), None, None, "")
    assert native_resolution(sdxl) == 1024
    assert bases.vae_scale_factor(sdxl) == 8


# Predictions, samplers and VAEs


def change(file: Path, **values: object) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ({"_class_name": "FlowMatchEulerDiscreteScheduler"}, "flow-matching"),
        ({"prediction_type": "flow_prediction"}, "flow-matching"),
        ({"_class_name": "EDMDPMSolverMultistepScheduler"}, "EDM"),
        ({"prediction_type": "sample"}, "predicts 'sample'"),
    ],
)
def test_other_noise_schedules_are_refused(copy: Path, values: dict[str, object], reason: str) -> None:
    change(copy / "scheduler/scheduler_config.json", **values)
    with pytest.raises(ModelError, match=f"not an SDXL-class model: .*{reason}"):
        resolve_base(str(copy), offline=True)


@pytest.mark.parametrize(
    ("file", "values", "reason"),
    [
        ("scheduler/scheduler_config.json", {"timestep_spacing": "trailing"}, "SDXL-Turbo"),
        (
            "scheduler/scheduler_config.json",
            {"_class_name": "EulerAncestralDiscreteScheduler", "timestep_spacing": "trailing"},
            "SDXL-Turbo",
        ),
        ("scheduler/scheduler_config.json", {"_class_name": "LCMScheduler"}, "consistency model"),
        ("unet/config.json", {"time_cond_proj_dim": 256}, "consistency model"),
    ],
)
def test_few_step_models_generate_but_are_not_trained(
    copy: Path, file: str, values: dict[str, object], reason: str
) -> None:
    change(copy / file, **values)
    if "time_cond_proj_dim" in values:
        weights = copy / "unet/diffusion_pytorch_model.safetensors"
        projection = {"time_embedding.cond_proj.weight": torch.zeros(8, 256)}
        save_file(load_file(weights) | projection, weights, metadata={"format": "pt"})
    base, notice = resolve_base(str(copy), offline=True)
    assert notice is not None
    assert "--steps 4 --guidance 1" in notice_text(notice)
    with pytest.raises(ModelError, match=reason) as error:
        check_trainable(base)
    assert "--base sdxl" in hint(error.value)


def test_trailing_timesteps_are_kept_for_generation(copy: Path) -> None:
    """Four trailing steps begin at the very end of the noise schedule."""
    change(copy / "scheduler/scheduler_config.json", timestep_spacing="trailing")
    base, _ = resolve_base(str(copy), offline=True)
    for name in (None, "euler", "ddim", "dpm++"):
        scheduler = load_scheduler(base, name)
        scheduler.set_timesteps(4)
        assert scheduler.timesteps.tolist() == [999, 749, 499, 249], name


def test_a_few_step_name_gives_only_a_notice(copy: Path) -> None:
    base, notice = resolve_base(str(copy.rename(copy.parent / "dreamXL_v2TurboDPM")), offline=True)
    assert notice is not None
    assert "Turbo" in notice.text
    check_trainable(base)


def test_a_velocity_prediction_model_is_recognised(copy: Path, tiny_base: Path) -> None:
    plain, _ = resolve_base(str(tiny_base), offline=True)
    change(
        copy / "scheduler/scheduler_config.json",
        prediction_type="v_prediction",
        rescale_betas_zero_snr=True,
        timestep_spacing="trailing",
    )
    base, notice = resolve_base(str(copy), offline=True)
    assert notice is None
    check_trainable(base)
    assert (predicts_velocity(plain), predicts_velocity(base)) == (False, True)
    assert load_scheduler(base).config.prediction_type == "v_prediction"
    assert alphas_cumprod(base)[-1] == 0
    assert alphas_cumprod(plain)[-1] > 0


@pytest.mark.parametrize(
    "values",
    [
        {"prediction_type": "v_prediction"},
        {"prediction_type": "v_prediction", "rescale_betas_zero_snr": True, "timestep_spacing": "trailing"},
        {"timestep_spacing": "trailing"},
    ],
)
def test_images_equal_those_of_the_diffusers_pipeline(copy: Path, values: dict[str, object]) -> None:
    change(copy / "scheduler/scheduler_config.json", **values)
    base, _ = resolve_base(str(copy), offline=True)
    config = GenerateConfig(steps=4, guidance=5.0)
    request = ImageRequest(Prompts("a fox", "a fox", "a fox"), config=config)
    ours = generated(base, [request])[0].image

    pipeline = StableDiffusionXLPipeline.from_pretrained(copy, local_files_only=True).to(torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    noise, _ = initial_noise([0], 4, 8, 8)
    theirs = pipeline("a fox", latents=noise, num_inference_steps=4, guidance_scale=5.0).images[0]
    assert max(high for _, high in ImageChops.difference(ours, theirs).getextrema()) <= 1


def test_a_vae_with_other_channels_is_refused(copy: Path, tiny_base: Path) -> None:
    change(copy / "vae/config.json", latent_channels=16)
    with pytest.raises(ModelError, match="16 latent channels"):
        resolve_base(str(copy), offline=True)
    base, _ = resolve_base(str(tiny_base), offline=True)
    with pytest.raises(ModelError, match="16 latent channels"):
        load_vae(base, device="cpu", vae=str(find_vae(str(copy))))
