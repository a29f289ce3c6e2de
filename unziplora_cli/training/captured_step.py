"""Training steps recorded as CUDA graphs and then replayed: thousands of kernels for one launch.

Three recordings in one pool of memory: the gradients of a separated step, those of a step that explores, and
the update after an ordinary step. Scoring and choosing columns is launched kernel by kernel, on recorded
gradients. Where memory is short, steps that explore are launched as well; the other recordings are given up
before them and made anew after.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace

import torch
from torch import Tensor, nn

from unziplora_cli.accel.device import empty_cache
from unziplora_cli.method.schedule import Action
from unziplora_cli.training.step import Batch, StepResult, TrainingStep

Batches = Sequence[Sequence[Batch]]


@dataclass(frozen=True, slots=True)
class _Learning:
    """``graph`` reads ``batches`` and fills ``gradients``, all of which stay in place, and so does
    ``result``."""

    graph: torch.cuda.CUDAGraph
    batches: Batches
    gradients: Sequence[tuple[nn.Parameter, Tensor]]
    result: StepResult


@dataclass(frozen=True, slots=True)
class _Updating:
    """``graph`` uses the gradients of a separated step and writes ``grad_norm``."""

    graph: torch.cuda.CUDAGraph
    grad_norm: Tensor


@dataclass(slots=True)
class CapturedStep:
    """A :class:`TrainingStep` on a CUDA device, called as that is; its optimiser must be capturable.

    All steps up to the first ordinary one are launched kernel by kernel: libraries choose their kernels, and
    the optimiser creates what it keeps. Gradients and update are recorded apart, so that several processes
    can exchange gradients between.
    """

    step: TrainingStep
    _learning: dict[bool, _Learning] = field(default_factory=dict, init=False)
    """By whether the branches are separated."""
    _updating: _Updating | None = field(default=None, init=False)
    _settled: bool = field(default=False, init=False)

    def __call__(self, number: int, accumulated: Batches) -> StepResult:
        action = self.step.schedule.action(number)
        ordinary = action in (Action.GATE, Action.NONE)
        if not self._learning and not (ordinary and self._settled):
            self._settled = ordinary
            return self.step(number, accumulated)
        separated = self.step.schedule.separated(number)
        if separated not in self._learning:
            if self._learning and not self._has_room():
                self.give_up()
                self._settled = False
                return self.step(number, accumulated)
            self._learning[separated] = self._record_learning(number, accumulated)
        learning = self._learning[separated]
        for kept, new in zip(_flat(learning.batches), _flat(accumulated), strict=True):
            _fill(kept, new)
        learning.graph.replay()
        self.step.average([gradient for _, gradient in learning.gradients])
        grad_norm = self._replay_update(action, learning) if ordinary else self._update(action, learning)
        self.step.lr_scheduler.step()
        return replace(learning.result, grad_norm=grad_norm)

    def _record_learning(self, number: int, accumulated: Batches) -> _Learning:
        """The second recording fills the gradients of the first, which a graph of its own would double."""
        batches = [[_copy(batch) for batch in part] for part in accumulated]
        shared = [pair for other in self._learning.values() for pair in other.gradients]
        if not shared:
            empty_cache(torch.device("cuda"))
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool()):
            for parameter, gradient in shared:
                parameter.grad = gradient.zero_() if parameter.requires_grad else None
            result = self.step.learn(number, batches)
        gradients = [(each, each.grad) for each in self.step.parameters() if each.grad is not None]
        return _Learning(graph, batches, gradients, result)

    def _replay_update(self, action: Action, learning: _Learning) -> Tensor:
        if self._updating is None:
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, pool=self._pool()):
                grad_norm = self._update(action, learning)
            self._updating = _Updating(graph, grad_norm)
        self._updating.graph.replay()
        return self._updating.grad_norm

    def _update(self, action: Action, learning: _Learning) -> Tensor:
        for parameter, gradient in learning.gradients:
            parameter.grad = gradient
        return self.step.update(action)

    def _has_room(self) -> bool:
        """Whether a second recording fits: the gradients of the first stay where they are meanwhile."""
        held = sum(each.nbytes for kept in self._learning.values() for _, each in kept.gradients)
        return torch.cuda.mem_get_info()[0] > 2 * held

    def _pool(self) -> tuple[int, int] | None:
        """The memory of what was recorded already."""
        return next((each.graph.pool() for each in self._learning.values()), None)

    def give_up(self) -> None:
        """Give the memory of the recordings back; they are made anew when they are needed."""
        if self._learning:
            self._learning.clear()
            self._updating = None
            empty_cache(torch.device("cuda"))


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
