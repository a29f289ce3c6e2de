"""Files that are either written whole or not at all."""

import os
import platform
import re
import secrets
import shutil
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

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
