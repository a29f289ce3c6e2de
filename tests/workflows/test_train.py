"""From a request to a project, by short trainings of the tiny base that end in every way."""

import errno
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from tests.jobs import JOB_FIELDS, make_job
from unziplora_cli.adapters.lora_file import read_lora
from unziplora_cli.cli._errors import hint
from unziplora_cli.config import TrainConfig
from unziplora_cli.errors import Interrupted, ModelError, ProjectError
from unziplora_cli.projects.store import ProjectStore
from unziplora_cli.sdxl.base import BaseRef, resolve_base
from unziplora_cli.training import trainer
from unziplora_cli.training.events import StepDone
from unziplora_cli.training.inputs import InputCache
from unziplora_cli.training.request import TrainRequest
from unziplora_cli.workflows.train import (
    TrainedProject,
    read_sources,
    split_by_process,
    train,
    training_config,
)

SETTINGS = TrainConfig(
    rank=2,
    steps=3,
    recalibrations=1,
    resolution=64,
    crop="center",
    precision="fp32",
    importance_score="magnitude",
    checkpoint_every=0,
)


@pytest.fixture
def store(isolated_home: Path) -> ProjectStore:
    return ProjectStore(isolated_home)


@pytest.fixture(scope="module")
def base(tiny_base: Path) -> BaseRef:
    return resolve_base(str(tiny_base), offline=True)[0]


@pytest.fixture(scope="module")
def picture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("pictures") / "fox.png"
    Image.linear_gradient("L").resize((80, 64)).convert("RGB").save(path)
    return path


@pytest.fixture(scope="module")
def make_request(base: BaseRef, picture: Path) -> Callable[..., TrainRequest]:
    def make(**changes: Any) -> TrainRequest:
        of_job = {name: changes.pop(name) for name in tuple(changes) if name in JOB_FIELDS}
        values = {"base": base.record(), "settings": SETTINGS, "images": read_sources([picture])}
        return TrainRequest(make_job(**{**values, "device": "cpu", **of_job}), base, (picture,), **changes)

    return make


@pytest.fixture(scope="module")
def cache() -> InputCache:
    """The inputs and the U-Net of all trainings of this file."""
    return InputCache()


@pytest.fixture
def run(store: ProjectStore, cache: InputCache) -> Callable[..., tuple[TrainedProject | None, list[float]]]:
    """Trains, and returns the project and the losses; an error is thrown at the end of one step."""

    def run(
        request: TrainRequest, error: BaseException | None = None, *, at: int = 1
    ) -> tuple[TrainedProject | None, list[float]]:
        operation, losses = train(request, store, cache), []
        try:
            event = next(operation)
            while True:
                if isinstance(event, StepDone):
                    losses.append(event.loss)
                    if error is not None and event.step == at:
                        event = operation.throw(error)
                        continue
                event = next(operation)
        except StopIteration as end:
            return end.value, losses

    return run


def test_the_result_is_the_finished_project(store, make_request, run, base):
    trained, losses = run(make_request())
    assert trained.project == store.open("fox")
    manifest = trained.project.manifest
    assert (manifest.state, manifest.steps_done) == ("complete", 3)
    assert 0 < trained.seconds_per_step < trained.seconds == manifest.seconds
    assert manifest.metrics == {"loss_first": losses[0], "loss_last": losses[-1]}
    assert manifest.job.base.id == base.id
    assert store.verify("fox").problems == ()
    loaded = read_lora(trained.project.path("style"))
    assert {weights.rank for weights in loaded.lora.values()} == {2}
    assert loaded.metadata["unziplora.subject"] == "fox"
    with pytest.raises(ProjectError, match="already"):
        run(make_request())
    with pytest.raises(ModelError):
        run(make_request(replaces=True), ModelError("The base is gone."))
    assert store.open("fox").manifest == manifest
    assert store.verify("fox").problems == ()


def test_a_stopped_training_keeps_what_was_learned_and_can_be_resumed(store, make_request, run):
    with pytest.raises(Interrupted, match="Stopped after step 1 of 3") as caught:
        run(make_request(), KeyboardInterrupt())
    assert "unziplora combine fox" in hint(caught.value)
    project = store.open("fox")
    assert (project.manifest.state, project.manifest.steps_done) == ("interrupted", 1)
    assert store.verify("fox").problems == ()
    _, losses = run(make_request(resume=True, name="fox"))
    assert (len(losses), store.open("fox").manifest.state) == (2, "complete")
    assert store.all_unfinished() == ((), ())


