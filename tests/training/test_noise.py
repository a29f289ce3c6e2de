"""The random numbers of a step are a function of seed, step, part and stream alone."""

import itertools

import pytest
import torch
from diffusers import DDPMScheduler

from unziplora_cli.training.noise import CONTENT_PRIOR_STREAM, StepNoise, add_noise, derive_seed, step_noise

SHAPE = (4, 8, 8)


def same(a: StepNoise, b: StepNoise) -> bool:
    names = ("noise", "posterior", "timesteps", "crop")
    return all(torch.equal(getattr(a, n), getattr(b, n)) for n in names)


def test_noise_does_not_use_the_global_generator() -> None:
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first = step_noise(0, 5, 0, 2, SHAPE, 8)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    assert same(first, step_noise(0, 5, 0, 2, SHAPE, 8))


@pytest.mark.parametrize(
    ("where", "stream"), [((1, 5, 0), 0), ((0, 6, 0), 0), ((0, 5, 1), 0), ((0, 5, 0), CONTENT_PRIOR_STREAM)]
)
def test_every_step_part_and_stream_has_its_own_noise(where: tuple[int, int, int], stream: int) -> None:
    first = step_noise(0, 5, 0, 1, SHAPE, 8)
    assert not torch.equal(first.noise, step_noise(*where, 1, SHAPE, 8, stream=stream).noise)
    assert not torch.equal(first.noise, first.posterior)


def test_seeds_of_close_numbers_differ() -> None:
    places = itertools.product(range(3), range(200), range(4), range(3))
    seeds = [derive_seed(*place) for place in places]
    assert len(set(seeds)) == len(seeds)
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_timesteps_and_crops_are_uniform() -> None:
    drawn = [step_noise(0, step, 0, 16, (1, 1, 1), 4, timesteps=10) for step in range(400)]
    for name, count in (("timesteps", 10), ("crop", 4)):
        values = torch.cat([getattr(d, name) for d in drawn])
        shares = torch.bincount(values, minlength=count) / len(values)
        assert len(shares) == count
        torch.testing.assert_close(shares, torch.full((count,), 1 / count), atol=0.02, rtol=0)


def test_noise_is_standard_normal() -> None:
    values = torch.cat([step_noise(0, step, 0, 1, SHAPE, 1).noise.flatten() for step in range(100)])
    assert abs(float(values.mean())) < 0.02
    assert abs(float(values.std()) - 1) < 0.02


def test_add_noise_equals_diffusers() -> None:
    scheduler = DDPMScheduler(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012)
    latents, noise, timesteps = torch.randn(3, *SHAPE), torch.randn(3, *SHAPE), torch.tensor([0, 500, 999])
    ours = add_noise(latents, noise, scheduler.alphas_cumprod, timesteps)
    torch.testing.assert_close(ours, scheduler.add_noise(latents, noise, timesteps))
