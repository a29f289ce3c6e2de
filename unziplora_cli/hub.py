"""The Hugging Face hub: what a model consists of there, and its files, fetched into the hub's own cache.

Only this module and `push` use the network, and only when the user asks. The hub's library reads HF_ENDPOINT,
HF_TOKEN, HF_HOME and HF_HUB_CACHE by itself.
"""

import errno
import os
import re
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, Literal

from unziplora_cli import paths
from unziplora_cli.errors import ModelError, UnziploraError
from unziplora_cli.files import sha256

_PREFIX = "models--"
_CLASS = re.compile(r'"_class_name"\s*:\s*"(\w+)"')

Part = Literal["tokenizers"]

# What an SDXL-class model in diffusers' layout consists of, beside its weights; and a VAE of its own.
_TEXTS = (
    "model_index.json",
    "config.json",
    "*/config.json",
    "*/*.index*.json",
    "scheduler/scheduler_config.json",
)
_TOKENIZERS = ("model_index.json", "tokenizer*/*.json", "tokenizer*/*.txt")
_WEIGHTS = ("", "unet/", "vae/", "text_encoder/", "text_encoder_2/")
_NAMES = ("model", "diffusion_pytorch_model")
_DISK_FULL = {getattr(errno, name, None) for name in ("ENOSPC", "EDQUOT", "EFBIG")}


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
    def is_only_revision(self) -> bool:
        """Whether the repository holds no other commit."""
        return len(list(self.path.parent.iterdir())) == 1

    @property
    def class_name(self) -> str:
        """The class that its configuration names, such as StableDiffusionXLPipeline; else empty."""
        for name in ("model_index.json", "config.json"):
            if (self.path / name).is_file():
                found = _CLASS.search((self.path / name).read_text(encoding="utf-8", errors="replace"))
                return found[1] if found else ""
        return ""

    @property
    def is_supported(self) -> bool:
        """Whether it is a pipeline of SDXL's class or an autoencoder."""
        return self.class_name.startswith(("StableDiffusionXL", "AutoencoderKL"))

    def files(self) -> Iterator[Path]:
        """Its files, which usually are links to blobs; broken links, too."""
        return (path for path in sorted(self.path.rglob("*")) if path.is_symlink() or path.is_file())

    def bytes(self) -> int:
        """Bytes of its files, equal ones once, and of downloads that were cut off."""
        stored = {file.resolve() for file in self.files() if file.is_file()}
        return sum(file.stat().st_size for file in stored) + self.incomplete_bytes()

    def incomplete_bytes(self) -> int:
        """Bytes of downloads that were cut off and would be resumed, if it is known whose they are."""
        if not self.is_only_revision:
            return 0
        return sum(file.stat().st_size for file in self.repository.glob("blobs/*.incomplete"))

    def last_used(self) -> str:
        """When one of its files was last read, ISO 8601 in UTC."""
        times = [file.stat().st_atime for file in self.files() if file.is_file()]
        latest = datetime.fromtimestamp(max(times, default=self.path.stat().st_mtime), UTC)
        return latest.isoformat(timespec="seconds").replace("+00:00", "Z")


def blob_path(file: Path) -> Path | None:
    """What a file of a snapshot links to, at the first step: a blob may be a link. None for a copy."""
    return Path(os.path.normpath(file.parent / file.readlink())) if file.is_symlink() else None


def repository(id: str) -> Path:
    """The folder of all commits of a model."""
    return paths.hub_cache() / f"{_PREFIX}{id.replace('/', '--')}"


def list_snapshots(id: str = "*/*") -> list[Snapshot]:
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


def find_snapshot(id: str, revision: str | None = None) -> Snapshot | None:
    """The commit of a model that a branch, a tag or a commit names; without one main, else the newest."""
    named = (each for each in list_snapshots(id) if revision in (None, each.revision, *each.refs))
    return next(named, None)


def _refs(folder: Path) -> dict[str, str]:
    files = (path for path in (folder / "refs").rglob("*") if path.is_file())
    return {
        file.relative_to(folder / "refs").as_posix(): file.read_text("utf-8", "replace").strip()
        for file in files
    }


def _newest_first(snapshot: Snapshot) -> tuple[bool, float]:
    return "main" not in snapshot.refs, -snapshot.path.stat().st_mtime


@dataclass(frozen=True)
class RemoteFile:
    """A file on the hub; large ones have a `sha256`, and the hash `blob` names it in the cache."""

    name: str
    bytes: int
    blob: str
    sha256: str | None


