"""The batches of each step, from the training inputs and the step's random numbers."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor

from unziplora_cli.config import TrainConfig
from unziplora_cli.method.layer import Mode
from unziplora_cli.method.losses import min_snr_velocity_weight, min_snr_weight
from unziplora_cli.sdxl.latents import LatentDistribution
from unziplora_cli.sdxl.text import Conditioning
from unziplora_cli.training.inputs import TrainingInputs
from unziplora_cli.training.noise import (
    IMAGE_STREAM,
    PRIOR_STREAMS,
    StepNoise,
    add_noise,
    step_noise,
    velocity,
)
from unziplora_cli.training.step import Batch


@dataclass(slots=True)
class BatchSource:
    """Makes the batches of any step: a pure function of the seed and the step.

    Noise is added on the CPU in float32, so that every device sees the same numbers; then the tensors move to
    ``device``, the U-Net's inputs in ``dtype``. Several processes share the parts of a step: N processes make
    the same step as one process with N times the gradient accumulation.
    """

    config: TrainConfig
    inputs: TrainingInputs
    alphas_cumprod: Tensor
    device: torch.device
    dtype: torch.dtype
    process: int = 0
    processes: int = 1

    _main: Conditioning = field(init=False)
    _priors: dict[str, Conditioning] = field(init=False)

    def __post_init__(self) -> None:
        # The same tensors at every step: text projections are cached by tensor, and CUDA graphs read them.
        self._main = self._on_device(self.inputs.conditioning)
        self._priors = {
            branch: self._on_device(prior.conditioning) for branch, prior in self.inputs.priors.items()
        }

    def __call__(self, step: int) -> list[list[Batch]]:
        """For each part whose gradients accumulate: one batch of an image, then its prior batches."""
        parts = self.config.grad_accumulation
        return [self._part(step, i * self.processes + self.process) for i in range(parts)]

    def _on_device(self, conditioning: Conditioning) -> Conditioning:
        return conditioning.expand(self.config.batch_size).to(device=self.device, dtype=self.dtype)

    def _part(self, step: int, part: int) -> list[Batch]:
        number = step * self.config.grad_accumulation * self.processes + part
        latents = self.inputs.latents[number % len(self.inputs.latents)]
        noise = self._noise(step, part, latents)
        main = self._batch(latents, noise, noise.timesteps, self._main)
        return [main, *self._prior_batches(step, part, noise.timesteps)]

    def _prior_batches(self, step: int, part: int, timesteps: Tensor) -> Iterator[Batch]:
        """Class images with their own noise, at the timesteps of the training image."""
        config = self.config
        modes: dict[str, Mode] = {"content": "content", "style": "style"}
        for branch, prior in self.inputs.priors.items():
            destyled = branch == "content" and config.destyle_images
            yield self._batch(
                prior.latents,
                self._noise(step, part, prior.latents, PRIOR_STREAMS[branch]),
                timesteps,
                self._priors[branch],
                mode=modes[branch],
                scale=getattr(config, f"prior_weight_{branch}"),
                min_timestep=config.destyle_min_timestep if destyled else 0.0,
            )

    def _noise(
        self, step: int, part: int, latents: LatentDistribution, stream: int = IMAGE_STREAM
    ) -> StepNoise:
        return step_noise(
            self.config.seed,
            step,
            part,
            self.config.batch_size,
            tuple(latents.mean.shape[1:]),
            latents.crops,
            stream=stream,
            timesteps=self.alphas_cumprod.shape[0],
            bias=self.config.timestep_bias,
        )

    def _batch(
        self,
        latents: LatentDistribution,
        noise: StepNoise,
        timesteps: Tensor,
        conditioning: Conditioning,
        *,
        mode: Mode = "both",
        scale: float = 1.0,
        min_timestep: float = 0.0,
    ) -> Batch:
        clean = latents.sample(noise.crop, noise.posterior)
        noisy = add_noise(clean, noise.noise, self.alphas_cumprod, timesteps)
        target = noise.noise
        if self.inputs.velocity:
            target = velocity(clean, noise.noise, self.alphas_cumprod, timesteps)
        weight = None
        if self.config.snr_gamma is not None:
            snr_weight = min_snr_velocity_weight if self.inputs.velocity else min_snr_weight
            weight = snr_weight(self.alphas_cumprod, timesteps, self.config.snr_gamma)
        if min_timestep > 0.0:
            counts = (timesteps >= min_timestep * self.alphas_cumprod.shape[0]).float()
            weight = counts if weight is None else weight * counts
        return Batch(
            noisy=self._transfer(noisy.to(self.dtype)),
            target=self._transfer(target),
            timesteps=self._transfer(timesteps),
            conditioning=conditioning,
            weight=None if weight is None else self._transfer(weight),
            mode=mode,
            scale=scale,
        )

    def _transfer(self, tensor: Tensor) -> Tensor:
        """``tensor`` on the device; from pinned memory, a GPU copies while the previous step runs."""
        if self.device.type == "cuda":
            tensor = tensor.pin_memory()
        return tensor.to(self.device, non_blocking=True)
