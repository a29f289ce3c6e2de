"""What becomes of the folder of a training, however it ends."""

from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from unziplora_cli.config import TrainConfig, Words
from unziplora_cli.errors import ProjectError
from unziplora_cli.files import InUse
from unziplora_cli.projects import manifest
from unziplora_cli.projects.manifest import BaseRecord, Manifest
from unziplora_cli.projects.store import ProjectStore
from unziplora_cli.projects.unfinished import Plan, differences, read_plan, write_plan
from unziplora_cli.prompts import make_prompts

FILES = ("source.png", "content.safetensors", "style.safetensors", "merge.safetensors")
PLAN = Plan(
    created="2025-01-02T03:04:05Z",
    tool_version="0.1.0",
    base=BaseRecord("mini", "builtin", "mini", hash="sha256:" + "0" * 64),
    source=(),
    words=Words("fox", "watercolor"),
    prompts=make_prompts(Words("fox", "watercolor")),
    training=asdict(TrainConfig()),
)


@pytest.fixture
def store(isolated_home: Path) -> ProjectStore:
    return ProjectStore(isolated_home)


def prepare(folder: Path) -> Plan:
    (folder / "source.png").write_bytes(b"a picture")
    return PLAN


def checkpoint(folder: Path, step: int = 200) -> None:
    (folder / "checkpoints").mkdir()
    (folder / f"checkpoints/step-{step:06d}.safetensors").write_bytes(b"a state")


@pytest.fixture
def fill(sample_manifest: Callable[[Path], Manifest]) -> Callable[..., None]:
    """Puts the files of a project into a folder, the manifest last."""

    def fill(folder: Path, text: str = "new", **changes: object) -> None:
        for file in FILES:
            (folder / file).write_text(text)
        manifest.write(folder, replace(sample_manifest(folder), **changes))

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
        assert read_plan(folder) == PLAN
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
    write_plan(ready, PLAN)
    fill(ready)
    with store.lock("fox"):  # whoever holds it is about to do so
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

    def fail(folder: Path) -> Plan:
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


def test_a_damaged_plan_is_listed_and_can_be_removed(store):
    with pytest.raises(RuntimeError), store.training("fox", prepare) as folder:
        checkpoint(folder)
        raise RuntimeError
    (folder / "plan.json").write_text('{"schema": 1')
    ((), (damaged,)) = store.all_unfinished()
    assert damaged.name == "fox"
    with pytest.raises(ProjectError, match="damaged"):
        store.unfinished("fox")
    store.remove("fox")
    assert everything(store) == []


def test_what_may_change_is_no_difference():
    other = replace(PLAN, training={**PLAN.training, "content_lr": 1.0, "checkpoint_every": 7})
    assert differences(other.identity(), PLAN.identity()) == ()
    other = replace(PLAN, tool_version="9", training={**PLAN.training, "rank": 8})
    assert differences(other.identity(), PLAN.identity()) == (
        "version of unziplora is 9, was 0.1.0",
        "rank is 8, was 64",
    )