@dataclass(frozen=True)
class Download:
    """What `pull` would fetch: the files of one commit. `ref` is the branch or tag that was asked for."""

    id: str
    ref: str | None
    revision: str
    files: tuple[RemoteFile, ...]

    @property
    def bytes(self) -> int:
        """Bytes of all files."""
        return sum(file.bytes for file in self.files)

    def missing(self) -> int:
        """Bytes that are not in the cache yet."""
        blobs = repository(self.id) / "blobs"
        return sum(_missing(blobs, file) for file in self.files)


def query_model(id: str, revision: str | None, only: Part | None = None) -> Download:
    """Ask the hub what `sdxl`, `owner/name` or `owner/name@revision` consists of; raises ModelError."""
    commit, found = _ask(id, revision)
    names = choose_files(found, only)
    if only is None and not any(name.endswith(".safetensors") for name in names):
        raise ModelError(
            f"{id} has no safetensors in diffusers' layout.",
            hint="If it is a single checkpoint, download the .safetensors yourself and give --base FILE.",
        )
    if not names:
        raise ModelError(f"{id} has no {only} in diffusers' layout.", hint="unziplora models pull sdxl")
    return Download(id, revision, commit, tuple(_remote(found[name]) for name in names))


def query_files(id: str, names: Sequence[str]) -> Download:
    """Ask the hub for some files of any model; raises ModelError when it lacks one."""
    commit, found = _ask(id, None)
    lacking = [name for name in names if name not in found]
    if lacking:
        raise ModelError(f"{id} has no {', '.join(lacking)} on the hub.")
    return Download(id, None, commit, tuple(_remote(found[name]) for name in names))


def choose_files(names: Iterable[str], only: Part | None = None) -> list[str]:
    """The files that a base needs: of each part's weights one variant, fp16 where there is one."""
    names = sorted(names)
    texts = _TOKENIZERS if only == "tokenizers" else (*_TEXTS, *_TOKENIZERS)
    chosen = [name for name in names if any(_matches(name, pattern) for pattern in texts)]
    for part in () if only else _WEIGHTS:
        for ending in (".fp16*.safetensors", ".safetensors", "-?????-of-?????.safetensors"):
            found = [
                name for name in names if any(_matches(name, f"{part}{stem}{ending}") for stem in _NAMES)
            ]
            if found:
                chosen += found
                break
    return chosen


def free_space() -> int:
    """Bytes that are free where the cache is."""
    cache = paths.hub_cache().absolute()
    return shutil.disk_usage(next(each for each in (cache, *cache.parents) if each.exists())).free


def download(download: Download, accept: Callable[[str, str], None] = lambda id, revision: None) -> Path:
    """Fetch what is missing of a download into Hugging Face's cache; returns its folder. Raises ModelError.

    The small files come first, so that a download that is cut off is known for what it is, and ``accept`` may
    look at them and raise. Large files are resumed where they were cut off, and compared with the hub's
    SHA-256.
    """
    cache, missing, free = paths.hub_cache(), download.missing(), free_space()
    if missing > free:
        raise ModelError(
            f"{download.id} needs {missing / 1e9:.1f} GB more, but {cache} has {free / 1e9:.1f} GB free.",
            hint="Make room, or point HF_HOME at another disk.",
        )
    with hub_errors(download.id):
        from huggingface_hub import hf_hub_download, snapshot_download

        folder = snapshot_download(
            download.id,
            revision=download.ref,
            allow_patterns=[file.name for file in download.files if not file.sha256],
            cache_dir=cache,
        )
        accept(download.id, Path(folder).name)
        for file in (file for file in download.files if file.sha256):
            _fetch(download, file)
            hf_hub_download(download.id, file.name, revision=Path(folder).name, cache_dir=cache)
    return Path(folder)


