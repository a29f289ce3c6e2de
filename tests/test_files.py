"""Temporary files of processes that are gone, and of those that are not."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from unziplora_cli.files import replacing, scratch, sweep


def left_by_a_killed_process(folder: Path, what: str) -> list[Path]:
    """Start to write in a process that is killed, and return what it leaves."""
    code = (
        "import os, pathlib, signal, sys; from unziplora_cli import atomic\n"
        f"with atomic.{what} as path:\n"
        "    (path if not path.is_dir() else path / 'x').write_bytes(b'half')\n"
        "    os.kill(os.getpid(), signal.SIGKILL)"
    )
    subprocess.run([sys.executable, "-c", code, str(folder)], check=False)
    return list(folder.iterdir())


@pytest.mark.parametrize(
    "what", ["replacing(pathlib.Path(sys.argv[1]) / 'a.bin')", "scratch(pathlib.Path(sys.argv[1]))"]
)
def test_what_a_killed_process_left_goes_with_the_next_write(tmp_path: Path, what: str) -> None:
    assert len(left_by_a_killed_process(tmp_path, what)) == 1
    with replacing(tmp_path / "b.bin") as temporary:
        temporary.write_bytes(b"whole")
    assert [path.name for path in tmp_path.iterdir()] == ["b.bin"]


def test_what_runs_or_is_of_another_machine_stays(tmp_path: Path) -> None:
    with replacing(tmp_path / "a.bin") as temporary, scratch(tmp_path) as folder:
        temporary.write_bytes(b"half")
        host, rest = temporary.name.removeprefix(".a.bin.").split("-", 1)
        gone = rest.replace(str(os.getpid()), "999999999")
        other = tmp_path / f".a.bin.{'0' * len(host)}-{gone}"
        mine = tmp_path / f".a.bin.{host}-{gone}"
        for path in (other, mine, tmp_path / ".notes.partial"):
            path.touch()
        sweep(tmp_path)
        assert temporary.exists()
        assert folder.exists()
        assert other.exists()
        assert not mine.exists()
        other.unlink()
    assert sorted(path.name for path in tmp_path.iterdir()) == [".notes.partial", "a.bin"]
