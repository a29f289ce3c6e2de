"""Optimizers and learning-rate schedules by name."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Sequence
from typing import Any

import torch
from diffusers.optimization import get_scheduler
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from unziplora_cli.config import TrainConfig
from unziplora_cli.errors import Remedy, UsageError
from unziplora_cli.packages import check_packages


def build_optimizer(config: TrainConfig, groups: Sequence[dict[str, Any]]) -> Optimizer:
    """The optimizer that ``config`` names, over parameter groups with their own learning rates.

    Raises UsageError if its package is missing or it does not support the settings.
    """
    check_packages(config)
    settings: dict[str, Any] = {
        "betas": (config.adam_beta1, config.adam_beta2),
        "eps": config.adam_eps,
        "weight_decay": config.weight_decay,
    }
    if config.optimizer == "adamw8bit":
        from bitsandbytes.optim import AdamW8bit

        adamw8bit: Optimizer = AdamW8bit(groups, **settings)
        return adamw8bit
    if config.optimizer == "prodigy":
        rates = {float(group["lr"]) for group in groups} - {0.0}
        if len(rates) > 1:
            raise UsageError(
                "Prodigy finds the learning rate itself and needs one factor for all parameters, "
                f"but the learning rates are {', '.join(f'{rate:g}' for rate in sorted(rates))}.",
                Remedy("Use a factor of 1", settings={"content_lr": 1.0, "style_lr": 1.0, "merge_lr": 1.0}),
            )
        from prodigyopt import Prodigy

        with contextlib.redirect_stdout(io.StringIO()):  # its constructor prints
            prodigy: Optimizer = Prodigy(
                groups, lr=rates.pop(), use_bias_correction=True, safeguard_warmup=True, **settings
            )
        return prodigy
    device = groups[0]["params"][0].device
    if device.type == "cuda":  # step counters and learning rates on the device, where a CUDA graph reads them
        groups = [{**group, "lr": torch.tensor(float(group["lr"]), device=device)} for group in groups]
        return torch.optim.AdamW(groups, fused=True, capturable=True, **settings)
    return torch.optim.AdamW(groups, fused=device.type == "cpu", **settings)


def build_lr_scheduler(config: TrainConfig, optimizer: Optimizer) -> LRScheduler:
    """The learning-rate schedule that ``config`` names; step it once per optimizer step."""
    scheduler: LRScheduler = get_scheduler(
        config.lr_scheduler,
        optimizer,
        num_warmup_steps=config.lr_warmup_steps,
        num_training_steps=config.steps,
    )
    return scheduler
