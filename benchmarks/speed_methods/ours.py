"""The training of `unziplora train`, timed through its engine."""

from __future__ import annotations

import statistics
import tempfile
import time
from pathlib import Path

from PIL import Image, ImageDraw

from benchmarks.speed_methods.measurement import Measurement
from benchmarks.speed_methods.task import PROMPTS, Setting
from unziplora_cli.config import TrainConfig, Words, resolve
from unziplora_cli.events import run
from unziplora_cli.job import Job, now
from unziplora_cli.training.engine import train
from unziplora_cli.training.events import Event, Phase, StepDone
from unziplora_cli.training.request import TrainRequest

SETTLING_STEPS = 3
"""Steps after the last one that scores columns and before full speed: the column choice, the first step on
the chosen columns, and the step that is recorded as a CUDA graph."""


def trained(setting: Setting, preset: str, **changes: int) -> Measurement:
    """Train on a synthetic image with the settings of ``preset`` at this run's size.

    The columns are chosen once, before the timed steps, and no checkpoints are written. The time of a whole
    training is computed from its parts, with all column choices of ``preset``.
    """
    size = {"rank": setting.rank, "resolution": setting.resolution, "steps": setting.steps}
    config = resolve(preset, {**size, "recalibrations": 1, "checkpoint_every": 0, **changes})
    began = time.perf_counter()
    settled = config.importance_steps + SETTLING_STEPS
    ready, first, last_step = 0.0, (0, 0.0), 0
    readings = []

    def watch(event: Event) -> None:
        nonlocal ready, first, last_step
        if isinstance(event, Phase) and event.name == "train":
            ready = time.perf_counter() - began
        elif isinstance(event, StepDone):
            if not last_step:
                first = event.step, time.perf_counter() - began
            if last_step >= settled:
                readings.append(event.seconds)
            last_step = event.step

    with tempfile.TemporaryDirectory() as folder:
        memory = run(train(_request(setting, config, Path(folder))), watch).memory
    seconds = statistics.median(readings)
    # What the first steps take beyond full speed; noise can make it negative.
    choosing = max(0.0, first[1] - ready - first[0] * seconds)
    full = resolve(preset, {})
    whole = ready + full.recalibrations * choosing + full.steps * seconds
    return Measurement(seconds, memory, ready + choosing, whole, _differences(setting, config))


def _differences(setting: Setting, config: TrainConfig) -> str:
    """How a step of this preset differs from a step of the other rows."""
    rank = f"rank {config.rank}" if config.rank != setting.common_rank else ""
    images = "two images per step, one of them destyled" if config.destyle_images else ""
    return ", ".join(filter(None, (rank, images)))


def _request(setting: Setting, config: TrainConfig, folder: Path) -> TrainRequest:
    picture = folder / "picture.png"
    _draw_picture(setting.resolution).save(picture)
    job = Job(
        name="speed",
        created=now(),
        base=setting.base.record(),
        words=Words("disc", "flat"),
        prompts=PROMPTS,
        device=str(setting.device),
        settings=config,
    )
    return TrainRequest(job, setting.base, (picture,), folder=folder / "training")


def _draw_picture(side: int) -> Image.Image:
    """A red disc on a green gradient."""
    shade = Image.linear_gradient("L").resize((side, side))
    picture = Image.merge("RGB", (shade.point(lambda level: level // 3), shade, shade.rotate(90)))
    ImageDraw.Draw(picture).ellipse((side // 4, side // 4, side * 3 // 4, side * 3 // 4), fill="firebrick")
    return picture
