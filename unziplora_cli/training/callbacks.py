"""What happens beside the steps: history file, trackers, validation images, divergence check."""

from __future__ import annotations

import csv
import math
from collections import deque
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from diffusers import AutoencoderKL, UNet2DConditionModel
from PIL import Image
from torch import Tensor

from unziplora_cli.accel.device import empty_cache
from unziplora_cli.adapters.columns import column_map
from unziplora_cli.config import TrainConfig
from unziplora_cli.errors import ProjectError
from unziplora_cli.files import atomic_write
from unziplora_cli.method.layer import BRANCHES, Mode
from unziplora_cli.method.separation import Layers, set_mode
from unziplora_cli.sdxl.base import vae_scale_factor
from unziplora_cli.sdxl.latents import decode_latents
from unziplora_cli.sdxl.load import load_scheduler, load_vae_decoder
from unziplora_cli.sdxl.sampling import initial_noise, sample
from unziplora_cli.sdxl.text import (
    Conditioning,
    TextEmbeddings,
    concat_conditionings,
    predict_noise,
    unconditional,
)
from unziplora_cli.training.events import StepDone
from unziplora_cli.training.inputs import TrainingInputs
from unziplora_cli.training.optimizer import require_package
from unziplora_cli.training.request import TrainRequest

HISTORY_FILE = "history.csv"


@dataclass(frozen=True, slots=True)
class HistoryRow:
    """One step, counted from 1. What is unknown, or no finite number, is None and an empty cell.

    ``overlap`` is the unweighted penalty, None while it does not count; ``grad_norm`` the joint norm before
    clipping; ``merge_content`` and ``merge_style`` the mean merge weight of a branch over all its columns
    after the step; ``seconds`` how long the step took.
    """

    step: int
    loss: float | None
    reconstruction: float | None
    overlap: float | None
    grad_norm: float | None
    merge_content: float | None
    merge_style: float | None
    seconds: float | None


HISTORY_COLUMNS = tuple(field.name for field in fields(HistoryRow))


def read_history(path: Path) -> tuple[HistoryRow, ...]:
    """All rows of a history; raises ProjectError when it is none."""
    try:
        with path.open(encoding="utf-8", newline="") as file:
            lines = csv.reader(file, strict=True)
            if tuple(next(lines, ())) != HISTORY_COLUMNS:
                raise ProjectError(f"{path} is not a history of a training: its first line is another.")
            return tuple(_row(line) for line in lines)
    except (OSError, ValueError, csv.Error) as error:
        raise ProjectError(f"The history {path} cannot be read: {error}.") from error


def append_history(path: Path, rows: Iterable[HistoryRow]) -> None:
    """Add rows to a history, which begins with them when there is none yet."""
    with path.open("a", encoding="utf-8", newline="") as file:
        lines = csv.writer(file, lineterminator="\n")
        if file.tell() == 0:
            lines.writerow(HISTORY_COLUMNS)
        lines.writerows(_cells(row) for row in rows)


def truncate_history(path: Path, steps: int) -> tuple[HistoryRow, ...]:
    """Keep the first ``steps`` steps of a history, and return them.

    A training that was killed may have told steps that it has to make again, and may have left half a line.
    """
    if not path.exists():
        return ()
    whole = path.read_bytes()
    rows = []
    for line in csv.reader(whole[: whole.rfind(b"\n") + 1].decode("utf-8", "replace").splitlines()[1:]):
        try:
            row = _row(line)
        except ValueError:
            break
        if row.step != len(rows) + 1 or row.step > steps:
            break
        rows.append(row)
    with atomic_write(path) as temporary:
        append_history(temporary, rows)
    return tuple(rows)


def _row(cells: list[str]) -> HistoryRow:
    if len(cells) != len(HISTORY_COLUMNS):
        raise ValueError(f"a line has {len(cells)} cells instead of {len(HISTORY_COLUMNS)}")
    return HistoryRow(int(cells[0]), *(float(cell) if cell else None for cell in cells[1:]))


def _cells(row: HistoryRow) -> list[str]:
    return [
        "" if value is None or not math.isfinite(value) else repr(value) for value in asdict(row).values()
    ]


# Noticing that a training is lost: its loss is no number, or worse than that of knowing nothing.


WINDOW = 20
"""Steps to judge by. It is also more than fp16's scaler needs to halve its scale of 65536 to 1."""

ZERO_PREDICTION_LOSS = 1.0
"""The mean square of the noise, which is the denoising loss of always guessing zero."""


@dataclass(slots=True)
class DivergenceMonitor:
    """Looks at the numbers of every step.

    ``scaled`` says that fp16's loss scaler leaves out the steps whose gradients overflow; then only many of
    them in a row count.
    """

    scaled: bool = False
    _first: list[float] = field(default_factory=list)
    _last: deque[float] = field(default_factory=lambda: deque(maxlen=WINDOW))
    _overflows: int = 0

    def see(self, step: int, loss: float, reconstruction: float, grad_norm: float) -> str | None:
        """What went wrong, in a sentence, if anything did."""
        if not math.isfinite(loss) or not (self.scaled or math.isfinite(grad_norm)):
            self._overflows += 1
            if not self.scaled:
                return f"The loss is no longer a number at step {step}."
            if self._overflows == WINDOW:
                return f"For {WINDOW} steps up to step {step} the loss was no number."
            return None
        self._overflows = 0
        if len(self._first) < WINDOW:
            self._first.append(reconstruction)
        self._last.append(reconstruction)
        mean, began = sum(self._last) / len(self._last), sum(self._first) / len(self._first)
        if len(self._last) == WINDOW and began < ZERO_PREDICTION_LOSS < mean:
            return (
                f"The loss exploded: over the {WINDOW} steps up to step {step} it is {mean:.2g}, "
                f"and guessing no noise at all has {ZERO_PREDICTION_LOSS:.2g}."
            )
        return None


