"""The files of a project: written whole, hashed, measured."""

import hashlib
import os
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


def folder_size(folder: Path) -> int:
    """Bytes of all regular files below a folder; links are not followed."""
    return sum((Path(root) / name).lstat().st_size for root, _, names in os.walk(folder) for name in names)
