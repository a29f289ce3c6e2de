"""Ordinary steps recorded once as CUDA graphs and then replayed: thousands of kernels for one launch.

Only steps that score or choose columns, or open a window, are made kernel by kernel. They need the memory
that the graphs hold, so these are given up before them and recorded anew after.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace

import torch
from torch import Tensor

from unziplora_cli.diffusion.generate import free
from unziplora_cli.method.schedule import Action
from unziplora_cli.training.step import Batch, StepResult, TrainingStep

Batches = Sequence[Sequence[Batch]]


@dataclass(slots=True)
class _Recording:
    """What is replayed: ``learn`` fills the gradients, ``update`` uses them; ``batches`` is what it reads."""

    learn: torch.cuda.CUDAGraph
    update: torch.cuda.CUDAGraph
    batches: Batches
    gradients: Sequence[Tensor]
    result: StepResult


@dataclass(slots=True)
class CapturedStep:
    """A :class:`TrainingStep` on a CUDA device, called as that is; its optimiser must be capturable.

    The first ordinary step after any other is made kernel by kernel: it creates what the optimiser keeps of
    weights that did not learn before. Two graphs, so that several processes can exchange gradients between.
    """

    step: TrainingStep
    _recording: _Recording | None = field(default=None, init=False)
    _settled: bool = field(default=False, init=False)

    def __call__(self, number: int, accumulated: Batches) -> StepResult:
        action = self.step.schedule.action(number)
        ordinary = action in (Action.GATE, Action.NONE)
        if not (ordinary and self._settled):
            self.give_up()
            self._settled = ordinary
            return self.step(number, accumulated)
        if self._recording is None:
            self._recording = self._record(number, action, accumulated)
        recording = self._recording
        for kept, new in zip(_flat(recording.batches), _flat(accumulated), strict=True):
            _fill(kept, new)
        recording.learn.replay()
        self.step.average(recording.gradients)
        recording.update.replay()
        self.step.lr_scheduler.step()
        return recording.result

    def _record(self, number: int, action: Action, accumulated: Batches) -> _Recording:
        batches = [[_copy(batch) for batch in part] for part in accumulated]
        free(torch.device("cuda"))
        learn, update = torch.cuda.CUDAGraph(), torch.cuda.CUDAGraph()
        with torch.cuda.graph(learn):
            result = self.step.learn(number, batches)
        gradients = [p.grad for p in self.step.parameters() if p.grad is not None]
        with torch.cuda.graph(update, pool=learn.pool()):
            result = replace(result, grad_norm=self.step.update(action))
        return _Recording(learn, update, batches, gradients, result)

    def give_up(self) -> None:
        """Give the memory of the recording back; it is made anew when it is needed."""
        if self._recording is not None:
            self._recording = None
            free(torch.device("cuda"))


def capturable(step: TrainingStep) -> bool:
    """Whether ``step`` runs on a CUDA device with an optimiser that needs nothing of the CPU.

    fp16's loss scaler decides on the CPU whether a step counts.
    """
    groups = step.optimizer.param_groups
    on_device = all(each.is_cuda for group in groups for each in group["params"])
    return on_device and step.accelerator.scaler is None and all(group.get("capturable") for group in groups)


def _flat(batches: Batches) -> list[Batch]:
    return [batch for part in batches for batch in part]


def _copy(batch: Batch) -> Batch:
    copies = {name: value.clone() for name, value in _tensors(batch).items()}
    return replace(batch, **copies)


def _fill(kept: Batch, new: Batch) -> None:
    for name, value in _tensors(new).items():
        getattr(kept, name).copy_(value)


def _tensors(batch: Batch) -> dict[str, Tensor]:
    """What differs from step to step; the conditioning of a training stays."""
    values = {f.name: getattr(batch, f.name) for f in fields(batch)}
    return {name: value for name, value in values.items() if isinstance(value, Tensor)}
