"""Echoes: made by following a picture into noise and back, and learned by the content branch alone."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from unziplora_cli.config import TrainConfig
from unziplora_cli.method.inject import extract, inject
from unziplora_cli.sdxl.base import BaseRef
from unziplora_cli.sdxl.load import alphas_cumprod, load_unet
from unziplora_cli.sdxl.text import Conditioning
from unziplora_cli.training.destyle import ddim, destyle_conditioning, echo
from unziplora_cli.training.engine import train
from unziplora_cli.training.events import Finished, TrainResult
from unziplora_cli.training.inputs import DestyleConditioning
from unziplora_cli.training.noise import add_noise, draw, noise_of, velocity
from unziplora_cli.training.request import TrainRequest

Make = Callable[..., TrainRequest]


@pytest.fixture
def curve(base: BaseRef) -> Tensor:
    """The cumulative alphas of the base."""
    return alphas_cumprod(base)


def test_a_ddim_step_back_undoes_the_step_there(curve: Tensor) -> None:
    latents, noise = torch.randn(2, 1, 4, 8, 8).unbind()
    there = ddim(latents, noise, curve[100], curve[600])
    torch.testing.assert_close(ddim(there, noise, curve[600], curve[100]), latents, atol=1e-5, rtol=1e-5)


def test_a_velocity_means_the_noise_it_was_made_of(curve: Tensor) -> None:
    clean, noise = torch.randn(2, 1, 4, 8, 8).unbind()
    at = torch.tensor([700])
    noisy = add_noise(clean, noise, curve, at)
    found = noise_of(velocity(clean, noise, curve, at), noisy, curve[at])
    torch.testing.assert_close(found, noise, atol=1e-5, rtol=1e-5)


def test_an_echo_of_a_model_that_hears_no_text_is_the_picture_unless_noise_is_fresh(curve: Tensor) -> None:
    picture, noise, other = torch.randn(3, 1, 4, 8, 8).unbind()

    def predict(noisy: Tensor, timestep: Tensor, text: str) -> Tensor:
        return noise

    kept, fresh = (
        echo(
            predict,
            curve,
            picture,
            other,
            TrainConfig(destyle_images=1, destyle_strength=0.5, destyle_fresh_noise=share),
            0,
        )
        for share in (0.0, 0.5)
    )
    torch.testing.assert_close(kept, picture, atol=1e-4, rtol=1e-4)
    assert (fresh - picture).abs().mean() > 0.1


def test_an_echo_leans_towards_its_prompt(curve: Tensor) -> None:
    picture = torch.zeros(1, 4, 8, 8)
    wanted = torch.ones(1, 4, 8, 8)

    def predict(noisy: Tensor, timestep: Tensor, text: str) -> Tensor:
        alpha = curve[timestep]
        clean = wanted if text == "echo" else picture
        return (noisy - alpha.sqrt() * clean) / (1.0 - alpha).sqrt()

    near, far = (
        echo(
            predict,
            curve,
            picture,
            picture,
            TrainConfig(destyle_images=1, destyle_strength=s, destyle_fresh_noise=0.0),
            0,
        ).mean()
        for s in (0.3, 0.9)
    )
    assert far > near > 0.0


def test_guidance_changes_only_what_the_two_prompts_differ_in(curve: Tensor) -> None:
    # Two exact denoisers whose clean pictures share one half and differ in the other: the shared half comes
    # back as it was, and guidance 2 takes the other to twice the difference.
    picture, wanted = torch.zeros(2, 1, 4, 8, 8).unbind()
    picture[..., :4] = wanted[..., :4] = 0.7
    wanted[..., 4:] = 0.1

    def predict(noisy: Tensor, timestep: Tensor, text: str) -> Tensor:
        alpha = curve[timestep]
        return (noisy - alpha.sqrt() * (wanted if text == "echo" else picture)) / (1.0 - alpha).sqrt()

    config = TrainConfig(
        destyle_images=1, destyle_strength=0.9, destyle_fresh_noise=0.0, destyle_guidance=2.0
    )
    found = echo(predict, curve, picture, picture, config, 0)
    torch.testing.assert_close(found[..., :4], picture[..., :4], atol=1e-3, rtol=0.0)
    torch.testing.assert_close(found[..., 4:], 2.0 * wanted[..., 4:], atol=0.02, rtol=0.0)


@pytest.mark.parametrize("contrast", [True, False])
def test_an_echo_hears_the_style_only_when_it_is_to_be_led_away_from_it(contrast: bool) -> None:
    shown, full, content = (
        Conditioning.from_prompt(torch.full((1, 2, 3), value), torch.full((1, 3), value), torch.zeros(1, 6))
        for value in (1.0, 2.0, 3.0)
    )
    config = TrainConfig(destyle_images=1, destyle_contrast=contrast)
    texts = destyle_conditioning(DestyleConditioning(shown, full, content), None, config)
    assert texts["echo"] is shown
    assert texts["picture"] is (full if contrast else content)
    assert texts["away"] is full if contrast else not texts["away"].full.any()


def test_the_echoes_of_one_training_differ_and_are_the_same_again(make_request: Make, tmp_path: Path) -> None:
    first, again = (
        finished(make_request(tmp_path / name, steps=6, destyle_images=2, importance_steps=1))
        for name in ("a", "b")
    )
    assert first.losses == again.losses
    other = finished(make_request(tmp_path / "c", steps=6, destyle_images=2, destyle_strength=0.3))
    assert other.losses != first.losses


def test_with_echoes_alone_the_picture_teaches_the_content_lora_nothing(
    make_request: Make, base: BaseRef, tmp_path: Path
) -> None:
    # No timestep of a training as short as this one lies above the floor: nothing is left to learn from.
    request = make_request(
        tmp_path,
        steps=6,
        destyle_images=1,
        destyled_only=True,
        destyle_min_timestep=0.99,
        column_separation=False,
        weight_decay=0.0,
    )
    result = finished(request)
    unet = load_unet(base, device="cpu", dtype=torch.float32)
    layers = inject(unet, request.config.rank, seed=request.config.seed)
    start = {branch: extract(layers, branch) for branch in ("content", "style")}
    assert all(torch.equal(result.content[name].up, weights.up) for name, weights in start["content"].items())
    assert not any(torch.equal(result.style[name].up, weights.up) for name, weights in start["style"].items())


def test_a_bias_moves_timesteps_towards_noise() -> None:
    def mean(bias: float) -> float:
        drawn = [draw(0, step, 0, 4, (1, 1, 1), 1, bias=bias).timesteps for step in range(500)]
        return float(torch.cat(drawn).float().mean()) / 1000.0

    assert mean(0.0) == pytest.approx(1 / 2, abs=0.02)
    assert mean(1.0) == pytest.approx(2 / 3, abs=0.02)  # of a density of t: E[t] = 2/3
    assert mean(2.0) == pytest.approx(3 / 4, abs=0.02)


def test_loras_that_start_at_zero_leave_the_base_as_it_is(
    make_request: Make, base: BaseRef, tmp_path: Path
) -> None:
    unet = load_unet(base, device="cpu", dtype=torch.float32)
    layers = inject(unet, 4, start="zero")
    assert all(not branch.up.any() and branch.down.any() for l in layers.values() for branch in l.branches())


def finished(request: TrainRequest) -> TrainResult:
    """The result of a training."""
    return next(event.result for event in train(request) if isinstance(event, Finished))
