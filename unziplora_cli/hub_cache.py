"""Commits of models in Hugging Face's own cache, looked up without its library and without the network.

<cache>/models--owner--name/   refs/<branch>   snapshots/<commit>/<file> -> ../../blobs/<the file's hash>

The cache holds what other programs fetched, too, and commits of which only some files were ever fetched.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from unziplora_cli import paths

_PREFIX = "models--"
_CLASS = re.compile(r'"_class_name"\s*:\s*"(\w+)"')


@dataclass(frozen=True)
class Snapshot:
    """The files of one commit on this disk, and the branches and tags that point to it."""

    id: str
    revision: str
    path: Path
    refs: tuple[str, ...]

    @property
    def repository(self) -> Path:
        """The folder of all commits of the model."""
        return self.path.parent.parent

    @property
    def alone(self) -> bool:
        """Whether the repository holds no other commit."""
        return len(list(self.path.parent.iterdir())) == 1

    @property
    def kind(self) -> str:
        """The class that its configuration names, such as StableDiffusionXLPipeline; else empty."""
        for name in ("model_index.json", "config.json"):
            if (self.path / name).is_file():
                found = _CLASS.search((self.path / name).read_text(encoding="utf-8", errors="replace"))
                return found[1] if found else ""
        return ""

    @property
    def ours(self) -> bool:
        """Whether it is a pipeline of SDXL's class or an autoencoder."""
        return self.kind.startswith(("StableDiffusionXL", "AutoencoderKL"))

    def files(self) -> Iterator[Path]:
        """Its files, which usually are links to blobs; broken links, too."""
        return (path for path in sorted(self.path.rglob("*")) if path.is_symlink() or path.is_file())

    def bytes(self) -> int:
        """Bytes of its files, equal ones once, and of downloads that were cut off."""
        stored = {file.resolve() for file in self.files() if file.is_file()}
        return sum(file.stat().st_size for file in stored) + self.cut_off()

    def cut_off(self) -> int:
        """Bytes of downloads that were cut off and would be resumed, if it is known whose they are."""
        if not self.alone:
            return 0
        return sum(file.stat().st_size for file in self.repository.glob("blobs/*.incomplete"))

    def last_used(self) -> str:
        """When one of its files was last read, ISO 8601 in UTC."""
        times = [file.stat().st_atime for file in self.files() if file.is_file()]
        latest = datetime.fromtimestamp(max(times, default=self.path.stat().st_mtime), UTC)
        return latest.isoformat(timespec="seconds").replace("+00:00", "Z")


def blob(file: Path) -> Path | None:
    """What a file of a snapshot links to, at the first step: a blob may be a link. None for a copy."""
    return Path(os.path.normpath(file.parent / file.readlink())) if file.is_symlink() else None


def repository(id: str) -> Path:
    """The folder of all commits of a model."""
    return paths.hub_cache() / f"{_PREFIX}{id.replace('/', '--')}"


def snapshots(id: str = "*/*") -> list[Snapshot]:
    """All commits of a model, or of all models, by name; the one that the bare name means comes first."""
    found = []
    for folder in sorted(paths.hub_cache().glob(repository(id).name)):
        refs = _refs(folder)
        name = folder.name.removeprefix(_PREFIX).replace("--", "/", 1)
        commits = [
            Snapshot(name, path.name, path, tuple(ref for ref, commit in refs.items() if commit == path.name))
            for path in (folder / "snapshots").glob("*/")
        ]
        found += sorted(commits, key=_newest_first)
    return found


def find(id: str, revision: str | None = None) -> Snapshot | None:
    """The commit of a model that a branch, a tag or a commit names; without one main, else the newest."""
    named = (each for each in snapshots(id) if revision in (None, each.revision, *each.refs))
    return next(named, None)


def _refs(folder: Path) -> dict[str, str]:
    files = (path for path in (folder / "refs").rglob("*") if path.is_file())
    return {
        file.relative_to(folder / "refs").as_posix(): file.read_text("utf-8", "replace").strip()
        for file in files
    }


def _newest_first(snapshot: Snapshot) -> tuple[bool, float]:
    return "main" not in snapshot.refs, -snapshot.path.stat().st_mtime
