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
from unziplora_cli.training.engine import train
from unziplora_cli.training.events import Finished, StepDone
from unziplora_cli.training.request import TrainRequest

GPU_WARM_UP = 10
"""Steps that the engine reads together on a GPU; whatever is prepared during the first falls into them."""


def trained(setting: Setting, preset: str, **changes: int) -> Measured:
    """Train on a picture made on the spot with the settings of ``preset``, at this run's size.

    The columns are chosen once and early, as seldom as in a training of full length compared to the steps
    that are timed; checkpoints are left out.
    """
    size = {"rank": setting.rank, "resolution": setting.resolution, "steps": setting.steps}
    config = resolve(preset, {**size, "recalibrations": 1, "checkpoint_every": 0, **changes})
    began = time.perf_counter()
    first: tuple[int, float] | None = None
    readings = []
    memory = 0
    with tempfile.TemporaryDirectory() as folder:
        for event in train(_request(setting, config, Path(folder))):
            if isinstance(event, StepDone):
                first = first or (event.step, time.perf_counter() - began)
                if event.step > _warm_up(setting, config):
                    readings.append(event.seconds)
            elif isinstance(event, Finished):
                memory = event.result.memory
    assert first is not None
    seconds = statistics.median(readings)
    return Measured(seconds, memory, first[1] - first[0] * seconds)


def _warm_up(setting: Setting, config: TrainConfig) -> int:
    """Steps that are not counted: those that choose the columns, and the one after."""
    choosing = config.importance_steps + 2
    return choosing if setting.device.type == "cpu" else max(choosing, GPU_WARM_UP)


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
