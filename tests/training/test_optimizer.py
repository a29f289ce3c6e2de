"""Optimisers by name."""

import importlib.util
from typing import Any

import pytest
import torch

from unziplora_cli.cli._errors import hint
from unziplora_cli.config import SCHEDULERS, TrainConfig
from unziplora_cli.errors import UsageError
from unziplora_cli.training.optimizer import build_lr_scheduler, build_optimizer


def groups() -> list[dict[str, Any]]:
    torch.manual_seed(0)
    return [{"params": [torch.nn.Parameter(torch.randn(4, 3))], "lr": lr} for lr in (1e-2, 2e-2, 3e-2)]


def test_adamw_equals_torch_adamw() -> None:
    config = TrainConfig(adam_beta1=0.8, adam_beta2=0.95, adam_eps=1e-3, weight_decay=0.1)
    ours, theirs = groups(), groups()
    optimizer = build_optimizer(config, ours)
    plain = torch.optim.AdamW(
        theirs, betas=(0.8, 0.95), eps=1e-3, weight_decay=0.1, foreach=False, fused=False
    )
    for step in range(5):
        for a, b in zip(ours, theirs, strict=True):
            gradient = torch.sin(torch.arange(12.0) + step).view(4, 3)
            a["params"][0].grad, b["params"][0].grad = gradient.clone(), gradient.clone()
        optimizer.step()
        plain.step()
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a["params"][0], b["params"][0])


def test_prodigy_refuses_different_learning_rates(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: object())
    with pytest.raises(UsageError, match=r"0\.01, 0\.02, 0\.03") as caught:
        build_optimizer(TrainConfig(optimizer="prodigy"), groups())
    assert "--content-lr 1" in hint(caught.value)


@pytest.mark.parametrize("name", SCHEDULERS)
def test_every_schedule_warms_up_and_scales_all_rates(name: str) -> None:
    config = TrainConfig(lr_scheduler=name, lr_warmup_steps=0 if name == "constant" else 2, steps=10)
    optimizer = build_optimizer(config, groups())
    schedule = build_lr_scheduler(config, optimizer)
    rates = []
    for _ in range(config.steps):
        rates.append([group["lr"] for group in optimizer.param_groups])
        optimizer.step()
        schedule.step()
    table = torch.tensor(rates)
    torch.testing.assert_close(table[:, 1], table[:, 0] * 2)
    torch.testing.assert_close(table[2], torch.tensor([1e-2, 2e-2, 3e-2]))  # warm-up is over
    assert (table[0, 0] == 0) == (name != "constant")
