"""The batches of a step, from the inputs and the step's own randomness."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from unziplora_cli.config import TrainConfig
from unziplora_cli.method.layer import Mode
from unziplora_cli.method.losses import min_snr_velocity_weight, min_snr_weight
from unziplora_cli.sdxl.latents import LatentDistribution
from unziplora_cli.sdxl.text import Conditioning
from unziplora_cli.training.inputs import STREAMS, TrainingInputs
from unziplora_cli.training.noise import PICTURE, StepNoise, add_noise, draw, velocity
from unziplora_cli.training.step import Batch


@dataclass(slots=True)
class BatchSource:
    """Makes the batches of any step: a pure function of the configuration's seed and the step.

    Noise is mixed in on the CPU in float32, so that every device sees the same numbers; then the tensors
    move to ``device``, the U-Net's inputs in ``dtype``. Several processes share a step's parts: this one is
    number ``process`` of ``processes``, and N processes make the same step as N times the gradient
    accumulation.
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
        self._main = self._told(self.inputs.conditioning)
        self._priors = {
            branch: self._told(prior.conditioning) for branch, prior in self.inputs.priors.items()
        }

    def __call__(self, step: int) -> list[list[Batch]]:
        """Per part whose gradients add up: one picture's batch, then its prior batches."""
        parts = self.config.grad_accumulation
        return [self._part(step, i * self.processes + self.process) for i in range(parts)]

    def _told(self, conditioning: Conditioning) -> Conditioning:
        """The very same tensors at every step, so that what they mean has to be found out once."""
        return conditioning.expand(self.config.batch_size).to(device=self.device, dtype=self.dtype)

    def _part(self, step: int, part: int) -> list[Batch]:
        number = step * self.config.grad_accumulation * self.processes + part
        latents = self.inputs.latents[number % len(self.inputs.latents)]
        drawn = self._draw(step, part, latents)
        main = self._batch(latents, drawn, drawn.timesteps, self._main)
        return [main, *self._prior_batches(step, part, drawn.timesteps)]

    def _prior_batches(self, step: int, part: int, timesteps: Tensor) -> list[Batch]:
        """Class pictures with their own noise at the same timesteps as the picture's."""
        batches = []
        for branch, prior in self.inputs.priors.items():
            weight: float = getattr(self.config, f"prior_weight_{branch}")
            mode: Mode = "content" if branch == "content" else "style"
            batches.append(
                self._batch(
                    prior.latents,
                    self._draw(step, part, prior.latents, STREAMS[branch]),
                    timesteps,
                    self._priors[branch],
                    mode=mode,
                    scale=weight,
                    floor=self.config.destyle_min_timestep
                    if branch == "content" and self.config.destyle_images
                    else 0.0,
                )
            )
        return batches

    def _draw(self, step: int, part: int, latents: LatentDistribution, stream: int = PICTURE) -> StepNoise:
        return draw(
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
        drawn: StepNoise,
        times: Tensor,
        conditioning: Conditioning,
        *,
        mode: Mode = "both",
        scale: float = 1.0,
        floor: float = 0.0,
    ) -> Batch:
        clean = latents.sample(drawn.crop, drawn.posterior)
        noisy = add_noise(clean, drawn.noise, self.alphas_cumprod, times)
        target = drawn.noise
        if self.inputs.velocity:
            target = velocity(clean, drawn.noise, self.alphas_cumprod, times)
        weight = None
        if self.config.snr_gamma is not None:
            weigh = min_snr_velocity_weight if self.inputs.velocity else min_snr_weight
            weight = weigh(self.alphas_cumprod, times, self.config.snr_gamma)
        if floor > 0.0:
            counts = (times >= floor * self.alphas_cumprod.shape[0]).float()
            weight = counts if weight is None else weight * counts
        return Batch(
            noisy=self._sent(noisy.to(self.dtype)),
            target=self._sent(target),
            timesteps=self._sent(times),
            conditioning=conditioning,
            weight=None if weight is None else self._sent(weight),
            mode=mode,
            scale=scale,
        )

    def _sent(self, tensor: Tensor) -> Tensor:
        """``tensor`` on the device; a GPU fetches it by itself while it is busy with the step before."""
        if self.device.type == "cuda":
            tensor = tensor.pin_memory()
        return tensor.to(self.device, non_blocking=True)
