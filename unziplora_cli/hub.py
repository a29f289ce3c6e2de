"""Models on the Hugging Face hub and in its local cache: lookup, query and download.

The cache is read without the library ``huggingface_hub``, whose import is slow, and without the network:

    <cache>/models--owner--name/   refs/<branch>   snapshots/<commit>/<file> -> ../../blobs/<hash of the file>

It also holds models of other programs, and commits of which only some files were downloaded. Only the
query and download functions use the network. The library reads HF_ENDPOINT, HF_TOKEN,
HF_HOME and HF_HUB_CACHE.
"""

import errno
import json
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
from unziplora_cli.errors import ModelError, Remedy, UnziploraError
from unziplora_cli.files import read_text, sha256

Part = Literal["tokenizers"]

DESCRIBER = "Qwen/Qwen3-VL-2B-Instruct"
"""The vision-language model that describes images (Apache-2.0, 2 billion parameters)."""

_PREFIX = "models--"
_CLASS = re.compile(r'"_class_name"\s*:\s*"(\w+)"')

# Files of an SDXL-class model in diffusers' layout, or of a separate VAE.
_CONFIGS = (
    "model_index.json",
    "config.json",
    "*/config.json",
    "*/*.index*.json",
    "scheduler/scheduler_config.json",
)
_TOKENIZERS = ("model_index.json", "tokenizer*/*.json", "tokenizer*/*.txt")
_WEIGHT_FOLDERS = ("", "unet/", "vae/", "text_encoder/", "text_encoder_2/")
_WEIGHT_NAMES = ("model", "diffusion_pytorch_model")
_WEIGHT_ENDINGS = (".fp16*.safetensors", ".safetensors", "-?????-of-?????.safetensors")
"""The first ending that matches is taken."""

# Files of a vision-language model of transformers.
_DESCRIBER_FILES = (
    *("config.json", "generation_config.json", "*processor_config.json", "chat_template.*"),
    *("tokenizer*.json", "special_tokens_map.json", "added_tokens.json", "vocab.json", "merges.txt"),
    *("model*.safetensors", "model.safetensors.index.json"),
)

_DISK_FULL = {getattr(errno, name, None) for name in ("ENOSPC", "EDQUOT", "EFBIG")}


@dataclass(frozen=True)
class Snapshot:
    """The files of one commit in the cache; ``refs`` are the branches and tags that point to it."""

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
        """Whether the cache has no other commit of the model."""
        return len(list(self.path.parent.iterdir())) == 1

    @property
    def class_name(self) -> str:
        """The class in its configuration, such as StableDiffusionXLPipeline; empty if there is none."""
        for name in ("model_index.json", "config.json"):
            if (self.path / name).is_file():
                match = _CLASS.search((self.path / name).read_text(encoding="utf-8", errors="replace"))
                return match[1] if match else ""
        return ""

    @property
    def is_supported(self) -> bool:
        """Whether it is an SDXL-class pipeline or a VAE."""
        return self.class_name.startswith(("StableDiffusionXL", "AutoencoderKL"))

    def files(self) -> Iterator[Path]:
        """Its files, which usually are links to blobs; broken links included."""
        return (path for path in sorted(self.path.rglob("*")) if path.is_symlink() or path.is_file())

    def bytes(self) -> int:
        """Bytes of its files, counting equal ones once, and of its interrupted downloads."""
        stored = {file.resolve() for file in self.files() if file.is_file()}
        return sum(file.stat().st_size for file in stored) + self.incomplete_bytes()

    def incomplete_bytes(self) -> int:
        """Bytes of interrupted downloads; 0 if they could belong to another commit."""
        if not self.is_only_revision:
            return 0
        return sum(file.stat().st_size for file in self.repository.glob("blobs/*.incomplete"))

    def last_used(self) -> str:
        """When one of its files was last read, ISO 8601 in UTC."""
        times = [file.stat().st_atime for file in self.files() if file.is_file()]
        latest = datetime.fromtimestamp(max(times, default=self.path.stat().st_mtime), UTC)
        return latest.isoformat(timespec="seconds").replace("+00:00", "Z")


def list_snapshots(id: str = "*/*") -> list[Snapshot]:
    """All commits of a model, or of all models, by name; the commit that the bare name means comes first."""
    snapshots = []
    for folder in sorted(paths.hub_cache().glob(_repository(id).name)):
        refs = _refs(folder)
        name = folder.name.removeprefix(_PREFIX).replace("--", "/", 1)
        commits = [
            Snapshot(name, path.name, path, tuple(ref for ref, commit in refs.items() if commit == path.name))
            for path in (folder / "snapshots").glob("*/")
        ]
        snapshots += sorted(commits, key=lambda s: ("main" not in s.refs, -s.path.stat().st_mtime))
    return snapshots


def find_snapshot(id: str, revision: str | None = None) -> Snapshot | None:
    """The cached commit for a branch, tag or commit; without a revision main, else the newest."""
    snapshots = list_snapshots(id)
    return next((s for s in snapshots if revision in (None, s.revision, *s.refs)), None)


