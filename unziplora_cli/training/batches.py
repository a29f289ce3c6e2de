"""The batches of a step, from the materials and the step's own randomness."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from unziplora_cli.config import TrainConfig
from unziplora_cli.diffusion.conditioning import Conditioning
from unziplora_cli.method.layer import Mode
from unziplora_cli.method.losses import min_snr_velocity_weight, min_snr_weight
from unziplora_cli.training.data import LatentDistribution
from unziplora_cli.training.materials import Materials
from unziplora_cli.training.noise import add_noise, draw, velocity
from unziplora_cli.training.priors import STREAMS
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
    materials: Materials
    alphas_cumprod: Tensor
    device: torch.device
    dtype: torch.dtype
    process: int = 0
    processes: int = 1

    _main: Conditioning = field(init=False)
    _priors: dict[str, Conditioning] = field(init=False)

    def __post_init__(self) -> None:
        self._main = self.materials.conditioning.to(device=self.device, dtype=self.dtype)
        self._priors = {
            branch: prior.conditioning.to(device=self.device, dtype=self.dtype)
            for branch, prior in self.materials.priors.items()
        }

    def __call__(self, step: int) -> list[list[Batch]]:
        """Per part whose gradients add up: one picture's batch, then its prior batches."""
        parts = self.config.grad_accumulation
        return [self._part(step, i * self.processes + self.process) for i in range(parts)]

    def _part(self, step: int, part: int) -> list[Batch]:
        number = step * self.config.grad_accumulation * self.processes + part
        latents = self.materials.latents[number % len(self.materials.latents)]
        main = self._batch(step, part, latents, self._main)
        return [main, *self._prior_batches(step, part, main.timesteps.cpu())]

    def _prior_batches(self, step: int, part: int, timesteps: Tensor) -> list[Batch]:
        """Class pictures with their own noise at the same timesteps as the picture's."""
        batches = []
        for branch, prior in self.materials.priors.items():
            weight: float = getattr(self.config, f"prior_weight_{branch}")
            mode: Mode = "content" if branch == "content" else "style"
            batches.append(
                self._batch(
                    step,
                    part,
                    prior.latents,
                    self._priors[branch],
                    stream=STREAMS[branch],
                    timesteps=timesteps,
                    mode=mode,
                    scale=weight,
                    floor=self.config.echo_floor if branch == "content" and self.config.echoes else 0.0,
                )
            )
        return batches

    def _batch(
        self,
        step: int,
        part: int,
        latents: LatentDistribution,
        conditioning: Conditioning,
        *,
        stream: int = 0,
        timesteps: Tensor | None = None,
        mode: Mode = "both",
        scale: float = 1.0,
        floor: float = 0.0,
    ) -> Batch:
        drawn = draw(
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
        times = drawn.timesteps if timesteps is None else timesteps
        clean = latents.sample(drawn.crop, drawn.posterior)
        noisy = add_noise(clean, drawn.noise, self.alphas_cumprod, times)
        target = drawn.noise
        if self.materials.velocity:
            target = velocity(clean, drawn.noise, self.alphas_cumprod, times)
        weight = None
        if self.config.snr_gamma is not None:
            weigh = min_snr_velocity_weight if self.materials.velocity else min_snr_weight
            weight = weigh(self.alphas_cumprod, times, self.config.snr_gamma)
        if floor > 0.0:
            counts = (times >= floor * self.alphas_cumprod.shape[0]).float()
            weight = counts if weight is None else weight * counts
        return Batch(
            noisy=noisy.to(self.device, self.dtype),
            target=target.to(self.device),
            timesteps=times.to(self.device),
            conditioning=conditioning,
            weight=None if weight is None else weight.to(self.device),
            mode=mode,
            scale=scale,
        )
