"""The events of a training, beside those of :mod:`unziplora_cli.events`, and its result."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from unziplora_cli.events import Event as CommonEvent
from unziplora_cli.events import Notice as Notice
from unziplora_cli.events import Phase as Phase
from unziplora_cli.events import Progress as Progress
from unziplora_cli.method.lora import LoRA, MergeWeights


@dataclass(frozen=True, slots=True)
class StepDone:
    """``step`` of ``total`` steps are done. On a GPU only every tenth step yields this event.

    Attributes:
        phase: ``explore`` (all columns), ``separate`` (chosen columns) or ``joint`` (no separation).
        loss, reconstruction, overlap: of the last step; the minimized loss, its denoising part, and the
            unweighted overlap penalty, which is None before columns are chosen.
        grad_norm: joint L2 norm of the gradients before clipping.
        learning_rates: of content, style and merge weights.
        seconds: mean time per step since the previous event.
        memory: peak memory so far in bytes.
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
    """Columns were chosen after ``step``: counts of content, style, both (``shared``) and all columns."""

    step: int
    content: int
    style: int
    shared: int
    total: int


@dataclass(frozen=True, slots=True)
class Destyled:
    """The base made destyled images of the training images."""

    paths: tuple[Path, ...]


@dataclass(frozen=True, slots=True)
class Validated:
    """Validation images were generated after ``step``; the last path is the sheet of all of them."""

    step: int
    paths: tuple[Path, ...]


@dataclass(frozen=True, slots=True)
class Saved:
    """The LoRAs after ``step`` were written to ``folder``."""

    step: int
    folder: Path


@dataclass(frozen=True, slots=True)
class TrainResult:
    """What a training learned, in float32 on the CPU.

    Attributes:
        steps: finished steps; fewer than requested if the user stopped the training.
        losses: the minimized loss of every step.
        seconds: the whole run including loading, plus the steps before it if it was resumed.
        memory: peak in bytes, of the GPU if there is one, else of the process.
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


Event = CommonEvent | StepDone | ColumnsChosen | Destyled | Validated | Saved
