"""What happens beside the training steps: history file, divergence check, trackers, validation images."""

from __future__ import annotations

import csv
import io
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
from unziplora_cli.files import atomic_write, naming, read_bytes, read_text
from unziplora_cli.images import save_image
from unziplora_cli.method.layer import BRANCHES, Mode
from unziplora_cli.method.separation import Layers, set_mode
from unziplora_cli.sdxl.base import vae_scale_factor
from unziplora_cli.sdxl.latents import decode_latents
from unziplora_cli.sdxl.load import load_scheduler, load_vae_decoder
from unziplora_cli.sdxl.sampling import initial_noise, sample
from unziplora_cli.sdxl.text import concat_conditionings, predict_noise, unconditional
from unziplora_cli.training.events import StepDone
from unziplora_cli.training.inputs import TrainingInputs
from unziplora_cli.training.request import TrainRequest

HISTORY_FILE = "history.csv"


@dataclass(frozen=True, slots=True)
class HistoryRow:
    """One step of the history, counted from 1. A value that is unknown or not finite is an empty cell.

    ``overlap`` is the unweighted penalty, None before columns are chosen; ``grad_norm`` the joint L2 norm
    before clipping; ``merge_content`` and ``merge_style`` the mean merge weight of a branch over all columns
    after the step; ``seconds`` the time of the step.
    """

    step: int
    loss: float | None
    reconstruction: float | None
    overlap: float | None
    grad_norm: float | None
    merge_content: float | None = None
    merge_style: float | None = None
    seconds: float | None = None


HISTORY_COLUMNS = tuple(column.name for column in fields(HistoryRow))


def read_history(path: Path) -> tuple[HistoryRow, ...]:
    """All rows of a history file; raises ProjectError if it is damaged."""
    try:
        lines = csv.reader(io.StringIO(read_text(path), newline=""), strict=True)
        if tuple(next(lines, ())) != HISTORY_COLUMNS:
            raise ProjectError(f"{path} is not a training history: its header is different.")
        return tuple(_parse_row(cells) for cells in lines)
    except (OSError, ValueError, csv.Error) as error:
        raise ProjectError(f"The history {path} cannot be read: {error}.") from error