@pytest.mark.parametrize("error", [Interrupted("Stopped."), ModelError("The base is gone.")])
def test_nothing_stays_of_a_training_without_a_checkpoint(store, make_request, run, error):
    with pytest.raises(type(error)):
        run(make_request(), error)
    assert list(store.folder.iterdir()) == []


def test_a_training_that_fails_after_a_checkpoint_can_go_on(store, make_request, run):
    request = make_request(settings=replace(SETTINGS, checkpoint_every=1, seed=3))
    with pytest.raises(ModelError):
        run(request, ModelError("The base is gone."), at=2)
    assert store.names() == []
    ((unfinished,), ()) = store.all_unfinished()
    assert (unfinished.name, unfinished.job.config.steps) == ("fox", 3)
    assert (step := unfinished.step) in (1, 2)
    with pytest.raises(ProjectError, match="not finished") as caught:
        store.open("fox")
    assert hint(caught.value) == "Resume it: unziplora train --resume fox"

    trained, losses = run(replace(request, resume=True, images=()))
    assert len(losses) == 3 - step
    assert trained.project.job.config.seed == 3
    assert store.verify("fox").problems == ()
    assert sorted(p.name for p in trained.project.folder.iterdir()) == [
        *("content.safetensors", "history.csv", "logs", "manifest.json"),
        *("merge.safetensors", "source.png", "style.safetensors"),
    ]
    assert [p.name for p in store.folder.iterdir()] == ["fox"]


def test_a_forced_training_that_is_stopped_leaves_the_older_project(store, make_request, run):
    run(make_request())
    former = store.open("fox").manifest
    request = make_request(replaces=True)
    with pytest.raises(Interrupted, match="the older project 'fox' is") as caught:
        run(request, KeyboardInterrupt())
    assert "unziplora train --resume fox" in hint(caught.value)
    assert "unziplora remove fox --unfinished" in hint(caught.value)
    assert store.open("fox").manifest == former
    assert store.verify("fox").problems == ()
    run(replace(request, resume=True))
    assert store.open("fox").manifest != former
    assert store.all_unfinished() == ((), ())


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS])
def test_a_failing_disk_is_an_error_of_the_project(store, make_request, run, monkeypatch, number):
    def fail(path: Path, rows: object) -> None:
        raise OSError(number, os.strerror(number), str(path))

    monkeypatch.setattr(trainer, "append_history", fail)
    with pytest.raises(ProjectError, match=os.strerror(number)) as caught:
        run(make_request())
    assert "history.csv" in caught.value.message
    assert "Nothing of the training was kept." in caught.value.message
    assert "--home" in hint(caught.value)
    assert list(store.folder.iterdir()) == []


def test_a_home_that_vanishes_is_named_and_not_made_anew(store, make_request, cache, tmp_path):
    with pytest.raises(ProjectError, match=f"The home {store.home} is gone"):
        for event in train(make_request(), store, cache):
            if isinstance(event, StepDone) and event.step == 1:
                store.home.rename(tmp_path / "unplugged")
                store.home.mkdir()  # the mount point
    assert list(store.home.iterdir()) == []


@pytest.mark.parametrize(
    ("name", "file"),
    [("fox.PNG", "source.png"), ("fox", "source"), ("fox.a b", "source"), ("fox.日本", "source")],
)
def test_a_picture_keeps_its_ending_when_that_is_plain(tmp_path, name, file):
    Image.new("RGB", (80, 64), "red").save(tmp_path / name, format="PNG")
    (record,) = read_sources([tmp_path / name])
    assert (record.file, record.width, record.height, record.format) == (file, 80, 64, "PNG")


def test_another_process_of_the_training_makes_no_project(store, make_request, run, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    trained, losses = run(make_request())
    assert (trained, len(losses)) == (None, 3)
    assert store.names() == []


def test_processes_share_out_several_pictures_and_train_each_alone(make_request, monkeypatch):
    requests = [make_request(name=name, device="auto") for name in ("fox", "rose", "cat")]
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
    for variable, value in (("RANK", 0), ("LOCAL_RANK", 0), ("WORLD_SIZE", 2)):
        monkeypatch.setenv(variable, str(value))
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
