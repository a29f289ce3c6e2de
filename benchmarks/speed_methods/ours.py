"""Our own training, through the engine that `unziplora train` runs."""

from __future__ import annotations

import statistics
import tempfile
import time
from pathlib import Path

from PIL import Image, ImageDraw

from benchmarks.speed_methods.measured import Measured
from benchmarks.speed_methods.task import PROMPTS, Setting
from unziplora_cli.config import TrainConfig, resolve
from unziplora_cli.job import TrainRequest
from unziplora_cli.training.engine import train
from unziplora_cli.training.events import Finished, Phase, StepDone

SETTLING = 3
"""Steps after the last that scores columns and before all are alike: the choice, the first step on the chosen
columns, and the one that is recorded for those that follow."""


def trained(setting: Setting, preset: str, **changes: int) -> Measured:
    """Train on a picture made on the spot with the settings of ``preset``, at this run's size.

    The columns are chosen once, before the steps that are timed, and no checkpoints are written. The whole
    training is reckoned from its parts, with every choice of columns that ``preset`` asks for.
    """
    size = {"rank": setting.rank, "resolution": setting.resolution, "steps": setting.steps}
    config = resolve(preset, {**size, "recalibrations": 1, "checkpoint_every": 0, **changes})
    began = time.perf_counter()
    settled = config.importance_steps + SETTLING
    ready, first, told = 0.0, (0, 0.0), 0
    readings = []
    memory = 0
    with tempfile.TemporaryDirectory() as folder:
        for event in train(_request(setting, config, Path(folder))):
            if isinstance(event, Phase) and event.name == "train":
                ready = time.perf_counter() - began
            elif isinstance(event, StepDone):
                if not told:
                    first = event.step, time.perf_counter() - began
                if told >= settled:
                    readings.append(event.seconds)
                told = event.step
            elif isinstance(event, Finished):
                memory = event.result.memory
    seconds = statistics.median(readings)
    choosing = first[1] - ready - first[0] * seconds  # beyond what the first steps would take at full pace
    full = resolve(preset, {})
    whole = ready + full.recalibrations * choosing + full.steps * seconds
    return Measured(seconds, memory, ready + choosing, whole, _differences(setting, config))


def _differences(setting: Setting, config: TrainConfig) -> str:
    """What makes a step of this preset another piece of work than the other rows'."""
    rank = f"rank {config.rank}" if config.rank != setting.common_rank else ""
    echoes = "two pictures per step, one of them an echo" if config.destyle_images else ""
    return ", ".join(filter(None, (rank, echoes)))


def _request(setting: Setting, config: TrainConfig, folder: Path) -> TrainRequest:
    picture = folder / "picture.png"
    _draw_picture(setting.resolution).save(picture)
    return TrainRequest(
        base=setting.base,
        pictures=(picture,),
        prompts=PROMPTS,
        config=config,
        folder=folder / "training",
        device=str(setting.device),
    )


def _draw_picture(side: int) -> Image.Image:
    """A red disc on a green gradient."""
    shade = Image.linear_gradient("L").resize((side, side))
    picture = Image.merge("RGB", (shade.point(lambda level: level // 3), shade, shade.rotate(90)))
    ImageDraw.Draw(picture).ellipse((side // 4, side // 4, side * 3 // 4, side * 3 // 4), fill="firebrick")
    return picture
