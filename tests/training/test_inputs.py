"""Several images in one command: models are loaded once, and the results are those of separate trainings."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image

from tests.training.conftest import run_training
from unziplora_cli.config import Prompts
from unziplora_cli.errors import UsageError
from unziplora_cli.training import inputs
from unziplora_cli.training.events import TrainResult
from unziplora_cli.training.inputs import InputCache
from unziplora_cli.training.request import TrainRequest

Make = Callable[..., TrainRequest]


def learn(request: TrainRequest, input_cache: InputCache | None = None) -> TrainResult:
    return run_training(request, input_cache).result


@pytest.fixture
def two_requests(make_request: Make, tmp_path: Path) -> tuple[TrainRequest, TrainRequest]:
    """Two images with different prompts, both with class images."""
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


def test_shared_cache_loads_once_and_changes_no_number(
    two_requests: tuple[TrainRequest, TrainRequest], monkeypatch: pytest.MonkeyPatch
) -> None:
    alone = [learn(request) for request in two_requests]
    loaded = []
    for module, name in ((inputs, "load_text_encoders"), (inputs, "load_vae"), (inputs, "load_unet")):
        original = getattr(module, name)

        def load(*args: object, name: str = name, original: Callable = original, **kwargs: object) -> object:
            loaded.append(name)
            return original(*args, **kwargs)

        monkeypatch.setattr(module, name, load)
    input_cache = InputCache(two_requests)
    together = [learn(request, input_cache) for request in two_requests]
    assert loaded == ["load_text_encoders", "load_vae", "load_unet"]
    for one, other in zip(alone, together, strict=True):
        assert one.losses == other.losses
        for branch in ("content", "style"):
            expected, learned = getattr(one, branch), getattr(other, branch)
            assert all(torch.equal(learned[name].up, weights.up) for name, weights in expected.items())
    assert together[0].losses != together[1].losses


def test_cache_encodes_an_image_that_was_not_pending(
    two_requests: tuple[TrainRequest, TrainRequest],
) -> None:
    input_cache = InputCache(two_requests[:1])
    first, second = (learn(request, input_cache) for request in two_requests)
    assert first.losses != second.losses
    assert second.losses == learn(two_requests[1]).losses


def test_class_images_are_read_before_anything_else(
    make_request: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In every format, without hidden files; an unusable one is refused before a model is loaded."""
    folder = tmp_path / "classes"
    folder.mkdir()
    names = ["a.webp", "b.psd", "c.heic", "d.JPG"]
    for name in [*names, "._a.png", ".DS_Store", "notes.txt", "e.png"]:
        (folder / name).write_bytes(b"no image")
    (folder / "sub.png").mkdir()
    settings = {"prior_content": str(folder), "prior_content_prompt": "a photo", "prior_images": 9}
    request = make_request(tmp_path / "fox", steps=8, **settings)
    assert [path.name for path in inputs.class_image_files(request.config, "content")] == [*names, "e.png"]
    for name in ("load_text_encoders", "generate"):
        monkeypatch.setattr(inputs, name, lambda *_, **__: pytest.fail("a model was loaded"))
    with pytest.raises(UsageError, match=r"a\.webp is not an image"):
        learn(request)
