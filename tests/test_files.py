"""Atomic writing, temporary files of ended and of running processes, and exclusive names."""

import errno
import multiprocessing
import os
import shutil
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Callable
from multiprocessing.synchronize import Barrier
from pathlib import Path

import pytest

from tests.faults.order import Disk
from unziplora_cli import files
from unziplora_cli.cli._errors import hint
from unziplora_cli.errors import ProjectError
from unziplora_cli.projects.store import ProjectStore

SPAWN = multiprocessing.get_context("spawn")


def left_by_a_killed_process(folder: Path, what: str) -> list[Path]:
    """Start to write in a process that is killed, and return what it leaves."""
    code = (
        "import os, pathlib, signal, sys; from unziplora_cli import files\n"
        f"with files.{what} as path:\n"
        "    (path if not path.is_dir() else path / 'x').write_bytes(b'half')\n"
        "    os.kill(os.getpid(), signal.SIGKILL)"
    )
    subprocess.run([sys.executable, "-c", code, str(folder)], check=False)
    return list(folder.iterdir())


@pytest.mark.parametrize(
    "what",
    ["atomic_write(pathlib.Path(sys.argv[1]) / 'a.bin')", "temporary_folder(pathlib.Path(sys.argv[1]))"],
)
def test_next_write_removes_files_of_a_killed_process(tmp_path: Path, what: str) -> None:
    assert len(left_by_a_killed_process(tmp_path, what)) == 1
    with files.atomic_write(tmp_path / "b.bin") as temporary:
        temporary.write_bytes(b"whole")
    assert [path.name for path in tmp_path.iterdir()] == ["b.bin"]


def test_running_process_keeps_its_files(tmp_path: Path) -> None:
    (tmp_path / ".notes.partial").touch()
    with files.atomic_write(tmp_path / "a.bin") as temporary, files.temporary_folder(tmp_path) as folder:
        temporary.write_bytes(b"half")
        files.remove_stale(tmp_path)
        assert temporary.exists()
        assert folder.exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == [".notes.partial", "a.bin"]