def blob_path(file: Path) -> Path | None:
    """The blob that a file of a snapshot links to, which may be a link itself; None for a copy."""
    return Path(os.path.normpath(file.parent / file.readlink())) if file.is_symlink() else None


def _repository(id: str) -> Path:
    return paths.hub_cache() / f"{_PREFIX}{id.replace('/', '--')}"


def _refs(folder: Path) -> dict[str, str]:
    files = (path for path in (folder / "refs").rglob("*") if path.is_file())
    return {
        file.relative_to(folder / "refs").as_posix(): file.read_text("utf-8", "replace").strip()
        for file in files
    }


def check_transformers(folder: Path) -> None:
    """Raise ModelError if a folder lacks the configuration or weights of a model of transformers."""
    index = folder / "model.safetensors.index.json"
    try:
        names = set(json.loads(read_text(index))["weight_map"].values()) if index.is_file() else set()
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise ModelError(f"{index} is damaged.") from error
    for name in ("config.json", *sorted(names or {"model.safetensors"})):
        if not (folder / str(name)).is_file():
            raise ModelError(f"{folder} is incomplete: it has no {name}.")


# Query and download


@dataclass(frozen=True)
class RemoteFile:
    """A file on the hub; only large ones have a ``sha256``. ``blob`` is its name in the cache."""

    name: str
    bytes: int
    blob: str
    sha256: str | None


@dataclass(frozen=True)
class Download:
    """The files to download from one commit; ``ref`` is the branch or tag that the user named."""

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
        blobs, missing = _repository(self.id) / "blobs", 0
        for file in self.files:
            if not (file.blob and (blobs / file.blob).exists()):
                partial = blobs / f"{file.blob}.incomplete"
                missing += file.bytes - (partial.stat().st_size if partial.is_file() else 0)
        return missing


def query_model(id: str, revision: str | None, only: Part | None = None) -> Download:
    """Ask the hub for the files of a base or a VAE; raises ModelError."""
    commit, siblings = _query(id, revision)
    names = choose_files(siblings, only)
    if only is None and not any(name.endswith(".safetensors") for name in names):
        raise ModelError(
            f"{id} has no safetensors in diffusers' layout.",
            Remedy("If it is a single checkpoint, download the .safetensors file and use that as the base."),
        )
    if not names:
        raise ModelError(
            f"{id} has no {only} in diffusers' layout.", Remedy(command="models pull", arguments=("sdxl",))
        )
    return Download(id, revision, commit, tuple(_remote_file(siblings[name]) for name in names))


def query_describer() -> Download:
    """Ask the hub for the files of the describer; raises ModelError."""
    commit, siblings = _query(DESCRIBER, None)
    names = [name for name in sorted(siblings) if any(_matches(name, p) for p in _DESCRIBER_FILES)]
    return Download(DESCRIBER, None, commit, tuple(_remote_file(siblings[name]) for name in names))


def query_files(id: str, names: Sequence[str]) -> Download:
    """Ask the hub for some files of any model; raises ModelError if it lacks one."""
    commit, siblings = _query(id, None)
    missing = [name for name in names if name not in siblings]
    if missing:
        raise ModelError(f"{id} has no {', '.join(missing)} on the hub.")
    return Download(id, None, commit, tuple(_remote_file(siblings[name]) for name in names))


def choose_files(names: Iterable[str], only: Part | None = None) -> list[str]:
    """The files that a base needs; of each component's weights one variant, fp16 if there is one."""
    names = sorted(names)
    patterns = _TOKENIZERS if only == "tokenizers" else (*_CONFIGS, *_TOKENIZERS)
    chosen = [name for name in names if any(_matches(name, pattern) for pattern in patterns)]
    for folder in () if only else _WEIGHT_FOLDERS:
        for ending in _WEIGHT_ENDINGS:
            variants = [f"{folder}{stem}{ending}" for stem in _WEIGHT_NAMES]
            weights = [name for name in names if any(_matches(name, pattern) for pattern in variants)]
            if weights:
                chosen += weights
                break
    return chosen


def free_space() -> int:
    """Free bytes on the disk of the cache."""
    cache = paths.hub_cache().absolute()
    return shutil.disk_usage(next(path for path in (cache, *cache.parents) if path.exists())).free


def download(query: Download, accept: Callable[[str, str], None] = lambda id, revision: None) -> Path:
    """Download the missing files into the cache and return the snapshot folder; raises ModelError.

    Small files come first, so that an interrupted download can be identified, and so that ``accept`` can
    inspect them and raise. Large files resume where they were interrupted; their SHA-256 is verified.
    """
    cache, missing, free = paths.hub_cache(), query.missing(), free_space()
    if missing > free:
        raise ModelError(
            f"{query.id} needs {missing / 1e9:.1f} GB more, but {cache} has {free / 1e9:.1f} GB free.",
            Remedy("Free some space, or point HF_HOME to another disk."),
        )
    with hub_errors(query.id):
        from huggingface_hub import hf_hub_download, snapshot_download

        folder = snapshot_download(
            query.id,
            revision=query.ref,
            allow_patterns=[file.name for file in query.files if not file.sha256],
            cache_dir=cache,
        )
        revision = Path(folder).name
        accept(query.id, revision)
        for file in query.files:
            if file.sha256:
                _download_blob(query, file)
                hf_hub_download(query.id, file.name, revision=revision, cache_dir=cache)
    return Path(folder)


