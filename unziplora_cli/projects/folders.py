"""The folders of projects, and how a finished one is published even if processes are killed.

<home>/projects/<name>/   manifest.json, pictures, LoRAs, merge weights, images/, validation/, saved/, logs/
<home>/projects/.<name>.unfinished/   an unfinished training: training.json, checkpoints/ and so on
<home>/projects/.<name>.ready/        complete, about to become the project
<home>/projects/.<name>.former/       the project that it replaces, until what the user made with it was kept
<home>/projects/<name>/former-001/    what was generated with a project that was replaced
<home>/projects/.<name>.<random>.partial/   being created or deleted
<home>/locks/<name>.lock  one writer per project
"""

import json
import os
import platform
import re
import secrets
import sys
from collections.abc import Container, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from datetime import datetime
from pathlib import Path
from typing import Literal
from unicodedata import normalize

from unziplora_cli import files, paths
from unziplora_cli.errors import ProjectError, Remedy
from unziplora_cli.projects.names import check_name, is_name
from unziplora_cli.projects.unfinished import CHECKPOINTS, FILE_NAME, FORMER_FILE_NAME

_PARTIAL = re.compile(r"\.(?P<name>.+)\.[0-9a-f]{8}\.partial")
_FORMER = re.compile(r"former-[0-9]{3,}")
_MADE_BY_TRAINING = re.compile(
    r"(manifest|training|plan)\.json|(content|style|merge)\.safetensors|history\.csv"
    r"|source(-[0-9]+)?(\.[a-z0-9]+)?|checkpoints|destyled|saved|logs|\..*"
)
"""What a new training makes anew. Everything else in a project was made with it, and is kept."""

SHEET, SHEET_MARK = "sheet.png", ("Source", "unziplora sheet")
"""The sheet that ends a training, and the text chunk that tells it from a sheet of the user."""

Kind = Literal["unfinished", "ready", "former"]


class InUse(ProjectError):
    """Another process works on the project."""


