"""What a training is asked to do."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from unziplora_cli.config import Prompts, TrainConfig
from unziplora_cli.projects.manifest import Scalar
from unziplora_cli.sdxl.base import BaseRef


@dataclass(frozen=True, slots=True)
class TrainRequest:
    """One training of one subject in one style.

    ``pictures`` is one file or a few that show the same subject in the same style, taken in turn. ``folder``
    receives ``history.csv``, ``checkpoints/``, ``saved/``, ``validation/`` and ``logs/``. ``validation`` are
    the prompts of the validation pictures, by default those of training. ``vae`` names another autoencoder
    than the base's own. ``metadata`` goes into the files of weights, by part.

    ``resume`` goes on after the newest good checkpoint in ``checkpoints``, by default that in ``folder``.
    ``identity`` names what has to be the same then. ``name`` is what hints call the project. ``typed`` are
    the words of the command that asked for this, for hints to repeat, ``given`` the settings that it gave.
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
    name: str = "NAME"
    identity: Mapping[str, Scalar] = field(default_factory=dict)
    resume: bool = False
    checkpoints: Path | None = None
    typed: Sequence[str] = ()
    given: Mapping[str, Any] | None = None
