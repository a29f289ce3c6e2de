import errno
import itertools
import os
import stat
import subprocess
import sys
from dataclasses import replace
from functools import partial

import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from tests.faults.order import Disk
from tests.jobs import changed
from unziplora_cli import files
from unziplora_cli.cli._errors import hint
from unziplora_cli.errors import ProjectError, UsageError
from unziplora_cli.files import atomic_write
from unziplora_cli.projects import manifest
from unziplora_cli.projects.folders import SHEET_MARK
from unziplora_cli.projects.names import check_name
from unziplora_cli.projects.store import ProjectStore


@pytest.fixture
def store(isolated_home) -> ProjectStore:
    return ProjectStore(isolated_home)


def everything(store: ProjectStore) -> list[str]:
    return sorted(path.name for path in store.folder.iterdir())


def test_an_empty_home_has_no_projects_and_stays_empty(store):
    assert store.list() == ((), ())
    assert not store.home.exists()


def test_a_project_appears_when_it_is_finished(store, make_project):
    make_project("fox")
    make_project("rose")
    assert store.names() == ["fox", "rose"]
    assert store.open("fox").path("content").read_bytes() == b"the bytes of fox's content.safetensors"
    assert everything(store) == ["fox", "rose"]


def test_a_failed_creation_leaves_nothing(store):
    with pytest.raises(KeyboardInterrupt), store.create("fox") as folder:
        (folder / "source.png").write_bytes(b"half")
        raise KeyboardInterrupt
    assert everything(store) == []


def test_a_creation_without_manifest_is_refused(store):
    with pytest.raises(ProjectError, match="no manifest"), store.create("fox"):
        pass
    assert everything(store) == []


def test_errors_of_the_work_itself_pass_through_unchanged(store):
    with pytest.raises(PermissionError), store.create("fox"):
        raise PermissionError(13, "elsewhere")


def test_a_taken_name_needs_force_and_survives_a_failure(store, make_project):
    make_project("fox")
    with pytest.raises(ProjectError, match="already") as caught, store.create("fox"):
        pytest.fail("the block must not run")
    assert hint(caught.value) == "Choose another name: --name fox-2"
    with pytest.raises(RuntimeError), store.create("fox", force=True):
        raise RuntimeError
    assert not store.verify("fox").problems


def test_force_replaces_the_whole_project(store, make_project, sample_manifest):
    old = make_project("fox")
    (old.folder / "extra.txt").write_text("old")
    with store.create("fox", force=True) as folder:
        for file in ("source.png", "content.safetensors", "style.safetensors", "merge.safetensors"):
            (folder / file).write_bytes(b"new")
        manifest.write(folder, sample_manifest(folder))
    assert store.open("fox").path("style").read_bytes() == b"new"
    assert not (old.folder / "extra.txt").exists()
    assert everything(store) == ["fox"]


def test_what_a_killed_process_left_is_swept_with_the_next_creation(store, make_project):
    store.folder.mkdir(parents=True)
    for name in ("fox", "fox.red", "rose"):
        (store.folder / f".{name}.0123abcd.partial").mkdir()
    assert store.names() == []
    with store.lock("rose"):  # somebody is about to begin it
        make_project("fox")
    assert everything(store) == [".rose.0123abcd.partial", "fox"]


@pytest.mark.parametrize("name", ["../fox", "/etc", "a/b", ""])
def test_a_name_never_leaves_the_home(store, name):
    for action in (store.open, store.remove, store.verify, store.exists):
        with pytest.raises(UsageError):
            action(name)
    with pytest.raises(UsageError), store.create(name):
        pass


def test_an_unknown_project_names_its_neighbours(store, make_project):
    make_project("lantern")
    with pytest.raises(ProjectError, match="Did you mean lantern") as caught:
        store.open("lanten")
    assert "unziplora list" in hint(caught.value)


def test_a_linked_folder_is_no_project(store, make_project, tmp_path):
    project = make_project("fox")
    elsewhere = project.folder.rename(tmp_path / "fox")
    project.folder.symlink_to(elsewhere)
    assert store.names() == []
    with pytest.raises(ProjectError, match="link"):
        store.remove("fox")
    assert (elsewhere / "manifest.json").exists()


