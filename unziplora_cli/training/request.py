"""What a training is asked to do."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from unziplora_cli.config import Prompts, TrainConfig
from unziplora_cli.diffusion.base import BaseRef


@dataclass(frozen=True, slots=True)
class TrainRequest:
    """One training of one subject in one style.

    ``pictures`` is one file or a few that show the same subject in the same style, taken in turn. ``folder``
    receives ``saved/``, ``validation/`` and ``logs/``. ``validation`` are the prompts of the validation
    pictures, by default those of training. ``vae`` names another autoencoder than the base's own.
    ``metadata`` goes into the files of weights, by part. ``keep_state`` also writes the training's whole state
    beside every saved model; ``resume`` is such a file to go on from.
    """

    base: BaseRef
    pictures: tuple[Path, ...]
    prompts: Prompts
    config: TrainConfig
    folder: Path
    device: str = "auto"
    validation: Prompts | None = None
    vae: str | None = None
    metadata: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    keep_state: bool = False
    resume: Path | None = None
