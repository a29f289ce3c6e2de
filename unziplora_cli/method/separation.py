"""Acting on all layers of a network as the schedule says (paper, section 3.3 and 3.4)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import nn

from unziplora_cli.accel.fused_lora import FusedLoRA, projections
from unziplora_cli.method.blocks import policy
from unziplora_cli.method.importance import ImportanceScore, choose_columns, column_scores
from unziplora_cli.method.layer import DualLoRALinear, Mode
from unziplora_cli.method.schedule import Action

Layers = Mapping[str, DualLoRALinear]
TrainedLayers = Mapping[str, DualLoRALinear | FusedLoRA]
"""What is trained: single layers, or folds of them."""


@dataclass(frozen=True, slots=True)
class Separation:
    """How columns are scored, chosen and gated; the defaults are the reference implementation's."""

    column_ratio: float = 0.1
    block_separation: bool = True
    avoid_overlap: bool = True
    own_columns: bool = False
    """Merge weights learn on all columns of their branch; otherwise only on columns that both branches
    hold."""
    score: ImportanceScore = "count"
    threshold: float = 1e-5
    loss_scale: float = 1.0
    """Factor that the threshold's gradients carry and the actual ones do not."""
    accumulate: bool = False
    """Sum the scores of all importance steps; otherwise the last one decides."""
    strict: bool = True

    def apply(self, action: Action, layers: TrainedLayers) -> None:
        """Carry out ``action`` between backward and clipping."""
        match action:
            case Action.OPEN:
                open_window(layers)
            case Action.SCORE if self.accumulate:
                self._score(layers)
            case Action.CHOOSE:
                self._score(layers)
                self._choose(layers)
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

    def _choose(self, layers: TrainedLayers) -> None:
        for name, layer in projections(layers):
            selective = policy(name, block_separation=self.block_separation)
            choose_columns(
                layer, selective, self.column_ratio, avoid_overlap=self.avoid_overlap, strict=self.strict
            )

    def _gate(self, layers: TrainedLayers) -> None:
        for layer in layers.values():
            shared = layer.content.mask & layer.style.mask
            for branch in layer.branches():
                if branch.merge.grad is not None:
                    branch.merge.grad.mul_(branch.mask if self.own_columns else shared)


def open_window(layers: TrainedLayers) -> None:
    """Let every column take part and let the merge weights rest, from the next step on.

    The gradients of the step at hand stay: the merge weights still take this step.
    """
    for layer in layers.values():
        for branch in layer.branches():
            branch.open()
            branch.score.zero_()
            branch.merge.requires_grad_(False)


def separate(layers: TrainedLayers) -> None:
    """Let only the chosen columns take part and let the merge weights learn."""
    for layer in layers.values():
        for branch in layer.branches():
            branch.close()
            branch.merge.requires_grad_(True)


@torch.no_grad()
def clamp_merge_weights(layers: TrainedLayers) -> None:
    """Keep every merge weight in [0, 1], in place, after an optimiser step."""
    for layer in layers.values():
        for branch in layer.branches():
            branch.merge.clamp_(0.0, 1.0)


def set_mode(layers: TrainedLayers, mode: Mode) -> None:
    """Let both branches act, or one of them alone."""
    for layer in layers.values():
        layer.mode = mode


def set_learning(layers: TrainedLayers, branch: str, learning: bool) -> None:
    """Let the LoRA of one branch receive gradients, or not."""
    for parameter in lora_parameters(layers, branch):
        parameter.requires_grad_(learning)


def lora_parameters(layers: TrainedLayers, branch: str) -> list[nn.Parameter]:
    """All ``down`` and ``up`` of one branch."""
    chosen = [layer.get_submodule(branch) for layer in layers.values()]
    return [p for part in chosen for p in (part.get_parameter("down"), part.get_parameter("up"))]


def merge_parameters(layers: TrainedLayers) -> list[nn.Parameter]:
    """All merge weights of both branches."""
    return [branch.merge for layer in layers.values() for branch in layer.branches()]


def shared_columns(layers: Iterable[DualLoRALinear]) -> tuple[int, int]:
    """How many columns both branches hold, and how many there are."""
    shared = total = 0
    for layer in layers:
        shared += int((layer.content.mask & layer.style.mask).sum())
        total += layer.out_features
    return shared, total
