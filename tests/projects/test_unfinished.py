"""What becomes of the folder of a training, however it ends."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from tests.jobs import changed, make_job
from unziplora_cli.errors import ProjectError
from unziplora_cli.job import differences
from unziplora_cli.projects import manifest
from unziplora_cli.projects.folders import InUse
from unziplora_cli.projects.manifest import Manifest
from unziplora_cli.projects.store import ProjectStore
from unziplora_cli.projects.unfinished import UnfinishedRecord, read_record, write_record

FILES = ("source.png", "content.safetensors", "style.safetensors", "merge.safetensors")
RECORD = UnfinishedRecord(job=make_job())


@pytest.fixture
def store(isolated_home: Path) -> ProjectStore:
    return ProjectStore(isolated_home)


def prepare(folder: Path) -> UnfinishedRecord:
    (folder / "source.png").write_bytes(b"a picture")
    return RECORD


def checkpoint(folder: Path, step: int = 200) -> None:
    (folder / "checkpoints").mkdir()
    (folder / f"checkpoints/step-{step:06d}.safetensors").write_bytes(b"a state")


@pytest.fixture
def fill(sample_manifest: Callable[[Path], Manifest]) -> Callable[..., None]:
    """Puts the files of a project into a folder, the manifest last."""

    def fill(folder: Path, text: str = "new", **changes: object) -> None:
        for file in FILES:
            (folder / file).write_text(text)
        manifest.write(folder, changed(sample_manifest(folder), **changes))

    return fill


def everything(store: ProjectStore) -> list[str]:
    return sorted(path.name for path in store.folder.iterdir())


def test_a_complete_training_becomes_the_project(store, make_project, fill):
    make_project("fox")
    with store.training("fox", prepare, force=True) as folder:
        assert store.open("fox").path("style").read_bytes() == b"the bytes of fox's style.safetensors"
        checkpoint(folder)
        fill(folder)
    assert everything(store) == ["fox"]
    assert sorted(path.name for path in (store.folder / "fox").iterdir()) == sorted([*FILES, "manifest.json"])
    assert store.open("fox").path("style").read_text() == "new"


def test_a_stopped_training_is_a_project_that_can_go_on(store, fill):
    with pytest.raises(KeyboardInterrupt), store.training("fox", prepare) as folder:
        checkpoint(folder)
        fill(folder, state="interrupted", steps_done=200)
        raise KeyboardInterrupt
    assert everything(store) == ["fox"]
    assert not store.verify("fox").problems
    assert store.unfinished("fox").step == 200
    with store.training("fox", None) as folder:
        assert everything(store) == [".fox.unfinished"]
        assert read_record(folder) == RECORD
        fill(folder, "done")
    assert store.open("fox").path("merge").read_text() == "done"
    assert store.unfinished("fox") is None


def test_a_stopped_training_leaves_an_older_project_alone(store, make_project, fill):
    make_project("fox")
    with store.training("fox", prepare, force=True) as folder:
        checkpoint(folder)
        fill(folder, state="interrupted", steps_done=200)
    assert everything(store) == [".fox.unfinished", "fox"]
    assert store.open("fox").manifest.state == "complete"


@pytest.mark.parametrize(("keep", "left"), [(True, [".fox.unfinished"]), (False, [])])
def test_a_failure_leaves_what_can_go_on(store, keep, left):
    with pytest.raises(RuntimeError), store.training("fox", prepare) as folder:
        if keep:
            checkpoint(folder)
        raise RuntimeError
    assert everything(store) == left
    assert store.names() == []


def test_a_complete_project_that_was_not_in_its_place_is_put_there(store, make_project, fill):
    make_project("fox")
    ready = store.folder / ".fox.ready"
    ready.mkdir()
    checkpoint(ready)
    write_record(ready, RECORD)
    fill(ready)
    with store.lock("fox"):  # the process that holds it is about to publish
        assert store.open("fox").path("style").read_bytes() == b"the bytes of fox's style.safetensors"
    assert [project.name for project in store.list()[0]] == ["fox"]
    assert store.open("fox").path("style").read_text() == "new"
    assert everything(store) == ["fox"]
    assert not (store.folder / "fox/checkpoints").exists()


def test_beginning_anew_gives_up_what_was_not_finished(store):
    with pytest.raises(RuntimeError), store.training("fox", prepare) as folder:
        checkpoint(folder)
        raise RuntimeError
    with pytest.raises(ProjectError, match="not finished"), store.create("fox"):
        pytest.fail("the block must not run")

    def fail(folder: Path) -> UnfinishedRecord:
        raise RuntimeError

    with pytest.raises(RuntimeError), store.training("fox", fail):
        pytest.fail("the block must not run")
    assert store.unfinished("fox").step == 200
    with pytest.raises(RuntimeError), store.training("fox", prepare):
        assert store.unfinished("fox").step == 0
        raise RuntimeError
    assert everything(store) == []


def test_one_training_at_a_time(store):
    with store.training("fox", prepare) as folder:
        checkpoint(folder)
        for attempt in (
            lambda: store.check_unused("fox"),
            lambda: store.remove("fox"),
            lambda: store.training("fox", None).__enter__(),
        ):
            with pytest.raises(InUse, match=r"in use by process \d+ on .* since \d{4}-\d\d-\d\d"):
                attempt()


def test_a_damaged_record_is_listed_and_can_be_removed(store):
    with pytest.raises(RuntimeError), store.training("fox", prepare) as folder:
        checkpoint(folder)
        raise RuntimeError
    (folder / "training.json").write_text('{"schema": 2')
    ((), (damaged,)) = store.all_unfinished()
    assert damaged.name == "fox"
    with pytest.raises(ProjectError, match="not valid JSON"):
        store.unfinished("fox")
    store.remove("fox")
    assert everything(store) == []


def test_mutable_settings_and_the_device_are_not_part_of_the_identity():
    job = RECORD.job
    changes = replace(job.config, content_lr=1.0, checkpoint_every=7)
    assert replace(job, settings=changes, device="cuda").identity() == job.identity()
    assert replace(job, settings=changes).difference(job) == (
        "content-lr is 1.0, was 5e-05",
        "checkpoint-every is 7, was nothing",
    )


def test_what_must_not_change_is_a_difference():
    job = RECORD.job
    other = replace(job, tool_version="9", settings=replace(job.config, rank=8))
    assert differences(other.identity(), job.identity()) == (
        "version of unziplora is 9, was 0.1.0",
        "rank is 8, was 64",
    )
