"""Accelerated trainings against the same trainings without acceleration."""

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from unziplora_cli.accel.device import SlowPathWarning
from unziplora_cli.events import run
from unziplora_cli.sdxl.text import Conditioning
from unziplora_cli.training import step as step_module
from unziplora_cli.training.engine import train
from unziplora_cli.training.events import TrainResult
from unziplora_cli.training.request import TrainRequest
from unziplora_cli.training.step import Batch, CapturedStep

Make = Callable[..., TrainRequest]


def run_training(request: TrainRequest) -> TrainResult:
    return run(train(request))


def distance(one: TrainResult, other: TrainResult) -> float:
    """Relative L2 distance of all updates of both LoRAs."""
    error = size = 0.0
    for branch in ("content", "style"):
        for name, weights in getattr(one, branch).items():
            first, second = ((w.up @ w.down).double() for w in (weights, getattr(other, branch)[name]))
            error += float((first - second).square().sum())
            size += float(first.square().sum())
    return math.sqrt(error / size)


@pytest.mark.gpu
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"recalibrations": 3, "importance_steps": 3},
        {"column_separation": False},
        {"batch_size": 2, "grad_accumulation": 2, "snr_gamma": 5.0},
        {"lr_scheduler": "cosine", "lr_warmup_steps": 3},
        {"destyle_images": 2, "destyled_only": True},
    ],
)
def test_captured_steps_equal_eager_ones(
    make_request: Make, tmp_path: Path, changes: dict[str, object]
) -> None:
    torch.backends.cudnn.allow_tf32 = False
    results = [
        run_training(
            make_request(
                tmp_path / str(capture), request={"device": "cuda"}, steps=24, capture=capture, **changes
            )
        )
        for capture in (False, True)
    ]
    assert results[1].losses == pytest.approx(results[0].losses, rel=1e-3)
    assert distance(*results) < 1e-2


@pytest.mark.gpu
def test_without_memory_for_a_second_recording(
    make_request: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.backends.cudnn.allow_tf32 = False

    def request(name: str) -> TrainRequest:
        return make_request(tmp_path / name, request={"device": "cuda"}, steps=24, recalibrations=3)

    roomy = run_training(request("roomy"))
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device=None: (0, 2**40))
    cramped = run_training(request("cramped"))
    assert cramped.losses == pytest.approx(roomy.losses, rel=1e-3)
    assert distance(roomy, cramped) < 1e-2


@pytest.mark.gpu
def test_a_captured_training_resumes(make_request: Make, tmp_path: Path) -> None:
    request = make_request(tmp_path / "whole", request={"device": "cuda"}, steps=24, checkpoint_every=10)
    whole = run_training(request)
    checkpoint = sorted((tmp_path / "whole/checkpoints").glob("step-*10.safetensors"))
    assert checkpoint
    for path in (tmp_path / "whole/checkpoints").glob("step-000020.*"):
        path.unlink()
    again = run_training(replace(request, resume=True))
    assert distance(whole, again) < 1e-2
    assert again.losses[10:] == pytest.approx(whole.losses[10:], rel=1e-3)


def test_fused_training_equals_the_method(make_request: Make, tmp_path: Path) -> None:
    """The setting `fuse` changes speed only."""
    changes = {"steps": 8, "recalibrations": 2}
    fused, plain = (
        run_training(make_request(tmp_path / str(fuse), fuse=fuse, **changes)) for fuse in (True, False)
    )
    assert fused.losses == pytest.approx(plain.losses, rel=1e-4)
    assert distance(plain, fused) < 1e-2


def test_a_failed_recording_is_reported_once_and_steps_run_eagerly(
    make_parts: Callable[[], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("no graphs today")

    def batches(step: int) -> list[list[Batch]]:
        generator = torch.Generator().manual_seed(step)

        def random(*shape: int) -> Tensor:
            return torch.randn(shape, generator=generator)

        return [[Batch(random(1, 4, 8, 8), random(1, 4, 8, 8), torch.tensor([500]), conditioning)]]

    monkeypatch.setattr(step_module, "Recording", fail)
    captured, eager = make_parts(), make_parts()
    shape = captured.step.unet.config
    pooled = shape.projection_class_embeddings_input_dim - 6 * shape.addition_time_embed_dim
    tokens = torch.randn(1, 7, shape.cross_attention_dim)
    conditioning = Conditioning.from_prompt(tokens, torch.randn(1, pooled), torch.zeros(1, 6))
    run_step = CapturedStep(captured.step)
    with pytest.warns(SlowPathWarning, match="no graphs today") as reported:
        results = [run_step(step, batches(step)) for step in range(4)]
    assert len(reported) == 1
    expected = [eager.step(step, batches(step)) for step in range(4)]
    assert [float(result.loss) for result in results] == [float(result.loss) for result in expected]
    for branch in ("content", "style"):
        assert torch.equal(captured.weights(branch), eager.weights(branch))