def test_a_damaged_manifest_is_listed_and_can_be_removed(store, make_project):
    (make_project("fox").folder / "manifest.json").write_text("{}")
    make_project("rose")
    projects, damaged = store.list()
    assert [project.name for project in projects] == ["rose"]
    assert [broken.name for broken in damaged] == ["fox"]
    store.remove("fox")
    assert everything(store) == ["rose"]


def test_rename_moves_folder_and_manifest(store, make_project):
    before = make_project("fox")
    after = store.rename("fox", "red-fox")
    assert after.manifest == changed(before.manifest, name="red-fox")
    assert store.open("red-fox") == after
    assert store.names() == ["red-fox"]
    assert store.rename("red-fox", "red-fox") == after


def test_rename_never_overwrites(store, make_project):
    make_project("fox")
    make_project("rose")
    with pytest.raises(ProjectError, match="already"):
        store.rename("fox", "rose")
    assert store.open("rose").path("content").read_bytes().startswith(b"the bytes of rose")


def test_the_folder_decides_the_name_when_it_was_copied(store, make_project):
    project = make_project("fox")
    project.folder.rename(project.folder.with_name("copy"))
    assert store.open("copy").job.name == "copy"


def test_verify_names_every_damaged_file(store, make_project, tmp_path):
    project = make_project("fox")
    assert store.verify("fox") == replace(store.verify("fox"), checked=4, problems=())
    content, style, merge = (project.path(role) for role in ("content", "style", "merge"))
    content.write_bytes(content.read_bytes().swapcase())
    style.write_bytes(b"short")
    merge.unlink()
    (project.folder / "source.png").rename(tmp_path / "away.png")
    (project.folder / "source.png").symlink_to(tmp_path / "away.png")
    problems = {problem.path: problem.reason for problem in store.verify("fox").problems}
    assert "SHA-256 differs" in problems["content.safetensors"]
    assert "5 bytes instead of" in problems["style.safetensors"]
    assert "missing" in problems["merge.safetensors"]
    assert "outside the project" in problems["source.png"]


def test_an_artifact_behind_a_link_out_of_the_project_is_not_opened(make_project, tmp_path):
    project = make_project("fox")
    content = project.path("content")
    content.rename(tmp_path / "away")
    content.symlink_to(tmp_path / "away")
    with pytest.raises(ProjectError, match="outside"):
        project.path("content")


def test_a_home_that_cannot_be_made_is_one_clear_error(tmp_path, make_project):
    (tmp_path / "file").write_text("")
    store = ProjectStore(tmp_path / "file" / "home")
    with (
        pytest.raises(ProjectError, match=r"Cannot access .*: Not a directory\. Nothing") as caught,
        store.create("fox"),
    ):
        pytest.fail("the block must not run")
    assert "--home" in hint(caught.value)


def test_a_read_only_home_is_one_clear_error(store, make_project, monkeypatch):
    def refuse(path, *args, **kwargs):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr("pathlib.Path.mkdir", refuse)
    with pytest.raises(ProjectError, match="Permission denied"), store.create("fox"):
        pytest.fail("the block must not run")


def test_a_project_in_use_names_its_holder(store, make_project):
    make_project("fox")
    with store.lock("fox"):
        for attempt in (lambda: store.remove("fox"), lambda: store.rename("fox", "rose")):
            with pytest.raises(ProjectError, match=r"in use by process \d+ on .*: "):
                attempt()
    store.remove("fox")


def test_the_lock_of_a_killed_process_is_free(store, make_project):
    make_project("fox")
    holder = (
        "import os, sys, pathlib; from unziplora_cli.projects.store import ProjectStore\n"
        "with ProjectStore(pathlib.Path(sys.argv[1])).lock('fox'):\n"
        "    print('held', flush=True); sys.stdin.read()"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", holder, str(store.home)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    try:
        assert process.stdout.readline() == b"held\n"
        with pytest.raises(ProjectError, match=f"process {process.pid} "):
            store.remove("fox")
    finally:
        process.kill()
        process.communicate()
    store.remove("fox")
    assert store.names() == []


def test_a_failed_write_leaves_the_old_file(tmp_path):
    file = tmp_path / "manifest.json"
    files.write_bytes(file, b"old")
    with pytest.raises(RuntimeError), atomic_write(file) as temporary:
        temporary.write_bytes(b"half")
        raise RuntimeError
    assert file.read_bytes() == b"old"
    assert [path.name for path in tmp_path.iterdir()] == ["manifest.json"]


def generate_images(project):
    """Files of a user in a project: generated images, an evaluation, a report and a note."""
    for name in (
        "images/content-001.png",
        "images/cross-001/a.png",
        "evaluation.png",
        "report.html",
        "my notes.txt",
    ):
        path = project.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)
    (project.folder / "saved/step-000100").mkdir(parents=True)


