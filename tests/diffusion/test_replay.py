"""A replayed denoiser gives what the denoiser gives."""

import pytest
import torch
from torch import Tensor

from unziplora_cli.diffusion.replay import Replayed


def denoiser(noisy: Tensor, timestep: Tensor) -> Tensor:
    return noisy.sin() * timestep + noisy


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_every_step_has_its_own_result(device: str) -> None:
    replayed = Replayed(denoiser)
    generator = torch.Generator().manual_seed(0)
    for number in (900, 600, 300, 0):
        noisy = torch.randn(2, 4, 8, 8, generator=generator).to(device)
        timestep = torch.tensor(number, device=device)
        assert torch.equal(replayed(noisy, timestep).clone(), denoiser(noisy, timestep))
