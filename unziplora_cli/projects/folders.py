"""Where the folders of projects lie, and how one gets to its place whatever happens meanwhile.

<home>/projects/<name>/   manifest.json, pictures, LoRAs, merge weights, images/, validation/, saved/, logs/
<home>/projects/.<name>.unfinished/   an unfinished training: training.json, checkpoints/ and so on
<home>/projects/.<name>.ready/        complete, and about to become the project
<home>/projects/.<name>.<random>.partial/   not begun yet, or on its way out
<home>/locks/<name>.lock  one writer per project
"""

import os
import re
import secrets
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Literal

from unziplora_cli import files, paths
from unziplora_cli.errors import ProjectError
from unziplora_cli.files import InUse, locked
from unziplora_cli.projects.names import check_name
from unziplora_cli.projects.unfinished import CHECKPOINTS, FILE_NAME, FORMER_FILE_NAME

_PARTIAL = re.compile(r"\.(?P<name>.+)\.[0-9a-f]{8}\.partial")

Kind = Literal["unfinished", "ready"]


class ProjectLayout:
    """The folders and locks below one home."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.folder = paths.projects_dir(home)

    @contextmanager
    def lock(self, name: str) -> Iterator[None]:
        """Hold the project for writing during a block; raises ProjectError when another process has it."""
        with ExitStack() as stack:
            with self.home_errors():
                stack.enter_context(locked(self.home / "locks", check_name(name)))
            yield

    def check_unused(self, name: str) -> None:
        """Raise InUse when another process works on the project."""
        with self.lock(name):
            pass

    @contextmanager
    def writing(self, name: str) -> Iterator[None]:
        """Hold the lock of a project, in a home without what killed processes left."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with self.lock(name):
            self._sweep(name)
            self.settle_held(name)
            yield

    def settle(self, name: str) -> None:
        """Finish what a killed process began: a complete project whose folder was not in its place yet."""
        if self.place(name, "ready").exists():
            with suppress(ProjectError, OSError), self.lock(name):
                self.settle_held(name)

    def settle_held(self, name: str) -> None:
        """Move a complete project to its place, and an older one out of the way."""
        ready, folder = self.place(name, "ready"), self.folder / name
        if not ready.exists():
            return
        delete(ready / CHECKPOINTS)
        delete(ready / FILE_NAME)
        delete(ready / FORMER_FILE_NAME)
        old = self.partial(name)
        if os.path.lexists(folder):
            folder.rename(old)
        try:
            ready.rename(folder)
        except OSError:
            if os.path.lexists(old):
                old.rename(folder)
            raise
        files.fsync(self.folder)
        delete(old)

    def _sweep(self, name: str) -> None:
        """Delete what killed processes left, of this project and of others; the caller holds its lock."""
        for leftover in self.folder.glob(".*.partial"):
            if not (match := _PARTIAL.fullmatch(leftover.name)):
                continue
            with suppress(InUse), ExitStack() as stack:
                if match["name"] != name:
                    stack.enter_context(self.lock(match["name"]))
                delete(leftover)

    def hidden(self, place: Kind) -> tuple[str, ...]:
        """The names of all projects that have a folder in a hidden place."""
        found = sorted(self.folder.glob(f".*.{place}"))
        return tuple(each.name[1:].removesuffix(f".{place}") for each in found if each.is_dir())

    def place(self, name: str, place: Kind) -> Path:
        """A hidden folder of a project."""
        return self.folder / f".{name}.{place}"

    def partial(self, name: str) -> Path:
        """A new name for a folder that is not begun yet, or on its way out."""
        return self.folder / f".{name}.{secrets.token_hex(4)}.partial"

    @contextmanager
    def home_errors(self) -> Iterator[None]:
        """A home that cannot be used as ProjectError."""
        try:
            yield
        except OSError as error:
            raise ProjectError(
                f"Cannot use the home {self.home}: {error.strerror or error}.",
                hint="Choose a folder that you may write to: --home FOLDER or the variable UNZIPLORA_HOME.",
            ) from error


def delete(path: Path) -> None:
    """Delete a folder, file or link as far as possible; what stays is swept later."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
