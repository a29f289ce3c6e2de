"""From an request to a project, without the training in between."""

import errno
import os
from collections.abc import Generator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image

from tests.jobs import JOB_FIELDS, make_job
from unziplora_cli.adapters.lora_file import read_lora
from unziplora_cli.cli._errors import hint
from unziplora_cli.config import TrainConfig
from unziplora_cli.errors import Interrupted, ModelError, ProjectError
from unziplora_cli.events import run
from unziplora_cli.method.lora import LoRAWeights
from unziplora_cli.projects.store import ProjectStore
from unziplora_cli.sdxl.base import BaseRef, resolve_base
from unziplora_cli.training import callbacks, engine, events
from unziplora_cli.training.request import TrainRequest
from unziplora_cli.workflows.train import read_sources, split_by_process, train, training_config

LAYER = "mid_block.attentions.0.transformer_blocks.0.attn1.to_q"
Events = Generator[events.Event, None, events.TrainResult]


@pytest.fixture
def store(isolated_home: Path) -> ProjectStore:
    return ProjectStore(isolated_home)


@pytest.fixture(autouse=True)
def any_base(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("unziplora_cli.sdxl.base.check_trainable", lambda base: None)


def make_request(image: Path, **changes: object) -> TrainRequest:
    base = BaseRef("./base", "folder", "/models/base", Path("/models/base"), None, None, "sha256:" + "0" * 64)
    Image.new("RGB", (80, 64), "red").save(image, format="PNG")
    of_job = {name: changes.pop(name) for name in tuple(changes) if name in JOB_FIELDS}
    values = {"base": base.record(), "settings": TrainConfig(rank=2), "images": read_sources([image])}
    return TrainRequest(make_job(**{**values, **of_job}), base, (image,), **changes)


def lora(value: float) -> dict[str, LoRAWeights]:
    return {LAYER: LoRAWeights(torch.ones(2, 3), torch.full((4, 2), value))}


def merge() -> dict[str, torch.Tensor]:
    return {LAYER: torch.ones(4)}


def one_row(request: TrainRequest) -> None:
    row = callbacks.HistoryRow(1, 1.0, 1.0, None, 1.0, 1.0, 1.0, 0.1)
    callbacks.append_history(request.folder / "history.csv", [row])


def finish(request: TrainRequest, input_cache: object) -> Events:
    one_row(request)
    losses = (*[1.0] * 10, *[0.5] * 10)
    result = events.TrainResult(lora(1), lora(2), merge(), merge(), 600, losses, 9.0, 10, "cpu", "fp32")
    yield events.StepDone(600, 600, "joint", 0.5, 0.5, None, 1.0, (1e-4,) * 3, 0.015, 10)
    return result


def stop(request: TrainRequest, input_cache: object) -> Events:
    one_row(request)
    result = events.TrainResult(lora(7), lora(8), merge(), merge(), 7, (1.0,) * 7, 9.0, 10, "cpu", "fp32")
    yield events.Phase("train")
    return result


def stop_at_once(request: TrainRequest, input_cache: object) -> Events:
    yield events.Phase("train")
    raise Interrupted("Stopped.")


def fail(request: TrainRequest, input_cache: object) -> Events:
    yield events.Phase("train")
    raise ModelError("The base is gone.")


def test_the_result_is_the_finished_project(store, tmp_path, monkeypatch):
    monkeypatch.setattr(engine, "train", finish)
    trained = run(train(make_request(tmp_path / "fox.png"), store))
    assert trained.project == store.open("fox")
    assert trained.seconds_per_step == 0.015
    manifest = store.open("fox").manifest
    assert (manifest.state, manifest.steps_done, manifest.seconds) == ("complete", 600, 9.0)
    assert manifest.metrics == {"loss_first": 1.0, "loss_last": 0.5}
    assert manifest.job.base.id == "/models/base"
    assert store.verify("fox").problems == ()
    loaded = read_lora(store.open("fox").path("style"))
    assert torch.equal(loaded.lora[LAYER].up, lora(2)[LAYER].up)
    assert loaded.metadata["unziplora.subject"] == "fox"


def test_a_stopped_training_keeps_what_was_saved_last(store, tmp_path, monkeypatch):
    monkeypatch.setattr(engine, "train", stop)
    with pytest.raises(Interrupted, match="Stopped after step 7 of 600") as caught:
        list(train(make_request(tmp_path / "fox.png"), store))
    assert "unziplora combine fox" in hint(caught.value)
    project = store.open("fox")
    assert (project.manifest.state, project.manifest.steps_done) == ("interrupted", 7)
    assert float(read_lora(project.path("content")).lora[LAYER].up[0, 0]) == 7
    assert store.verify("fox").problems == ()


@pytest.mark.parametrize(("run", "error"), [(stop_at_once, Interrupted), (fail, ModelError)])
def test_nothing_stays_of_a_training_that_learned_nothing(store, tmp_path, monkeypatch, run, error):
    monkeypatch.setattr(engine, "train", run)
    with pytest.raises(error):
        list(train(make_request(tmp_path / "fox.png"), store))
    assert list(store.folder.iterdir()) == []


def fail_later(request: TrainRequest, input_cache: object) -> Events:
    (request.folder / "checkpoints").mkdir()
    (request.folder / "checkpoints/step-000005.safetensors").write_bytes(b"a state")
    yield events.Phase("train")
    raise ModelError("The base is gone.")


def test_a_training_that_fails_after_a_checkpoint_can_go_on(store, tmp_path, monkeypatch):
    monkeypatch.setattr(engine, "train", fail_later)
    request = make_request(tmp_path / "fox.png", device="cpu", settings=TrainConfig(rank=2, seed=3))
    with pytest.raises(ModelError):
        list(train(request, store))
    assert store.names() == []
    ((unfinished,), ()) = store.all_unfinished()
    assert (unfinished.name, unfinished.step, unfinished.job.config.steps) == ("fox", 5, 600)
    with pytest.raises(ProjectError, match="not finished") as caught:
        store.open("fox")
    assert hint(caught.value) == "Resume it: unziplora train --resume fox"

    requests: list[TrainRequest] = []

    def go_on(request: TrainRequest, input_cache: object) -> Events:
        requests.append(request)
        return (yield from finish(request, input_cache))

    monkeypatch.setattr(engine, "train", go_on)
    list(train(replace(request, resume=True, images=()), store))
    (request,) = requests
    assert request.resume
    assert request.images == (unfinished.folder / "source.png",)
    assert request.job.config.seed == 3
    assert store.verify("fox").problems == ()
    assert sorted(p.name for p in store.open("fox").folder.iterdir()) == [
        *("content.safetensors", "history.csv", "manifest.json"),
        *("merge.safetensors", "source.png", "style.safetensors"),
    ]
    assert [p.name for p in store.folder.iterdir()] == ["fox"]


def test_a_forced_training_that_is_stopped_leaves_the_older_project(store, tmp_path, monkeypatch):
    monkeypatch.setattr(engine, "train", finish)
    request = make_request(tmp_path / "fox.png", replaces=True)
    list(train(request, store))
    monkeypatch.setattr(engine, "train", stop)
    (store.folder / "fox/checkpoints").mkdir()
    with pytest.raises(Interrupted, match="the older project 'fox' is") as caught:
        list(train(request, store))
    assert "unziplora train --resume fox" in hint(caught.value)
    assert "unziplora remove fox --unfinished" in hint(caught.value)
    assert store.open("fox").manifest.state == "complete"
    assert store.verify("fox").problems == ()
    monkeypatch.setattr(engine, "train", finish)
    list(train(replace(request, resume=True), store))
    assert store.all_unfinished() == ((), ())


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO, errno.EROFS, errno.EMFILE])
def test_a_failing_disk_is_an_error_of_the_project(store, tmp_path, monkeypatch, number):
    def fail(request: TrainRequest, input_cache: object) -> Events:
        yield events.Phase("train")
        raise OSError(number, os.strerror(number), str(request.folder / "history.csv"))

    monkeypatch.setattr(engine, "train", fail)
    with pytest.raises(ProjectError, match=os.strerror(number)) as caught:
        list(train(make_request(tmp_path / "fox.png"), store))
    assert "history.csv" in caught.value.message
    assert "Nothing of the training was kept." in caught.value.message
    assert "--home" in hint(caught.value)
    assert list(store.folder.iterdir()) == []