def below(folder):
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


OWN = {"manifest.json", "source.png", "content.safetensors", "style.safetensors", "merge.safetensors"}
KEPT = {"images/content-001.png", "images/cross-001/a.png", "evaluation.png", "report.html", "my notes.txt"}


def test_what_was_generated_with_a_replaced_project_is_kept(store, make_project):
    generate_images(make_project("fox"))
    for number in (1, 2):
        project = make_project("fox", force=True)
        former = [f"former-{i:03d}" for i in range(1, number + 1)]
        assert store.former_versions("fox") == {project.folder / name: 5 for name in former}
        assert below(project.folder) == OWN | {f"{name}/{kept}" for name in former for kept in KEPT}
        generate_images(project)
    assert everything(store) == ["fox"]


def test_a_sheet_of_the_user_is_kept(store, make_project):
    (make_project("fox").folder / "sheet.png").write_bytes(b"\x89PNG of the user")
    assert below(make_project("fox", force=True).folder) == OWN | {"former-001/sheet.png"}


def test_nothing_is_kept_of_a_project_without_images(store, make_project):
    mark = PngInfo()
    mark.add_text(*SHEET_MARK)
    Image.new("RGB", (9, 9)).save(make_project("fox").folder / "sheet.png", pnginfo=mark)
    assert below(make_project("fox", force=True).folder) == OWN


def calls_of(action, monkeypatch, calls, fail_at, number):
    """Run an action whose system calls fail from the `fail_at`-th on, or at that one only if positive."""
    real = {name: getattr(os, name) for name in calls}
    count = 0

    def failing(name):
        def call(*args, **kwargs):
            nonlocal count
            count += 1
            if count == fail_at or (fail_at < 0 and count >= -fail_at):
                raise OSError(number, os.strerror(number))
            return real[name](*args, **kwargs)

        return call

    with monkeypatch.context() as patch:
        for name in calls:
            patch.setattr(os, name, failing(name))
        try:
            action()
        except (ProjectError, OSError) as error:
            return count, error
    return count, None


CALLS = ("open", "fsync", "rename", "replace", "link", "mkdir", "unlink", "rmdir")


@pytest.mark.parametrize("once", [True, False])
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO, errno.EROFS])
def test_a_failing_rename_leaves_the_project_under_one_name(store, make_project, monkeypatch, number, once):
    generate_images(make_project("fox"))
    old, new = "fox", "rose"
    failed, moment = 0, 0
    while True:
        moment += 1
        count, error = calls_of(
            partial(store.rename, old, new),
            monkeypatch,
            CALLS,
            moment if once else -moment,
            number,
        )
        (name,) = store.names()
        assert not store.verify(name).problems
        assert below(store.folder / name) > KEPT
        assert store.open(name).job.name == name
        assert everything(store) == [name]
        if error is not None:
            failed += 1
            assert os.strerror(number) in error.message
            assert f"{name!r}" in error.message or "Nothing was" in error.message or "read" in error.message
        if name == new:
            old, new = new, old
        if count < moment:
            break
    assert failed >= 5


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO])
def test_a_failing_replacement_leaves_the_older_project_or_the_new_one(
    store, make_project, monkeypatch, number
):
    generate_images(make_project("fox"))
    for moment in itertools.count(1):
        images = below(store.folder / "fox") & KEPT
        count, error = calls_of(lambda: make_project("fox", force=True), monkeypatch, CALLS, moment, number)
        (name,) = store.names()
        assert not store.verify(name).problems
        remaining = {
            path.split("/", 1)[1] if path.startswith("former") else path
            for path in below(store.folder / name)
        }
        assert remaining == OWN | KEPT, (moment, images)
        if count < moment:
            break
        assert error is None or os.strerror(number) in str(error)
    assert moment > 10


