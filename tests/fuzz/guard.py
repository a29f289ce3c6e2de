"""Detects every change of the disk outside one folder."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

_roots: list[Path] = []
_hooked = False


@contextmanager
def confined(folder: Path) -> Iterator[None]:
    """Raise AssertionError for every file opened for writing, created, moved or deleted elsewhere."""
    global _hooked
    if not _hooked:
        sys.addaudithook(_audit)
        _hooked = True
    _roots.append(folder.resolve())
    try:
        yield
    finally:
        _roots.pop()


_CHANGES = {
    "os.mkdir": ((0, 2),),
    "os.remove": ((0, 1),),
    "os.rmdir": ((0, 1),),
    "os.rename": ((0, 2), (1, 3)),
    "os.link": ((1, 3),),
    "os.symlink": ((1, 2),),
}
"""The arguments of an audit event that are a changed path and the file descriptor of its folder."""
_WRITING = 0x1 | 0x2 | 0x40  # O_WRONLY, O_RDWR, O_CREAT


def _audit(event: str, arguments: tuple[Any, ...]) -> None:
    if not _roots:
        return
    if event == "open":
        path, mode, flags = arguments
        writes = bool(set(mode) & set("wax+")) if mode else bool(flags & _WRITING)
        changed = [(path, -1)] if writes else []
    else:
        changed = [(arguments[path], arguments[folder]) for path, folder in _CHANGES.get(event, ())]
    for path, folder in changed:
        if isinstance(path, str | bytes | Path) and not _allowed(Path(os.fsdecode(path)), folder):
            raise AssertionError(f"{event} outside the folder: {path!r}")


def _allowed(path: Path, folder: int) -> bool:
    if folder >= 0:
        path = Path(f"/proc/self/fd/{folder}").readlink() / path
    harmless = "__pycache__" in path.parts or path == Path("/dev/null")
    return harmless or Path(path.parent.resolve(), path.name).is_relative_to(_roots[-1])
