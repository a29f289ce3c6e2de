"""Files that are either written whole or not at all."""

import hashlib
import json
import os
import platform
import re
import secrets
import shutil
import sys
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from unziplora_cli.errors import ProjectError

_PARTIAL = re.compile(r"\..+\.(?P<host>[0-9a-f]{8})-(?P<pid>[0-9]+)-[0-9a-f]{8}\.partial")


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary sibling of `path` to write to; it takes the place of `path` when the block ends well.

    What killed processes left beside it is deleted first.
    """
    sweep(path.parent)
    temporary = path.with_name(_temporary(path.name))
    try:
        yield temporary
        sync(temporary)
        temporary.replace(path)
        sync(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def scratch(folder: Path) -> Iterator[Path]:
    """A temporary folder inside `folder`, for files that are moved out of it when all are whole."""
    sweep(folder)
    temporary = folder / _temporary("scratch")
    temporary.mkdir()
    try:
        yield temporary
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def sweep(folder: Path) -> None:
    """Delete what is temporary in a folder and whose process has ended; that of other machines stays."""
    with os.scandir(folder) as entries:
        found = [match for entry in entries if (match := _PARTIAL.fullmatch(entry.name))]
    for match in found:
        if match["host"] == _host() and not _runs(int(match["pid"])):
            left = folder / match[0]
            if left.is_dir() and not left.is_symlink():
                shutil.rmtree(left, ignore_errors=True)
            else:
                left.unlink(missing_ok=True)


def sync(path: Path) -> None:
    """Have the system put a file or folder on the disk; Windows cannot do that for a folder."""
    if os.name == "nt" and path.is_dir():
        return
    descriptor = os.open(path, os.O_RDWR if path.is_file() else os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _temporary(name: str) -> str:
    return f".{name}.{_host()}-{os.getpid()}-{secrets.token_hex(4)}.partial"


def _host() -> str:
    """This machine, in eight letters: a home may be shared by several."""
    return f"{zlib.crc32(platform.node().encode()):08x}"


def _runs(pid: int) -> bool:
    from psutil import pid_exists

    return bool(pid_exists(pid))


# The files of a project: written whole, hashed, measured.


@dataclass(frozen=True)
class Problem:
    """One file that is not what it should be."""

    path: str
    reason: str


def write_bytes(path: Path, data: bytes) -> None:
    """Write a whole file atomically."""
    with replacing(path) as temporary:
        temporary.write_bytes(data)


def sha256(path: Path) -> str:
    """The SHA-256 of a file's bytes, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def leads_out(path: Path, folder: Path) -> bool:
    """Whether a path below a folder is, through links, somewhere else."""
    return not Path(os.path.realpath(path)).is_relative_to(os.path.realpath(folder))


def links_out(folder: Path) -> Iterator[str]:
    """The links below a folder that lead out of it, by their path in it; none is followed."""
    for root, folders, names in os.walk(folder):
        for name in (*folders, *names):
            path = Path(root, name)
            if path.is_symlink() and leads_out(path, folder):
                yield path.relative_to(folder).as_posix()


def folder_size(folder: Path) -> int:
    """Bytes of all regular files below a folder; links are not followed."""
    return sum((Path(root) / name).lstat().st_size for root, _, names in os.walk(folder) for name in names)


# One writer per project: a lock that the system releases when its holder ends, however it ends.


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
