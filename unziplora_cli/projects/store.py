"""The projects below one home."""

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from itertools import count
from pathlib import Path
from unicodedata import normalize

from unziplora_cli import files
from unziplora_cli.errors import ProjectError, Remedy, UsageError
from unziplora_cli.job import Job
from unziplora_cli.projects import manifest, verify
from unziplora_cli.projects.folders import InUse, ProjectLayout
from unziplora_cli.projects.manifest import Manifest, Role
from unziplora_cli.projects.names import MAX_BYTES, MAX_LENGTH, check_name, is_name, shorten
from unziplora_cli.projects.unfinished import (
    CHECKPOINTS,
    STATUS,
    Unfinished,
    UnfinishedRecord,
    has_record,
    read_record,
    read_status,
    write_record,
)
from unziplora_cli.projects.verify import Verification, inside, refuse_links

_LIST = Remedy("List the projects", "list")


@dataclass(frozen=True)
class Project:
    """One project on disk."""

    folder: Path
    manifest: Manifest
    bytes: int | None = field(default=None, compare=False)

    @property
    def name(self) -> str:
        """The name, which is the name of its folder."""
        return self.folder.name

    @property
    def job(self) -> Job:
        """The training that made it, or what is known of imported LoRAs."""
        return self.manifest.job

    @property
    def images(self) -> Path:
        """The default folder of generated images."""
        return self.folder / "images"

    @property
    def training_image(self) -> Path | None:
        """The copy of the first image that it was trained on; None if it was imported without one."""
        return self.folder / self.job.images[0].file if self.job.images else None

    def path(self, role: Role) -> Path:
        """The file of an artifact; raises ProjectError when the project has none of that role."""
        artifact = self.manifest.artifact(role)
        if artifact is None:
            raise ProjectError(f"The project {self.name!r} has no {role} file.")
        return inside(self.folder, artifact.path)

    def size(self) -> int:
        """Bytes of everything in the folder."""
        return files.size_and_links(self.folder)[0] if self.bytes is None else self.bytes


@dataclass(frozen=True)
class Damaged:
    """A folder among the projects whose manifest cannot be read."""

    name: str
    reason: str


