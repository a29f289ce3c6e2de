"""Gradients that overflow in fp16, which its loss scaler leaves out."""

from collections.abc import Callable
from contextlib import nullcontext

import torch

from tests.training.conftest import Parts
from unziplora_cli.method.importance import column_scores
from unziplora_cli.method.layer import Branch
from unziplora_cli.method.schedule import Schedule
from unziplora_cli.method.separation import Separation
from unziplora_cli.sdxl.text import Conditioning
from unziplora_cli.training.step import Batch


class HalfPrecision:
    """What a step asks of accelerate in fp16: gradients overflow while the loss scale is above ``limit``."""

    num_processes = 1
    optimizer_step_was_skipped = False

    def __init__(self, parts: Parts, limit: float) -> None:
        self.scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
        self.limit = limit
        self.weight = next(iter(parts.layers.values())).content.up
        self.attempts = 0

    def autocast(self) -> nullcontext[None]:
        return nullcontext()

    def backward(self, loss: torch.Tensor) -> None:
        self.attempts += 1
        self.scaler.scale(loss).backward()
        if self.scaler.get_scale() > self.limit:
            self.weight.grad.fill_(torch.inf)

    def unscale_gradients(self, optimizer: "Scaled") -> None:
        self.scaler.unscale_(optimizer.optimizer)


class Scaled:
    """An optimiser that steps as accelerate's does."""

    def __init__(self, optimizer: torch.optim.Optimizer, accelerator: HalfPrecision) -> None:
        self.optimizer, self.accelerator, self.scaler = optimizer, accelerator, accelerator.scaler
        self.param_groups, self.zero_grad = optimizer.param_groups, optimizer.zero_grad

    def step(self) -> None:
        scale = self.scaler.get_scale()
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.accelerator.optimizer_step_was_skipped = self.scaler.get_scale() < scale


def in_half_precision(make_parts: Callable[[], Parts], limit: float) -> tuple[Parts, HalfPrecision]:
    parts = make_parts()
    accelerator = HalfPrecision(parts, limit)
    parts.step.accelerator = accelerator
    parts.step.optimizer = Scaled(parts.step.optimizer, accelerator)
    parts.step.schedule = Schedule(10, windows=1, importance_steps=1)
    parts.step.separation = Separation(column_ratio=0.5, score="magnitude", strict=False)
    return parts, accelerator


def batch() -> Batch:
    generator = torch.Generator().manual_seed(0)
    noisy, target = (torch.randn(1, 4, 8, 8, generator=generator) for _ in range(2))
    text, pooled = torch.randn(1, 32, 24, generator=generator), torch.randn(1, 16, generator=generator)
    ids = torch.tensor([[64.0, 64, 0, 0, 64, 64]])
    return Batch(noisy, target, torch.tensor([500]), Conditioning(text, text, text, pooled, ids))


def test_columns_are_scored_by_gradients_that_did_not_overflow(make_parts: Callable[[], Parts]) -> None:
    masks = []
    for limit, attempts in ((1024.0, 1), (128.0, 4)):
        parts, accelerator = in_half_precision(make_parts, limit)
        before = parts.weights("content")
        result = parts.step(1, [[batch()]])
        assert accelerator.attempts == attempts
        assert accelerator.scaler.get_scale() == limit
        assert result.grad_norm.isfinite()
        assert not torch.equal(parts.weights("content"), before)
        scores = torch.cat([layer.content.score for layer in parts.layers.values()])
        assert scores.isfinite().all()
        masks.append(torch.cat([layer.content.mask for layer in parts.layers.values()]))
    assert torch.equal(*masks)  # powers of two change no bit


def test_an_overflow_at_another_step_is_left_out(make_parts: Callable[[], Parts]) -> None:
    parts, accelerator = in_half_precision(make_parts, 128.0)
    before = parts.weights("content")
    parts.step(3, [[batch()]])
    assert accelerator.attempts == 1
    assert torch.equal(parts.weights("content"), before)


def test_scores_are_always_numbers() -> None:
    branch = Branch.random(3, 4, 2)
    branch.down.grad, branch.up.grad = torch.ones(2, 3), torch.full((4, 2), torch.inf)
    branch.up.grad[1:] = 1.0
    for score in ("magnitude", "count"):
        scores = column_scores(branch, score)
        assert scores[0] == 0
        assert scores[1:].isfinite().all()
