"""How long a training step takes, about: what it computes over what the device does with large products.

On a GPU part of it does not grow with the picture: weights are read, folded and updated::

    seconds = (operations / efficiency + handling * weights) / rate

A step is the forward pass and the gradients with respect to activations, for adapted projections also those
with respect to their folded weights::

    operations = 2 * sum over layers of weights * pixels * (1 + passes back) + attention + folding
    attention  = 4 pixels * keys * width, and 2.5 times that back
    folding    = 4 * 2 out * in * 2 rank per projection: made, made again, and the gradients of both factors

With gradient checkpointing blocks and resnets are computed twice.
"""

from __future__ import annotations

import os
import time
from dataclasses import dataclass

import torch

from unziplora_cli.config import TrainConfig
from unziplora_cli.diffusion.anatomy import Part
from unziplora_cli.training.plan import Base, Target, passes, pixels_of

# What was measured, and not derived.
EFFICIENCY = {"cuda": 0.62, "mps": 0.3, "cpu": 0.13}
"""The share of the rate of large products that a step reaches: attention, norms, small layers are slower."""
HANDLING, CHECKPOINTED = 7.3e3, 17.8e3
"""Operations that a CUDA device could make while it handles a weight once per pass; where activations are
computed again, and weights are kept in int8."""
RECORDED, LAUNCHED = 0.1e-3, 3e-3
"""Seconds that a part of the U-Net takes at least, forward and back: replayed, or launched by Python."""
LOADING = {"cuda": 30.0, "mps": 60.0, "cpu": 10.0}
"""Seconds before the first step: libraries, texts, pictures, the U-Net."""
SECONDS_OF_MEASURING = 0.2

CLASSES = (
    (0.1, "under 0.1 s"),
    (0.3, "0.1 to 0.3 s"),
    (1.0, "0.3 to 1 s"),
    (3.0, "1 to 3 s"),
    (10.0, "3 to 10 s"),
)
SLOWEST = "over 10 s"


@dataclass(frozen=True, slots=True)
class Pace:
    """About how long a step and the whole training take, in seconds; ``operations`` are a step's."""

    operations: float
    step: float
    total: float

    @property
    def step_class(self) -> str:
        """The step's time in words."""
        return next((words for limit, words in CLASSES if self.step < limit), SLOWEST)


def predict_pace(base: Base, config: TrainConfig, target: Target, rate: float) -> Pace:
    """The pace on a device that makes ``rate`` operations per second of large products."""
    count = passes(config)
    operations = count * operations_of(base, config)
    handling = 0.0
    if target.device == "cuda":
        handling = count * base.unet.weights * (CHECKPOINTED if config.gradient_checkpointing else HANDLING)
    recorded = target.device == "cuda" and config.capture and target.precision != "fp16"
    least = (RECORDED if recorded else LAUNCHED if target.device != "cpu" else 0.0) * len(base.unet.parts)
    step = max((operations / EFFICIENCY[target.device] + handling) / rate, count * least)
    return Pace(operations, step, LOADING[target.device] + config.steps * step)


def operations_of(base: Base, config: TrainConfig) -> float:
    """Floating-point operations of one pass forward and back."""
    learning = set(map(id, base.unet.learning()))
    total = 0.0
    for part in base.unet.parts:
        pixels = pixels_of(part, config, base) * config.batch_size
        keys = pixels_of(part, config, base) + base.tokens if part.kind == "block" else 0
        plain = 2.0 * pixels * sum(each.weights for each in part.layers if each.reads == "pixels")
        adapted = 2.0 * pixels * sum(each.weights for each in part.projections if each.reads == "pixels")
        attention = 4.0 * pixels * keys * part.inputs
        total += plain + adapted + attention
        if id(part) in learning:
            total += plain + 2.0 * adapted + 2.5 * attention + _folding(part, config.rank)
            if config.gradient_checkpointing and part.kind in ("block", "resnet"):
                total += plain + adapted + attention
    return total


def measure_rate(device: torch.device, dtype: torch.dtype, *, one_thread: bool = False) -> float:
    """Operations per second of ``device`` in large products; on a CPU with as many threads as a training."""
    side = 512 if device.type == "cpu" else 4096
    matrix = torch.ones(side, side, device=device, dtype=dtype)
    threads = torch.get_num_threads()
    if one_thread and "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(1)
    try:
        _multiply(matrix, 1)
        count, began = 0, time.perf_counter()
        while count == 0 or time.perf_counter() - began < SECONDS_OF_MEASURING:
            _multiply(matrix, 4)
            count += 4
        return count * 2.0 * side**3 / (time.perf_counter() - began)
    finally:
        torch.set_num_threads(threads)


def _multiply(matrix: torch.Tensor, times: int) -> None:
    """Square ``matrix`` so often, and wait for it."""
    for _ in range(times):
        product = matrix @ matrix
    float(product[0, 0])


def _folding(part: Part, rank: int) -> float:
    weights = sum(each.weights for each in part.projections if each.reads == "pixels")
    return 4.0 * 2.0 * weights * 2 * rank