def append_history(path: Path, rows: Iterable[HistoryRow]) -> None:
    """Append rows to a history file; a new file starts with the header."""
    with naming(path), path.open("a", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        if file.tell() == 0:
            writer.writerow(HISTORY_COLUMNS)
        for row in rows:
            values = asdict(row).values()
            writer.writerow(
                "" if value is None or not math.isfinite(value) else repr(value) for value in values
            )


def truncate_history(path: Path, steps: int) -> tuple[HistoryRow, ...]:
    """Keep the first ``steps`` rows of a history file and return them.

    The history of a killed training may be ahead of its last checkpoint, and may end in half a line.
    """
    if not path.exists():
        return ()
    data = read_bytes(path)
    rows: list[HistoryRow] = []
    for cells in csv.reader(data[: data.rfind(b"\n") + 1].decode("utf-8", "replace").splitlines()[1:]):
        try:
            row = _parse_row(cells)
        except ValueError:
            break
        if row.step != len(rows) + 1 or row.step > steps:
            break
        rows.append(row)
    with atomic_write(path) as temporary:
        append_history(temporary, rows)
    return tuple(rows)


def _parse_row(cells: list[str]) -> HistoryRow:
    if len(cells) != len(HISTORY_COLUMNS):
        raise ValueError(f"a line has {len(cells)} cells instead of {len(HISTORY_COLUMNS)}")
    return HistoryRow(int(cells[0]), *(float(cell) if cell else None for cell in cells[1:]))


DIVERGENCE_WINDOW = 20
"""Steps over which losses are averaged. fp16's loss scaler needs 16 to halve its scale from 65536 to 1."""

ZERO_PREDICTION_LOSS = 1.0
"""The denoising loss of always predicting zero: the mean square of the noise."""


@dataclass(slots=True)
class DivergenceMonitor:
    """Detects a training that diverged: the loss is NaN, or higher than predicting zero.

    ``scaled``: fp16's loss scaler skips steps whose gradients overflow; only ``DIVERGENCE_WINDOW`` of them in
    a row count as divergence.
    """

    scaled: bool = False
    _first: list[float] = field(default_factory=list)
    _last: deque[float] = field(default_factory=lambda: deque(maxlen=DIVERGENCE_WINDOW))
    _overflows: int = 0

    def update(self, step: int, loss: float, reconstruction: float, grad_norm: float) -> str | None:
        """Take the values of one step; returns what went wrong, in one sentence, if anything did."""
        if not math.isfinite(loss) or not (self.scaled or math.isfinite(grad_norm)):
            self._overflows += 1
            if not self.scaled:
                return f"The loss is NaN or infinite at step {step}."
            if self._overflows == DIVERGENCE_WINDOW:
                return f"The loss was NaN or infinite for {DIVERGENCE_WINDOW} steps up to step {step}."
            return None
        self._overflows = 0
        if len(self._first) < DIVERGENCE_WINDOW:
            self._first.append(reconstruction)
        self._last.append(reconstruction)
        first, last = (sum(losses) / len(losses) for losses in (self._first, self._last))
        if len(self._last) == DIVERGENCE_WINDOW and first < ZERO_PREDICTION_LOSS < last:
            return (
                f"The training diverged: the mean loss of the {DIVERGENCE_WINDOW} steps up to step {step} is "
                f"{last:.2g}; predicting no noise at all has a loss of {ZERO_PREDICTION_LOSS:.2g}."
            )
        return None


RUN_NAME = "unziplora"
MAP_WIDTH, MAP_HEIGHT = 800, 560
"""Minimum size of a column map in pixels."""


@dataclass(slots=True)
class MetricLogger:
    """Logs metrics to TensorBoard or Weights & Biases, and writes column maps as PNG files to ``folder``."""

    accelerator: Accelerator
    config: TrainConfig
    folder: Path

    def open(self) -> None:
        """Start the tracker of the settings, if any."""
        if self.config.tracker != "none":
            settings = {key: "none" if value is None else value for key, value in asdict(self.config).items()}
            self.accelerator.init_trackers(RUN_NAME, config=settings)

    def log_step(self, event: StepDone, layers: Layers) -> None:
        """Losses, learning rates, and the mean and minimum merge weight of every U-Net block."""
        if self.config.tracker == "none":
            return
        content, style, merge = event.learning_rates
        values = {
            "loss": event.loss,
            "reconstruction": event.reconstruction,
            "grad_norm": event.grad_norm,
            "learning_rate/content": content,
            "learning_rate/style": style,
            "learning_rate/merge": merge,
            **merge_weight_curves(layers),
        }
        if event.overlap is not None:
            values["overlap"] = event.overlap
        self.accelerator.log(values, step=event.step)

    def log_columns(self, step: int, layers: Layers) -> None:
        """The column map after a choice of columns: a PNG file, and an image for the tracker."""
        if not self.accelerator.is_main_process:
            return
        masks = {name: (layer.content.mask, layer.style.mask) for name, layer in layers.items()}
        image = column_map(masks, min_width=MAP_WIDTH, min_height=MAP_HEIGHT).convert("RGB")
        self.folder.mkdir(exist_ok=True)
        save_image(image, self.folder / f"columns-step-{step:06d}.png", force=True)
        for tracker in self.accelerator.trackers:
            pixels = np.asarray(image)[None]  # [1, height, width, 3]
            layout = {"dataformats": "NHWC"} if tracker.name == "tensorboard" else {}
            tracker.log_images({"columns": pixels}, step=step, **layout)

    def close(self) -> None:
        """Finish the tracker's files."""
        if self.config.tracker != "none":
            self.accelerator.end_training()


def merge_weight_curves(layers: Layers) -> dict[str, float]:
    """Mean and minimum merge weight of each branch per block.

    A key is, for example, ``merge/content/mid_block.attentions.0/mean``.
    """
    blocks: dict[str, list[Tensor]] = {}
    for name, layer in layers.items():
        block = name.split(".transformer_blocks.")[0]
        for branch_name, branch in zip(BRANCHES, layer.branches(), strict=True):
            blocks.setdefault(f"merge/{branch_name}/{block}", []).append(branch.merge.detach())
    weights = {name: torch.cat(parts) for name, parts in blocks.items()}
    # One transfer from the device for all of them.
    table = torch.stack([torch.stack([values.mean(), values.min()]) for values in weights.values()]).tolist()
    return {
        f"{name}/{statistic}": value
        for name, row in zip(weights, table, strict=True)
        for statistic, value in zip(("mean", "min"), row, strict=True)
    }


VALIDATION_STEPS, VALIDATION_GUIDANCE = 20, 5.0
VALIDATION_MODES: dict[str, Mode] = {"full": "both", "content": "content", "style": "style"}


@dataclass(slots=True)
class Validation:
    """Generates the same images as the training proceeds: same seeds, same prompts.

    The VAE is on the device only while images are decoded.
    """

    request: TrainRequest
    inputs: TrainingInputs
    unet: UNet2DConditionModel
    layers: Layers
    _decoder: AutoencoderKL | None = field(default=None, init=False)

    def generate(self, step: int) -> tuple[Path, ...]:
        """Write the images of the full, content and style prompts, and a sheet of all; returns the paths."""
        folder = self.request.folder / "validation" / f"step-{step:06d}"
        for path in (folder.parent, folder):  # not the folder of the training, which may be gone
            path.mkdir(exist_ok=True)
        images = self._decode({name: self._latents(name) for name in VALIDATION_MODES})
        paths = []
        for name, row in images.items():
            for number, image in enumerate(row):
                paths.append(folder / f"{name}-{number}.png")
                save_image(image, paths[-1], force=True)
        paths.append(folder / "strip.png")
        save_image(self._strip(step, images), paths[-1], force=True)
        return tuple(paths)

    def _strip(self, step: int, images: dict[str, list[Image.Image]]) -> Image.Image:
        """The images in rows by prompt and columns by seed, labelled."""
        from unziplora_cli.report.contact_sheet import Heading, contact_sheet

        prompts = self.request.job.validation or self.request.job.prompts
        return contact_sheet(
            list(images.values()),
            title=f"After step {step} of {self.request.config.steps}",
            columns=[f"seed {seed}" for seed in self._seeds()],
            row_headings=[Heading(name, getattr(prompts, name)) for name in images],
        )

    def _seeds(self) -> range:
        config = self.request.config
        return range(config.seed, config.seed + config.validation_images)

    @torch.no_grad()
    def _latents(self, name: str) -> list[Tensor]:
        """The latents of one image per seed, [1, channels, height, width] each."""
        device, dtype = self.unet.device, self.unet.dtype
        side = self.request.config.resolution // vae_scale_factor(self.request.base)
        cond = self.inputs.validation[name]
        uncond = unconditional(cond, self.inputs.empty, single=name != "full")
        batch = concat_conditionings(uncond, cond).to(device=device, dtype=dtype)  # batch of 2

        def denoiser(noisy: Tensor, timestep: Tensor) -> Tensor:
            return predict_noise(self.unet, noisy.to(dtype), timestep, batch).float()

        set_mode(self.layers, VALIDATION_MODES[name])
        latents = []
        try:
            for seed in self._seeds():
                noise, generators = initial_noise([seed], self.unet.config.in_channels, side, side)
                latents.append(
                    sample(
                        denoiser,
                        load_scheduler(self.request.base),
                        noise.to(device),
                        steps=VALIDATION_STEPS,
                        guidance=VALIDATION_GUIDANCE,
                        generators=generators,
                    )
                )
        finally:
            set_mode(self.layers, "both")
        return latents

    def _decode(self, latents: dict[str, list[Tensor]]) -> dict[str, list[Image.Image]]:
        if self._decoder is None:
            cpu, base, vae = torch.device("cpu"), self.request.base, self.request.job.vae
            self._decoder = load_vae_decoder(base, device=cpu, dtype=torch.float32, vae=vae)
        self._decoder.to(self.unet.device)
        images = {name: decode_latents(self._decoder, torch.cat(parts)) for name, parts in latents.items()}
        self._decoder.to("cpu")
        empty_cache(self.unet.device)
        return images
