"""Files that are either written whole or not at all."""

import os
import platform
import re
import secrets
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
    temporary = path.with_name(f".{path.name}.{_host()}-{os.getpid()}-{secrets.token_hex(4)}.partial")
    try:
        yield temporary
        sync(temporary)
        temporary.replace(path)
        sync(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def sweep(folder: Path) -> None:
    """Delete the temporary files in a folder whose process has ended; those of other machines stay."""
    with os.scandir(folder) as entries:
        found = [match for entry in entries if (match := _PARTIAL.fullmatch(entry.name))]
    for match in found:
        if match["host"] == _host() and not _runs(int(match["pid"])):
            (folder / match[0]).unlink(missing_ok=True)


def sync(path: Path) -> None:
    """Have the system put a file or folder on the disk; Windows cannot do that for a folder."""
    if os.name == "nt" and path.is_dir():
        return
    descriptor = os.open(path, os.O_RDWR if path.is_file() else os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _host() -> str:
    """This machine, in eight letters: a home may be shared by several."""
    return f"{zlib.crc32(platform.node().encode()):08x}"


def _runs(pid: int) -> bool:
    from psutil import pid_exists

    return pid_exists(pid)