def test_containers_with_one_host_name_keep_each_others_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same host name, and a PID that exists in the other container only."""
    monkeypatch.setattr("platform.node", lambda: "worker")
    monkeypatch.setattr(files, "_process_space", lambda: "a" * 12)
    monkeypatch.setattr("os.getpid", lambda: 999_999_999)
    with files.atomic_write(tmp_path / "a.bin") as temporary, files.temporary_folder(tmp_path) as folder:
        temporary.write_bytes(b"half")
        monkeypatch.setattr(files, "_process_space", lambda: "b" * 12)
        files.remove_stale(tmp_path)
        assert temporary.exists()
        assert folder.exists()
        monkeypatch.setattr(files, "_process_space", lambda: "a" * 12)
        files.remove_stale(tmp_path)
        assert not temporary.exists()
        temporary.write_bytes(b"whole")
    assert (tmp_path / "a.bin").read_bytes() == b"whole"


def can_unshare() -> bool:
    try:
        return subprocess.run(["unshare", "--pid", "--fork", "true"], check=False).returncode == 0
    except OSError:
        return False


@pytest.mark.skipif(not can_unshare(), reason="needs the right to make PID namespaces")
def test_process_in_another_pid_namespace_keeps_its_file(tmp_path: Path) -> None:
    """The writer is PID 1 of its own namespace; PID 1 and the host name say nothing about it out here."""
    code = (
        "import pathlib, sys; from unziplora_cli import files\n"
        "with files.atomic_write(pathlib.Path(sys.argv[1]) / 'a.bin') as path:\n"
        "    path.write_bytes(b'whole')\n"
        "    print('ready', path.name, flush=True)\n"
        "    sys.stdin.readline()\n"
    )
    command = ["unshare", "--pid", "--fork", sys.executable, "-c", code, str(tmp_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as writer:
        assert writer.stdout
        name = writer.stdout.readline().split()[1]
        assert "-1-" in name
        unused = tmp_path / name.replace("-1-", "-999999999-")
        (tmp_path / name).rename(unused)  # a PID that nobody has out here
        files.remove_stale(tmp_path)
        assert unused.exists()
        unused.rename(tmp_path / name)
        writer.communicate("\n")
    assert (tmp_path / "a.bin").read_bytes() == b"whole"


def test_abandoned_file_of_another_machine_is_removed_after_a_week(tmp_path: Path) -> None:
    old, recent = (tmp_path / f".a.bin.{'0' * 12}-7-{digit * 8}.partial" for digit in "12")
    for path, days in ((old, 8), (recent, 6)):
        path.touch()
        os.utime(path, times=(time.time() - days * 86400,) * 2)
    files.remove_stale(tmp_path)
    assert list(tmp_path.iterdir()) == [recent]


@pytest.mark.parametrize("number", [errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.EBADF])
def test_file_system_that_cannot_flush_is_written_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def fail(_: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("os.fsync", fail)
    files.write_bytes(tmp_path / "a", b"whole")
    assert (tmp_path / "a").read_bytes() == b"whole"


def test_failed_flush_leaves_the_older_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: int) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    files.write_bytes(tmp_path / "a", b"older")
    monkeypatch.setattr("os.fsync", fail)
    with pytest.raises(OSError, match=os.strerror(errno.EIO)):
        files.write_bytes(tmp_path / "a", b"newer")
    assert [(path.name, path.read_bytes()) for path in tmp_path.iterdir()] == [("a", b"older")]


def test_a_lock_that_cannot_be_released_loses_no_result(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import fcntl

    real, failed = fcntl.flock, []

    def fail(descriptor: int, operation: int) -> None:
        if operation == fcntl.LOCK_UN:
            failed.append(descriptor)
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        real(descriptor, operation)

    monkeypatch.setattr(fcntl, "flock", fail)
    with ProjectStore(tmp_path).lock("fox"):
        pass
    assert failed


def test_file_system_without_locks_runs_the_block(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import fcntl

    def fail(*_: object) -> None:
        raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))

    monkeypatch.setattr(fcntl, "flock", fail)
    with ProjectStore(tmp_path).lock("fox"):
        assert (tmp_path / "locks/fox.json").exists()


def write(data: bytes) -> Callable[[Path], object]:
    return lambda path: path.write_bytes(data)


def test_existing_file_is_refused_or_replaced_with_force(tmp_path: Path) -> None:
    mine = tmp_path / "mine.png"
    mine.write_bytes(b"mine")
    for refused in (
        lambda: files.refuse_existing([tmp_path / "new", mine]),
        lambda: files.write_file(mine, write(b"new")),
    ):
        with pytest.raises(ProjectError, match=r"mine\.png already exists") as error:
            refused()
        assert "--force" in hint(error.value)
    assert [path.read_bytes() for path in tmp_path.iterdir()] == [b"mine"]
    files.refuse_existing([mine], force=True)
    assert files.write_file(mine, write(b"new"), force=True) == mine
    assert mine.read_bytes() == b"new"


def test_dangling_link_counts_as_existing(tmp_path: Path) -> None:
    link = tmp_path / "link.png"
    link.symlink_to(tmp_path / "gone" / "else.png")
    with pytest.raises(ProjectError, match="already exists"):
        files.refuse_existing([link])
    with pytest.raises(ProjectError, match="already exists"):
        files.write_file(link, write(b"new"))
    assert list(tmp_path.iterdir()) == [link]


def test_taken_names_are_passed_over(tmp_path: Path) -> None:
    names = [files.write_file(files.numbered(tmp_path, "a [1]", ".png"), write(b"x")).name for _ in "12"]
    assert names == ["a [1]-001.png", "a [1]-002.png"]
    given = tmp_path / "a [1]-001.png"
    assert files.write_file(files.alternatives(given), write(b"x")).name == "a [1]-001-001.png"


def test_failed_write_takes_no_name(tmp_path: Path) -> None:
    def fail(path: Path) -> None:
        path.write_bytes(b"half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        files.write_file(tmp_path / "a", fail)
    with pytest.raises(KeyboardInterrupt), files.claimed_folder(files.numbered(tmp_path, "a")) as folder:
        assert folder.is_dir()
        raise KeyboardInterrupt
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("moment", ["link", "unlink", "fsync"])
def test_killed_process_leaves_no_name_or_the_whole_file(tmp_path: Path, moment: str) -> None:
    code = (
        "import os, pathlib, signal, sys; from unziplora_cli import files\n"
        f"os.{moment} = lambda *a, **k: os.kill(os.getpid(), signal.SIGKILL)\n"
        "files.write_file(pathlib.Path(sys.argv[1]) / 'a', lambda path: path.write_bytes(b'whole'))"
    )
    killed = subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=False)
    assert killed.returncode == -signal.SIGKILL
    assert [path.read_bytes() for path in tmp_path.glob("a")] in ([], [b"whole"])
    assert files.write_file(tmp_path / "b", write(b"next")).exists()
    assert {path.name for path in tmp_path.iterdir()} - {"a"} == {"b"}


@pytest.mark.parametrize("number", [errno.EPERM, errno.EOPNOTSUPP, errno.EMLINK])
def test_file_system_without_hard_links_keeps_names_exclusive(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("os.link", fail)
    files.write_file(tmp_path / "a", write(b"first"))
    with pytest.raises(ProjectError, match="already exists"):
        files.write_file(tmp_path / "a", write(b"second"))
    assert [(path.name, path.read_bytes()) for path in tmp_path.iterdir()] == [("a", b"first")]


def claim_many(folder: Path, mark: bytes, start: Barrier) -> None:
    start.wait()
    for _ in range(50):
        files.write_file(files.numbered(folder, "content [v1]", ".png"), write(mark))


def test_two_processes_that_claim_names_at_once_lose_nothing(tmp_path: Path) -> None:
    start = SPAWN.Barrier(2)
    writers = [SPAWN.Process(target=claim_many, args=(tmp_path, mark, start)) for mark in (b"one", b"two")]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    written = [path.read_bytes() for path in tmp_path.glob("*.png")]
    assert (written.count(b"one"), written.count(b"two")) == (50, 50)
    assert len(list(tmp_path.iterdir())) == 100


def test_content_is_flushed_before_its_name_and_the_folder_after(tmp_path: Path) -> None:
    """Linux flushes a file by its inode: the recorded state must be that of the final content."""
    (tmp_path / "made").mkdir()
    (tmp_path / "made/a").write_bytes(b"a")
    with Disk(tmp_path).watched() as disk:
        files.write_bytes(tmp_path / "a", b"a")
        files.write_file(tmp_path / "b", write(b"b"))
        (tmp_path / "made/b").write_bytes(b"b")
        files.flush_all(tmp_path / "made")
        files.rename(tmp_path / "made", tmp_path / "done")
    assert [(call, path.name) for call, path in disk.names] == [
        ("replace", "a"),
        ("link", "b"),
        ("rename", "done"),
    ]
    assert disk.unsafe() == []


def test_careless_writing_is_noticed(tmp_path: Path) -> None:
    with Disk(tmp_path).watched() as disk:
        (tmp_path / "half").write_bytes(b"a")
        (tmp_path / "half").rename(tmp_path / "whole")
        (tmp_path / "other").write_bytes(b"b")
    assert set(disk.unsafe()) == {
        "rename to whole before half is flushed",
        "other is not flushed",
        "whole is not flushed",
        ". is not flushed after rename to whole",
    }


@pytest.mark.parametrize(
    ("number", "message", "advice"),
    [
        (errno.ENOSPC, r"Cannot write .*/a\.png: No space left on device", "Free space"),
        (errno.EROFS, r"Cannot write .*/a\.png: Read-only file system", "--out"),
        (errno.EIO, r"Cannot access .*/a\.png: Input/output error", "Check the disk"),
        (errno.ESTALE, r"Cannot access .*/a\.png: Stale file handle", "network drive"),
        (errno.EMFILE, r"Cannot access .*/a\.png: Too many open files", "limit of open files"),
    ],
)
def test_disk_error_names_the_file_the_reason_and_a_way_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, message: str, advice: str
) -> None:
    def fail(_: int) -> None:
        raise OSError(number, os.strerror(number))  # as fsync and write do: without a file name

    monkeypatch.setattr("os.fsync", fail)
    with pytest.raises(ProjectError, match=f"{message}. Nothing was changed.") as error:  # noqa: SIM117
        with files.write_errors(tmp_path, "Nothing was changed."):
            files.write_file(tmp_path / "a.png", write(b"x"))
    assert advice in hint(error.value)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("force", [True, False])
def test_a_file_whose_folder_cannot_be_flushed_is_there_and_said_to_be(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, force: bool
) -> None:
    real = os.fsync

    def fail(descriptor: int) -> None:
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))
        real(descriptor)

    monkeypatch.setattr("os.fsync", fail)
    page = tmp_path / "a.html"
    with pytest.raises(ProjectError) as error, files.write_errors(tmp_path):
        files.write_file(page, write(b"whole"), force=force)
    assert error.value.message == (
        f"{page} is written, but may be lost in a power failure: {os.strerror(errno.ESTALE)}."
    )
    assert page.read_bytes() == b"whole"
    rose = tmp_path / "rose"
    with pytest.raises(OSError, match=os.strerror(errno.ESTALE)):
        files.rename(page, rose)
    assert not rose.exists()
    assert page.exists()


def test_temporary_names_do_not_show_in_messages(tmp_path: Path) -> None:
    with pytest.raises(ProjectError) as error, files.write_errors(tmp_path):  # noqa: SIM117
        with files.temporary_folder(tmp_path) as folder:
            (folder / "gone" / "a.png").write_bytes(b"x")
    assert f"Cannot access {tmp_path / 'gone' / 'a.png'}: " in error.value.message
    folder = ProjectStore(tmp_path).partial("fox")
    with pytest.raises(ProjectError) as error, files.write_errors(tmp_path):
        (folder / "style.safetensors").write_bytes(b"x")
    assert f"Cannot access {tmp_path / 'projects' / 'fox' / 'style.safetensors'}: " in error.value.message


@pytest.mark.skipif(sys.platform != "linux", reason="only there the error of a copy has both names")
def test_the_full_disk_of_a_copy_is_the_targets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("os.sendfile", fail)
    (tmp_path / "a.png").write_bytes(b"x")
    with pytest.raises(ProjectError) as error, files.write_errors(tmp_path):
        shutil.copyfile(tmp_path / "a.png", tmp_path / "b.png")
    assert error.value.message == f"Cannot write {tmp_path / 'b.png'}: No space left on device."


def test_lost_connection_is_no_disk_error(tmp_path: Path) -> None:
    with pytest.raises(BrokenPipeError), files.write_errors(tmp_path):
        raise BrokenPipeError(errno.EPIPE, "Broken pipe")


def test_new_folder_is_removed_with_its_parents_when_the_block_fails(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), files.new_folder(tmp_path / "a/b"):
        raise RuntimeError
    assert list(tmp_path.iterdir()) == []
    with files.new_folder(tmp_path / "a/b"):
        pass
    assert (tmp_path / "a/b").is_dir()


def test_place_that_cannot_be_written_to_is_named(tmp_path: Path) -> None:
    files.check_writable(tmp_path / "a/b")
    (tmp_path / "file").touch()
    with pytest.raises(ProjectError, match="file is not a folder") as error:
        files.check_writable(tmp_path / "file/b")
    assert "--out" in hint(error.value)


@pytest.fixture(params=["pipe", "device", "sparse", "folder"])
def no_file(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """Something that is not a file of sensible size, in the place of one."""
    path = tmp_path / "odd"
    match request.param:
        case "pipe":
            os.mkfifo(path)
        case "device":
            path.symlink_to("/dev/zero")
        case "folder":
            path.mkdir()
        case "sparse":
            path.touch()
            os.truncate(path, 64 * 2**30)
    return path


@pytest.mark.skipif(sys.platform == "win32", reason="no pipes and devices among files")
def test_only_regular_files_of_sensible_size_are_read(no_file: Path) -> None:
    from unziplora_cli.config import load_preset
    from unziplora_cli.errors import UsageError
    from unziplora_cli.projects import manifest
    from unziplora_cli.training.callbacks import read_history

    with pytest.raises(OSError, match=r"not a file|at most"):
        files.read_bytes(no_file)
    with pytest.raises(ProjectError, match=r"not a file|at most"):
        read_history(no_file)
    preset = no_file.rename(no_file.with_name("preset.toml"))
    with pytest.raises(UsageError, match=r"not a file|at most"):
        load_preset(preset)
    preset.rename(preset.with_name(manifest.FILE_NAME))
    with pytest.raises(ProjectError, match=r"not a file|at most"):
        manifest.read(preset.parent)


def test_a_file_up_to_the_limit_is_read(tmp_path: Path) -> None:
    path = tmp_path / "text"
    path.write_bytes(b"\xef\xbb\xbf" + "größe".encode())
    assert files.read_text(path, limit=path.stat().st_size) == "größe"
    with pytest.raises(OSError, match=r"10 bytes, at most 9"):
        files.read_text(path, limit=9)
