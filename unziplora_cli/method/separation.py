"""Column separation of all layers of a network (paper, sections 3.3 and 3.4)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import nn

from unziplora_cli.method.blocks import policy
from unziplora_cli.method.importance import ImportanceScore, column_scores, select_columns
from unziplora_cli.method.layer import AdaptedLayer, DualLoRALinear, Mode
from unziplora_cli.method.schedule import Action

Layers = Mapping[str, DualLoRALinear]
TrainedLayers = Mapping[str, AdaptedLayer]


@dataclass(frozen=True, slots=True)
class Separation:
    """How columns are scored, selected and gated; the defaults are those of the reference implementation."""

    column_ratio: float = 0.1
    block_separation: bool = True
    avoid_overlap: bool = True
    own_columns: bool = False
    """Merge weights learn on all columns of their branch; otherwise only on those that both branches use."""
    score: ImportanceScore = "count"
    threshold: float = 1e-5
    loss_scale: float = 1.0
    """Factor by which the gradients are multiplied before they are compared with the threshold."""
    accumulate: bool = False
    """Sum the scores of all importance steps; otherwise only the last one counts."""
    strict: bool = True

    def apply(self, action: Action, layers: TrainedLayers) -> None:
        """Perform ``action`` between the backward pass and clipping."""
        match action:
            case Action.OPEN:
                open_window(layers)
            case Action.SCORE if self.accumulate:
                self._score(layers)
            case Action.SELECT:
                self._score(layers)
                self._select(layers)
                separate(layers)
            case Action.GATE:
                self._gate(layers)

    def _score(self, layers: TrainedLayers) -> None:
        for _, layer in projections(layers):
            for branch in layer.branches():
                scores = column_scores(
                    branch, self.score, threshold=self.threshold, loss_scale=self.loss_scale
                )
                branch.score.copy_(branch.score + scores if self.accumulate else scores)

    def _select(self, layers: TrainedLayers) -> None:
        for name, layer in projections(layers):
            selective = policy(name, block_separation=self.block_separation)
            select_columns(
                layer, selective, self.column_ratio, avoid_overlap=self.avoid_overlap, strict=self.strict
            )

    def _gate(self, layers: TrainedLayers) -> None:
        for layer in layers.values():
            shared = layer.content.mask & layer.style.mask
            for branch in layer.branches():
                if branch.merge.grad is not None:
                    branch.merge.grad.mul_(branch.mask if self.own_columns else shared)


def projections(layers: TrainedLayers) -> Iterator[tuple[str, DualLoRALinear]]:
    """Every single projection by name, with its gradients."""
    for name, layer in layers.items():
        yield from layer.projections(name)


def open_window(layers: TrainedLayers) -> None:
    """Open every column and stop training the merge weights, from the next step on.

    Gradients are kept, so the merge weights are still updated in the current step.
    """
    for layer in layers.values():
        for branch in layer.branches():
            branch.open()
            branch.score.zero_()
            branch.merge.requires_grad_(False)


def separate(layers: TrainedLayers) -> None:
    """Close all but the selected columns and train the merge weights."""
    for layer in layers.values():
        for branch in layer.branches():
            branch.close()
            branch.merge.requires_grad_(True)


@torch.no_grad()
def clamp_merge_weights(layers: TrainedLayers) -> None:
    """Clamp every merge weight to [0, 1] in place, after an optimizer step."""
    for layer in layers.values():
        for branch in layer.branches():
            branch.merge.clamp_(0.0, 1.0)


def set_mode(layers: TrainedLayers, mode: Mode) -> None:
    """Enable both branches, or one of them alone."""
    for layer in layers.values():
        layer.mode = mode


def set_learning(layers: TrainedLayers, branch: str, learning: bool) -> None:
    """Enable or disable gradients of one branch's LoRA."""
    for parameter in lora_parameters(layers, branch):
        parameter.requires_grad_(learning)


def lora_parameters(layers: TrainedLayers, branch: str) -> list[nn.Parameter]:
    """Every ``down`` and ``up`` of one branch."""
    parts = [layer.content if branch == "content" else layer.style for layer in layers.values()]
    return [parameter for part in parts for parameter in (part.down, part.up)]


def merge_parameters(layers: TrainedLayers) -> list[nn.Parameter]:
    """All merge weights of both branches."""
    return [branch.merge for layer in layers.values() for branch in layer.branches()]


def shared_columns(layers: Iterable[DualLoRALinear]) -> tuple[int, int]:
    """The number of columns in both masks, and of all columns."""
    shared = total = 0
    for layer in layers:
        shared += int((layer.content.mask & layer.style.mask).sum())
        total += layer.out_features
    return shared, total
