"""Steps replayed from CUDA graphs against the same steps launched kernel by kernel."""

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from unziplora_cli.events import run
from unziplora_cli.training.engine import train
from unziplora_cli.training.events import TrainResult
from unziplora_cli.training.request import TrainRequest

Make = Callable[..., TrainRequest]
pytestmark = pytest.mark.gpu


def learned(request: TrainRequest) -> TrainResult:
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
def test_replayed_steps_learn_what_launched_ones_learn(
    make_request: Make, tmp_path: Path, changes: dict[str, object]
) -> None:
    torch.backends.cudnn.allow_tf32 = False
    results = [
        learned(
            make_request(
                tmp_path / str(capture), request={"device": "cuda"}, steps=24, capture=capture, **changes
            )
        )
        for capture in (False, True)
    ]
    for launched, replayed in zip(results[0].losses, results[1].losses, strict=True):
        assert replayed == pytest.approx(launched, rel=1e-3)
    assert distance(*results) < 1e-2


def test_without_room_for_a_second_recording_the_same_is_learned(
    make_request: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.backends.cudnn.allow_tf32 = False

    def request(name: str) -> TrainRequest:
        return make_request(tmp_path / name, request={"device": "cuda"}, steps=24, recalibrations=3)

    roomy = learned(request("roomy"))
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device=None: (0, 2**40))
    cramped = learned(request("cramped"))
    assert cramped.losses == pytest.approx(roomy.losses, rel=1e-3)
    assert distance(roomy, cramped) < 1e-2


def test_a_replayed_training_goes_on_where_it_was(make_request: Make, tmp_path: Path) -> None:
    request = make_request(tmp_path / "whole", request={"device": "cuda"}, steps=24, checkpoint_every=10)
    whole = learned(request)
    checkpoint = sorted((tmp_path / "whole/checkpoints").glob("step-*10.safetensors"))
    assert checkpoint
    for path in (tmp_path / "whole/checkpoints").glob("step-000020.*"):
        path.unlink()
    again = learned(replace(request, resume=True))
    assert distance(whole, again) < 1e-2
    assert again.losses[10:] == pytest.approx(whole.losses[10:], rel=1e-3)
