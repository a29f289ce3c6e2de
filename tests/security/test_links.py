"""A project that a stranger made may hold links; none of them leads a command out of the project."""

import os
import shutil
import sys
from pathlib import Path

import pytest

from unziplora_cli.projects.store import ProjectStore

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="links need rights there")

OUTSIDE = "the words of somebody else"


@pytest.fixture
def outside(tmp_path) -> Path:
    """A folder of somebody else, with a file in it."""
    folder = tmp_path / "outside"
    folder.mkdir()
    (folder / "secret.txt").write_text(OUTSIDE)
    return folder


@pytest.fixture
def untouched(outside):
    """Fails the test when anything outside has changed."""
    yield
    assert [path.name for path in outside.iterdir()] == ["secret.txt"]
    assert (outside / "secret.txt").read_text() == OUTSIDE


@pytest.fixture
def linked(two_projects, outside):
    """Puts a link to outside into the place of a file or folder of the project fox."""

    def put(name: str) -> Path:
        place = two_projects / "projects/fox" / name
        if place.is_dir():
            shutil.rmtree(place)
        place.unlink(missing_ok=True)
        place.parent.mkdir(exist_ok=True)
        place.symlink_to(outside / "secret.txt" if place.suffix else outside)
        return place

    return put


PLACES = ("content.safetensors", "source.png", "history.csv", "manifest.json", "images", "logs", "saved/deep")
DRAW = ("--steps=1", "--device=cpu")
COMMANDS = {
    "show": ("show", "fox"),
    "content": ("content", "fox", *DRAW),
    "style": ("style", "fox", *DRAW),
    "combine": ("combine", "rose", "fox", *DRAW),
    "cross": ("cross", "fox", "rose", *DRAW),
    "export": ("export", "fox"),
    "report": ("report", "fox"),
    "eval": ("eval", "fox"),
    "replay": ("replay", "fox"),
    "push": ("push", "fox", "ann/fox", "--dry-run"),
}


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.usefixtures("untouched")
def test_every_command_refuses_a_project_with_a_link_out_of_it(linked, unziplora, command):
    for place in PLACES[:1] + PLACES[3:5]:
        linked(place)
        completed = unziplora(*COMMANDS[command])
        assert completed.code == 3, (place, completed)
        assert "leads out of" in completed.message
        assert OUTSIDE not in completed.out + completed.err


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.usefixtures("untouched")
def test_the_link_is_named(linked, assert_fails, place):
    linked(place)
    message = assert_fails(3, "show", "fox")
    assert "leads out of" in message
    assert Path(place).name in message


@pytest.mark.parametrize("place", [place for place in PLACES if place != "manifest.json"])
@pytest.mark.usefixtures("untouched")
def test_verify_reports_the_link(linked, unziplora, place):
    linked(place)
    completed = unziplora("verify", "fox")
    assert completed.code == 3
    assert f"{place} is a link that leads out of the project" in completed.message


@pytest.mark.usefixtures("untouched")
def test_list_calls_the_project_damaged(linked, unziplora):
    linked("images")
    result = unziplora("list", "--json").envelope["result"]
    assert [each["name"] for each in result["projects"]] == ["rose"]
    assert [each["name"] for each in result["damaged"]] == ["fox"]


@pytest.mark.usefixtures("untouched")
def test_rename_moves_the_link_and_remove_deletes_it_alone(linked, unziplora, two_projects):
    linked("images")
    assert unziplora("rename", "fox", "elk").code == 0
    assert (two_projects / "projects/elk/images").is_symlink()
    assert unziplora("remove", "elk", "--yes").code == 0
    assert ProjectStore(two_projects).names() == ["rose"]


@pytest.mark.usefixtures("untouched")
def test_a_folder_of_projects_that_is_a_link_is_no_project(two_projects, outside, assert_fails):
    (two_projects / "projects/elk").symlink_to(outside)
    assert "is a link" in assert_fails(3, "show", "elk")
    assert "is a link" in assert_fails(3, "remove", "elk", "--yes")


@pytest.mark.usefixtures("untouched")
def test_a_link_within_the_project_and_one_in_a_circle_harm_nothing(two_projects, unziplora):
    folder = two_projects / "projects/fox"
    (folder / "alias.safetensors").symlink_to("content.safetensors")
    assert unziplora("show", "fox").code == 0
    assert unziplora("verify", "fox").code == 0
    (folder / "style.safetensors").unlink()
    (folder / "style.safetensors").symlink_to("style.safetensors")
    assert unziplora("verify", "fox").code == 3
    completed = unziplora("style", "fox", *DRAW)
    assert (completed.code, "Traceback" in completed.err) == (6, False)


@pytest.mark.usefixtures("untouched")
def test_a_training_that_was_stopped_does_not_go_on_through_a_link(linked, unziplora, two_projects):
    linked("checkpoints")
    completed = unziplora("train", "--resume", "fox")
    assert completed.code in (2, 3)
    assert os.path.lexists(two_projects / "projects/fox/checkpoints")
