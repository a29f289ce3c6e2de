"""Several pictures in one command: nothing is loaded twice, and nothing of one picture reaches the next."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image

from unziplora_cli.config import Prompts
from unziplora_cli.training import inputs
from unziplora_cli.training.engine import train
from unziplora_cli.training.events import Finished, TrainResult
from unziplora_cli.training.inputs import InputCache
from unziplora_cli.training.request import TrainRequest

Make = Callable[..., TrainRequest]


def result(request: TrainRequest, shared: InputCache | None = None) -> TrainResult:
    *_, last = train(request, shared)
    assert isinstance(last, Finished)
    return last.result


@pytest.fixture
def two(make_request: Make, tmp_path: Path) -> tuple[TrainRequest, TrainRequest]:
    """Two pictures with prompts of their own, each beside class pictures."""
    other, classes = tmp_path / "rose.png", tmp_path / "classes"
    Image.radial_gradient("L").resize((80, 80)).convert("RGB").save(other)
    classes.mkdir()
    Image.linear_gradient("L").resize((64, 64)).convert("RGB").save(classes / "a.png")
    prior = {"prior_content": str(classes), "prior_images": 1, "prior_content_prompt": "a photo"}
    prompts = Prompts("a monadikos rose in ink style", "a monadikos rose", "a rose in ink style")
    return (
        make_request(tmp_path / "fox", steps=8, **prior),
        make_request(tmp_path / "rose", request={"images": (other,), "prompts": prompts}, steps=8, **prior),
    )


def test_a_second_picture_loads_nothing_and_learns_what_it_learns_alone(
    two: tuple[TrainRequest, TrainRequest], monkeypatch: pytest.MonkeyPatch
) -> None:
    alone = [result(each) for each in two]
    loaded = []
    for module, name in ((inputs, "load_text_encoders"), (inputs, "load_vae"), (inputs, "load_unet")):
        original = getattr(module, name)

        def load(*args: object, name: str = name, original: Callable = original, **kwargs: object) -> object:
            loaded.append(name)
            return original(*args, **kwargs)

        monkeypatch.setattr(module, name, load)
    shared = InputCache(two)
    together = [result(each, shared) for each in two]
    assert loaded == ["load_text_encoders", "load_vae", "load_unet"]
    for one, other in zip(alone, together, strict=True):
        assert one.losses == other.losses
        for branch in ("content", "style"):
            expected, learned = getattr(one, branch), getattr(other, branch)
            assert all(torch.equal(learned[name].up, weights.up) for name, weights in expected.items())
    assert together[0].losses != together[1].losses


def test_a_workshop_that_does_not_know_a_picture_encodes_it(
    two: tuple[TrainRequest, TrainRequest],
) -> None:
    shared = InputCache(two[:1])
    first, second = (result(each, shared) for each in two)
    assert first.losses != second.losses
    assert second.losses == result(two[1]).losses
