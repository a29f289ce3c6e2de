"""The folders of projects, and how a finished one is published even if processes are killed.

<home>/projects/<name>/   manifest.json, pictures, LoRAs, merge weights, images/, validation/, saved/, logs/
<home>/projects/.<name>.unfinished/   an unfinished training: training.json, checkpoints/ and so on
<home>/projects/.<name>.ready/        complete, about to become the project
<home>/projects/.<name>.<random>.partial/   being created or deleted
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
from unziplora_cli.errors import ProjectError, Remedy
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
        """Lock the project for writing; raises ProjectError when another process has locked it."""
        with ExitStack() as stack:
            with self.home_errors():
                stack.enter_context(locked(self.home / "locks", check_name(name)))
            yield

    def check_unused(self, name: str) -> None:
        """Raise InUse when another process has locked the project."""
        with self.lock(name):
            pass

    @contextmanager
    def writing(self, name: str) -> Iterator[None]:
        """Lock a project, after cleaning up what killed processes left."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with self.lock(name):
            self._sweep(name)
            self.settle_held(name)
            yield

    def settle(self, name: str) -> None:
        """Publish a complete project if a killed process did not finish doing so."""
        if self.place(name, "ready").exists():
            with suppress(ProjectError, OSError), self.lock(name):
                self.settle_held(name)

    def settle_held(self, name: str) -> None:
        """Publish a complete project in place of an older one; the caller holds its lock."""
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
        """Delete what killed processes left of any project; the caller holds the lock of this one."""
        for leftover in self.folder.glob(".*.partial"):
            if not (match := _PARTIAL.fullmatch(leftover.name)):
                continue
            with suppress(InUse), ExitStack() as stack:
                if match["name"] != name:
                    stack.enter_context(self.lock(match["name"]))
                delete(leftover)

    def hidden(self, place: Kind) -> tuple[str, ...]:
        """The names of all projects that have a hidden folder of this kind."""
        folders = sorted(self.folder.glob(f".*.{place}"))
        return tuple(path.name[1:].removesuffix(f".{place}") for path in folders if path.is_dir())

    def place(self, name: str, place: Kind) -> Path:
        """The path of a hidden folder of a project."""
        return self.folder / f".{name}.{place}"

    def partial(self, name: str) -> Path:
        """A new name for a folder that is being created or deleted."""
        return self.folder / f".{name}.{secrets.token_hex(4)}.partial"

    @contextmanager
    def home_errors(self) -> Iterator[None]:
        """Turn an OSError about the home into ProjectError."""
        try:
            yield
        except OSError as error:
            raise ProjectError(
                f"Cannot use the home {self.home}: {error.strerror or error}.",
                Remedy(
                    f"Choose a writable folder, here or in the variable {paths.HOME_VARIABLE}",
                    settings={"home": "FOLDER"},
                ),
            ) from error


def delete(path: Path) -> None:
    """Delete a folder, file or link as far as possible; the rest is deleted by a later command."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
