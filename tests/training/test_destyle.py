"""Destyled images: DDIM inversion and guided denoising, and how the content branch learns from them."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from diffusers import DDIMInverseScheduler, DDIMScheduler
from torch import Tensor

from tests.training.conftest import run_training
from unziplora_cli.config import TrainConfig
from unziplora_cli.events import Progress, run
from unziplora_cli.method.inject import extract, inject
from unziplora_cli.sdxl.base import BaseRef
from unziplora_cli.sdxl.load import alphas_cumprod, load_unet
from unziplora_cli.sdxl.text import Conditioning
from unziplora_cli.training.destyle import DestyleConditioning, ddim_step, ddim_times, destyle
from unziplora_cli.training.noise import add_noise, step_noise, velocity
from unziplora_cli.training.request import TrainRequest

Make = Callable[..., TrainRequest]


def constant(value: float) -> Conditioning:
    return Conditioning.from_prompt(
        torch.full((1, 2, 3), value), torch.full((1, 3), value), torch.zeros(1, 6)
    )


PLAIN, FULL, CONTENT = (constant(value) for value in (1.0, 2.0, 3.0))
CONTRAST = DestyleConditioning.from_prompts(PLAIN, FULL, CONTENT, TrainConfig(destyle_contrast=True))


def destyled(*args: object, **options: object) -> Tensor:
    return run(destyle(*args, **options))  # type: ignore[arg-type]


@pytest.fixture
def alphas(base: BaseRef) -> Tensor:
    """The cumulative alphas of the base."""
    return alphas_cumprod(base)


@pytest.fixture
def zero_snr_alphas() -> Tensor:
    """Cumulative alphas that end at 0 (zero terminal SNR)."""
    scheduler = DDIMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", rescale_betas_zero_snr=True
    )
    assert float(scheduler.alphas_cumprod[-1]) == 0.0
    return scheduler.alphas_cumprod


def settings(strength: float, guidance: float = 1.0, fresh: float = 0.0, images: int = 1) -> TrainConfig:
    return TrainConfig(
        destyle_images=images,
        destyle_strength=strength,
        destyle_guidance=guidance,
        destyle_fresh_noise=fresh,
    )


def test_a_reversed_step_undoes_a_step(alphas: Tensor) -> None:
    latents, prediction = torch.randn(2, 1, 4, 8, 8).unbind()
    noisier = ddim_step(latents, prediction, alphas[100], alphas[600], velocity=False)
    restored = ddim_step(noisier, prediction, alphas[600], alphas[100], velocity=False)
    torch.testing.assert_close(restored, latents, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("predicts", ["noise", "velocity"])
def test_steps_equal_those_of_diffusers(predicts: str) -> None:
    schedulers = [
        kind(
            beta_start=0.00085,
            beta_end=0.012,
            beta_schedule="scaled_linear",
            prediction_type="epsilon" if predicts == "noise" else "v_prediction",
            clip_sample=False,
            set_alpha_to_one=False,
            timestep_spacing="leading",
        )
        for kind in (DDIMScheduler, DDIMInverseScheduler)
    ]
    alphas = schedulers[0].alphas_cumprod
    latents, prediction = torch.randn(2, 1, 4, 8, 8).unbind()
    for scheduler, (start, end) in zip(schedulers, [(500, 450), (450, 500)], strict=True):
        scheduler.set_timesteps(20)
        timestep = 500 if isinstance(scheduler, DDIMScheduler) else end
        expected = scheduler.step(prediction, timestep, latents, return_dict=False)[0]
        result = ddim_step(latents, prediction, alphas[start], alphas[end], velocity=predicts == "velocity")
        torch.testing.assert_close(result, expected, atol=1e-5, rtol=1e-5)


def test_velocity_and_noise_of_one_image_give_the_same_step(alphas: Tensor) -> None:
    clean, noise = torch.randn(2, 1, 4, 8, 8).unbind()
    at = torch.tensor([700])
    noisy = add_noise(clean, noise, alphas, at)
    expected = add_noise(clean, noise, alphas, torch.tensor([300]))
    from_noise = ddim_step(noisy, noise, alphas[700], alphas[300], velocity=False)
    from_velocity = ddim_step(
        noisy, velocity(clean, noise, alphas, at), alphas[700], alphas[300], velocity=True
    )
    torch.testing.assert_close(from_noise, expected, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(from_velocity, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("number", range(8))
def test_zero_terminal_snr_gives_the_right_image(zero_snr_alphas: Tensor, number: int) -> None:
    """A base that knows the clean image: at alpha 0 its velocity is -clean, and the result is that image."""
    image, target = torch.randn(2, 1, 4, 8, 8).unbind()

    def predict(noisy: Tensor, timestep: Tensor, text: Conditioning) -> Tensor:
        alpha = zero_snr_alphas[timestep]
        clean = target if text is PLAIN else image
        return (alpha.sqrt() * noisy - clean) / (1.0 - alpha).sqrt()

    config = settings(strength=0.9, images=8)  # the strength of the last image is 1.0
    result = destyled(predict, zero_snr_alphas, image, image, CONTRAST, config, number, velocity=True)
    assert result.isfinite().all()
    # The last step, to alpha = zero_snr_alphas[0], keeps (1 - alpha) of the noise.
    torch.testing.assert_close(result, target, atol=0.1, rtol=0.0)


def test_zero_terminal_snr_with_predicted_noise_stops_before_pure_noise(zero_snr_alphas: Tensor) -> None:
    assert ddim_times(1.0, zero_snr_alphas, velocity=True)[-1] == 999
    assert ddim_times(1.0, zero_snr_alphas, velocity=False)[-1] == 998
    image, noise = torch.randn(2, 1, 4, 8, 8).unbind()
    result = destyled(
        lambda *_: noise, zero_snr_alphas, image, noise, CONTRAST, settings(1.0), 0, velocity=False
    )
    torch.testing.assert_close(result, image, atol=1e-2, rtol=0.0)


def test_a_constant_prediction_restores_the_image_unless_noise_is_fresh(alphas: Tensor) -> None:
    image, prediction, noise = torch.randn(3, 1, 4, 8, 8).unbind()
    kept, changed = (
        destyled(lambda *_: prediction, alphas, image, noise, CONTRAST, settings(0.5, fresh=share), 0)
        for share in (0.0, 0.5)
    )
    torch.testing.assert_close(kept, image, atol=1e-4, rtol=1e-4)
    assert (changed - image).abs().mean() > 0.1


def test_strength_moves_the_image_towards_the_prompt(alphas: Tensor) -> None:
    image, target = torch.zeros(1, 4, 8, 8), torch.ones(1, 4, 8, 8)

    def predict(noisy: Tensor, timestep: Tensor, text: Conditioning) -> Tensor:
        alpha = alphas[timestep]
        return (noisy - alpha.sqrt() * (target if text is PLAIN else image)) / (1.0 - alpha).sqrt()

    near, far = (
        destyled(predict, alphas, image, image, CONTRAST, settings(strength, guidance=3.5), 0).mean()
        for strength in (0.3, 0.9)
    )
    assert far > near > 0.0


def test_guidance_changes_only_what_the_prompts_differ_in(alphas: Tensor) -> None:
    # Two exact denoisers whose clean images share one half: that half returns unchanged, and guidance 2 moves
    # the other half by twice the difference.
    image, target = torch.zeros(2, 1, 4, 8, 8).unbind()
    image[..., :4] = target[..., :4] = 0.7
    target[..., 4:] = 0.1

    def predict(noisy: Tensor, timestep: Tensor, text: Conditioning) -> Tensor:
        alpha = alphas[timestep]
        return (noisy - alpha.sqrt() * (target if text is PLAIN else image)) / (1.0 - alpha).sqrt()

    result = destyled(predict, alphas, image, image, CONTRAST, settings(0.9, guidance=2.0), 0)
    torch.testing.assert_close(result[..., :4], image[..., :4], atol=1e-3, rtol=0.0)
    torch.testing.assert_close(result[..., 4:], 2.0 * target[..., 4:], atol=0.02, rtol=0.0)


def test_every_step_in_either_direction_is_reported(alphas: Tensor) -> None:
    image, config = torch.zeros(1, 4, 8, 8), settings(0.5, images=3)
    steps = list(destyle(lambda *_: image, alphas, image, image, CONTRAST, config, 1))
    assert steps == [Progress("destyle", 1, 3, step, 20) for step in range(1, 21)]  # half of 20, twice


@pytest.mark.parametrize("contrast", [True, False])
def test_the_full_prompt_is_used_only_with_contrast(contrast: bool) -> None:
    config = TrainConfig(destyle_images=1, destyle_contrast=contrast)
    texts = DestyleConditioning.from_prompts(PLAIN, FULL, CONTENT, config)
    assert texts.cond is PLAIN
    assert texts.content is CONTENT
    assert texts.inversion is (FULL if contrast else CONTENT)
    assert texts.uncond is FULL if contrast else not texts.uncond.full.any()


def test_destyled_images_are_reproducible_and_depend_on_the_strength(
    make_request: Make, tmp_path: Path
) -> None:
    first, again = (
        run_training(make_request(tmp_path / name, steps=6, destyle_images=2, destyle_strength=0.1)).result
        for name in ("a", "b")
    )
    assert first.losses == again.losses
    request = make_request(tmp_path / "c", steps=6, destyle_images=2, destyle_strength=0.2)
    assert run_training(request).result.losses != first.losses


def test_with_destyled_images_only_the_training_image_teaches_the_content_lora_nothing(
    make_request: Make, base: BaseRef, tmp_path: Path
) -> None:
    # No timestep of so short a training is above the minimum: the content branch has nothing to learn from.
    request = make_request(
        tmp_path,
        steps=6,
        destyle_images=1,
        destyle_strength=0.1,
        destyled_only=True,
        destyle_min_timestep=0.99,
        column_separation=False,
        weight_decay=0.0,
    )
    result = run_training(request).result
    unet = load_unet(base, device="cpu", dtype=torch.float32)
    layers = inject(unet, request.config.rank, seed=request.config.seed)
    start = {branch: extract(layers, branch) for branch in ("content", "style")}
    assert all(torch.equal(result.content[name].up, weights.up) for name, weights in start["content"].items())
    assert not any(torch.equal(result.style[name].up, weights.up) for name, weights in start["style"].items())


def test_timestep_bias_shifts_the_mean_timestep() -> None:
    def mean(bias: float) -> float:
        timesteps = [step_noise(0, step, 0, 4, (1, 1, 1), 1, bias=bias).timesteps for step in range(500)]
        return float(torch.cat(timesteps).float().mean()) / 1000.0

    assert mean(0.0) == pytest.approx(1 / 2, abs=0.02)
    assert mean(1.0) == pytest.approx(2 / 3, abs=0.02)  # of the density t: E[t] = 2/3
    assert mean(2.0) == pytest.approx(3 / 4, abs=0.02)


def test_loras_started_at_zero_leave_the_base_unchanged(base: BaseRef) -> None:
    unet = load_unet(base, device="cpu", dtype=torch.float32)
    layers = inject(unet, 4, start="zero")
    branches = [branch for layer in layers.values() for branch in layer.branches()]
    assert all(not branch.up.any() and branch.down.any() for branch in branches)
