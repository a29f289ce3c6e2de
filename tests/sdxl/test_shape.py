import json
import shutil
from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusionXLPipeline
from PIL import ImageChops

from unziplora_cli.cli._errors import hint
from unziplora_cli.config import GenerateConfig, Prompts
from unziplora_cli.errors import ModelError
from unziplora_cli.sdxl.base import check_trainable, find_vae, predicts_velocity, resolve_base
from unziplora_cli.sdxl.generate import ImageRequest, generate
from unziplora_cli.sdxl.load import alphas_cumprod, load_scheduler, load_vae
from unziplora_cli.sdxl.sampling import initial_noise


@pytest.fixture
def copy(tiny_base: Path, tmp_path: Path) -> Path:
    """A base whose configuration a test may change."""
    return shutil.copytree(tiny_base, tmp_path / "copy")


def change(file: Path, **values: object) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


@pytest.mark.parametrize(
    ("values", "why"),
    [
        ({"_class_name": "FlowMatchEulerDiscreteScheduler"}, "flow-matching"),
        ({"prediction_type": "flow_prediction"}, "flow-matching"),
        ({"_class_name": "EDMDPMSolverMultistepScheduler"}, "EDM"),
        ({"prediction_type": "sample"}, "predicts 'sample'"),
    ],
)
def test_other_kinds_of_noise_are_refused(copy: Path, values: dict[str, object], why: str) -> None:
    change(copy / "scheduler/scheduler_config.json", **values)
    with pytest.raises(ModelError, match=f"not of SDXL's shape: .*{why}"):
        resolve_base(str(copy), offline=True)


@pytest.mark.parametrize(
    ("file", "values", "why"),
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
def test_models_of_few_steps_draw_and_are_not_trained_on(
    copy: Path, file: str, values: dict[str, object], why: str
) -> None:
    change(copy / file, **values)
    base, notice = resolve_base(str(copy), offline=True)
    assert notice is not None
    assert "--steps 4 --guidance 1" in notice
    with pytest.raises(ModelError, match=why) as error:
        check_trainable(base)
    assert "--base sdxl" in hint(error.value)


def test_their_own_timesteps_are_kept_for_drawing(copy: Path) -> None:
    """Four trailing steps begin at the very end of the noise schedule."""
    change(copy / "scheduler/scheduler_config.json", timestep_spacing="trailing")
    base, _ = resolve_base(str(copy), offline=True)
    for name in (None, "euler", "ddim", "dpm++"):
        scheduler = load_scheduler(base, name)
        scheduler.set_timesteps(4)
        assert scheduler.timesteps.tolist() == [999, 749, 499, 249], name


def test_a_name_alone_is_only_a_hint(copy: Path) -> None:
    base, notice = resolve_base(str(copy.rename(copy.parent / "dreamXL_v2TurboDPM")), offline=True)
    assert notice is not None
    assert "Turbo" in notice
    check_trainable(base)


def test_a_model_that_predicts_the_velocity_is_known(copy: Path, tiny_base: Path) -> None:
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
def test_they_are_drawn_as_diffusers_own_pipeline_draws_them(copy: Path, values: dict[str, object]) -> None:
    change(copy / "scheduler/scheduler_config.json", **values)
    base, _ = resolve_base(str(copy), offline=True)
    config = GenerateConfig(steps=4, guidance=5.0)
    request = ImageRequest(Prompts("a fox", "a fox", "a fox"), config=config)
    ours = next(generate(base, [request], device=torch.device("cpu"), dtype=torch.float32)).image

    pipeline = StableDiffusionXLPipeline.from_pretrained(copy, local_files_only=True).to(torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    noise, _ = initial_noise([0], 4, 8, 8)
    theirs = pipeline("a fox", latents=noise, num_inference_steps=4, guidance_scale=5.0).images[0]
    assert max(high for _, high in ImageChops.difference(ours, theirs).getextrema()) <= 1


def test_a_vae_of_other_channels_is_refused(copy: Path, tiny_base: Path) -> None:
    change(copy / "vae/config.json", latent_channels=16)
    with pytest.raises(ModelError, match="16 latent channels"):
        resolve_base(str(copy), offline=True)
    base, _ = resolve_base(str(tiny_base), offline=True)
    with pytest.raises(ModelError, match="16 latent channels"):
        load_vae(base, device="cpu", vae=str(find_vae(str(copy))))
