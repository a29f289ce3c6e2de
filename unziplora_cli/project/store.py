"""The folders of all projects below one home.

<home>/projects/<name>/   manifest.json, pictures, LoRAs, merge weights, images/, validation/, saved/, logs/
<home>/projects/.<name>.unfinished/   a training under way or cut off: plan.json, checkpoints/ and the like
<home>/projects/.<name>.ready/        complete, and about to become the project
<home>/projects/.<name>.<random>.partial/   not begun yet, or on its way out
<home>/locks/<name>.lock  one writer per project
"""

import os
import re
import secrets
import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from difflib import get_close_matches
from pathlib import Path

from unziplora_cli import atomic, paths
from unziplora_cli.errors import ProjectError
from unziplora_cli.project import files, manifest
from unziplora_cli.project.files import Problem
from unziplora_cli.project.lock import InUse, locked
from unziplora_cli.project.manifest import Manifest, Role
from unziplora_cli.project.names import check_name
from unziplora_cli.project.unfinished import CHECKPOINTS, PLAN, Plan, Unfinished, read_plan, write_plan

_LEADS_OUT = "is a link that leads out of the project"
_SEE_ALL = "See them all: unziplora list"
_PARTIAL = re.compile(r"\.(?P<name>.+)\.[0-9a-f]{8}\.partial")


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
        for name in self._hidden("ready"):
            self._settle(name)
        with self._home_errors():
            try:
                return sorted(entry.name for entry in self.folder.iterdir() if _is_project_folder(entry))
            except FileNotFoundError:
                return []

    def exists(self, name: str) -> bool:
        """Whether anything has this name already; a training that is not finished does not."""
        self._settle(check_name(name))
        return os.path.lexists(self.folder / name)

    def unfinished(self, name: str) -> Unfinished | None:
        """The training of this name that can go on, if there is one; raises ProjectError for a damaged one.

        One that was stopped by the user and is a project in the meantime counts too.
        """
        for folder in (self._place(check_name(name), "unfinished"), self.folder / name):
            if (folder / PLAN).is_file():
                return Unfinished(name, folder, read_plan(folder))
        return None

    def all_unfinished(self) -> tuple[tuple[Unfinished, ...], tuple[Damaged, ...]]:
        """All trainings that are under way or were cut off and are no projects, and damaged ones."""
        found, damaged = [], []
        for name in self._hidden("unfinished"):
            folder = self._place(name, "unfinished")
            try:
                found.append(Unfinished(name, folder, read_plan(folder)))
            except ProjectError as error:
                damaged.append(Damaged(name, error.message))
        return tuple(found), tuple(damaged)

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
        """The project of this name; raises ProjectError for an unknown, damaged or linked-out one."""
        project = self._read(name)
        _refuse_links(project.folder)
        return project

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
                stack.enter_context(self._writing(name))
                self._check_free(name, force=force)
                if self._place(name, "unfinished").exists():
                    raise _taken_by_training(name)
                partial = self._partial(name)
                partial.mkdir()
                stack.callback(_delete, partial)
            yield partial
            manifest.read(partial)
            with self._home_errors():
                partial.rename(self._place(name, "ready"))
                self._settle_held(name)

    @contextmanager
    def training(
        self, name: str, prepare: Callable[[Path], Plan] | None, *, force: bool = False
    ) -> Iterator[Path]:
        """The folder of a training, which outlives whatever ends the process during the block.

        `prepare` puts the pictures into a new folder and says the plan; without it the unfinished training
        of this name goes on. What the block leaves decides what becomes of the folder: with a manifest that
        says `complete` it is the project, in the place of an older one; with one that says `interrupted` it
        is a project if there is none yet; with checkpoints or saved models it stays an unfinished training;
        otherwise it is deleted. Raises ProjectError when the name is taken (without `force`), in use, or
        there is nothing to go on with, or the home cannot be written.
        """
        check_name(name)
        folder = self._place(name, "unfinished")
        with ExitStack() as stack:
            with self._home_errors():
                stack.enter_context(self._writing(name))
                if prepare is None:
                    self.reopen(name)
                else:
                    self._check_free(name, force=force)
            if prepare is not None:
                self._begin(name, prepare)
            try:
                yield folder
            except BaseException:
                with suppress(OSError, ProjectError):  # what ended the block matters more
                    self._leave(name)
                raise
            with self._home_errors():
                self._leave(name)

    def reopen(self, name: str) -> Path:
        """Turn a project that was stopped into an unfinished training again; returns the folder of that.

        The caller holds its lock, or is another process of the training that does.
        """
        folder = self._place(name, "unfinished")
        if (folder / PLAN).is_file():
            return folder
        with suppress(FileNotFoundError):
            if (self.folder / name / PLAN).is_file():
                _refuse_links(self.folder / name)
                (self.folder / name).rename(folder)
        if not (folder / PLAN).is_file():
            raise self.nothing_to_resume(name)
        return folder

    def nothing_to_resume(self, name: str) -> ProjectError:
        """Why there is no unfinished training of this name."""
        if not os.path.lexists(self.folder / name):
            near = [each.name for each in self.all_unfinished()[0]]
            known = f" Unfinished are: {', '.join(near)}." if near else ""
            return ProjectError(f"There is no unfinished training {name!r}.{known}", hint=_SEE_ALL)
        return ProjectError(
            f"The project {name!r} is finished: there is nothing to go on with.",
            hint=f"Look at it: unziplora show {name}",
        )

    def check_unused(self, name: str) -> None:
        """Raise InUse when another process works on the project."""
        with self.lock(name):
            pass

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
            if self._place(new, "unfinished").exists():
                raise _taken_by_training(new)
            if self.exists(new):
                raise ProjectError(
                    f"There is a project {new!r} already.", hint=f"Remove it first: unziplora remove {new}"
                )
            folder.rename(self.folder / new)
            return self.update(Project(self.folder / new, content), replace(content, name=new))

    def to_remove(self, name: str, *, unfinished: bool = False) -> tuple[Path, ...]:
        """The folders that :meth:`remove` deletes; raises ProjectError when there are none."""
        training = self._place(check_name(name), "unfinished")
        if unfinished and not training.is_dir():
            raise ProjectError(f"There is no unfinished training {name!r}.", hint=_SEE_ALL)
        if unfinished:
            return (training,)
        if not training.is_dir():
            return (self.folder_of(name),)
        return tuple(each for each in (self.folder / name, training) if os.path.lexists(each))

    def remove(self, name: str, *, unfinished: bool = False) -> None:
        """Delete a project with all its files, a damaged one too, and its unfinished training.

        With `unfinished` only the latter. Raises ProjectError when there is nothing to delete.
        """
        self.to_remove(name, unfinished=unfinished)
        with self._home_errors(), self._writing(name):
            for folder in self.to_remove(name, unfinished=unfinished):
                _delete(folder.rename(self._partial(name)))

    def verify(self, name: str) -> Verification:
        """Compare every file that the manifest names with its recorded size and hash."""
        project = self._read(name)
        expected: list[tuple[str, str, int | None]] = [
            *((each.file, each.sha256, None) for each in project.manifest.source),
            *((each.path, each.sha256, each.bytes) for each in project.manifest.artifacts),
        ]
        problems = []
        for path, digest, size in expected:
            reason = _difference(project.folder, path, digest, size)
            if reason:
                problems.append(Problem(path, reason))
        known = {path for path, _, _ in expected}
        problems += [
            Problem(link, _LEADS_OUT) for link in files.links_out(project.folder) if link not in known
        ]
        return Verification(name, len(expected), tuple(problems))

    def folder_of(self, name: str) -> Path:
        """The folder of an existing project, damaged or not; raises ProjectError."""
        self._settle(check_name(name))
        folder = self.folder / name
        if _is_project_folder(folder):
            return folder
        if folder.is_symlink():
            raise ProjectError(f"{folder} is a link; a project has to lie inside its home.")
        if self._place(name, "unfinished").is_dir():
            raise ProjectError(
                f"The training of {name!r} is not finished.",
                hint=f"Go on with it: unziplora train --resume {name}",
            )
        near = get_close_matches(name, self.names(), n=3)
        guess = f" Did you mean {' or '.join(near)}?" if near else ""
        raise ProjectError(f"There is no project {name!r}.{guess}", hint=_SEE_ALL)

    def _read(self, name: str) -> Project:
        folder = self.folder_of(name)
        inside(folder, manifest.FILE_NAME)
        return Project(folder, replace(manifest.read(folder), name=name))

    @contextmanager
    def _writing(self, name: str) -> Iterator[None]:
        """Hold the lock of a project, in a home without what killed processes left."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with self.lock(name):
            self._sweep(name)
            self._settle_held(name)
            yield

    def _check_free(self, name: str, *, force: bool) -> None:
        folder = self.folder / name
        if os.path.lexists(folder) and not force:
            raise ProjectError(
                f"There is a project {name!r} already.",
                hint="Choose another with --name, or replace it with --force.",
            )
        if folder.is_dir() and not os.access(folder, os.W_OK):
            raise ProjectError(
                f"The project {name!r} cannot be replaced: its folder {folder} is read-only.",
                hint="Choose another with --name.",
            )

    def _begin(self, name: str, prepare: Callable[[Path], Plan]) -> None:
        """Prepare a training; it takes the place of an older one that was not finished."""
        partial, folder = self._partial(name), self._place(name, "unfinished")
        try:
            with self._home_errors():
                partial.mkdir()
            plan = prepare(partial)
            with self._home_errors():
                write_plan(partial, plan)
                if folder.exists():
                    _delete(folder.rename(self._partial(name)))
                partial.rename(folder)
                atomic.sync(self.folder)
        finally:
            _delete(partial)

    def _leave(self, name: str) -> None:
        """Put the folder of a training where its state belongs; the caller holds its lock."""
        folder = self._place(name, "unfinished")
        if (folder / manifest.FILE_NAME).exists():
            state = manifest.read(folder).state
            if state == "complete":
                folder.rename(self._place(name, "ready"))
                self._settle_held(name)
            elif not os.path.lexists(self.folder / name):
                folder.rename(self.folder / name)
                atomic.sync(self.folder)
        elif not any((folder / CHECKPOINTS).glob("*")) and not any((folder / "saved").glob("*")):
            _delete(folder)

    def _settle(self, name: str) -> None:
        """Finish what a killed process began: a complete project whose folder was not in its place yet."""
        if self._place(name, "ready").exists():
            with suppress(ProjectError, OSError), self.lock(name):
                self._settle_held(name)

    def _settle_held(self, name: str) -> None:
        """Move a complete project to its place, and an older one out of the way."""
        ready, folder = self._place(name, "ready"), self.folder / name
        if not ready.exists():
            return
        _delete(ready / CHECKPOINTS)
        _delete(ready / PLAN)
        old = self._partial(name)
        if os.path.lexists(folder):
            folder.rename(old)
        try:
            ready.rename(folder)
        except OSError:
            if os.path.lexists(old):
                old.rename(folder)
            raise
        atomic.sync(self.folder)
        _delete(old)

    def _sweep(self, name: str) -> None:
        """Delete what killed processes left, of this project and of others; the caller holds its lock."""
        for leftover in self.folder.glob(".*.partial"):
            if not (match := _PARTIAL.fullmatch(leftover.name)):
                continue
            with suppress(InUse), ExitStack() as stack:
                if match["name"] != name:
                    stack.enter_context(self.lock(match["name"]))
                _delete(leftover)

    def _hidden(self, place: str) -> tuple[str, ...]:
        """The names of all projects that have a folder in a hidden place."""
        found = sorted(self.folder.glob(f".*.{place}"))
        return tuple(each.name[1:].removesuffix(f".{place}") for each in found if each.is_dir())

    def _place(self, name: str, place: str) -> Path:
        return self.folder / f".{name}.{place}"

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


def _taken_by_training(name: str) -> ProjectError:
    return ProjectError(
        f"A training of {name!r} is not finished.",
        hint=f"Go on with it: unziplora train --resume {name}   Give it up: "
        f"unziplora remove {name} --unfinished",
    )


def inside(folder: Path, path: str) -> Path:
    """A file of a project; raises ProjectError when a link leads it out of the project's folder."""
    file = folder / path
    if files.leads_out(file, folder):
        raise ProjectError(f"{file} leads out of its project.")
    return file


def _refuse_links(folder: Path) -> None:
    """Raise ProjectError when a link in a project leads out of it: strangers' projects might have one."""
    for link in files.links_out(folder):
        raise ProjectError(
            f"{link} in the project {folder.name!r} {_LEADS_OUT}.",
            hint="Put the file or folder itself in the place of the link.",
        )


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
        return _LEADS_OUT
    except OSError as error:
        return f"cannot be read: {error.strerror}"
