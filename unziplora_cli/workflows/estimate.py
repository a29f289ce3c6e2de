"""What a training would take of this machine, without starting it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from unziplora_cli.config import TrainConfig

if TYPE_CHECKING:
    import torch

    from unziplora_cli.sdxl.base import BaseRef
    from unziplora_cli.training.memory import Memory


@dataclass(frozen=True)
class TrainingEstimate:
    """The forecast for one picture on ``device``; bytes and seconds.

    ``memory`` is what torch will have taken at most, as the manifest records it; ``needed`` what must be
    free, ``free`` and ``total`` what the device has. ``changes`` are settings that would fit where these do
    not.
    """

    base: str
    device: str
    name: str
    precision: str
    config: TrainConfig
    memory: Memory
    needed: int
    free: int
    total: int
    operations: float
    rate: float
    step_seconds: float
    step_class: str
    seconds: float
    project_bytes: int
    checkpoint_bytes: int
    changes: Mapping[str, Any] | None

    @property
    def fits(self) -> bool:
        """Whether it will probably fit."""
        return self.needed <= self.free


def estimate_training(
    base: BaseRef, config: TrainConfig, device: str, given: Mapping[str, Any]
) -> TrainingEstimate:
    """Look at ``device`` and at the configurations of ``base``; nothing is loaded or written.

    ``given`` are the settings that the user gave, which a proposal keeps. Raises UsageError for a device or
    precision that this machine does not have, ModelError for a base that cannot be trained on.
    """
    from unziplora_cli.accel.device import PRECISION_NAMES, SMALL_NETWORK, pick_device, pick_dtype
    from unziplora_cli.sdxl.base import check_trainable
    from unziplora_cli.training import estimate, memory
    from unziplora_cli.training.estimate import find_fitting_settings, target_of

    check_trainable(base)
    chosen = pick_device(device)
    dtype = pick_dtype(config.precision, chosen)
    precision = PRECISION_NAMES[dtype]
    free = memory.free_memory(chosen)
    target, known = target_of(chosen, precision), memory.profile_base(base)
    predicted = memory.estimate_memory(known, config, target)
    need = memory.required_memory(predicted, target)
    rate = estimate.measure_flops(chosen, dtype, one_thread=known.unet.weights < SMALL_NETWORK)
    forecast = estimate.estimate_time(known, config, target, rate)
    return TrainingEstimate(
        base=base.spec,
        device=str(chosen),
        name=_device_name(chosen),
        precision=precision,
        config=config,
        memory=predicted,
        needed=need,
        free=free,
        total=memory.total_memory(chosen),
        operations=forecast.operations,
        rate=rate,
        step_seconds=forecast.step,
        step_class=forecast.step_class,
        seconds=forecast.total,
        project_bytes=memory.project_bytes(known.unet, config),
        checkpoint_bytes=memory.checkpoints_bytes(known.unet, config),
        changes=None if need <= free else find_fitting_settings(known, config, target, free, given),
    )


def shipped_sdxl() -> BaseRef:
    """SDXL where it is not on this disk: its configurations come with the program."""
    from unziplora_cli.sdxl.base import SDXL_CONFIG, SDXL_ID, SDXL_REVISION, BaseRef

    return BaseRef("sdxl", "folder", SDXL_ID, SDXL_CONFIG, SDXL_REVISION, None, SDXL_REVISION)


def _device_name(device: torch.device) -> str:
    if device.type == "cuda":
        from torch import cuda

        return cuda.get_device_name(device)
    return {"mps": "Apple GPU", "cpu": "CPU"}[device.type]
