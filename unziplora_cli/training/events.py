"""The events of a training, beside those of :mod:`unziplora_cli.events`, and its result."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from unziplora_cli.events import Notice, Phase, Progress
from unziplora_cli.method.lora import LoRA, MergeWeights


@dataclass(frozen=True, slots=True)
class StepDone:
    """``step`` of ``total`` steps are done; on a GPU not every step is told.

    ``phase`` is ``explore`` (all columns), ``separate`` (chosen columns) or ``joint``. The losses are those
    of the last step: ``loss`` what was minimised, ``reconstruction`` its denoising part, ``overlap`` the
    unweighted penalty, None while it does not count. ``learning_rates`` are those of content, style and
    merge weights; ``seconds`` is the mean time of a step since the last such event; ``memory`` the peak so
    far in bytes.
    """

    step: int
    total: int
    phase: str
    loss: float
    reconstruction: float
    overlap: float | None
    grad_norm: float
    learning_rates: tuple[float, float, float]
    seconds: float
    memory: int


@dataclass(frozen=True, slots=True)
class ColumnsChosen:
    """After ``step`` steps, content and style hold so many of ``total`` columns, ``shared`` of them both."""

    step: int
    content: int
    style: int
    shared: int
    total: int


@dataclass(frozen=True, slots=True)
class Validated:
    """Validation pictures were drawn after ``step`` steps; the last path is the strip of all of them."""

    step: int
    paths: tuple[Path, ...]


@dataclass(frozen=True, slots=True)
class Saved:
    """The LoRAs after ``step`` steps lie in ``folder``."""

    step: int
    folder: Path


@dataclass(frozen=True, slots=True)
class TrainResult:
    """What was learned, in float32 on the CPU, and what it took.

    ``losses`` holds every step's minimised loss; ``seconds`` the whole run, loading included, and the steps
    before it when it went on; ``memory`` is the peak in bytes: of the GPU if there is one, else of the
    process.
    """

    content: LoRA
    style: LoRA
    content_merge: MergeWeights
    style_merge: MergeWeights
    steps: int
    losses: tuple[float, ...]
    seconds: float
    memory: int
    device: str
    precision: str


@dataclass(frozen=True, slots=True)
class Finished:
    """The training is over."""

    result: TrainResult


@dataclass(frozen=True, slots=True)
class Stopped:
    """The user stopped the training before its end; ``result`` is what was learned so far."""

    result: TrainResult


Event = Phase | Notice | Progress | StepDone | ColumnsChosen | Validated | Saved | Finished | Stopped