def test_a_home_that_vanishes_is_named_and_not_made_anew(store, tmp_path, monkeypatch):
    def unplug(request: TrainRequest, input_cache: object) -> Events:
        yield events.Phase("train")
        store.home.rename(tmp_path / "unplugged")
        store.home.mkdir()  # the mount point
        callbacks.append_history(request.folder / "history.csv", [])

    monkeypatch.setattr(engine, "train", unplug)
    with pytest.raises(ProjectError, match=f"The home {store.home} is gone"):
        list(train(make_request(tmp_path / "fox.png"), store))
    assert list(store.home.iterdir()) == []


def test_an_older_project_stays_unless_forced(store, tmp_path, monkeypatch):
    monkeypatch.setattr(engine, "train", finish)
    request = make_request(tmp_path / "fox.png")
    list(train(request, store))
    with pytest.raises(ProjectError, match="already"):
        list(train(request, store))
    monkeypatch.setattr(engine, "train", fail)
    with pytest.raises(ModelError):
        list(train(make_request(tmp_path / "fox.png", replaces=True), store))
    assert store.verify("fox").problems == ()


@pytest.mark.parametrize(
    ("name", "source"),
    [("fox.PNG", "source.png"), ("fox", "source"), ("fox.a b", "source"), ("fox.日本", "source")],
)
def test_a_picture_keeps_its_ending_when_that_is_plain(store, tmp_path, monkeypatch, name, source):
    monkeypatch.setattr(engine, "train", finish)
    list(train(make_request(tmp_path / name), store))
    (record,) = store.open("fox").job.images
    assert (record.file, record.width, record.height, record.format) == (source, 80, 64, "PNG")


