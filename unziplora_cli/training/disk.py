"""How much disk a training will take, from its settings and the U-Net's configuration alone."""

from __future__ import annotations

from unziplora_cli.config import TrainConfig
from unziplora_cli.diffusion.anatomy import Anatomy
from unziplora_cli.training.checkpoints import KEPT
from unziplora_cli.training.plan import trained_numbers

NAMES = 1100
"""Bytes per projection in the headers of a project's three files."""


def project_bytes(unet: Anatomy, config: TrainConfig) -> int:
    """The files of the finished project, LoRAs in fp16, merge weights in fp32; those saved on the way too."""
    saved = config.steps // config.save_every if config.save_every else 0
    columns, layers = sum(each.outputs for each in unet.projections()), len(list(unet.projections()))
    files = 2 * (trained_numbers(unet, config.rank) - 2 * columns) + 8 * columns + NAMES * layers
    return files * (1 + saved)


def checkpoint_bytes(unet: Anatomy, config: TrainConfig) -> int:
    """One checkpoint: every trained number with two moments, and per column gate, score and mask."""
    columns = 2 * sum(each.outputs for each in unet.projections())
    return 12 * (trained_numbers(unet, config.rank) + 2 * columns) + columns


def checkpoints_bytes(unet: Anatomy, config: TrainConfig) -> int:
    """All that lie on the disk at once: the last two, and the next while it is written; none on the way with
    ``checkpoint_every`` 0."""
    return (1 if config.checkpoint_every == 0 else 1 + KEPT) * checkpoint_bytes(unet, config)
