"""The folders of all projects below one home.

<home>/projects/<name>/   manifest.json, pictures, LoRAs, merge weights, images/, validation/, saved/, logs/
<home>/projects/.<name>.<random>.partial/   a project in the making, or one on its way out
<home>/locks/<name>.lock  one writer per project
"""

import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from difflib import get_close_matches
from pathlib import Path

from unziplora_cli import atomic, paths
from unziplora_cli.errors import ProjectError
from unziplora_cli.project import files, manifest
from unziplora_cli.project.files import Problem
from unziplora_cli.project.lock import locked
from unziplora_cli.project.manifest import Manifest, Role
from unziplora_cli.project.names import check_name


@dataclass(frozen=True)
class Project:
    """One project on disk."""

    folder: Path
    manifest: Manifest

    @property
    def name(self) -> str:
        """The name, which is the name of its folder."""
        return self.folder.name

    @property
    def images(self) -> Path:
        """Where drawn pictures go unless the user says otherwise."""
        return self.folder / "images"

    def path(self, role: Role) -> Path:
        """The file of an artifact; raises ProjectError when the project has none of that role."""
        artifact = self.manifest.artifact(role)
        if artifact is None:
            raise ProjectError(f"The project {self.name!r} has no {role} file.")
        return inside(self.folder, artifact.path)

    def size(self) -> int:
        """Bytes of everything in the folder."""
        return files.folder_size(self.folder)


@dataclass(frozen=True)
class Damaged:
    """A folder among the projects whose manifest cannot be read."""

    name: str
    reason: str


@dataclass(frozen=True)
class Verification:
    """What checking a project found."""

    name: str
    checked: int
    problems: tuple[Problem, ...]