class ProjectLayout:
    """The folders and locks below one home."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.folder = paths.projects_dir(home)

    @contextmanager
    def lock(self, name: str) -> Iterator[None]:
        """Lock the project for writing; raises InUse when another process has locked it.

        The lock is a file that the system releases when its holder ends, even if it is killed. A note beside
        it says who holds it. On a file system without locks the block runs unprotected.
        """
        from filelock import FileLock, Timeout

        name, folder = check_name(name), self.home / "locks"
        note = folder / f"{name}.json"
        with ExitStack() as stack:
            try:
                with self.home_errors():
                    folder.mkdir(parents=True, exist_ok=True)
                    stack.enter_context(files.holding(FileLock(folder / f"{name}.lock", timeout=0)))
            except Timeout as error:
                raise InUse(
                    f"The project {name!r} is in use{_holder(note)}.",
                    Remedy("Wait until that command ends, or stop it."),
                ) from error
            try:
                with suppress(OSError):  # a full disk must not prevent removing a project
                    note.write_text(json.dumps(_this_process()), encoding="utf-8")
                yield
            finally:
                with suppress(OSError):
                    note.unlink(missing_ok=True)

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
        if self.place(name, "ready").exists() or self.place(name, "former").exists():
            with suppress(ProjectError, OSError), self.lock(name):
                self.settle_held(name)

    def settle_held(self, name: str) -> None:
        """Publish a complete project in place of an older one, and keep what was generated with that.

        The caller holds its lock. A process that is killed between two steps loses nothing: the next command
        repeats them.
        """
        ready, folder = self.place(name, "ready"), self.folder / name
        self._settle_former(name)
        if not ready.exists():
            return
        for leftover in (CHECKPOINTS, FILE_NAME, FORMER_FILE_NAME):
            files.delete(ready / leftover)
        try:
            if os.path.lexists(folder):
                files.rename(folder, self.place(name, "former"))
            files.rename(ready, folder)
        finally:
            self._settle_former(name)

    def _settle_former(self, name: str) -> None:
        """Keep what was generated with a replaced project in its successor; without one, put it back."""
        former, folder = self.place(name, "former"), self.folder / name
        if not os.path.lexists(folder):
            if os.path.lexists(former):
                files.rename(former, folder)
            return
        if former.is_dir() and not former.is_symlink():
            for entry in sorted(former.iterdir()):
                if _FORMER.fullmatch(entry.name):
                    files.rename(entry, _unused_former(folder))
                elif _MADE_BY_TRAINING.fullmatch(entry.name) or _is_training_sheet(entry):
                    files.delete(entry)
            if any(former.iterdir()):
                files.rename(former, _unused_former(folder))
        files.delete(former)

    def former_versions(self, name: str) -> dict[Path, int]:
        """The folders that keep what was generated with replaced projects, and their numbers of files."""
        folders = sorted((self.folder / name).glob("former-*"))
        return {
            folder: sum(len(names) for _, _, names in os.walk(folder))
            for folder in folders
            if _FORMER.fullmatch(folder.name)
        }

    def replaced_notes(self, name: str, before: Container[Path]) -> list[str]:
        """What to say of former versions that were not there ``before`` the project was replaced."""
        return [
            f"{'1 file that was' if count == 1 else f'{count} files that were'} generated with the replaced "
            f"project: kept in {folder}"
            for folder, count in self.former_versions(name).items()
            if folder not in before
        ]

    def _sweep(self, name: str) -> None:
        """Delete what killed processes left of any project; the caller holds the lock of this one."""
        for leftover in self.folder.glob(".*.partial"):
            if not (match := _PARTIAL.fullmatch(leftover.name)):
                continue
            with suppress(InUse), ExitStack() as stack:
                if match["name"] != name:
                    stack.enter_context(self.lock(match["name"]))
                files.delete(leftover)

    def hidden(self, place: Kind) -> tuple[str, ...]:
        """The names of all projects that have a hidden folder of this kind."""
        folders = [path for path in self.folder.glob(f".*.{place}") if path.is_dir()]
        names = (normalize("NFC", path.name[1:].removesuffix(f".{place}")) for path in folders)
        return tuple(sorted(filter(is_name, names)))

    def place(self, name: str, place: Kind) -> Path:
        """The path of a hidden folder of a project."""
        return self.folder / f".{name}.{place}"

    def partial(self, name: str) -> Path:
        """A new name for a folder that is being created or deleted."""
        return self.folder / f".{name}.{secrets.token_hex(4)}.partial"

    def home_errors(
        self, outcome: str = "Nothing was changed.", *remedies: Remedy
    ) -> AbstractContextManager[None]:
        """Turn an OSError into a ProjectError that names the file and says what is left (`outcome`)."""
        return files.translated(lambda error: self.disk_error(error, outcome, *remedies))

    def disk_error(self, error: OSError, outcome: str, *remedies: Remedy) -> ProjectError:
        """The error for an OSError about the home, which may be gone altogether."""
        other = Remedy(
            f"Choose a writable folder, here or in the variable {paths.HOME_VARIABLE}",
            settings={"home": "FOLDER"},
        )
        if isinstance(error, FileNotFoundError) and not self.folder.is_dir():
            return ProjectError(
                f"The home {self.home} is gone: its disk was disconnected, or the folder was deleted. "
                "Nothing was written in its place.",
                Remedy("Connect the disk again, and repeat the command."),
                other,
            )
        return files.disk_error(error, self.folder, outcome, *(remedies or (other,)))


def _is_training_sheet(file: Path) -> bool:
    if file.name != SHEET:
        return False
    try:
        with files.open_regular(file, files.MAX_IMAGE_SIZE) as stream:
            return "\0".join(SHEET_MARK).encode() in stream.read(1 << 12)
    except OSError:
        return False


def _unused_former(folder: Path) -> Path:
    return next(path for path in files.numbered(folder, "former") if not os.path.lexists(path))


def _this_process() -> dict[str, str | int]:
    command = " ".join([Path(sys.argv[0]).name, *sys.argv[1:]])
    since = datetime.now().astimezone().isoformat(" ", "seconds")
    return {"pid": os.getpid(), "host": platform.node(), "command": command, "since": since}


def _holder(note: Path) -> str:
    try:
        holder = json.loads(note.read_text(encoding="utf-8"))
        process = f"process {holder['pid']} on {holder['host']}"
        return f" by {process} since {holder['since']}: {holder['command']}"
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return " by another process"
