"""The optimisers and learning-rate schedules by name."""

from __future__ import annotations

import contextlib
import importlib.util
import io
from collections.abc import Sequence
from typing import Any

import torch
from diffusers.optimization import get_scheduler
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from unziplora_cli.config import TrainConfig
from unziplora_cli.errors import UsageError


def build_optimizer(config: TrainConfig, groups: Sequence[dict[str, Any]]) -> Optimizer:
    """The optimiser that ``config`` names over ``groups``, each with its own learning rate.

    Raises UsageError when its package is missing or it cannot do what is asked.
    """
    settings: dict[str, Any] = {
        "betas": (config.adam_beta1, config.adam_beta2),
        "eps": config.adam_eps,
        "weight_decay": config.weight_decay,
    }
    if config.optimizer == "adamw8bit":
        require_package("bitsandbytes", "bnb", "--optimizer adamw8bit")
        from bitsandbytes.optim import AdamW8bit

        return AdamW8bit(groups, **settings)
    if config.optimizer == "prodigy":
        require_package("prodigyopt", "prodigy", "--optimizer prodigy")
        rates = {float(group["lr"]) for group in groups} - {0.0}
        if len(rates) > 1:
            raise UsageError(
                "Prodigy finds the learning rate itself and takes one factor for all parts, "
                f"but the rates are {', '.join(f'{rate:g}' for rate in sorted(rates))}.",
                hint="Add --content-lr 1 --style-lr 1 --merge-lr 1",
            )
        from prodigyopt import Prodigy

        with contextlib.redirect_stdout(io.StringIO()):  # its constructor prints
            return Prodigy(
                groups, lr=rates.pop(), use_bias_correction=True, safeguard_warmup=True, **settings
            )
    device = groups[0]["params"][0].device
    if device.type == "cuda":  # counters and learning rates on the device, where a CUDA graph reads them
        rates = [{**group, "lr": torch.tensor(float(group["lr"]), device=device)} for group in groups]
        return torch.optim.AdamW(rates, fused=True, capturable=True, **settings)
    return torch.optim.AdamW(groups, fused=device.type == "cpu", **settings)


def build_lr_scheduler(config: TrainConfig, optimizer: Optimizer) -> LRScheduler:
    """The schedule that ``config`` names, stepped once per optimiser step."""
    return get_scheduler(
        config.lr_scheduler,
        optimizer,
        num_warmup_steps=config.lr_warmup_steps,
        num_training_steps=config.steps,
    )


def require_package(package: str, extra: str, what: str) -> None:
    """Raise UsageError with the line to type unless ``package`` is installed."""
    if importlib.util.find_spec(package) is None:
        raise UsageError(
            f"{what} needs the package {package}, which is not installed.",
            hint=f"pip install 'unziplora[{extra}]'",
        )
