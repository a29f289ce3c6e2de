"""Listing projects: what is no project is passed over, and running trainings are named."""

import os

import pytest

from tests.jobs import make_job
from unziplora_cli.errors import ProjectError
from unziplora_cli.projects.store import ProjectStore
from unziplora_cli.projects.unfinished import UnfinishedRecord, write_record, write_status


@pytest.fixture
def store(isolated_home):
    return ProjectStore(isolated_home)


@pytest.fixture
def unfinished(store):
    """An unfinished training of 600 steps, without a checkpoint."""
    folder = store.place("rose", "unfinished")
    folder.mkdir(parents=True)
    write_record(folder, UnfinishedRecord(job=make_job(name="rose")))
    return folder


def test_other_folders_are_passed_over(store, make_project):
    make_project("fox")
    for name in ("lost+found", "notes", "x\ny", "@eaDir"):
        (store.folder / name).mkdir()
    projects, damaged = store.list()
    assert [project.name for project in projects] == ["fox"]
    assert damaged == ()


@pytest.mark.parametrize("left", ["manifest.json", "content.safetensors"])
def test_a_project_that_lost_a_file_is_damaged(store, make_project, left):
    folder = make_project("fox").folder
    for path in folder.iterdir():
        if path.name != left:
            path.unlink()
    projects, damaged = store.list()
    assert len(projects) + len(damaged) == 1


def test_a_project_in_a_renamed_folder_is_named(store, make_project):
    make_project("fox").folder.rename(store.folder / "My\nFox")
    projects, (damaged,) = store.list()
    assert projects == ()
    assert "Rename its folder" in damaged.reason


def test_sizes_are_those_of_all_files(store, make_project):
    folder = make_project("fox").folder
    (folder / "images").mkdir()
    (folder / "images" / "a.png").write_bytes(b"12345")
    (project,), _ = store.list()
    assert project.size() == sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def test_a_training_runs_while_its_lock_is_held(store, unfinished):
    write_status(unfinished, 160)
    (training,), _ = store.all_unfinished()
    assert store.running_step(training) is None
    with store.lock("rose"):
        assert store.running_step(training) == 160
        with pytest.raises(ProjectError, match="is being trained, step 160 of 600"):
            store.open("rose")
        (unfinished / "status.txt").write_text("none")
        assert store.running_step(training) == 0
    with pytest.raises(ProjectError, match="is not finished"):
        store.open("rose")


def test_an_image_that_became_endless_is_not_hashed(store, make_project):
    """A sparse file of 64 GB takes minutes to read."""
    image = make_project("fox").folder / "source.png"
    os.truncate(image, 64 * 2**30)
    (problem,) = store.verify("fox").problems
    assert problem.path == "source.png"
    assert "68719476736 bytes" in problem.reason
