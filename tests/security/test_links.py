"""An untrusted project may hold links; no command follows one out of the project."""

import os
import shutil
import sys
from pathlib import Path

import pytest

from unziplora_cli.projects.store import ProjectStore

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="links need rights there")

OUTSIDE = "text of another user"


@pytest.fixture
def outside(tmp_path) -> Path:
    """A folder of another user, with a file in it."""
    folder = tmp_path / "outside"
    folder.mkdir()
    (folder / "secret.txt").write_text(OUTSIDE)
    return folder


@pytest.fixture
def untouched(outside):
    """Fails the test if anything outside the project has changed."""
    yield
    assert [path.name for path in outside.iterdir()] == ["secret.txt"]
    assert (outside / "secret.txt").read_text() == OUTSIDE


@pytest.fixture
def linked(two_projects, outside):
    """Replaces a file or folder of the project fox with a link to the outside."""

    def put(name: str) -> Path:
        path = two_projects / "projects/fox" / name
        if path.is_dir():
            shutil.rmtree(path)
        path.unlink(missing_ok=True)
        path.parent.mkdir(exist_ok=True)
        path.symlink_to(outside / "secret.txt" if path.suffix else outside)
        return path

    return put


PATHS = ("content.safetensors", "source.png", "history.csv", "manifest.json", "images", "logs", "saved/deep")
QUICK = ("--steps=1", "--device=cpu")
COMMANDS = {
    "show": ("show", "fox"),
    "content": ("content", "fox", *QUICK),
    "style": ("style", "fox", *QUICK),
    "combine": ("combine", "rose", "fox", *QUICK),
    "cross": ("cross", "fox", "rose", *QUICK),
    "export": ("export", "fox"),
    "report": ("report", "fox"),
    "eval": ("eval", "fox"),
    "replay": ("replay", "fox"),
    "push": ("push", "fox", "ann/fox", "--plan"),
}


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.usefixtures("untouched")
def test_every_command_rejects_a_project_with_an_outside_link(linked, unziplora, command):
    for path in PATHS[:1] + PATHS[3:5]:
        linked(path)
        completed = unziplora(*COMMANDS[command])
        assert completed.code == 3, (path, completed)
        assert "outside" in completed.message
        assert OUTSIDE not in completed.out + completed.err


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.usefixtures("untouched")
def test_the_link_is_named(linked, assert_fails, path):
    linked(path)
    message = assert_fails(3, "show", "fox")
    assert "outside" in message
    assert Path(path).name in message


@pytest.mark.parametrize("path", [path for path in PATHS if path != "manifest.json"])
@pytest.mark.usefixtures("untouched")
def test_verify_reports_the_link(linked, unziplora, path):
    linked(path)
    completed = unziplora("verify", "fox")
    assert completed.code == 3
    assert f"{path} is a link to outside the project" in completed.message


@pytest.mark.usefixtures("untouched")
def test_list_shows_the_project_as_damaged(linked, unziplora):
    linked("images")
    result = unziplora("list", "--json").envelope["result"]
    assert [project["name"] for project in result["projects"]] == ["rose"]
    assert [project["name"] for project in result["damaged"]] == ["fox"]


@pytest.mark.usefixtures("untouched")
def test_rename_moves_the_link_and_remove_deletes_only_the_link(linked, unziplora, two_projects):
    linked("images")
    assert unziplora("rename", "fox", "elk").code == 0
    assert (two_projects / "projects/elk/images").is_symlink()
    assert unziplora("remove", "elk", "--yes").code == 0
    assert ProjectStore(two_projects).names() == ["rose"]


@pytest.mark.usefixtures("untouched")
def test_a_link_in_the_projects_folder_is_not_a_project(two_projects, outside, assert_fails):
    (two_projects / "projects/elk").symlink_to(outside)
    assert "is a link" in assert_fails(3, "show", "elk")
    assert "is a link" in assert_fails(3, "remove", "elk", "--yes")


@pytest.mark.usefixtures("untouched")
def test_inner_links_work_and_circular_links_fail_cleanly(two_projects, unziplora):
    folder = two_projects / "projects/fox"
    (folder / "alias.safetensors").symlink_to("content.safetensors")
    assert unziplora("show", "fox").code == 0
    assert unziplora("verify", "fox").code == 0
    (folder / "style.safetensors").unlink()
    (folder / "style.safetensors").symlink_to("style.safetensors")
    assert unziplora("verify", "fox").code == 3
    completed = unziplora("style", "fox", *QUICK)
    assert (completed.code, "Traceback" in completed.err) == (6, False)


@pytest.mark.usefixtures("untouched")
def test_resume_does_not_follow_a_link(linked, unziplora, two_projects):
    linked("checkpoints")
    completed = unziplora("train", "--resume", "fox")
    assert completed.code in (2, 3)
    assert os.path.lexists(two_projects / "projects/fox/checkpoints")