class ProjectStore:
    """The projects below one home."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.folder = paths.projects_dir(home)

    def names(self) -> list[str]:
        """The names of all project folders, sorted."""
        with self._home_errors():
            try:
                return sorted(entry.name for entry in self.folder.iterdir() if _is_project_folder(entry))
            except FileNotFoundError:
                return []

    def exists(self, name: str) -> bool:
        """Whether anything has this name already."""
        return os.path.lexists(self.folder / check_name(name))

    def list(self) -> tuple[tuple[Project, ...], tuple[Damaged, ...]]:
        """All projects, and the folders that are damaged ones."""
        projects, damaged = [], []
        for name in self.names():
            try:
                projects.append(self.open(name))
            except ProjectError as error:
                damaged.append(Damaged(name, error.message))
        return tuple(projects), tuple(damaged)

    def open(self, name: str) -> Project:
        """The project of this name; raises ProjectError when it is unknown or damaged."""
        folder = self.folder_of(name)
        return Project(folder, replace(manifest.read(folder), name=name))

    @contextmanager
    def lock(self, name: str) -> Iterator[None]:
        """Hold the project for writing during a block; raises ProjectError when another process has it."""
        with ExitStack() as stack:
            with self._home_errors():
                stack.enter_context(locked(self.home / "locks", check_name(name)))
            yield

    @contextmanager
    def create(self, name: str, *, force: bool = False) -> Iterator[Path]:
        """A new folder to fill, manifest included; it becomes the project when the block ends well.

        When the block fails nothing is left behind, and with `force` the older project stays as it was.
        Raises ProjectError when the name is taken (without `force`), in use, or the home cannot be written.
        """
        check_name(name)
        with ExitStack() as stack:
            with self._home_errors():
                self.folder.mkdir(parents=True, exist_ok=True)
                stack.enter_context(self.lock(name))
                if self.exists(name) and not force:
                    raise ProjectError(
                        f"There is a project {name!r} already.",
                        hint="Choose another with --name, or replace it with --force.",
                    )
                self._sweep(name)
                partial = self._partial(name)
                partial.mkdir()
                stack.callback(_delete, partial)
            yield partial
            manifest.read(partial)
            with self._home_errors():
                self._replace(name, partial)

    def update(self, project: Project, new: Manifest) -> Project:
        """Write a project's manifest anew; the caller holds its lock."""
        manifest.write(project.folder, new)
        return replace(project, manifest=new)

    def rename(self, old: str, new: str) -> Project:
        """Give a project another name; raises ProjectError when that is taken."""
        folder = self.folder_of(old)
        if old == check_name(new):
            return self.open(old)
        first, second = sorted((old, new))
        with self._home_errors(), self.lock(first), self.lock(second):
            content = manifest.read(folder)
            if self.exists(new):
                raise ProjectError(
                    f"There is a project {new!r} already.", hint=f"Remove it first: unziplora remove {new}"
                )
            folder.rename(self.folder / new)
            return self.update(Project(self.folder / new, content), replace(content, name=new))

    def remove(self, name: str) -> None:
        """Delete a project with all its files, a damaged one too."""
        self.folder_of(name)
        with self._home_errors(), self.lock(name):
            _delete((self.folder / name).rename(self._partial(name)))

    def verify(self, name: str) -> Verification:
        """Compare every file that the manifest names with its recorded size and hash."""
        project = self.open(name)
        expected: list[tuple[str, str, int | None]] = [
            *((each.file, each.sha256, None) for each in project.manifest.source),
            *((each.path, each.sha256, each.bytes) for each in project.manifest.artifacts),
        ]
        problems = []
        for path, digest, size in expected:
            reason = _difference(project.folder, path, digest, size)
            if reason:
                problems.append(Problem(path, reason))
        return Verification(name, len(expected), tuple(problems))

    def folder_of(self, name: str) -> Path:
        """The folder of an existing project, damaged or not; raises ProjectError."""
        folder = self.folder / check_name(name)
        if _is_project_folder(folder):
            return folder
        if folder.is_symlink():
            raise ProjectError(f"{folder} is a link; a project has to lie inside its home.")
        near = get_close_matches(name, self.names(), n=3)
        guess = f" Did you mean {' or '.join(near)}?" if near else ""
        raise ProjectError(f"There is no project {name!r}.{guess}", hint="See them all: unziplora list")

    def _replace(self, name: str, partial: Path) -> None:
        """Move the finished folder to its place, and what was there before out of the way."""
        folder, old = self.folder / name, self._partial(name)
        if not self.exists(name):
            partial.rename(folder)
        else:
            folder.rename(old)
            try:
                partial.rename(folder)
            except OSError:
                old.rename(folder)
                raise
        atomic.sync(self.folder)
        _delete(old)

    def _sweep(self, name: str) -> None:
        """Delete what a killed process left of this project; the caller holds its lock."""
        for leftover in self.folder.glob(f".{name}.*.partial"):
            if "." not in leftover.name.removeprefix(f".{name}.").removesuffix(".partial"):
                _delete(leftover)

    def _partial(self, name: str) -> Path:
        return self.folder / f".{name}.{secrets.token_hex(4)}.partial"

    @contextmanager
    def _home_errors(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise ProjectError(
                f"Cannot use the home {self.home}: {error.strerror or error}.",
                hint="Choose a folder that you may write to: --home FOLDER or the variable UNZIPLORA_HOME.",
            ) from error


def inside(folder: Path, path: str) -> Path:
    """A file of a project; raises ProjectError when a link leads it out of the project's folder."""
    file = folder / path
    if not file.resolve().is_relative_to(folder.resolve()):
        raise ProjectError(f"{file} leads out of its project.")
    return file


def _is_project_folder(entry: Path) -> bool:
    return not entry.name.startswith(".") and entry.is_dir() and not entry.is_symlink()


def _delete(path: Path) -> None:
    """Delete a folder, file or link as far as possible; what stays is swept later."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _difference(folder: Path, path: str, digest: str, size: int | None) -> str:
    try:
        file = inside(folder, path)
        actual = file.stat().st_size
        if size is not None and actual != size:
            return f"has {actual} bytes instead of {size}"
        return "" if files.sha256(file) == digest else "was changed: its SHA-256 differs"
    except FileNotFoundError:
        return "is missing"
    except ProjectError:
        return "is a link that leads out of the project"
    except OSError as error:
        return f"cannot be read: {error.strerror}"