class ProjectStore(ProjectLayout):
    """The projects below one home."""

    def names(self) -> list[str]:
        """The names of all project folders, sorted."""
        with self.home_errors():
            for name in (*self.hidden("ready"), *self.hidden("former")):
                self.settle(name)
            try:
                folders = [entry for entry in self.folder.iterdir() if _is_folder(entry)]
            except FileNotFoundError:
                return []
        return sorted(filter(is_name, (normalize("NFC", folder.name) for folder in folders)))

    def exists(self, name: str) -> bool:
        """Whether the name is taken by a project, damaged or not; an unfinished training does not count."""
        name = check_name(name)
        self.settle(name)
        return os.path.lexists(self.folder / name)

    def free_name(self, name: str) -> str:
        """A name like this one that no project and no training has: ``fox-2``."""
        names = (f"{shorten(name[: MAX_LENGTH - 5], MAX_BYTES - 5)}-{number}" for number in count(2))
        return next(
            name
            for name in names
            if not self.exists(name) and not os.path.lexists(self.place(name, "unfinished"))
        )

    def unfinished(self, name: str) -> Unfinished | None:
        """The training of this name that can be resumed, if any; raises ProjectError when it is damaged.

        A training that the user stopped, and whose result is a project, counts too.
        """
        name = check_name(name)
        for folder in (self.place(name, "unfinished"), self.folder / name):
            if has_record(folder):
                return Unfinished(name, folder, read_record(folder))
        return None

    def all_unfinished(self) -> tuple[tuple[Unfinished, ...], tuple[Damaged, ...]]:
        """All trainings that are running or were cut off, and damaged ones; stopped ones are projects."""
        trainings, damaged = [], []
        for name in self.hidden("unfinished"):
            folder = self.place(name, "unfinished")
            try:
                trainings.append(Unfinished(name, folder, read_record(folder)))
            except ProjectError as error:
                if folder.exists():  # otherwise it was finished just now
                    damaged.append(Damaged(name, error.message))
        return tuple(trainings), tuple(damaged)

    def list(self) -> tuple[tuple[Project, ...], tuple[Damaged, ...]]:
        """All projects, and the damaged ones; other folders are passed over."""
        projects, damaged = [], []
        for name in self.names():
            folder = self.folder / name
            try:
                size, links = files.size_and_links(folder)
                if links:
                    refuse_links(folder)
                projects.append(Project(folder, _named(manifest.read(folder), name), size))
            except ProjectError as error:
                if any(folder.glob("*.safetensors")) or os.path.lexists(folder / manifest.FILE_NAME):
                    damaged.append(Damaged(name, error.message))
        return tuple(projects), (*damaged, *self._misnamed())

    def _misnamed(self) -> Iterator[Damaged]:
        """Projects whose folder somebody renamed to what is no name."""
        if not self.folder.is_dir():
            return
        for folder in sorted(self.folder.iterdir()):
            try:
                check_name(folder.name)
            except UsageError as error:
                if _is_folder(folder) and os.path.lexists(folder / manifest.FILE_NAME):
                    yield Damaged(folder.name, f"{error.message} Rename its folder.")

    def running_step(self, training: Unfinished) -> int | None:
        """The last step of a training that another process runs; None if it was cut off."""
        try:
            self.check_unused(training.name)
        except InUse:
            return read_status(training.folder) or training.step
        except ProjectError:  # the locks cannot be used
            pass
        return None

    def open(self, name: str) -> Project:
        """The project of this name; raises ProjectError when it is unknown, damaged or links to outside."""
        project = self._read(name)
        refuse_links(project.folder)
        return project

    @contextmanager
    def create(self, name: str, *, force: bool = False) -> Iterator[Path]:
        """A new folder to fill, manifest included; it becomes the project when the block succeeds.

        When the block fails, nothing is left, and with ``force`` the older project is unchanged.
        Raises ProjectError when the name is taken (without ``force``), in use, or the home cannot be written.
        """
        name = check_name(name)
        with ExitStack() as stack:
            with self.home_errors():
                stack.enter_context(self.writing(name))
                self._check_free(name, force=force)
                if self.place(name, "unfinished").exists():
                    raise _taken_by_training(name)
                partial = self.partial(name)
                partial.mkdir()
                stack.callback(files.delete, partial)
            yield partial
            manifest.read(partial)
            with self.home_errors():
                files.flush_all(partial)
                files.rename(partial, self.place(name, "ready"))
            with self.home_errors("The project is complete; the next command puts it in place."):
                self.settle_held(name)

    @contextmanager
    def training(
        self, name: str, prepare: Callable[[Path], UnfinishedRecord] | None, *, force: bool = False
    ) -> Iterator[Path]:
        """The folder of a training, which outlives whatever ends the process during the block.

        ``prepare`` copies the images into a new folder and returns the record; without it, the unfinished
        training of this name is resumed. What the block leaves decides what the folder becomes: with the
        manifest of a complete training, the project, replacing an older one; with that of an interrupted one,
        a project if there is none yet; with checkpoints or saved LoRAs, an unfinished training; otherwise it
        is deleted. Raises ProjectError when the name is taken (without ``force``), in use, or
        there is nothing to resume, or the home cannot be written.
        """
        name = check_name(name)
        folder = self.place(name, "unfinished")
        with ExitStack() as stack:
            with self.home_errors():
                stack.enter_context(self.writing(name))
                if prepare is None:
                    self.reopen(name)
                else:
                    self._check_free(name, force=force)
                    self._begin(name, prepare)
            try:
                yield folder
            except BaseException:
                with suppress(OSError, ProjectError):  # what ended the block matters more
                    self._leave(name)
                raise
            with self.home_errors("What was learned is kept."):
                self._leave(name)

    def reopen(self, name: str) -> Path:
        """Turn a stopped project into an unfinished training again; returns its folder.

        The caller holds its lock, or is another process of the training that does.
        """
        folder = self.place(name, "unfinished")
        if has_record(folder):
            return folder
        with suppress(FileNotFoundError):
            if has_record(self.folder / name):
                refuse_links(self.folder / name)
                files.rename(self.folder / name, folder)
        if not has_record(folder):
            raise self.nothing_to_resume(name)
        return folder

    def nothing_to_resume(self, name: str) -> ProjectError:
        """The error for a name that has no unfinished training."""
        if not os.path.lexists(self.folder / name):
            names = ", ".join(training.name for training in self.all_unfinished()[0])
            unfinished = f" Unfinished trainings: {names}." if names else ""
            return ProjectError(f"There is no unfinished training {name!r}.{unfinished}", _LIST)
        return ProjectError(
            f"The project {name!r} is finished: there is nothing to resume.",
            Remedy("Show it", "show", (name,)),
        )

    def rename(self, old: str, new: str) -> Project:
        """Rename a project; raises ProjectError when the new name is taken.

        The manifest is written first: if that fails, nothing was renamed, and if the folder cannot be renamed
        afterwards, the name in the manifest has no effect.
        """
        old, new = check_name(old), check_name(new)
        if old == new:
            return self.open(old)
        first, second = sorted((old, new))
        folder, target = self.folder_of(old), self.folder / new
        with self.home_errors(f"The project is still named {old!r}."), self.lock(first), self.lock(second):
            content = manifest.read(folder)
            if self.place(new, "unfinished").exists():
                raise _taken_by_training(new)
            if self.exists(new):
                raise ProjectError(
                    f"A project {new!r} already exists.",
                    Remedy("Choose another name; see the taken ones", "list"),
                )
            renamed = replace(content, job=replace(content.job, name=new))
            manifest.write(folder, renamed)
            try:
                folder.rename(target)
            except OSError:
                with suppress(OSError):
                    manifest.write(folder, content)
                raise
        with self.home_errors(f"The project is named {new!r}."):
            files.fsync(self.folder)
        return Project(target, renamed)

    def to_remove(self, name: str, *, unfinished: bool = False) -> tuple[Path, ...]:
        """The folders that :meth:`remove` deletes; raises ProjectError when there are none."""
        name = check_name(name)
        training = self.place(name, "unfinished")
        if unfinished and not training.is_dir():
            raise ProjectError(f"There is no unfinished training {name!r}.", _LIST)
        if unfinished:
            return (training,)
        if not training.is_dir():
            return (self.folder_of(name),)
        return tuple(path for path in (self.folder / name, training) if os.path.lexists(path))

    def remove(self, name: str, *, unfinished: bool = False) -> None:
        """Delete a project with all its files, a damaged one too, and its unfinished training.

        With `unfinished` only the latter. Raises ProjectError when there is nothing to delete.
        """
        name = check_name(name)
        self.to_remove(name, unfinished=unfinished)
        with self.home_errors(), self.writing(name):
            for folder in self.to_remove(name, unfinished=unfinished):
                partial = self.partial(name)
                folder.rename(partial)
                with self.home_errors(f"{name!r} is removed; the next command frees its space."):
                    files.fsync(self.folder)
                files.delete(partial)

    def verify(self, name: str) -> Verification:
        """Compare every file that the manifest names with its recorded size and hash."""
        project = self._read(name)
        return verify.verify(project.folder, project.manifest)

    def require_whole(self, project: Project) -> None:
        """Raise ProjectError unless all files of a project are there, readable and unchanged."""
        problems = [f"{problem.path} {problem.reason}" for problem in self.verify(project.name).problems]
        if problems:
            raise ProjectError(
                f"The project in {project.folder} is damaged: {'; '.join(problems)}.",
                Remedy("When its disk is connected, check it again", "verify", (project.name,)),
                Remedy("Restore it from a backup."),
            )

    def folder_of(self, name: str) -> Path:
        """The folder of an existing project, damaged or not; raises ProjectError."""
        name = check_name(name)
        self.settle(name)
        folder = self.folder / name
        if _is_folder(folder):
            return folder
        if folder.is_symlink():
            raise ProjectError(f"{folder} is a link; a project must be inside the home.")
        if self.place(name, "unfinished").is_dir():
            training = self.unfinished(name)
            step = None if training is None else self.running_step(training)
            if training is not None and step is not None:
                raise InUse(
                    f"{name!r} is being trained, step {step} of {training.job.config.steps}.",
                    Remedy("Wait until the training ends."),
                )
            raise ProjectError(
                f"The training of {name!r} is not finished.",
                Remedy("Resume it", "train", settings={"resume": name}),
            )
        near = get_close_matches(name, self.names(), n=3)
        guess = f" Did you mean {' or '.join(near)}?" if near else ""
        raise ProjectError(f"There is no project {name!r}.{guess}", _LIST)

    def _read(self, name: str) -> Project:
        folder = self.folder_of(name)
        inside(folder, manifest.FILE_NAME)
        return Project(folder, _named(manifest.read(folder), folder.name))

    def _check_free(self, name: str, *, force: bool) -> None:
        folder = self.folder / name
        if os.path.lexists(folder) and not force:
            problem = f"A project {name!r} already exists."
        elif folder.is_dir() and not os.access(folder, os.W_OK):
            problem = f"The project {name!r} cannot be replaced: its folder {folder} is read-only."
        else:
            return
        raise ProjectError(problem, Remedy("Choose another name", settings={"name": self.free_name(name)}))

    def _begin(self, name: str, prepare: Callable[[Path], UnfinishedRecord]) -> None:
        """Create the folder of a training, replacing an older unfinished one."""
        partial, older, folder = self.partial(name), self.partial(name), self.place(name, "unfinished")
        try:
            partial.mkdir()
            write_record(partial, prepare(partial))
            if folder.exists():
                folder.rename(older)
            try:
                files.rename(partial, folder)
            except OSError:
                if older.exists() and not folder.exists():
                    older.rename(folder)
                raise
            files.delete(older)
        finally:
            files.delete(partial)

    def _leave(self, name: str) -> None:
        """Move the folder of a training to where its state belongs; the caller holds its lock."""
        folder = self.place(name, "unfinished")
        (folder / STATUS).unlink(missing_ok=True)
        if (folder / manifest.FILE_NAME).exists():
            state = manifest.read(folder).state
            if state == "complete":
                files.flush_all(folder)
                files.rename(folder, self.place(name, "ready"))
                self.settle_held(name)
            elif not os.path.lexists(self.folder / name):
                files.flush_all(folder)
                files.rename(folder, self.folder / name)
        elif not any((folder / CHECKPOINTS).glob("*")) and not any((folder / "saved").glob("*")):
            files.delete(folder)


def _named(content: Manifest, name: str) -> Manifest:
    """The manifest with the name of its folder, which somebody may have renamed."""
    if content.job.name == name:
        return content
    return replace(content, job=replace(content.job, name=name))


def _taken_by_training(name: str) -> ProjectError:
    return ProjectError(
        f"A training of {name!r} is not finished.",
        Remedy("Resume it", "train", settings={"resume": name}),
        Remedy("Or discard it", "remove", (name,), {"unfinished": True}),
    )


def _is_folder(entry: Path) -> bool:
    return not entry.name.startswith(".") and entry.is_dir() and not entry.is_symlink()
