"""The demonstration, with its trainings and drawings cut short."""

import multiprocessing
import shutil
import sys
from dataclasses import replace

import pytest
import torch
from PIL import Image

from unziplora_cli.config import TrainConfig
from unziplora_cli.projects.store import ProjectStore
from unziplora_cli.training.request import TrainRequest
from unziplora_cli.workflows import demo

PIXELS = 64


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """Few steps at few pixels, without a second process."""
    monkeypatch.setattr(demo, "SECOND_PROCESS", 2**60)
    train, draw = demo.resolve, demo.resolve_generate

    def few_steps(preset: str, overrides: dict[str, object]) -> TrainConfig:
        short = {
            "steps": 5,
            "recalibrations": 2,
            "importance_steps": 1,
            "destyle_images": 1,
            "destyle_strength": 0.2,
        }
        return train(preset, {**overrides, **short, "resolution": PIXELS})

    monkeypatch.setattr(demo, "resolve", few_steps)
    monkeypatch.setattr(
        demo,
        "resolve_generate",
        lambda *given: replace(draw(*given), steps=1, width=PIXELS, height=PIXELS, guidance=1.0),
    )


def test_the_demo_trains_generates_and_writes_one_sheet(
    unziplora, short, isolated_home, tmp_path, monkeypatch
):
    """The second run replaces the projects, and with --force the sheet."""
    monkeypatch.setattr(shutil, "which", lambda name: None)
    monkeypatch.setattr(sys, "argv", ["/a b/bin/unziplora", "demo"])
    completed = unziplora("demo", "--out", tmp_path, "--device=cpu")
    assert completed.code == 0
    assert "demo-fox: trained in" in completed.err
    assert "Next: '/a b/bin/unziplora' combine demo-fox demo-octopus" in completed.out
    store = ProjectStore(isolated_home)

    completed = unziplora("demo", "--out", tmp_path, "--device=cpu", "--json", "--force")
    result = completed.envelope["result"]
    assert [str(path) for path in tmp_path.iterdir()] == [result["sheet"]]
    with Image.open(result["sheet"]) as sheet:
        assert min(sheet.size) > 5 * PIXELS
    assert result["projects"] == ["demo-fox", "demo-octopus"]
    assert store.names() == ["demo-fox", "demo-octopus"]
    assert all(store.verify(name).problems == () for name in result["projects"])
    assert store.open("demo-fox").job.base.kind == "builtin"


@pytest.mark.parametrize(
    ("out", "code"), [("sheet.txt", 2), ("sheet", 2), ("file/sheet.png", 3), ("mine.png", 3)]
)
def test_a_sheet_that_cannot_be_written_is_refused_before_the_training(
    unziplora, monkeypatch, tmp_path, home_files, out, code
):
    monkeypatch.setattr(demo, "train", lambda *_: pytest.fail("training started"))
    (tmp_path / "file").write_text("mine")
    (tmp_path / "mine.png").write_text("mine")
    completed = unziplora("demo", "--out", tmp_path / out)
    assert (completed.code, completed.out) == (code, "")
    assert ("--force" if out == "mine.png" else "--out") in completed.message
    assert home_files() == []
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {
        "file": "mine",
        "mine.png": "mine",
    }


@pytest.mark.parametrize("fails", [False, True])
def test_a_second_core_trains_the_second_image(
    unziplora, short, isolated_home, tmp_path, monkeypatch, fails
) -> None:
    """As the first core would; a process that cannot is no loss."""
    trained = []

    def train(request: TrainRequest, store: ProjectStore) -> object:
        trained.append(request.job.name)
        return (yield from real(request, store))

    real = demo.train
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    monkeypatch.setattr(demo, "SECOND_PROCESS", 0)
    if fails:
        monkeypatch.setattr(demo, "_train_silently", cannot_start)
    monkeypatch.setattr(demo, "train", train)
    completed = unziplora("demo", "--out", tmp_path, "--device=cpu")
    assert completed.code == 0
    assert trained == ["demo-fox", *["demo-octopus"] * fails]
    store = ProjectStore(isolated_home)
    assert [store.verify(name).problems for name in store.names()] == [(), ()]
    fox, octopus = (store.open(name).job for name in store.names())
    assert octopus.config == fox.config
    assert multiprocessing.active_children() == []


def cannot_start(*_: object) -> None:
    raise SystemExit(1)


def test_ctrl_c_while_both_train_ends_the_second_process(
    unziplora, short, isolated_home, monkeypatch, tmp_path
) -> None:
    def stop(request: TrainRequest, store: ProjectStore) -> object:
        assert len(multiprocessing.active_children()) == 1
        yield from ()
        raise KeyboardInterrupt

    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    monkeypatch.setattr(demo, "SECOND_PROCESS", 0)
    monkeypatch.setattr(demo, "train", stop)
    assert unziplora("demo", "--out", tmp_path / "sheet.png", "--device=cpu").code == 130
    assert multiprocessing.active_children() == []


def test_ctrl_c_in_the_second_training_keeps_the_first(
    unziplora, short, isolated_home, monkeypatch, tmp_path
):
    train = demo.train

    def stop(order: TrainRequest, store: ProjectStore) -> object:
        if order.job.name == "demo-octopus":
            raise KeyboardInterrupt
        yield from train(order, store)

    monkeypatch.setattr(demo, "train", stop)
    completed = unziplora("demo", "--out", tmp_path / "sheet.png", "--device=cpu")
    assert completed.code == 130
    assert "Traceback" not in completed.err
    assert ProjectStore(isolated_home).names() == ["demo-fox"]
    assert list(tmp_path.iterdir()) == []


def test_the_next_command_runs_the_module_if_that_was_run(unziplora, tmp_path, monkeypatch):
    def nothing_new(*_: object, **__: object):
        yield from ()
        return demo.DemoResult(tmp_path / "sheet.png", ("demo-fox", "demo-octopus"), 18, 1.0)

    monkeypatch.setattr(demo, "demo", nothing_new)
    monkeypatch.setattr(shutil, "which", lambda name: None)
    monkeypatch.setattr(sys, "argv", ["/a b/unziplora_cli/__main__.py", "demo"])
    monkeypatch.setattr(sys, "executable", "/c d/python")
    assert "Next: '/c d/python' -m unziplora_cli combine demo-fox" in unziplora("demo").out
