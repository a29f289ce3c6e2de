"""One training step: the paper's algorithm from noisy picture to updated weights."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from unziplora_cli.method.layer import Mode
from unziplora_cli.method.losses import denoising_loss, overlap_penalty
from unziplora_cli.method.schedule import Action, Schedule
from unziplora_cli.method.separation import (
    Separation,
    TrainedLayers,
    clamp_merge_weights,
    lora_parameters,
    merge_parameters,
    set_learning,
    set_mode,
)
from unziplora_cli.sdxl.text import Conditioning, predict_noise

MOST_HALVINGS = 24
"""Of fp16's loss scale, which starts at 2 to the 16, to find one at which no gradient overflows."""


@dataclass(frozen=True, slots=True)
class Batch:
    """Noisy pictures and what is to be found in them.

    ``noisy`` and ``target`` are [batch, channels, height, width], ``timesteps`` [batch], ``weight`` [batch]
    or None. ``mode`` is ``both``, or the one branch that a prior-preservation batch trains; ``scale`` is its
    share of the loss.
    """

    noisy: Tensor
    target: Tensor
    timesteps: Tensor
    conditioning: Conditioning
    weight: Tensor | None = None
    mode: Mode = "both"
    scale: float = 1.0


@dataclass(frozen=True, slots=True)
class StepResult:
    """Scalars of one step, left on the device: ``float()`` on one of them waits for the device.

    ``loss`` is what was minimised, ``reconstruction`` its denoising part, ``overlap`` the unweighted overlap
    penalty (None while the branches are not separated), ``grad_norm`` the joint L2 norm before clipping.
    """

    loss: Tensor
    reconstruction: Tensor
    overlap: Tensor | None
    grad_norm: Tensor


@dataclass(slots=True)
class TrainingStep:
    """Everything that a step touches; call it with the step number and that step's batches."""

    unet: nn.Module
    layers: TrainedLayers
    optimizer: Optimizer
    lr_scheduler: LRScheduler
    accelerator: Accelerator
    schedule: Schedule
    separation: Separation
    overlap_weight: float = 0.5
    max_grad_norm: float = 1.0
    content_from_picture: bool = True
    """Off: the content LoRA learns from its prior batches alone."""

    def __call__(self, step: int, accumulated: Sequence[Sequence[Batch]]) -> StepResult:
        """Train on ``accumulated``: the parts whose gradients add up, each one batch plus its prior
        batches.

        A step whose gradients score columns is made again when they overflowed in fp16: the loss scaler
        leaves the first attempt out and halves its scale.
        """
        action = self.schedule.action(step)
        result = self._learned(step, accumulated)
        if action in (Action.SCORE, Action.CHOOSE) and self.accelerator.scaler is not None:
            for _ in range(MOST_HALVINGS):
                if self._finite():
                    break
                self.optimizer.step()
                self.optimizer.zero_grad()
                result = self._learned(step, accumulated)
        result = replace(result, grad_norm=self.update(action))
        if not self.accelerator.optimizer_step_was_skipped:
            self.lr_scheduler.step()
        return result

    def _learned(self, step: int, accumulated: Sequence[Sequence[Batch]]) -> StepResult:
        result = self.learn(step, accumulated)
        self.average([p.grad for p in self.parameters() if p.grad is not None])
        self.accelerator.unscale_gradients(self.optimizer)
        return result

    def learn(self, step: int, accumulated: Sequence[Sequence[Batch]]) -> StepResult:
        """Fill the gradients, this process's own and still scaled; ``grad_norm`` is left at zero."""
        zero = torch.zeros((), device=accumulated[0][0].noisy.device)
        loss, reconstruction, overlap = zero, zero, None
        share = 1.0 / len(accumulated)
        for batch in (batch for batches in accumulated for batch in batches):
            set_mode(self.layers, batch.mode)
            if not self.content_from_picture:
                set_learning(self.layers, "content", batch.mode != "both")
            part = self._denoise(batch)
            if batch.mode == "both":
                reconstruction = reconstruction + part.detach() * share
                if self.schedule.separated(step):
                    overlap = overlap_penalty(self.layers.values())
                    part = part + self.overlap_weight * overlap
            part = part * (batch.scale * share)
            self.accelerator.backward(part)
            loss = loss + part.detach()
        set_mode(self.layers, "both")
        return StepResult(loss, reconstruction, None if overlap is None else overlap.detach(), zero)

    def average(self, gradients: Sequence[Tensor]) -> None:
        """Mean of ``gradients`` over processes, in one message, so that every process makes the same
        choices."""
        if self.accelerator.num_processes == 1:
            return
        flat = self.accelerator.reduce(torch.cat([g.flatten() for g in gradients]), reduction="mean")
        for gradient, mean in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
            gradient.copy_(mean.view_as(gradient))

    def update(self, action: Action) -> Tensor:
        """Carry out ``action``, clip, and let the optimiser step; returns the gradients' norm before."""
        self.separation.apply(action, self.layers)
        grad_norm = nn.utils.clip_grad_norm_(self.parameters(), self.max_grad_norm)
        self.optimizer.step()
        self.optimizer.zero_grad()
        clamp_merge_weights(self.layers)
        return grad_norm

    def parameters(self) -> list[nn.Parameter]:
        """All that is trained."""
        return [p for group in self.optimizer.param_groups for p in group["params"]]

    def _denoise(self, batch: Batch) -> Tensor:
        prediction = predict_noise(self.unet, batch.noisy, batch.timesteps, batch.conditioning)
        return denoising_loss(prediction, batch.target, batch.weight)

    def _finite(self) -> bool:
        gradients = [p.grad for p in self.parameters() if p.grad is not None]
        return bool(nn.utils.get_total_norm(gradients).isfinite())


def parameter_groups(
    layers: TrainedLayers, *, content_lr: float, style_lr: float, merge_lr: float
) -> list[dict[str, object]]:
    """The three groups of the optimiser: content LoRA, style LoRA, merge weights of both."""
    return [
        {"params": lora_parameters(layers, "content"), "lr": content_lr},
        {"params": lora_parameters(layers, "style"), "lr": style_lr},
        {"params": merge_parameters(layers), "lr": merge_lr},
    ]
