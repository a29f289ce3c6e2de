"""Estimate a training before it starts: time, memory, and settings that fit.

The time of a step is its floating-point operations over the rate of large matrix products, but on a GPU part
of it does not grow with the image, because every weight is read, fused and updated once per pass::

    seconds = (FLOP / efficiency + intensity * weights) / rate

One pass forward and back, over all modules of the U-Net::

    FLOP      = 2 * weights * pixels * (1 + backward passes) + attention + fusing
    attention = 4 * pixels * keys * width, and 2.5 times that in the backward pass
    fusing    = 4 * 2 out * in * 2 rank per projection: fused, fused again, and the gradients of both factors

The backward pass computes gradients of activations, and of the fused weights of adapted projections. With
gradient checkpointing, transformer blocks and resnets are computed twice.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch

from unziplora_cli.accel.device import PRECISION_NAMES, SMALL_NETWORK, pick_device, pick_dtype
from unziplora_cli.accel.fused_modules import kernels_available
from unziplora_cli.config import TrainConfig
from unziplora_cli.errors import Remedy
from unziplora_cli.sdxl.base import SDXL_CONFIG, SDXL_ID, SDXL_REVISION, BaseRef, check_trainable
from unziplora_cli.training.memory import (
    BaseProfile,
    MemoryEstimate,
    Target,
    checkpoints_bytes,
    estimate_memory,
    free_memory,
    passes,
    pixels,
    process_memory,
    profile_base,
    project_bytes,
    required_memory,
    total_memory,
)
from unziplora_cli.training.request import TrainRequest

# Measured with SDXL on an H200, and with the built-in base on a CPU.
EFFICIENCY = {"cuda": 0.62, "mps": 0.3, "cpu": 0.13}
"""The share of the rate of large products that a step reaches."""
INTENSITY, INTENSITY_LOW_MEMORY = 7.3e3, 17.8e3
"""Arithmetic intensity (FLOP per weight and pass) below which a GPU waits for memory; the second value is for
gradient checkpointing and int8 weights."""
REPLAYED, LAUNCHED = 0.1e-3, 3e-3
"""Seconds that a module of the U-Net takes at least: replayed from a CUDA graph, or launched from Python."""
LOADING = {"cuda": 30.0, "mps": 60.0, "cpu": 10.0}
"""Seconds before the first step: libraries, prompts, images, the U-Net."""
MEASURING = 0.2
"""Seconds for measuring the rate of large products."""
TOO_LONG = 48 * 3600.0
"""Seconds above which a training on a CPU is not worth starting."""

NAMES = {"mps": "Apple GPU", "cpu": "CPU"}


@dataclass(frozen=True, slots=True)
class TimeEstimate:
    """Floating-point operations per step, seconds per step, and seconds of the whole training."""

    flops: float
    step: float
    total: float


def estimate_time(base: BaseProfile, config: TrainConfig, target: Target, rate: float) -> TimeEstimate:
    """The time of a training on a device that computes large products at ``rate`` FLOP/s."""
    count = passes(config)
    flops = count * count_flops(base, config)
    weight_access = minimum = 0.0
    if target.device == "cuda":
        intensity = INTENSITY_LOW_MEMORY if config.gradient_checkpointing else INTENSITY
        weight_access = count * base.unet.parameters * intensity
    if target.device != "cpu":
        graphs = target.device == "cuda" and config.capture and target.precision != "fp16"
        minimum = count * len(base.unet.modules) * (REPLAYED if graphs else LAUNCHED)
    step = max((flops / EFFICIENCY[target.device] + weight_access) / rate, minimum)
    return TimeEstimate(flops, step, LOADING[target.device] + config.steps * step)


def count_flops(base: BaseProfile, config: TrainConfig) -> float:
    """Floating-point operations of one forward and backward pass."""
    first = base.unet.first_adapted()
    total = 0.0
    for i, module in enumerate(base.unet.modules):
        area = pixels(module, config, base)
        batch = 2.0 * area * config.batch_size
        attention = 2 * batch * (area + base.tokens) * module.attention
        forward = batch * (module.frozen + module.adapted) + attention
        total += forward
        if i >= first:
            fusing = 4 * 2.0 * module.adapted * 2 * config.rank
            total += batch * (module.frozen + 2 * module.adapted) + 2.5 * attention + fusing
            if config.gradient_checkpointing and module.recomputed:
                total += forward
    return total


def measure_rate(device: torch.device, dtype: torch.dtype, *, one_thread: bool = False) -> float:
    """FLOP/s of large matrix products on ``device``; on a CPU with as many threads as a training uses."""
    side = 512 if device.type == "cpu" else 4096
    matrix = torch.ones(side, side, device=device, dtype=dtype)
    threads = torch.get_num_threads()
    if one_thread and "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(1)
    try:
        float((matrix @ matrix)[0, 0])  # warm-up; reading a value waits for the device
        count, started = 0, time.perf_counter()
        while count == 0 or time.perf_counter() - started < MEASURING:
            products = [matrix @ matrix for _ in range(4)]
            float(products[-1][0, 0])
            count += 4
        return count * 2.0 * side**3 / (time.perf_counter() - started)
    finally:
        torch.set_num_threads(threads)


# Settings that fit


def find_fitting_settings(
    base: BaseProfile, config: TrainConfig, target: Target, free: int, process: int = 0
) -> dict[str, Any] | None:
    """The fewest changes of ``config`` with which the training needs at most ``free`` bytes, or None."""

    def fits(changes: Mapping[str, Any]) -> bool:
        changed_target = replace(target, precision=changes.get("precision", target.precision))
        memory = estimate_memory(base, replace(config, **changes), changed_target, process)
        return required_memory(memory, changed_target) <= free

    changes: dict[str, Any] = {}
    for change in _memory_savers(config, target):
        changes.update(change)
        if fits(changes):
            break
    else:
        return None
    for name in reversed(list(changes)):
        others = {key: value for key, value in changes.items() if key != name}
        if fits(others):
            changes = others
    return changes


def _memory_savers(config: TrainConfig, target: Target) -> Iterator[dict[str, Any]]:
    """Changes to apply in this order: first those that keep the result."""
    if target.device == "cuda" and target.precision == "fp32":
        yield {"precision": "bf16"}
    if not config.gradient_checkpointing:
        yield {"gradient_checkpointing": True}
    if config.quantize != "int8":
        yield {"quantize": "int8"}
    if config.batch_size > 1:
        yield {"batch_size": 1}
    for rank_divisor, resolution_share in ((2, 0.75), (4, 0.5), (8, 0.5)):
        if config.rank // rank_divisor:
            yield {"rank": config.rank // rank_divisor}
        side = int(config.resolution * resolution_share)
        yield {"resolution": side // 64 * 64 or max(32, side // 8 * 8)}


def memory_warning(request: TrainRequest, target: Target, free: int) -> str:
    """That a training may run out of memory, and settings that fit; empty if ``free`` bytes suffice."""
    profile = profile_base(request.base)
    required = required_memory(estimate_memory(profile, request.config, target), target)
    if required <= free:
        return ""
    text = (
        f"Training needs about {required / 1e9:.1f} GB of GPU memory, but {free / 1e9:.1f} GB are free: "
        "it may run out of memory."
    )
    changes = None if request.resume else find_fitting_settings(profile, request.config, target, free)
    if changes:
        settings = (
            f"{name.replace('_', '-')} {'on' if value is True else value}" for name, value in changes.items()
        )
        text += f" Settings that fit: {', '.join(settings)}."
    return text


def memory_remedies(request: TrainRequest, target: Target, free: int) -> tuple[Remedy, ...]:
    """What to do after a training ran out of memory, of which ``free`` bytes were free before it began.

    The settings of a resumed training cannot change; other settings replace its checkpoints.
    """
    config = request.config
    changes = find_fitting_settings(profile_base(request.base), config, target, free)
    changes = changes or next(_memory_savers(config, target))
    if request.resume:
        resume = {"resume": request.job.name}
        return (
            Remedy("Close other programs that use this memory", "train", settings=resume),
            Remedy("Or start again", settings={**changes, "force": True}),
        )
    started = any(request.checkpoint_folder.glob("step-*.safetensors"))
    restart = {"force": True} if started else {}
    smaller = {"resolution": max(32, config.resolution // 16 * 8)}
    return (
        Remedy("Use settings that need less memory", settings={**changes, **restart}),
        *(() if "resolution" in changes else (Remedy("If that is not enough, add", settings=smaller),)),
    )


def target_of(device: torch.device, dtype: torch.dtype, *, fuse: bool) -> Target:
    """The target of a training on ``device`` in ``dtype``; ``fuse`` is the setting of that name."""
    return Target(device.type, PRECISION_NAMES[dtype], fuse and kernels_available(device))


# The whole estimate


@dataclass(frozen=True)
class TrainingEstimate:
    """The estimate for one project; ``fitting_settings`` are changes with which it fits, if it does not."""

    base: str
    device: str
    device_name: str
    precision: str
    config: TrainConfig
    memory: MemoryEstimate
    required_bytes: int
    free_bytes: int
    total_bytes: int
    time: TimeEstimate
    flops_per_second: float
    project_bytes: int
    checkpoint_bytes: int
    fitting_settings: Mapping[str, Any] | None

    @property
    def fits(self) -> bool:
        return self.required_bytes <= self.free_bytes and not self.too_slow

    @property
    def too_slow(self) -> bool:
        """Whether the base needs a GPU, but there is only a CPU."""
        return self.device == "cpu" and self.time.total > TOO_LONG


def estimate_training(base: BaseRef, config: TrainConfig, device_name: str) -> TrainingEstimate:
    """Estimate a training on this machine from configuration files alone; nothing is loaded or written.

    Raises UsageError for a device or precision that this machine does not have, ModelError for a base that
    cannot be trained.
    """
    check_trainable(base)
    device = pick_device(device_name)
    dtype = pick_dtype(config.precision, device)
    target, profile = target_of(device, dtype, fuse=config.fuse), profile_base(base)
    process = process_memory() if device.type == "cpu" else 0
    memory = estimate_memory(profile, config, target, process)
    required, free = required_memory(memory, target), free_memory(device)
    rate = measure_rate(device, dtype, one_thread=profile.unet.parameters < SMALL_NETWORK)
    fitting = None if required <= free else find_fitting_settings(profile, config, target, free, process)
    return TrainingEstimate(
        base=base.spec,
        device=str(device),
        device_name=torch.cuda.get_device_name(device) if device.type == "cuda" else NAMES[device.type],
        precision=target.precision,
        config=config,
        memory=memory,
        required_bytes=required,
        free_bytes=free,
        total_bytes=total_memory(device),
        time=estimate_time(profile, config, target, rate),
        flops_per_second=rate,
        project_bytes=project_bytes(profile.unet, config),
        checkpoint_bytes=checkpoints_bytes(profile.unet, config),
        fitting_settings=fitting,
    )


def shipped_sdxl() -> BaseRef:
    """SDXL by its configuration files, which ship with the package; for an estimate before the download."""
    return BaseRef("sdxl", "folder", SDXL_ID, SDXL_CONFIG, SDXL_REVISION, None, SDXL_REVISION)
