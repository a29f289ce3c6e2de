"""The files of a project: written whole, hashed, measured."""

import hashlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from unziplora_cli.atomic import replacing


@dataclass(frozen=True)
class Problem:
    """One file that is not what it should be."""

    path: str
    reason: str


def write_bytes(path: Path, data: bytes) -> None:
    """Write a whole file atomically."""
    with replacing(path) as temporary:
        temporary.write_bytes(data)


def sha256(path: Path) -> str:
    """The SHA-256 of a file's bytes, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def leads_out(path: Path, folder: Path) -> bool:
    """Whether a path below a folder is, through links, somewhere else."""
    return not Path(os.path.realpath(path)).is_relative_to(os.path.realpath(folder))


def links_out(folder: Path) -> Iterator[str]:
    """The links below a folder that lead out of it, by their path in it; none is followed."""
    for root, folders, names in os.walk(folder):
        for name in (*folders, *names):
            path = Path(root, name)
            if path.is_symlink() and leads_out(path, folder):
                yield path.relative_to(folder).as_posix()


def folder_size(folder: Path) -> int:
    """Bytes of all regular files below a folder; links are not followed."""
    return sum((Path(root) / name).lstat().st_size for root, _, names in os.walk(folder) for name in names)
