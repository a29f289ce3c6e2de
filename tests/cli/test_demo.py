"""The demonstration, with its trainings and drawings cut short."""

from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from unziplora_cli.config import TrainConfig
from unziplora_cli.projects.store import ProjectStore
from unziplora_cli.workflows import demo

PIXELS = 64


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """Few steps at few pixels."""
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


def test_the_demo_trains_draws_and_writes_one_sheet(unziplora, short, own_home, tmp_path):
    """Also a second time, where its projects and its sheet exist already."""
    ended = unziplora("demo", "--out", tmp_path, "--device=cpu")
    assert ended.code == 0
    assert "demo-fox: learned in" in ended.err
    assert "unziplora combine demo-fox demo-cat" in ended.out
    store = ProjectStore(own_home)

    result = unziplora("demo", "--out", tmp_path, "--device=cpu", "--json").envelope["result"]
    assert [str(path) for path in tmp_path.iterdir()] == [result["sheet"]]
    with Image.open(result["sheet"]) as sheet:
        assert min(sheet.size) > 5 * PIXELS
    assert result["projects"] == ["demo-fox", "demo-cat"]
    assert store.names() == ["demo-cat", "demo-fox"]
    assert all(store.verify(name).problems == () for name in result["projects"])
    assert store.open("demo-fox").manifest.base.kind == "builtin"


@pytest.mark.parametrize(("out", "code"), [("sheet.txt", 2), ("sheet", 2), ("file/sheet.png", 3)])
def test_a_sheet_that_cannot_be_written_is_told_before_the_training(
    unziplora, monkeypatch, tmp_path, leftovers, out, code
):
    monkeypatch.setattr(demo, "train", lambda *_: pytest.fail("it was trained"))
    (tmp_path / "file").write_text("mine")
    ended = unziplora("demo", "--out", tmp_path / out)
    assert (ended.code, ended.out) == (code, "")
    assert "--out" in ended.said
    assert leftovers() == []
    assert [path.name for path in Path(tmp_path).iterdir()] == ["file"]


def test_ctrl_c_in_the_second_training_keeps_the_first(unziplora, short, own_home, monkeypatch, tmp_path):
    train = demo.train

    def stop(order: demo.TrainOrder, store: ProjectStore) -> object:
        if order.name == "demo-cat":
            raise KeyboardInterrupt
        yield from train(order, store)

    monkeypatch.setattr(demo, "train", stop)
    ended = unziplora("demo", "--out", tmp_path / "sheet.png", "--device=cpu")
    assert ended.code == 130
    assert "Traceback" not in ended.err
    assert ProjectStore(own_home).names() == ["demo-fox"]
    assert list(tmp_path.iterdir()) == []
