"""One writer per project: a lock that the system releases when its holder ends, however it ends."""

import json
import os
import platform
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path

from unziplora_cli.errors import ProjectError


class InUse(ProjectError):
    """Another process works on the project."""


@contextmanager
def locked(folder: Path, name: str) -> Iterator[None]:
    """Hold the lock of the project `name` during the block; raises InUse when another process has it.

    `folder` is where the locks lie. Beside the lock itself, a note says who holds it.
    """
    from filelock import FileLock, Timeout

    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / f"{name}.lock", timeout=0)
    note = folder / f"{name}.json"
    try:
        lock.acquire()
    except Timeout as error:
        raise InUse(
            f"The project {name!r} is in use{_holder(note)}.",
            hint="Wait until that command ends, or stop it.",
        ) from error
    try:
        with suppress(OSError):  # on a full disk a project can still be removed
            note.write_text(json.dumps(_this_process()), encoding="utf-8")
        yield
    finally:
        note.unlink(missing_ok=True)
        lock.release()


def _this_process() -> dict[str, str | int]:
    command = " ".join([Path(sys.argv[0]).name, *sys.argv[1:]])
    since = datetime.now().astimezone().isoformat(" ", "seconds")
    return {"pid": os.getpid(), "host": platform.node(), "command": command, "since": since}


def _holder(note: Path) -> str:
    try:
        holder = json.loads(note.read_text(encoding="utf-8"))
        who = f"process {holder['pid']} on {holder['host']}"
        return f" by {who} since {holder['since']}: {holder['command']}"
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return " by another process"
