"""The order of system calls: content is flushed before it gets its name, and the folder after that."""

import os
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

State = tuple[int, int]


class Disk:
    """What of the files below `root` a power failure would leave, as the system calls promise it.

    `problems` are names that were given to content which was not flushed.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.problems: list[str] = []
        self.names: list[tuple[str, Path]] = []
        self._flushed: dict[int, State] = {}
        self._unflushed_folders: dict[Path, str] = {}
        self._before = {path: _state(path) for path in self._files(root)}

    def unsafe(self) -> list[str]:
        """Everything that a power failure at the end could undo or leave empty."""
        changed = [path for path in self._files(self.root) if self._before.get(path) != _state(path)]
        content = [f"{self._short(path)} is not flushed" for path in changed if not self._is_flushed(path)]
        folders = [
            f"{self._short(folder)} is not flushed after {event}"
            for folder, event in self._unflushed_folders.items()
            if folder.is_dir()
        ]
        return [*self.problems, *content, *folders]

    @contextmanager
    def watched(self) -> Iterator["Disk"]:
        """Record the calls of this process during the block."""
        real = {name: getattr(os, name) for name in ("fsync", "rename", "replace", "link")}

        def fsync(descriptor: int) -> None:
            real["fsync"](descriptor)
            status = os.fstat(descriptor)
            self._flushed[status.st_ino] = (status.st_mtime_ns, status.st_size)
            if stat.S_ISDIR(status.st_mode):
                for folder in list(self._unflushed_folders):
                    if folder.is_dir() and folder.stat().st_ino == status.st_ino:
                        del self._unflushed_folders[folder]

        def naming(name: str) -> Callable[..., Any]:
            def call(source: Any, target: Any, **options: Any) -> None:
                self._check(name, Path(source), Path(target))
                real[name](source, target, **options)
                self._named(name, Path(source), Path(target))

            return call

        try:
            os.fsync = fsync
            os.rename, os.replace, os.link = (naming(name) for name in ("rename", "replace", "link"))
            yield self
        finally:
            for name, function in real.items():
                setattr(os, name, function)

    def _check(self, call: str, source: Path, target: Path) -> None:
        if source.is_relative_to(self.root):
            self.problems += [
                f"{call} to {self._short(target)} before {self._short(path)} is flushed"
                for path in ([source] if source.is_file() else self._files(source))
                if not self._is_flushed(path) and self._before.get(path) != _state(path)
            ]

    def _named(self, call: str, source: Path, target: Path) -> None:
        if target.is_relative_to(self.root):
            self.names.append((call, target))
            self._before.update({path: _state(path) for path in self._files(target) if self._is_known(path)})
            for folder in {target.parent, source.parent} if call != "link" else {target.parent}:
                self._unflushed_folders[folder] = f"{call} to {self._short(target)}"

    def _is_known(self, path: Path) -> bool:
        return _state(path) in self._before.values() or self._is_flushed(path)

    def _is_flushed(self, path: Path) -> bool:
        return self._flushed.get(path.stat().st_ino) == _state(path)

    def _short(self, path: Path) -> str:
        return path.relative_to(self.root).as_posix()

    @staticmethod
    def _files(folder: Path) -> list[Path]:
        """The regular files below a folder, except locks and their notes, which are worth nothing."""
        return [
            path
            for path in folder.rglob("*")
            if path.is_file() and not path.is_symlink() and path.parent.name != "locks"
        ]


def _state(path: Path) -> State:
    status = path.stat()
    return status.st_mtime_ns, status.st_size