def test_every_change_of_the_store_is_flushed_in_order(store, make_project):
    store.folder.mkdir(parents=True)
    with Disk(store.folder).watched() as disk:
        generate_images(make_project("fox"))
        files.flush_all(store.folder)
        make_project("fox", force=True)
        store.rename("fox", "rose")
        make_project("cat")
        store.remove("cat")
    assert [path.name for _, path in disk.names].count("rose") == 1
    assert disk.unsafe() == []


@pytest.mark.parametrize("killed_at", range(1, 12))
def test_a_killed_replacement_is_completed_by_the_next_command(store, make_project, monkeypatch, killed_at):
    """A process that ends at a rename or removal runs no handlers: a BaseException skips them all."""
    generate_images(make_project("fox"))
    pid = os.fork()
    if not pid:
        calls = itertools.count(1)
        for name in ("rename", "unlink", "rmdir"):
            real = getattr(os, name)
            monkeypatch.setattr(
                os,
                name,
                lambda *a, real=real, **k: os._exit(0) if next(calls) == killed_at else real(*a, **k),
            )
        try:
            make_project("fox", force=True)
        finally:
            os._exit(0)
    os.waitpid(pid, 0)
    assert store.names() == ["fox"]
    with store.writing("fox"):
        pass
    assert everything(store) == ["fox"]
    assert not store.verify("fox").problems
    former = {path.removeprefix("former-001/") for path in below(store.folder / "fox")}
    assert former - {"saved"} == OWN | KEPT


def test_what_is_not_a_project_is_passed_over(store, make_project):
    make_project("fox")
    for name in ("lost+found", "System Volume Information", "$(reboot)", "photos", "two\nlines"):
        (store.folder / name).mkdir()
    projects, damaged = store.list()
    assert ([project.name for project in projects], damaged) == (["fox"], ())


def test_a_name_is_the_same_in_both_normal_forms(store, make_project):
    composed, decomposed = "f\u00fcchse", "fu\u0308chse"
    assert make_project(decomposed).name == composed
    assert store.names() == [composed]
    assert store.exists(decomposed)
    assert store.open(decomposed).name == composed
    store.rename(decomposed, "狐")
    store.remove("狐")
    assert everything(store) == []


def test_a_free_name_is_neither_a_project_nor_a_training(store, make_project):
    for name in ("fox", "fox-2", "狐" * 32):
        make_project(name)
    (store.folder / ".fox-3.unfinished").mkdir()
    assert store.free_name("fox") == "fox-4"
    assert check_name(store.free_name("狐" * 32)).endswith("狐-2")


def contents(folder):
    """The bytes of all files below a folder."""
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("action", ["replace", "remove", "rename"])
def test_what_a_folder_that_cannot_be_flushed_costs_is_said_rightly(store, make_project, monkeypatch, action):
    """ESTALE and EIO come from the flush after a rename, when the files have moved already."""
    real = os.fsync
    for moment in itertools.count(1):
        make_project("fox", force=True)
        before, flushes = contents(store.folder), itertools.count(1)

        def fail(descriptor, flushes=flushes, moment=moment):
            if stat.S_ISDIR(os.fstat(descriptor).st_mode) and next(flushes) == moment:
                raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))
            real(descriptor)

        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", fail)
            try:
                if action == "replace":
                    make_project("fox", force=True, seconds=7.0)
                else:
                    store.remove("fox") if action == "remove" else store.rename("fox", "rose")
            except ProjectError as error:
                message = error.message
            except OSError:  # of what fills the new folder
                message = "Nothing was changed."
            else:
                break
        with store.writing("fox"):  # as the next command does
            pass
        assert ".partial" not in message
        if "Nothing was changed" in message:
            assert contents(store.folder) == before
        elif action == "replace":
            assert "is complete" in message
            assert store.open("fox").manifest.seconds == 7.0
        elif action == "remove":
            assert "'fox' is removed" in message
            assert store.names() == []
        else:
            (name,) = store.names()
            assert f"named {name!r}" in message
            store.remove(name)
    assert moment > 1