RUN = "unziplora"
MAP_WIDTH, MAP_HEIGHT = 800, 560
"""Minimum size of a column map in pixels."""
PACKAGES = {"tensorboard": "tensorboard", "wandb": "wandb"}


def check_tracker(tracker: str) -> None:
    """Raise UsageError with the line to type when the tracker's package is missing."""
    if tracker != "none":
        require_package(PACKAGES[tracker], tracker, f"--tracker {tracker}")


@dataclass(slots=True)
class MetricLogger:
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
            **merge_weight_curves(layers),
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


def merge_weight_curves(layers: Layers) -> dict[str, float]:
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


VALIDATION_STEPS, VALIDATION_GUIDANCE = 20, 5.0
MODES: dict[str, Mode] = {"full": "both", "content": "content", "style": "style"}


@dataclass(slots=True)
class Validation:
    """Draws the same pictures again and again as the training goes on: same seeds, same prompts.

    The VAE comes to the device only while pictures are decoded, and waits on the CPU in between.
    """

    request: TrainRequest
    inputs: TrainingInputs
    unet: UNet2DConditionModel
    layers: Layers
    _vae: AutoencoderKL | None = field(default=None, init=False)

    def draw(self, step: int) -> tuple[Path, ...]:
        """Write the pictures of the full, content and style prompts and a strip of all; returns the paths."""
        folder = self.request.folder / "validation" / f"step-{step:06d}"
        folder.mkdir(parents=True, exist_ok=True)
        rows, paths = [], []
        latents = {name: self._latents(name) for name in MODES}
        for name, pictures in self._decode(latents).items():
            rows.append(pictures)
            for number, picture in enumerate(pictures):
                paths.append(folder / f"{name}-{number}.png")
                picture.save(paths[-1])
        paths.append(folder / "strip.png")
        strip(rows).save(paths[-1])
        return tuple(paths)

    def _latents(self, name: str) -> list[Tensor]:
        """One picture's latents per seed, [1, channels, h, w] each."""
        config = self.request.config
        side = config.resolution // vae_scale_factor(self.request.base)
        seeds = range(config.seed, config.seed + config.validation_images)
        told = self.inputs.validation[name].to(device=self.unet.device, dtype=self.unet.dtype)
        both = concat_conditionings(_away(self.inputs.empty, told, name), told)  # batch of 2
        set_mode(self.layers, MODES[name])
        try:
            return [self._sample(seed, side, both) for seed in seeds]
        finally:
            set_mode(self.layers, "both")

    @torch.no_grad()
    def _sample(self, seed: int, side: int, told: Conditioning) -> Tensor:
        noise, generators = initial_noise([seed], self.unet.config.in_channels, side, side)

        def denoiser(noisy: Tensor, timestep: Tensor) -> Tensor:
            return predict_noise(self.unet, noisy.to(self.unet.dtype), timestep, told).float()

        return sample(
            denoiser,
            load_scheduler(self.request.base),
            noise.to(self.unet.device),
            steps=VALIDATION_STEPS,
            guidance=VALIDATION_GUIDANCE,
            generators=generators,
        )

    def _decode(self, latents: dict[str, list[Tensor]]) -> dict[str, list[Image.Image]]:
        if self._vae is None:
            self._vae = load_vae_decoder(
                self.request.base, device=torch.device("cpu"), dtype=torch.float32, vae=self.request.job.vae
            )
        self._vae.to(self.unet.device)
        pictures = {name: decode_latents(self._vae, torch.cat(parts)) for name, parts in latents.items()}
        self._vae.to("cpu")
        empty_cache(self.unet.device)
        return pictures


def strip(rows: list[list[Image.Image]], gap: int = 4) -> Image.Image:
    """Pictures of one size as a table on white."""
    width, height = rows[0][0].size
    sheet = Image.new("RGB", (len(rows[0]) * (width + gap) - gap, len(rows) * (height + gap) - gap), "white")
    for y, row in enumerate(rows):
        for x, picture in enumerate(row):
            sheet.paste(picture, (x * (width + gap), y * (height + gap)))
    return sheet


def _away(empty: TextEmbeddings | None, told: Conditioning, name: str) -> Conditioning:
    """What guidance moves away from: zeros, or the empty prompt on bases that were trained with it."""
    if empty is None:
        return unconditional(told)
    empty = empty.to(device=told.full.device, dtype=told.full.dtype)
    if name == "full":
        return unconditional(told, empty)
    return Conditioning.from_prompt(empty.tokens, empty.pooled, told.time_ids)
