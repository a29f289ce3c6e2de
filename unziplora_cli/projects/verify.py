"""Verify that the files of a project are complete, unchanged and inside its folder."""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from unziplora_cli import files
from unziplora_cli.errors import ProjectError, Remedy
from unziplora_cli.files import Problem
from unziplora_cli.projects.manifest import Manifest

_LEADS_OUT = "is a link to outside the project"


@dataclass(frozen=True)
class Verification:
    """The problems of a project's files; ``checked`` is how many files were compared."""

    checked: int
    problems: tuple[Problem, ...]


def verify(folder: Path, manifest: Manifest) -> Verification:
    """Compare every file that the manifest names with its recorded size and hash."""
    expected: list[tuple[str, str, int | None]] = [
        *((image.file, image.sha256, None) for image in (*manifest.job.images, *manifest.job.destyled)),
        *((file.path, file.sha256, file.bytes) for file in manifest.artifacts),
    ]
    problems = []
    for path, digest, size in expected:
        reason = _difference(folder, path, digest, size)
        if reason:
            problems.append(Problem(path, reason))
    recorded = {path for path, _, _ in expected}
    problems += [Problem(link, _LEADS_OUT) for link in _escaping_links(folder) if link not in recorded]
    return Verification(len(expected), tuple(problems))


def inside(folder: Path, path: str) -> Path:
    """A file of a project; raises ProjectError when a link leads outside the project folder."""
    file = folder / path
    if _escapes(file, folder):
        raise ProjectError(f"{file} is outside its project.")
    return file


def refuse_links(folder: Path) -> None:
    """Raise ProjectError for a link to outside the project; a project from somebody else may have one."""
    for link in _escaping_links(folder):
        raise ProjectError(
            f"{link} in the project {folder.name!r} {_LEADS_OUT}.",
            Remedy("Replace the link with the file or folder itself."),
        )


def _difference(folder: Path, path: str, digest: str, size: int | None) -> str:
    try:
        file = inside(folder, path)
        actual = file.stat().st_size
        if size is not None and actual != size:
            return f"has {actual} bytes instead of {size}"
        limit = files.MAX_IMAGE_SIZE if size is None else size
        return "" if files.sha256(file, limit) == digest else "was changed: its SHA-256 differs"
    except FileNotFoundError:
        return "is missing"
    except ProjectError:
        return _LEADS_OUT
    except OSError as error:
        return f"cannot be read: {error.strerror}"


def _escapes(path: Path, folder: Path) -> bool:
    """Whether links make a path below a folder point outside of it."""
    return not Path(os.path.realpath(path)).is_relative_to(os.path.realpath(folder))


def _escaping_links(folder: Path) -> Iterator[str]:
    """The links below a folder that point outside of it, relative to the folder; none is followed."""
    for entry in files.walk(folder):
        if entry.is_symlink() and _escapes(Path(entry.path), folder):
            yield Path(entry.path).relative_to(folder).as_posix()