@contextmanager
def hub_errors(id: str, action: str = "download") -> Iterator[None]:
    """Turn the errors of the hub's library, of HTTP and of the disk into ModelError."""
    try:
        yield
    except UnziploraError:
        raise
    except Exception as error:  # the HTTP library, and so its errors, differ between versions of the hub's
        message, *remedies = _explain(error, id, action)
        raise ModelError(message, *remedies) from error


def _explain(error: Exception, id: str, action: str) -> tuple[str, *tuple[Remedy, ...]]:
    """What an error of the hub's library means, and its remedies."""
    from huggingface_hub.constants import ENDPOINT
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError

    login = Remedy("Log in", program="hf", command="auth login")
    token = Remedy("Or set HF_TOKEN to a token with permission.")
    again = "run the command again" + ("; what was downloaded is kept." if action == "download" else ".")
    if isinstance(error, GatedRepoError):
        return f"{id} requires that you accept its terms.", Remedy(f"Accept them at {ENDPOINT}/{id}"), login
    if isinstance(error, RevisionNotFoundError):
        return f"{id} has no such revision.", Remedy(f"See {ENDPOINT}/{id}")
    if isinstance(error, RepositoryNotFoundError):
        return f"There is no model {id} on the hub, or it is private.", login, token
    root = _root(error)
    status = getattr(getattr(root, "response", None), "status_code", None)
    if status in (401, 403):
        message = f"The hub refused to {action} {id} ({status}): no token, or one without permission."
        return message, login, token
    if isinstance(root, OSError) and root.errno in _DISK_FULL:
        message = f"The disk of {paths.hub_cache()} is full ({root.strerror})."
        return message, Remedy(f"Free some space and {again}")
    if isinstance(root, OSError) and root.filename:
        message = f"Cannot write to {paths.hub_cache()}: {root.strerror} ({root.filename})."
        return message, Remedy("Point HF_HOME to a folder that you may write to.")
    reason = re.sub(r"\?[^\s'\"]*", "", f"{type(root).__name__}: {root}".splitlines()[0])
    return f"Cannot {action} {id} ({ENDPOINT}): {reason}", Remedy(f"Check the connection and {again}")


def _root(error: BaseException) -> BaseException:
    """The first error of the chain that has a response, else its last one."""
    while error.__cause__ is not None and not hasattr(error, "response"):
        error = error.__cause__
    return error


def _query(id: str, revision: str | None) -> tuple[str, dict[str, Any]]:
    """The commit of a revision, and the hub's metadata of each of its files."""
    with hub_errors(id):
        from huggingface_hub import HfApi

        info: Any = HfApi().model_info(id, revision=revision, files_metadata=True)
    return info.sha, {file.rfilename: file for file in info.siblings or ()}


def _download_blob(query: Download, file: RemoteFile) -> None:
    """Download one large file into the blobs of its model, from where it was interrupted.

    ``hf_hub_download`` of huggingface_hub 2 deletes its temporary file when it is interrupted, so the next
    attempt starts from zero. Without ``http_get``, which is not documented, this is left to that function.
    """
    from filelock import FileLock

    folder = _repository(query.id)
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
                if not _append(query, file, partial):
                    return
                break
            except Exception:
                if partial.stat().st_size <= before:  # no progress since the last attempt
                    raise
        if sha256(partial) != file.sha256:
            partial.unlink()
            raise ModelError(
                f"{file.name} of {query.id} is damaged: its SHA-256 differs from the hub's.",
                Remedy("Run the command again."),
            )
        partial.replace(blob)


def _append(query: Download, file: RemoteFile, partial: Path) -> bool:
    """Download the rest of a file; False if the library has no ``http_get``."""
    from huggingface_hub import hf_hub_url
    from huggingface_hub.utils import build_hf_headers  # type: ignore[attr-defined]

    try:
        from huggingface_hub.file_download import http_get
    except ImportError:
        return False
    with partial.open("ab") as stream:
        if stream.tell() > file.bytes:
            stream.truncate(0)
        http_get(
            hf_hub_url(query.id, file.name, revision=query.revision),
            stream,
            resume_size=stream.tell(),
            headers=build_hf_headers(),
            expected_size=file.bytes,
            displayed_filename=file.name,
        )
    return True


def _remote_file(sibling: Any) -> RemoteFile:
    digest = sibling.lfs["sha256"] if sibling.lfs else None
    return RemoteFile(sibling.rfilename, sibling.size or 0, digest or sibling.blob_id or "", digest)


def _matches(name: str, pattern: str) -> bool:
    """Glob match in which `*` does not match a slash."""
    return name.count("/") == pattern.count("/") and fnmatchcase(name, pattern)
