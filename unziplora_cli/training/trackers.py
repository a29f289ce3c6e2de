"""Curves and column maps, for TensorBoard or Weights & Biases through accelerate, and as plain files."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator

from unziplora_cli.adapters.columns import column_map
from unziplora_cli.config import TrainConfig
from unziplora_cli.method.layer import BRANCHES
from unziplora_cli.method.separation import Layers
from unziplora_cli.training.events import StepDone
from unziplora_cli.training.optimizer import require

RUN = "unziplora"
MAP_WIDTH, MAP_HEIGHT = 800, 560
"""Minimum size of a column map in pixels."""
PACKAGES = {"tensorboard": "tensorboard", "wandb": "wandb"}


def check_tracker(tracker: str) -> None:
    """Raise UsageError with the line to type when the tracker's package is missing."""
    if tracker != "none":
        require(PACKAGES[tracker], tracker, f"--tracker {tracker}")


@dataclass(slots=True)
class Logbook:
    """Writes down how a training goes; only the main process's does anything."""

    accelerator: Accelerator
    config: TrainConfig
    folder: Path

    def open(self) -> None:
        """Start the tracker that the configuration names."""
        if self.config.tracker != "none":
            settings = {key: "none" if value is None else value for key, value in asdict(self.config).items()}
            self.accelerator.init_trackers(RUN, config=settings)

    def step(self, done: StepDone, layers: Layers) -> None:
        """The losses, the learning rates, and the mean and least merge weight of every U-Net block."""
        if self.config.tracker == "none":
            return
        content, style, merge = done.learning_rates
        values = {
            "loss": done.loss,
            "reconstruction": done.reconstruction,
            "grad_norm": done.grad_norm,
            "learning_rate/content": content,
            "learning_rate/style": style,
            "learning_rate/merge": merge,
            **merge_curves(layers),
        }
        if done.overlap is not None:
            values["overlap"] = done.overlap
        self.accelerator.log(values, step=done.step)

    def columns(self, step: int, layers: Layers) -> None:
        """The map of columns after a choice: a PNG in ``logs/``, and a picture for the tracker."""
        if not self.accelerator.is_main_process:
            return
        masks = {name: (layer.content.mask, layer.style.mask) for name, layer in layers.items()}
        picture = column_map(masks, min_width=MAP_WIDTH, min_height=MAP_HEIGHT).convert("RGB")
        self.folder.mkdir(parents=True, exist_ok=True)
        picture.save(self.folder / f"columns-step-{step:06d}.png")
        for tracker in self.accelerator.trackers:
            pixels = np.asarray(picture)[None]  # [1, height, width, 3]
            layout = {"dataformats": "NHWC"} if tracker.name == "tensorboard" else {}
            tracker.log_images({"columns": pixels}, step=step, **layout)

    def close(self) -> None:
        """Finish the tracker's files."""
        if self.config.tracker != "none":
            self.accelerator.end_training()


def merge_curves(layers: Layers) -> dict[str, float]:
    """Mean and least merge weight of each branch in each U-Net block, such as ``mid_block.attentions.0``."""
    blocks: dict[str, list[torch.Tensor]] = {}
    for name, layer in layers.items():
        block = name.split(".transformer_blocks.")[0]
        for branch, part in zip(BRANCHES, layer.branches(), strict=True):
            blocks.setdefault(f"merge/{branch}/{block}", []).append(part.merge.detach())
    joined = {name: torch.cat(parts) for name, parts in blocks.items()}
    table = torch.stack([torch.stack([values.mean(), values.min()]) for values in joined.values()]).tolist()
    return {
        f"{name}/{what}": value
        for name, row in zip(joined, table, strict=True)
        for what, value in zip(("mean", "min"), row, strict=True)
    }