@contextmanager
def hub_errors(id: str, doing: str = "fetch") -> Iterator[None]:
    """Turn each of the hub's many errors into a ModelError."""
    from huggingface_hub import constants
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError

    try:
        yield
    except UnziploraError:
        raise
    except GatedRepoError as error:
        raise ModelError(
            f"{id} asks you to accept its terms first.",
            hint=f"Open {constants.ENDPOINT}/{id}, accept, then: hf auth login",
        ) from error
    except RevisionNotFoundError as error:
        raise ModelError(f"{id} has no such revision.", hint=f"See {constants.ENDPOINT}/{id}") from error
    except RepositoryNotFoundError as error:
        raise ModelError(
            f"There is no model {id} on the hub, or it is private.",
            hint="For a private one: hf auth login, or set HF_TOKEN.",
        ) from error
    except Exception as error:  # the HTTP library beneath, and so its errors, differ between hub versions
        root = _root(error)
        status = getattr(getattr(root, "response", None), "status_code", None)
        if status in (401, 403):
            raise ModelError(
                f"The hub does not let you {doing} {id} ({status}): no token, or not the right one.",
                hint="hf auth login, or set HF_TOKEN to a token that may.",
            ) from error
        if isinstance(root, OSError) and root.errno in _DISK_FULL:
            raise ModelError(
                f"The disk of {paths.hub_cache()} is full ({root.strerror}).",
                hint="Make room and run the command again: what was fetched already is kept.",
            ) from error
        if isinstance(root, OSError) and root.filename:
            raise ModelError(
                f"Cannot write to {paths.hub_cache()}: {root.strerror} ({root.filename}).",
                hint="Point HF_HOME at a folder that you may write to.",
            ) from error
        reason = re.sub(r"\?[^\s'\"]*", "", f"{type(root).__name__}: {root}".splitlines()[0])
        raise ModelError(
            f"Cannot {doing} {id} ({constants.ENDPOINT}): {reason}",
            hint="Check the connection and run the command again: what was fetched already is kept."
            if doing == "fetch"
            else "Check the connection and run the command again.",
        ) from error


def _root(error: BaseException) -> BaseException:
    """The library's own error beneath those that it was wrapped in; the HTTP library's tell less."""
    while error.__cause__ is not None and not hasattr(error, "response"):
        error = error.__cause__
    return error


def _fetch(download: Download, file: RemoteFile) -> None:
    """Fetch one large file, going on where it was cut off; the hub's library would start anew."""
    from filelock import FileLock

    folder = repository(download.id)
    blob = folder / "blobs" / file.blob
    lock = folder.parent / ".locks" / folder.name / f"{file.blob}.lock"  # the library's own
    lock.parent.mkdir(parents=True, exist_ok=True)
    blob.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(lock):
        if blob.exists():
            return
        partial = blob.with_name(f"{file.blob}.incomplete")
        while True:
            before = partial.stat().st_size if partial.exists() else 0
            try:
                _append(download, file, partial)
                break
            except Exception:
                if partial.stat().st_size <= before:  # nothing came any more
                    raise
        if sha256(partial) != file.sha256:
            partial.unlink()
            raise ModelError(
                f"{file.name} of {download.id} arrived damaged: its SHA-256 is not the hub's.",
                hint="Run the command again.",
            )
        partial.replace(blob)


def _ask(id: str, revision: str | None) -> tuple[str, dict[str, Any]]:
    """The commit that a revision means, and what the hub says of each of its files."""
    with hub_errors(id):
        from huggingface_hub import HfApi

        info: Any = HfApi().model_info(id, revision=revision, files_metadata=True)
    return info.sha, {file.rfilename: file for file in info.siblings or ()}


def _append(download: Download, file: RemoteFile, partial: Path) -> None:
    """Fetch what a file still lacks."""
    from huggingface_hub import hf_hub_url
    from huggingface_hub.file_download import http_get
    from huggingface_hub.utils import build_hf_headers

    with partial.open("ab") as stream:
        if stream.tell() > file.bytes:
            stream.truncate(0)
        http_get(
            hf_hub_url(download.id, file.name, revision=download.revision),
            stream,
            resume_size=stream.tell(),
            headers=build_hf_headers(),
            expected_size=file.bytes,
            displayed_filename=file.name,
        )


def _remote(sibling: Any) -> RemoteFile:
    large = sibling.lfs["sha256"] if sibling.lfs else None
    return RemoteFile(sibling.rfilename, sibling.size or 0, large or sibling.blob_id or "", large)


def _missing(blobs: Path, file: RemoteFile) -> int:
    if file.blob and (blobs / file.blob).exists():
        return 0
    partial = blobs / f"{file.blob}.incomplete"
    return file.bytes - (partial.stat().st_size if partial.is_file() else 0)


def _matches(name: str, pattern: str) -> bool:
    """Glob match in which `*` stays within one folder."""
    return name.count("/") == pattern.count("/") and fnmatchcase(name, pattern)
