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
import shlex
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

import torch

from unziplora_cli.accel.fused_modules import kernels_available
from unziplora_cli.config import TrainConfig, resolve
from unziplora_cli.errors import UsageError
from unziplora_cli.projects.unfinished import CHECKPOINTS
from unziplora_cli.sdxl.profile import ModuleProfile
from unziplora_cli.training.memory import (
    Base,
    Target,
    estimate_memory,
    free_memory,
    passes,
    pixels_of,
    profile_base,
    required_memory,
)
from unziplora_cli.training.request import TrainRequest

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
class TimeEstimate:
    """About how long a step and the whole training take, in seconds; ``operations`` are a step's."""

    operations: float
    step: float
    total: float

    @property
    def step_class(self) -> str:
        """The step's time in words."""
        return next((words for limit, words in CLASSES if self.step < limit), SLOWEST)


def estimate_time(base: Base, config: TrainConfig, target: Target, rate: float) -> TimeEstimate:
    """The pace on a device that makes ``rate`` operations per second of large products."""
    count = passes(config)
    operations = count * count_flops(base, config)
    handling = 0.0
    if target.device == "cuda":
        handling = count * base.unet.weights * (CHECKPOINTED if config.gradient_checkpointing else HANDLING)
    recorded = target.device == "cuda" and config.capture and target.precision != "fp16"
    least = (RECORDED if recorded else LAUNCHED if target.device != "cpu" else 0.0) * len(base.unet.parts)
    step = max((operations / EFFICIENCY[target.device] + handling) / rate, count * least)
    return TimeEstimate(operations, step, LOADING[target.device] + config.steps * step)


def count_flops(base: Base, config: TrainConfig) -> float:
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


def measure_flops(device: torch.device, dtype: torch.dtype, *, one_thread: bool = False) -> float:
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


def _folding(part: ModuleProfile, rank: int) -> float:
    weights = sum(each.weights for each in part.projections if each.reads == "pixels")
    return 4.0 * 2.0 * weights * 2 * rank


# Which settings would fit where a training does not, as the line to type.


PRESETS = ("fast", "low-vram")
"""Tried in this order: the first only learns less, the second is slower, too."""

Changes = Mapping[str, Any]
"""Settings by name, and ``preset``."""


def find_fitting_settings(
    base: Base, config: TrainConfig, target: Target, free: int, given: Mapping[str, Any] | None = None
) -> Changes | None:
    """What to add so that training takes less than ``config`` does and no more than ``free`` bytes, or None.

    The settings that the user has ``given`` stay (left out: all that are not the defaults). When no preset is
    enough, batch, resolution and rank go down, in this order.
    """
    before = estimate_memory(base, config, target).peak
    for changes in _candidates(config, _given(config, given)):
        preset, settings = changes["preset"], {k: v for k, v in changes.items() if k != "preset"}
        try:
            changed = resolve(preset, {**_given(config, given), **settings})
        except UsageError:  # the user's own settings and this preset's exclude each other
            continue
        memory = estimate_memory(base, changed, target)
        if memory.peak < before and required_memory(memory, target) <= free:
            return changes
    return None


def options(changes: Changes) -> list[str]:
    """``changes`` as the words of a command line."""
    return [word for name, value in changes.items() for word in ("--" + name.replace("_", "-"), str(value))]


def line(typed: Sequence[str], changes: Changes, *more: str) -> str:
    """The command that was ``typed``, with ``changes`` in place of what it said of them, and ``more``."""
    flags = {"--" + name.replace("_", "-") for name in changes} | set(more)
    kept, skip = [], False
    for word in typed:
        if not skip and word.split("=")[0] not in flags:
            kept.append(word)
        skip = not skip and word in flags and word not in more
    return shlex.join(["unziplora", *kept, *options(changes), *more])


