"""A short training on the tiny base, and the parts of one."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import pytest
import torch
from accelerate import Accelerator
from PIL import Image

from tests.jobs import JOB_FIELDS, make_job
from unziplora_cli.config import Prompts, TrainConfig
from unziplora_cli.events import run
from unziplora_cli.method.inject import inject
from unziplora_cli.method.schedule import Schedule
from unziplora_cli.method.separation import Layers, Separation
from unziplora_cli.sdxl.attention import separate_prompts
from unziplora_cli.sdxl.base import BaseRef, resolve_base
from unziplora_cli.sdxl.load import load_unet
from unziplora_cli.training.engine import train
from unziplora_cli.training.events import Event, TrainResult
from unziplora_cli.training.inputs import InputCache
from unziplora_cli.training.request import TrainRequest
from unziplora_cli.training.step import TrainingStep, parameter_groups
from unziplora_cli.workflows.train import read_sources

EventT = TypeVar("EventT", bound=Event)

PROMPTS = Prompts("a monadikos fox in sketch style", "a monadikos fox", "a fox in sketch style")


@pytest.fixture(scope="session")
def base(tiny_base: Path) -> BaseRef:
    """The tiny base."""
    return resolve_base(str(tiny_base), offline=True)[0]


@pytest.fixture(scope="session")
def picture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A picture that is wider than high."""
    path = tmp_path_factory.mktemp("pictures") / "fox.png"
    Image.linear_gradient("L").resize((160, 100)).convert("RGB").save(path)
    return path


@pytest.fixture(scope="session")
def make_request(base: BaseRef, picture: Path) -> Callable[..., TrainRequest]:
    """Makes the request of a short training on the CPU; keywords change its configuration."""

    def make(folder: Path, *, request: dict[str, Any] | None = None, **changes: Any) -> TrainRequest:
        config = {
            "rank": 4,
            "steps": 8,
            "recalibrations": 2,
            "resolution": 64,
            "content_lr": 1e-3,
            "style_lr": 2e-3,
            "column_ratio": 0.3,
            "crops": 3,
            "precision": "fp32",
            "importance_score": "magnitude",
            "strict_top": False,
        }
        settings = TrainConfig(**{**config, **changes})
        values = {"images": (picture,), "device": "cpu", "prompts": PROMPTS, **(request or {})}
        of_job = {name: values.pop(name) for name in tuple(values) if name in JOB_FIELDS - {"images"}}
        job = make_job(settings=settings, images=read_sources(values["images"]), **of_job)
        return TrainRequest(job=job, base=base, folder=folder, **values)

    return make


@dataclass(frozen=True)
class TrainingRun:
    """The events and the result of a training."""

    events: list[Event]
    result: TrainResult

    def only(self, kind: type[EventT]) -> list[EventT]:
        """The events of one type."""
        return [event for event in self.events if isinstance(event, kind)]


def run_training(request: TrainRequest, input_cache: InputCache | None = None) -> TrainingRun:
    """Run a training to its end."""
    events: list[Event] = []
    return TrainingRun(events, run(train(request, input_cache), events.append))


def assert_equal_results(result: TrainResult, expected: TrainResult) -> None:
    """Two trainings learned the same to the last bit."""
    assert result.losses == expected.losses
    for branch in ("content", "style"):
        for name, weights in getattr(expected, branch).items():
            assert torch.equal(weights.up, getattr(result, branch)[name].up)
            assert torch.equal(weights.down, getattr(result, branch)[name].down)
        for name, merge in getattr(expected, f"{branch}_merge").items():
            assert torch.equal(merge, getattr(result, f"{branch}_merge")[name])


@dataclass
class Parts:
    """A training step that any optimiser may drive."""

    step: TrainingStep
    layers: Layers

    def weights(self, branch: str) -> torch.Tensor:
        """Every LoRA weight of a branch in one vector."""
        parts = [layer.get_submodule(branch) for layer in self.layers.values()]
        return torch.cat([p.detach().flatten() for part in parts for p in (part.down, part.up)])


@pytest.fixture
def make_parts(base: BaseRef) -> Callable[[], Parts]:
    """Makes a step with plain gradient descent at rate 1, without clipping and without separation."""

    def make() -> Parts:
        unet = load_unet(base, device="cpu", dtype=torch.float32)
        separate_prompts(unet)
        layers = inject(unet, 4, seed=0)
        optimizer = torch.optim.SGD(parameter_groups(layers, content_lr=1.0, style_lr=1.0, merge_lr=1.0))
        step = TrainingStep(
            unet=unet,
            layers=layers,
            optimizer=optimizer,
            lr_scheduler=torch.optim.lr_scheduler.ConstantLR(optimizer, factor=1.0),
            accelerator=Accelerator(cpu=True),
            schedule=Schedule(10, enabled=False),
            separation=Separation(),
            max_grad_norm=1e9,
        )
        return Parts(step, layers)

    return make