def test_another_process_of_the_training_makes_no_project(store, tmp_path, monkeypatch):
    monkeypatch.setattr(engine, "train", finish)
    monkeypatch.setenv("RANK", "1")
    assert run(train(make_request(tmp_path / "fox.png"), store)) is None
    assert store.names() == []


def test_processes_share_out_several_pictures_and_train_each_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    requests = [make_request(tmp_path / f"{name}.png", name=name) for name in ("fox", "rose", "cat")]
    assert split_by_process(requests) == requests
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    shares = []
    for rank in (0, 1):
        for variable, value in (("RANK", rank), ("LOCAL_RANK", rank), ("WORLD_SIZE", 2)):
            monkeypatch.setenv(variable, str(value))
        assert split_by_process(requests[:1]) == requests[:1]  # a single picture is everybody's
        shares.append([(request.job.name, request.job.device) for request in split_by_process(requests)])
        assert "WORLD_SIZE" not in os.environ
    assert shares == [[("fox", "cuda:0"), ("cat", "cuda:0")], [("rose", "cuda:1")]]
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("LOCAL_RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    chosen = [replace(request, job=replace(request.job, device="cpu")) for request in requests]
    assert [request.job.device for request in split_by_process(chosen)] == ["cpu", "cpu"]


@pytest.mark.parametrize(
    ("preset", "settings", "expected"),
    [
        (None, {}, ("mini", 128)),
        ("paper", {}, ("paper", 128)),  # the preset says 1024, the size of SDXL
        ("paper", {"resolution": 256}, ("paper", 256)),
    ],
)
def test_a_preset_trains_a_small_base_at_its_own_resolution(preset, settings, expected):
    mini, _ = resolve_base("mini", offline=True)
    name, config = training_config(mini, preset, settings)
    assert (name, config.resolution) == expected
