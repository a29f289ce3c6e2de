"""Trainings at once against the same trainings alone."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from PIL import Image

from tests.training.conftest import run_training
from tests.training.test_captured_step import distance
from unziplora_cli.accel.stacked_lora import stack_lora
from unziplora_cli.errors import UsageError
from unziplora_cli.events import run
from unziplora_cli.method.inject import eject, inject
from unziplora_cli.method.layer import Mode
from unziplora_cli.method.schedule import Schedule
from unziplora_cli.method.separation import Layers, Separation
from unziplora_cli.sdxl.attention import separate_prompts
from unziplora_cli.sdxl.base import BaseRef
from unziplora_cli.sdxl.load import load_unet
from unziplora_cli.sdxl.text import Conditioning
from unziplora_cli.training.at_once import SharedStep, train_at_once
from unziplora_cli.training.events import Destyled, StepDone, TrainResult
from unziplora_cli.training.inputs import InputCache
from unziplora_cli.training.request import TrainRequest
from unziplora_cli.training.step import Batch, Batches, TrainingStep, parameter_groups

Make = Callable[..., TrainRequest]
IMAGES, STEPS, LIMIT = 2, 8, 0.05


@cache
def conditioning(image: int) -> Conditioning:
    generator = torch.Generator().manual_seed(image)
    full, content, style = (torch.randn(1, 8, 24, generator=generator).double() for _ in range(3))
    pooled = torch.randn(1, 16, generator=generator).double()
    return Conditioning(full, content, style, pooled, torch.full((1, 6), 64.0).double())


def batch(image: int, step: int, mode: Mode) -> Batch:
    """What training ``image`` learns in a step: its own noisy image, noise, time, texts and weight."""
    generator = torch.Generator().manual_seed(100 * image + 10 * step + len(mode))
    noisy, target = torch.randn(2, 1, 4, 8, 8, generator=generator, dtype=torch.float64)
    return Batch(
        noisy=noisy,
        target=target,
        timesteps=torch.randint(1000, (1,), generator=generator),
        conditioning=conditioning(image),
        weight=torch.rand(1, generator=generator, dtype=torch.float64),
        mode=mode,
        scale=1.0 if mode == "both" else 0.7,
    )


def source(image: int) -> Callable[[int], Batches]:
    return lambda step: [[batch(image, step, "both"), batch(image, step, "content")]]


def make_step(base: BaseRef, seeds: Sequence[int], **changes: Any) -> tuple[TrainingStep, list[Layers]]:
    """A step in float64, with everything that separates columns, and the layers of each training."""
    unet = load_unet(base, device="cpu", dtype=torch.float32).double()
    separate_prompts(unet)
    trainings = []
    for seed in seeds:
        eject(unet)
        trainings.append(inject(unet, 4, seed=seed))
        for layer in trainings[-1].values():
            layer.double()
    alone = len(seeds) == 1
    trained = trainings[0] if alone else stack_lora(unet, trainings)
    optimizer = torch.optim.AdamW(parameter_groups(trained, content_lr=1e-2, style_lr=2e-2, merge_lr=5e-2))
    values = {"avoid_overlap": False, "column_ratio": 0.4, "score": "magnitude", "strict": False}
    step = TrainingStep(
        unet=unet,
        layers=trained,
        optimizer=optimizer,
        lr_scheduler=torch.optim.lr_scheduler.LinearLR(optimizer, total_iters=STEPS),
        accelerator=Accelerator(cpu=True),
        schedule=Schedule(STEPS, windows=2, importance_steps=2),
        separation=Separation(**{**values, **changes}),
        max_grad_norm=LIMIT,
        trainings=None if alone else len(seeds),
    )
    return step, trainings


OTHERS = {"accumulate": True, "own_columns": True, "avoid_overlap": True, "score": "count"}


@pytest.mark.parametrize("changes", [{}, OTHERS])
def test_every_training_has_the_numbers_that_it_has_alone(base: BaseRef, changes: dict[str, Any]) -> None:
    step, together = make_step(base, range(IMAGES), **changes)
    shared = SharedStep(step, [source(image) for image in range(IMAGES)])
    for image, layers in enumerate(together):
        alone, (expected,) = make_step(base, [image], **changes)
        for number in range(STEPS):
            result, wanted = shared.result(image, number), alone(number, source(image)(number))
            for name in ("loss", "reconstruction", "overlap", "grad_norm"):
                value = getattr(wanted, name)
                assert (value is None) == (getattr(result, name) is None)
                if value is not None:
                    torch.testing.assert_close(getattr(result, name), value, rtol=1e-9, atol=1e-12)
        for name, layer in expected.items():
            for mine, theirs in zip(layers[name].branches(), layer.branches(), strict=True):
                assert torch.equal(mine.mask, theirs.mask)
                for part in ("down", "up", "merge", "gate", "score"):
                    values = getattr(mine, part), getattr(theirs, part)
                    torch.testing.assert_close(*values, rtol=1e-7, atol=1e-10, msg=f"{name}.{part}")
    assert any(
        not torch.equal(layer.style.mask, together[1][name].style.mask) for name, layer in together[0].items()
    )
    norms = torch.stack([result.grad_norm for result in shared.results])
    assert (norms > LIMIT).any()
    assert (norms < LIMIT).any()


def test_a_network_is_as_before_once_the_trainings_are_taken_out(base: BaseRef) -> None:
    step, _ = make_step(base, range(IMAGES))
    plain = load_unet(base, device="cpu", dtype=torch.float32).double()
    eject(step.unet)
    assert {n: p.shape for n, p in step.unet.named_parameters()} == {
        n: p.shape for n, p in plain.named_parameters()
    }
    assert all(torch.equal(a, b) for a, b in zip(step.unet.parameters(), plain.parameters(), strict=True))


def test_the_engine_learns_the_same_of_each_image(make_request: Make, tmp_path: Path) -> None:
    changes = {"destyle_images": 1, "batch_size": 2, "destyled_only": True, "fuse": False}
    requests = []
    for number in range(2):
        image = tmp_path / f"{number}.png"
        Image.linear_gradient("L").rotate(90 * number).resize((64, 96)).convert("RGB").save(image)
        folder = tmp_path / str(number)
        requests.append(make_request(folder, request={"images": (image,)}, seed=number, **changes))
    events: list[Any] = []
    results = run(train_at_once(requests, InputCache()), events.append)
    for number, result in enumerate(results):
        assert isinstance(result, TrainResult)
        (tmp_path / "alone").mkdir(exist_ok=True)
        expected = run_training(replace(requests[number], folder=tmp_path / "alone" / str(number))).result
        torch.testing.assert_close(result.losses, expected.losses, rtol=1e-4, atol=1e-6)
        assert distance(result, expected) < 1e-4
        assert [event.step for n, event in events if n == number and isinstance(event, StepDone)] == [
            *range(1, 9)
        ]
        rows = (tmp_path / str(number) / "history.csv").read_text().splitlines()
        assert len(rows) == 9
        assert not (tmp_path / str(number) / "checkpoints").exists()
    assert results[0].losses != results[1].losses
    assert sum(isinstance(event, Destyled) for _, event in events) == 2


def test_an_interruption_stops_all_after_the_same_step(make_request: Make, tmp_path: Path) -> None:
    requests = [make_request(tmp_path / str(number)) for number in range(3)]
    training = train_at_once(requests, InputCache())
    for _, event in training:
        if isinstance(event, StepDone) and event.step == 3:
            training.throw(KeyboardInterrupt)
            break
    results = run(training)
    assert [result.steps for result in results if isinstance(result, TrainResult)] == [3, 3, 3]


@pytest.mark.parametrize(
    ("changes", "setting"),
    [({"precision": "fp16"}, "precision fp16"), ({"validate_every": 2}, "validate-every 2")],
)
def test_settings_of_a_single_training_are_refused(
    make_request: Make, tmp_path: Path, changes: dict[str, Any], setting: str
) -> None:
    with pytest.raises(UsageError, match=f"cannot use {setting}"):
        run(train_at_once([make_request(tmp_path, **changes)], InputCache()))
