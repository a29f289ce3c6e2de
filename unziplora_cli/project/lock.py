"""One writer per project: a lock that the system releases when its holder ends, however it ends."""

import json
import os
import platform
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from unziplora_cli.errors import ProjectError


@contextmanager
def locked(folder: Path, name: str) -> Iterator[None]:
    """Hold the lock of the project `name` during the block; raises ProjectError when another process has it.

    `folder` is where the locks lie. Beside the lock itself, a note says who holds it.
    """
    from filelock import FileLock, Timeout

    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / f"{name}.lock", timeout=0)
    note = folder / f"{name}.json"
    try:
        lock.acquire()
    except Timeout as error:
        raise ProjectError(
            f"The project {name!r} is in use{_holder(note)}.",
            hint="Wait until that command ends, or stop it.",
        ) from error
    try:
        note.write_text(json.dumps(_this_process()), encoding="utf-8")
        yield
    finally:
        note.unlink(missing_ok=True)
        lock.release()


def _this_process() -> dict[str, str | int]:
    command = " ".join([Path(sys.argv[0]).name, *sys.argv[1:]])
    return {"pid": os.getpid(), "host": platform.node(), "command": command}


def _holder(note: Path) -> str:
    try:
        holder = json.loads(note.read_text(encoding="utf-8"))
        return f" by process {holder['pid']} on {holder['host']}: {holder['command']}"
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return " by another process"
