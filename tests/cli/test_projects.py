import io
import json
import os
import re

import pytest

from tests.jobs import make_job
from unziplora_cli.projects.store import ProjectStore
from unziplora_cli.projects.unfinished import UnfinishedRecord, write_record, write_status


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_an_empty_home_shows_how_to_start(unziplora):
    completed = unziplora("list")
    assert completed.code == 0
    assert "unziplora train" in completed.out


def test_list_shows_one_row_per_project(unziplora, make_project):
    make_project("fox")
    make_project("rose", state="interrupted", steps_done=200)
    rows = unziplora("list").out.splitlines()
    assert rows[1].split() == ["name", "subject", "style", "base", "steps", "created", "size"]
    assert rows[3].split()[:6] == ["fox", "fox", "watercolor", "mini", "600", "2025-01-02"]
    assert "200 of 600" in rows[4]


def test_list_names_damaged_projects(unziplora, make_project):
    (make_project("fox").folder / "manifest.json").write_text("{")
    completed = unziplora("list")
    assert "damaged" in completed.out
    assert "not valid JSON" in completed.message
    assert unziplora("list", "--json").envelope["result"]["damaged"][0]["name"] == "fox"


def test_show_prints_the_whole_manifest_as_json(unziplora, make_project):
    project = make_project("fox")
    assert unziplora("show", "fox", "--json").envelope["result"]["manifest"] == json.loads(
        (project.folder / "manifest.json").read_text()
    )


def test_show_is_readable(unziplora, make_project):
    make_project("fox")
    shown = unziplora("show", "fox").out
    for fact in ("a monadikos fox in watercolor style", "640 x 480 PNG", "600 steps on cpu in 1 min 30 s"):
        assert fact in shown


def test_words_of_the_user_are_not_markup(unziplora, make_project):
    from unziplora_cli.config import Words

    make_project("fox", words=Words("[red]fox[/nope]", "ink"))
    assert "[red]fox[/nope]" in unziplora("list").out


def test_verify_exits_with_3_and_names_the_file(unziplora, make_project):
    project = make_project("fox")
    assert unziplora("verify", "fox").code == 0
    project.path("style").unlink()
    completed = unziplora("verify", "fox")
    assert (completed.code, completed.out) == (3, "")
    assert "1 of 4 files" in completed.message
    assert "style.safetensors is missing" in completed.message


def test_rename(unziplora, make_project):
    make_project("fox")
    assert unziplora("rename", "fox", "red-fox").code == 0
    assert unziplora("show", "red-fox").code == 0
    assert unziplora("rename", "red-fox", "../out").code == 2


@pytest.mark.parametrize("line", ["show foxx", "verify foxx", "rename foxx x", "remove foxx --yes"])
def test_an_unknown_project_exits_with_3_and_suggests_a_name(unziplora, make_project, line):
    make_project("fox")
    completed = unziplora(*line.split())
    assert completed.code == 3
    assert "Did you mean fox?" in completed.message
    assert "unziplora list" in completed.message


def test_remove_asks_for_confirmation(unziplora, make_project, monkeypatch):
    project = make_project("fox")
    completed = unziplora("remove", "fox")  # no terminal here
    assert completed.code == 2
    assert "--yes" in completed.message
    monkeypatch.setattr("sys.stdin", Terminal("n\n"))
    assert "Nothing was removed" in unziplora("remove", "fox").out
    assert project.folder.exists()
    monkeypatch.setattr("sys.stdin", Terminal("y\n"))
    assert unziplora("remove", "fox").code == 0
    assert not project.folder.exists()


def test_remove_without_asking(unziplora, make_project):
    project = make_project("fox")
    assert unziplora("remove", "fox", "-y", "--json").envelope["result"] == {"removed": "fox"}
    assert not project.folder.exists()


def test_a_home_that_is_a_file_is_one_clear_error(unziplora, tmp_path):
    home = tmp_path / "file"
    home.write_text("")
    completed = unziplora("--home", home, "list")
    assert completed.code == 3
    assert f"Cannot access {home}" in completed.message


def test_a_running_training_is_listed_and_used_by_nobody(unziplora, isolated_home):
    folder = isolated_home / "projects" / ".rose.unfinished"
    folder.mkdir(parents=True)
    write_record(folder, UnfinishedRecord(job=make_job(name="rose")))
    write_status(folder, 160)
    assert "unfinished, 0 of 600" in " ".join(unziplora("list").out.split())
    with ProjectStore(isolated_home).lock("rose"):
        assert "running, step 160 of 600" in " ".join(unziplora("list").out.split())
        (training,) = unziplora("list", "--json").envelope["result"]["unfinished"]
        assert (training["running_step"], training["steps"]) == (160, 600)
        completed = unziplora("combine", "rose")
        assert completed.code == 3
        assert "'rose' is being trained, step 160 of 600." in completed.message
        assert "--resume" not in completed.message


def test_show_lists_the_newest_generated_images(unziplora, make_project):
    project = make_project("fox")
    (project.folder / "sheet.png").write_bytes(b"x")
    folder = project.images / "grid-001"
    folder.mkdir(parents=True)
    for number in range(12):
        (folder / f"{number:02}.png").write_bytes(b"x")
        os.utime(folder / f"{number:02}.png", (number, number))
    shown = unziplora("show", "fox").out
    assert re.findall(r"images/grid-001/(\d+)", shown) == [f"{number:02}" for number in range(11, 1, -1)]
    assert "and 2 older" in shown
    assert re.search(r"sheet +sheet\.png", shown)
    assert len(unziplora("show", "fox", "--json").envelope["result"]["images"]) == 12
