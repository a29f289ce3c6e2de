"""The batches of a step: noise, targets and weights, and their effect on the gradients."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DDPMScheduler

from tests.training.conftest import Parts
from unziplora_cli.method.losses import min_snr_velocity_weight, min_snr_weight
from unziplora_cli.sdxl.latents import LatentDistribution
from unziplora_cli.sdxl.text import Conditioning
from unziplora_cli.training.batches import BatchSource
from unziplora_cli.training.inputs import Prior, TrainingInputs
from unziplora_cli.training.noise import step_noise
from unziplora_cli.training.request import TrainRequest
from unziplora_cli.training.step import Batch

ALPHAS = torch.linspace(0.999, 0.005, 1000)


def conditioning(seed: int) -> Conditioning:
    generator = torch.Generator().manual_seed(seed)
    tokens = [torch.randn(1, 32, 24, generator=generator) for _ in range(3)]
    return Conditioning(*tokens, torch.randn(1, 16, generator=generator), torch.full((1, 6), 64.0))


def latents(seed: int, crops: int = 3) -> LatentDistribution:
    mean = torch.randn(crops, 4, 8, 8, generator=torch.Generator().manual_seed(seed))
    return LatentDistribution(mean, torch.full_like(mean, 0.1))


@pytest.fixture
def source(make_request: Callable[..., TrainRequest], tmp_path: Path) -> Callable[..., BatchSource]:
    def make(
        images: int = 1, priors: tuple[str, ...] = (), processes: tuple[int, int] = (0, 1), **changes: Any
    ) -> BatchSource:
        inputs = TrainingInputs(
            conditioning=conditioning(0),
            latents=tuple(latents(i) for i in range(images)),
            priors={branch: Prior(latents(9, crops=5), conditioning(5)) for branch in priors},
            validation={},
            empty=None,
        )
        config = make_request(tmp_path, **changes).config
        return BatchSource(config, inputs, ALPHAS, torch.device("cpu"), torch.float32, *processes)

    return make


def joined(batches: list[Batch]) -> Batch:
    return replace(
        batches[0],
        **{n: torch.cat([getattr(b, n) for b in batches]) for n in ("noisy", "target", "timesteps")},
    )


def test_noisy_latents_are_the_image_plus_the_target_noise(source: Callable[..., BatchSource]) -> None:
    batches = source(batch_size=2)
    (batch,) = batches(4)[0]
    kept = ALPHAS[batch.timesteps].view(-1, 1, 1, 1)
    latent = (batch.noisy - (1 - kept).sqrt() * batch.target) / kept.sqrt()
    means = batches.inputs.latents[0].mean
    for sample in latent:
        errors = [(sample - mean).std() for mean in means]
        assert min(errors) == pytest.approx(0.1, rel=0.2)  # one of the crops, plus the posterior's spread


def test_several_images_are_used_in_turn(source: Callable[..., BatchSource]) -> None:
    shown = []
    batches = source(images=3, grad_accumulation=2, snr_gamma=None)
    for step in range(3):
        for (batch,) in batches(step):
            kept = ALPHAS[batch.timesteps].view(-1, 1, 1, 1)
            latent = (batch.noisy - (1 - kept).sqrt() * batch.target) / kept.sqrt()
            distances = [min(float((latent - mean).std()) for mean in d.mean) for d in batches.inputs.latents]
            shown.append(distances.index(min(distances)))
    assert shown == [0, 1, 2, 0, 1, 2]


def test_two_processes_split_the_accumulated_parts(source: Callable[..., BatchSource]) -> None:
    alone = [part[0].target for part in source(grad_accumulation=4)(7)]
    shared = [source(grad_accumulation=2, processes=(rank, 2))(7) for rank in range(2)]
    together = [shared[i % 2][i // 2][0].target for i in range(4)]
    for a, b in zip(alone, together, strict=True):
        assert torch.equal(a, b)


def test_accumulated_batches_equal_one_batch_of_all(
    source: Callable[..., BatchSource], make_parts: Callable[[], Parts]
) -> None:
    parts = source(grad_accumulation=3)(0)
    apart, together = make_parts(), make_parts()
    one = apart.step(0, parts)
    other = together.step(0, [[joined([part[0] for part in parts])]])
    torch.testing.assert_close(one.loss, other.loss)
    torch.testing.assert_close(one.grad_norm, other.grad_norm, rtol=1e-4, atol=0)
    for branch in ("content", "style"):
        torch.testing.assert_close(apart.weights(branch), together.weights(branch), rtol=1e-4, atol=1e-6)


def test_a_prior_batch_trains_only_its_branch(
    source: Callable[..., BatchSource], make_parts: Callable[[], Parts]
) -> None:
    (batches,) = source(priors=("content",), prior_content="x", prior_content_prompt="a fox")(0)
    main, prior = batches
    assert (main.mode, prior.mode) == ("both", "content")
    assert torch.equal(main.timesteps, prior.timesteps)
    assert not torch.equal(main.target, prior.target)

    without, with_prior = make_parts(), make_parts()
    without.step(0, [[main]])
    with_prior.step(0, [[main, prior]])
    assert torch.equal(without.weights("style"), with_prior.weights("style"))
    assert not torch.equal(without.weights("content"), with_prior.weights("content"))


def test_prior_weight_scales_its_term_of_the_loss(
    source: Callable[..., BatchSource], make_parts: Callable[[], Parts]
) -> None:
    results = []
    for weight in (0.0, 1.0, 2.0):
        prior = {"prior_style": "x", "prior_style_prompt": "sketch", "prior_weight_style": weight}
        result = make_parts().step(0, source(priors=("style",), **prior)(0))
        assert result.reconstruction == results[0].reconstruction if results else True
        results.append(result)
    none, single, double = (r.loss for r in results)
    torch.testing.assert_close(none, results[0].reconstruction)
    torch.testing.assert_close(double - none, 2 * (single - none))


def test_snr_weights_follow_the_timesteps(source: Callable[..., BatchSource]) -> None:
    (batch,) = source(batch_size=3, snr_gamma=5.0)(1)[0]
    assert batch.weight is not None
    assert torch.equal(batch.weight, min_snr_weight(ALPHAS, batch.timesteps, 5.0))


@pytest.mark.parametrize("velocity", [False, True])
def test_targets_equal_those_of_diffusers(source: Callable[..., BatchSource], velocity: bool) -> None:
    noising = DDPMScheduler(trained_betas=(1 - ALPHAS / torch.cat([torch.ones(1), ALPHAS[:-1]])).tolist())
    batches = source(batch_size=2)
    batches.inputs = replace(batches.inputs, velocity=velocity)
    (batch,) = batches(4)[0]
    drawn = step_noise(batches.config.seed, 4, 0, 2, (4, 8, 8), 3)
    clean = batches.inputs.latents[0].sample(drawn.crop, drawn.posterior)
    noisy = noising.add_noise(clean, drawn.noise, batch.timesteps)
    torch.testing.assert_close(batch.noisy, noisy, rtol=1e-3, atol=1e-3)
    expected = noising.get_velocity(clean, drawn.noise, batch.timesteps) if velocity else drawn.noise
    torch.testing.assert_close(batch.target, expected, rtol=1e-3, atol=1e-3)


def test_snr_weights_of_velocity_and_noise_agree() -> None:
    """An error e in the velocity is an error sqrt(a) e in the noise."""
    times = torch.tensor([0, 300, 999])
    noise, velocity = min_snr_weight(ALPHAS, times, 5.0), min_snr_velocity_weight(ALPHAS, times, 5.0)
    torch.testing.assert_close(velocity, noise * ALPHAS[times])
    pure = torch.tensor([0.0])  # the last timestep of a schedule that ends in pure noise
    assert min_snr_velocity_weight(pure, torch.tensor([0]), 5.0).tolist() == [0.0]
