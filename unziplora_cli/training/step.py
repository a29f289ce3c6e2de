"""One training step: the paper's algorithm from noisy images to updated weights."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from unziplora_cli.accel.cuda_graph import Recording, warn_not_recorded
from unziplora_cli.accel.device import empty_cache
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

MAX_HALVINGS = 24
"""How often fp16's loss scale, which starts at 2**16, is halved to find one without overflow."""


@dataclass(frozen=True, slots=True)
class Batch:
    """Noisy images and what the U-Net should predict for them.

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


Batches = Sequence[Sequence[Batch]]
"""The parts of a step whose gradients add up, each one batch plus its prior batches."""


@dataclass(frozen=True, slots=True)
class StepResult:
    """Scalars of one step, left on the device: ``float()`` on one of them synchronizes. Of several trainings,
    vectors.

    ``loss`` is what was minimized, ``reconstruction`` its denoising part, ``overlap`` the unweighted overlap
    penalty (None while the branches are not separated), ``grad_norm`` the joint L2 norm before clipping.
    """

    loss: Tensor
    reconstruction: Tensor
    overlap: Tensor | None
    grad_norm: Tensor


Step = Callable[[int, Batches], StepResult]
"""Trains on the batches of the step of this number, as :class:`TrainingStep` does."""


@dataclass(slots=True)
class TrainingStep:
    """Everything that a step changes; call it with the number of the step and its batches."""

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
    """Off: the content LoRA learns only from its prior batches."""
    trainings: int | None = None
    """How many trainings share the layers and the batches, each as if it were alone; None: it is alone."""
    updating: bool = field(default=False, init=False)
    """Whether columns, weights or optimizer are those of the next step, maybe in part. The caller turns it
    off when it has counted the step; an interrupted step leaves it on."""

    def __call__(self, step: int, batches: Batches) -> StepResult:
        """Train on ``batches``.

        If the gradients of a step that scores columns overflow in fp16, the step is repeated: the loss scaler
        skips the first attempt and reduces its scale.
        """
        action = self.schedule.action(step)
        result = self._compute_gradients(step, batches)
        if action in (Action.SCORE, Action.SELECT) and self.accelerator.scaler is not None:
            for _ in range(MAX_HALVINGS):
                if self._finite():
                    break
                self.optimizer.step()
                self.optimizer.zero_grad()
                result = self._compute_gradients(step, batches)
        return replace(result, grad_norm=self.finish(lambda: self.update(action)))

    def _compute_gradients(self, step: int, batches: Batches) -> StepResult:
        result = self.backward(step, batches)
        self.average([p.grad for p in self.parameters() if p.grad is not None])
        self.accelerator.unscale_gradients(self.optimizer)
        return result

    def backward(self, step: int, batches: Batches) -> StepResult:
        """Compute the gradients, of this process only and still scaled; ``grad_norm`` of the result is 0."""
        shape = () if self.trainings is None else (self.trainings,)
        zero = torch.zeros(shape, device=batches[0][0].noisy.device)
        loss, reconstruction, overlap = zero, zero, None
        share = 1.0 / len(batches)
        for batch in (batch for part in batches for batch in part):
            set_mode(self.layers, batch.mode)
            if not self.content_from_picture:
                set_learning(self.layers, "content", batch.mode != "both")
            term = self._denoise(batch)
            if batch.mode == "both":
                reconstruction = reconstruction + term.detach() * share
                if self.schedule.separated(step):
                    overlap = overlap_penalty(self.layers.values(), self.trainings)
                    term = term + self.overlap_weight * overlap
            term = term * (batch.scale * share)
            self.accelerator.backward(term.sum())
            loss = loss + term.detach()
        set_mode(self.layers, "both")
        return StepResult(loss, reconstruction, None if overlap is None else overlap.detach(), zero)

    def average(self, gradients: Sequence[Tensor]) -> None:
        """Average ``gradients`` over processes in one message, so that every process selects the same
        columns."""
        if self.accelerator.num_processes == 1:
            return
        flat = self.accelerator.reduce(torch.cat([g.flatten() for g in gradients]), reduction="mean")
        for gradient, mean in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
            gradient.copy_(mean.view_as(gradient))

    def update(self, action: Action) -> Tensor:
        """Perform ``action``, clip, and step the optimizer; returns the gradient norm before clipping."""
        self.separation.apply(action, self.layers)
        grad_norm = self._clip()
        self.optimizer.step()
        self.optimizer.zero_grad()
        clamp_merge_weights(self.layers)
        return grad_norm

    def finish(self, update: Callable[[], Tensor]) -> Tensor:
        """Run ``update`` and step the learning-rate schedule, with :attr:`updating` on."""
        self.updating = True
        grad_norm = update()
        if not self.accelerator.optimizer_step_was_skipped:
            self.lr_scheduler.step()
        return grad_norm

    def parameters(self) -> list[nn.Parameter]:
        """All parameters that are trained."""
        return [p for group in self.optimizer.param_groups for p in group["params"]]

    def _denoise(self, batch: Batch) -> Tensor:
        prediction = predict_noise(self.unet, batch.noisy, batch.timesteps, batch.conditioning)
        if self.trainings is None:
            return denoising_loss(prediction, batch.target, batch.weight)
        parts = [tensor.chunk(self.trainings) for tensor in (prediction, batch.target)]
        weights = [None] * self.trainings if batch.weight is None else batch.weight.chunk(self.trainings)
        return torch.stack([denoising_loss(*part) for part in zip(*parts, weights, strict=True)])

    def _clip(self) -> Tensor:
        """Limit the joint L2 norm of all gradients of a training; returns what it was."""
        if self.trainings is None:
            norm: Tensor = nn.utils.clip_grad_norm_(self.parameters(), self.max_grad_norm)
            return norm
        gradients = [p.grad for p in self.parameters() if p.grad is not None]
        norms: Tensor = torch.stack([gradient.flatten(1).norm(dim=1) for gradient in gradients]).norm(dim=0)
        scale = (self.max_grad_norm / (norms + 1e-6)).clamp(max=1.0)  # as torch does for one
        for gradient in gradients:
            gradient.mul_(scale.view(-1, *[1] * (gradient.ndim - 1)))
        return norms

    def _finite(self) -> bool:
        gradients = [p.grad for p in self.parameters() if p.grad is not None]
        return bool(nn.utils.get_total_norm(gradients).isfinite())


def parameter_groups(
    layers: TrainedLayers, *, content_lr: float, style_lr: float, merge_lr: float
) -> list[dict[str, object]]:
    """The three parameter groups of the optimizer: content LoRA, style LoRA, merge weights of both."""
    return [
        {"params": lora_parameters(layers, "content"), "lr": content_lr},
        {"params": lora_parameters(layers, "style"), "lr": style_lr},
        {"params": merge_parameters(layers), "lr": merge_lr},
    ]


@dataclass(frozen=True, slots=True)
class _Backward:
    """A recorded backward pass: replaying it fills ``gradients``, which stay in place."""

    recording: Recording[StepResult]
    gradients: Sequence[tuple[nn.Parameter, Tensor]]
    conditionings: Sequence[Conditioning]


@dataclass(slots=True)
class CapturedStep:
    """A :class:`TrainingStep` on a CUDA device, replayed from CUDA graphs; its optimizer must be capturable.

    Three recordings share one memory pool: the gradients of a separated step, those of a step that explores,
    and the update after an ordinary step. Gradients and update are separate so that processes can exchange
    gradients in between. Scoring and selecting columns is not recorded.

    Steps up to the first ordinary one run eagerly: libraries choose their kernels, and the optimizer creates
    its state. If memory is short, steps that explore run eagerly too; the recordings are dropped before them
    and made again after. If a recording fails, all later steps run eagerly, after one SlowPathWarning.
    """

    step: TrainingStep
    enabled: bool = True
    _backward: dict[bool, _Backward] = field(default_factory=dict, init=False)
    """By whether the branches are separated."""
    _update: Recording[Tensor] | None = field(default=None, init=False)
    _warmed_up: bool = field(default=False, init=False)

    def __call__(self, number: int, batches: Batches) -> StepResult:
        """Train on ``batches``, which must have the same shapes and texts in every step."""
        action = self.step.schedule.action(number)
        ordinary = action in (Action.GATE, Action.NONE)
        if not self.enabled or (not self._backward and not (ordinary and self._warmed_up)):
            self._warmed_up = ordinary
            return self.step(number, batches)
        separated = self.step.schedule.separated(number)
        if separated not in self._backward:
            if self._backward and not self._has_room():
                self.release()
                self._warmed_up = False
                return self.step(number, batches)
            try:
                self._backward[separated] = self._record_backward(number, batches)
            except RuntimeError as error:
                self._disable(error)
                return self.step(number, batches)
        backward = self._backward[separated]
        if any(b.conditioning is not c for b, c in zip(_flat(batches), backward.conditionings, strict=True)):
            return self.step(number, batches)  # the graph reads the texts where they were recorded
        result = backward.recording.replay(_tensors(batches))
        self.step.average([gradient for _, gradient in backward.gradients])
        grad_norm = self.step.finish(lambda: self._run_update(action, backward, recorded=ordinary))
        return replace(result, grad_norm=grad_norm)

    def release(self) -> None:
        """Return the memory of the recordings; they are made again when they are needed."""
        if self._backward:
            self._backward.clear()
            self._update = None
            empty_cache(torch.device("cuda"))

    def _record_backward(self, number: int, batches: Batches) -> _Backward:
        """Record the gradients; a second recording writes to those of the first, which saves their memory."""
        shared = [pair for other in self._backward.values() for pair in other.gradients]
        if not shared:
            empty_cache(torch.device("cuda"))

        def backward(*tensors: Tensor) -> StepResult:
            for parameter, gradient in shared:
                parameter.grad = gradient.zero_() if parameter.requires_grad else None
            return self.step.backward(number, _with_tensors(batches, tensors))

        recording = Recording(backward, _tensors(batches), share=self._first())
        gradients = [(p, p.grad) for p in self.step.parameters() if p.grad is not None]
        self.step.optimizer.zero_grad()
        return _Backward(recording, gradients, [batch.conditioning for batch in _flat(batches)])

    def _run_update(self, action: Action, backward: _Backward, *, recorded: bool) -> Tensor:
        def update() -> Tensor:
            for parameter, gradient in backward.gradients:
                parameter.grad = gradient
            return self.step.update(action)

        if not recorded:
            return update()
        if self._update is None:
            try:
                self._update = Recording(update, share=self._first())
            except RuntimeError as error:
                grad_norm = update()
                self._disable(error)
                return grad_norm
        return self._update.replay()

    def _has_room(self) -> bool:
        """Whether a second recording fits, while the gradients of the first stay where they are."""
        size = sum(gradient.nbytes for other in self._backward.values() for _, gradient in other.gradients)
        return torch.cuda.mem_get_info()[0] > 2 * size

    def _first(self) -> Recording[StepResult] | None:
        return next((other.recording for other in self._backward.values()), None)

    def _disable(self, error: RuntimeError) -> None:
        """Run eagerly from now on, with the weights as they are."""
        self.enabled = False
        self.step.optimizer.zero_grad()
        set_mode(self.step.layers, "both")
        self.release()
        warn_not_recorded(error)


def capturable(step: TrainingStep) -> bool:
    """Whether ``step`` runs on a CUDA device with an optimizer that needs nothing from the CPU.

    fp16's loss scaler decides on the CPU whether a step is skipped.
    """
    groups = step.optimizer.param_groups
    on_device = all(parameter.is_cuda for group in groups for parameter in group["params"])
    return on_device and step.accelerator.scaler is None and all(group.get("capturable") for group in groups)


def _flat(batches: Batches) -> list[Batch]:
    return [batch for part in batches for batch in part]


def _tensors(batches: Batches) -> list[Tensor]:
    """What differs from step to step, in a fixed order; the conditioning stays the same."""
    values = ((batch.noisy, batch.target, batch.timesteps, batch.weight) for batch in _flat(batches))
    return [tensor for tensors in values for tensor in tensors if tensor is not None]


def _with_tensors(batches: Batches, tensors: Sequence[Tensor]) -> Batches:
    """``batches`` with ``tensors`` in place of its own, in the order of :func:`_tensors`."""
    values = iter(tensors)

    def copy(batch: Batch) -> Batch:
        noisy, target, timesteps = islice(values, 3)
        weight = None if batch.weight is None else next(values)
        return replace(batch, noisy=noisy, target=target, timesteps=timesteps, weight=weight)

    return [[copy(batch) for batch in part] for part in batches]