def lower(config: TrainConfig, precision: str) -> list[Changes]:
    """Single changes that each take less memory, beside a preset."""
    ways: list[Changes] = []
    if not (config.gradient_checkpointing and config.quantize == "int8"):
        ways.append({"preset": "low-vram"})
    if precision == "fp32":
        ways.append({"precision": "bf16"})
    if config.batch_size > 1:
        ways.append({"batch_size": 1})
    return [
        *ways,
        {"resolution": config.resolution // 2 // 8 * 8},
        *([{"rank": config.rank // 2}] if config.rank > 1 else []),
    ]


def _candidates(config: TrainConfig, given: Mapping[str, Any]) -> Iterator[Changes]:
    for preset in PRESETS:
        yield {"preset": preset}
    batch = {"batch_size": 1} if config.batch_size > 1 else {}
    if batch:
        yield {"preset": PRESETS[-1], **batch}
    for share in (0.75, 0.5):
        resolution = {"resolution": _smaller(config.resolution, share)}
        yield {"preset": PRESETS[-1], **batch, **resolution}
        for rank in (config.rank // 2, config.rank // 4, config.rank // 8):
            if rank:
                yield {"preset": PRESETS[-1], **batch, **resolution, "rank": rank}


def _smaller(resolution: int, share: float) -> int:
    """A share of ``resolution``, in whole 64 where there are any."""
    pixels = int(resolution * share)
    return pixels // 64 * 64 or max(32, pixels // 8 * 8)


def _given(config: TrainConfig, given: Mapping[str, Any] | None) -> Mapping[str, Any]:
    if given is not None:
        return given
    values = {each.name: getattr(config, each.name) for each in fields(config)}
    return {each.name: values[each.name] for each in fields(config) if values[each.name] != each.default}


# What a training tells of its memory: before it is short, and when it was.


def target_of(device: torch.device, precision: str) -> Target:
    """Where ``device`` computes in ``precision`` (fp32, bf16 or fp16)."""
    return Target(device.type, precision, kernels_available(device))


@dataclass(slots=True)
class MemoryAdvisor:
    """The memory of one training; ``free`` is what there was before it began."""

    request: TrainRequest
    device: torch.device
    precision: str
    free: int = field(init=False)

    def __post_init__(self) -> None:
        self.free = free_memory(self.device)

    def warning(self) -> str:
        """That it will probably not fit, and what would; empty when it fits."""
        request, target = self.request, target_of(self.device, self.precision)
        need = required_memory(estimate_memory(profile_base(request.base), request.config, target), target)
        if need <= self.free:
            return ""
        what = f"This takes about {need / 1e9:.1f} GB of the GPU, of which {self.free / 1e9:.1f} GB are free"
        changes = None if request.resume else self._proposal()
        return f"{what}: it may not fit." + (f" This would: {self._line(changes)}" if changes else "")

    def advice(self) -> str:
        """What to type when memory ran out."""
        request = self.request
        ways = [" ".join(options(each)) for each in lower(request.config, self.precision)]
        if request.resume:  # its settings are decided
            go_on = f"unziplora train --resume {request.job.name}"
            return f"Close what else uses this memory, then: {go_on}   Or begin anew with --force {ways[0]}"
        changes = self._proposal()
        if not request.typed:
            first = [" ".join(options(changes))] if changes else []
            return "Try " + ", then ".join(dict.fromkeys(first + ways)) + "."
        changes = changes or lower(request.config, self.precision)[0]
        rest = [way for way in ways if way != " ".join(options(changes))]
        return f"{self._line(changes)}   If that is not enough: {', '.join(rest)}"

    def _proposal(self) -> Changes | None:
        target, base = target_of(self.device, self.precision), profile_base(self.request.base)
        return find_fitting_settings(base, self.request.config, target, self.free, self.request.given)

    def _line(self, changes: Changes) -> str:
        """The command; a training that was cut off and has other settings gives way."""
        request = self.request
        kept = any((request.checkpoints or request.folder / CHECKPOINTS).glob("step-*.safetensors"))
        return line(request.typed, changes, *(["--force"] if kept else []))
