"""A job together with what running it takes: where its files lie, and where results go."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from unziplora_cli.config import TrainConfig
from unziplora_cli.job import Job
from unziplora_cli.projects.unfinished import CHECKPOINTS

if TYPE_CHECKING:
    from PIL import Image

    from unziplora_cli.sdxl.base import BaseRef


DESTYLED = "destyled"
"""The folder of the destyled images in that of a project."""
DESTYLED_LATENTS = f"{DESTYLED}/latents.safetensors"
"""Of images that the base made, their latents are learned, without the rounding of PNG files."""


@dataclass(frozen=True, slots=True)
class TrainRequest:
    """One job to run now.

    ``images`` are the files of ``job.images``, ``destyled`` those of ``job.destyled``; without the latter the
    base makes them by inversion if the settings ask for any. ``destyled_latents`` is the file of latents that
    they were decoded from, if the base made them. ``folder`` receives ``history.csv``,
    ``destyled/``, ``checkpoints/``, ``saved/``, ``validation/`` and ``logs/``. ``metadata`` goes into the
    weight files, by part.

    ``other_subject`` names what a destyled image shows instead of the subject, or "" if it shows that; None
    where nothing can tell. ``by_the_base``: no other way to destyle drew the subject, so inversion does.

    ``resume`` continues after the newest valid checkpoint in ``checkpoints``, by default the one in
    ``folder``. ``replaces`` allows the new project to replace an older one of its name.
    ``sheet``: one is wanted at the end.
    """

    job: Job
    base: BaseRef
    images: tuple[Path, ...]
    destyled: tuple[Path, ...] = ()
    destyled_latents: Path | None = None
    folder: Path = Path()
    resume: bool = False
    replaces: bool = False
    sheet: bool = True
    checkpoints: Path | None = None
    metadata: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    other_subject: Callable[[Image.Image], str] | None = None
    by_the_base: bool = False

    @property
    def config(self) -> TrainConfig:
        """The settings of the job."""
        return self.job.config

    @property
    def checkpoint_folder(self) -> Path:
        """``checkpoints``, or its default."""
        return self.checkpoints or self.folder / CHECKPOINTS
