"""Models on the Hugging Face hub and in its local cache: lookup, query and download.

The cache is read without the library ``huggingface_hub``, whose import is slow, and without the network:

    <cache>/models--owner--name/   refs/<branch>   snapshots/<commit>/<file> -> ../../blobs/<hash of the file>

It also holds models of other programs, and commits of which only some files were downloaded. Only the
query and download functions use the network, with the library's connection and token. Every name that the hub
answers is checked before it becomes a path, and no answer may be endless or endlessly slow.
"""

import errno
import hashlib
import json
import os
import re
import shutil
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, Literal
from urllib.parse import quote

from unziplora_cli import paths
from unziplora_cli.errors import ModelError, Remedy, UnziploraError
from unziplora_cli.events import Transfer
from unziplora_cli.files import holding, place, read_text, write_bytes
from unziplora_cli.network import POLL, Refused, TooLarge, read

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

LARGEST_ANSWER, LARGEST_FILE = 32 << 20, 1 << 40
"""Bytes of a model's list of files, and of one file."""

ATTEMPTS, ENOUGH = 5, 1 << 20
"""Lost connections in a row, each after at most so many bytes, after which a download is given up."""

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
                with (self.path / name).open("rb") as file:
                    match = _CLASS.search(file.read(1 << 20).decode(errors="replace"))
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
    except (ValueError, KeyError, AttributeError, TypeError, RecursionError) as error:
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

    @property
    def folder(self) -> Path:
        """The folder of the commit in the cache."""
        return _repository(self.id) / "snapshots" / self.revision

    def blob(self, file: RemoteFile) -> Path:
        """Where the bytes of a file are kept."""
        return _repository(self.id) / "blobs" / file.blob

    def missing(self) -> int:
        """Bytes that are not in the cache yet."""
        absent = [f for f in self.files if not (self.blob(f).exists() or (self.folder / f.name).exists())]
        return sum(file.bytes - _size(_partial(self.blob(file))) for file in absent)


def endpoint() -> str:
    """The address of the hub: $HF_ENDPOINT, else https://huggingface.co."""
    from huggingface_hub import constants

    return constants.ENDPOINT


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
    return Download(id, revision, commit, tuple(_remote_file(id, siblings[name]) for name in names))


def query_describer() -> Download:
    """Ask the hub for the files of the describer; raises ModelError."""
    commit, siblings = _query(DESCRIBER, None)
    names = [name for name in sorted(siblings) if any(_matches(name, p) for p in _DESCRIBER_FILES)]
    return Download(DESCRIBER, None, commit, tuple(_remote_file(DESCRIBER, siblings[name]) for name in names))


def query_files(id: str, names: Sequence[str]) -> Download:
    """Ask the hub for some files of any model; raises ModelError if it lacks one."""
    commit, siblings = _query(id, None)
    missing = [name for name in names if name not in siblings]
    if missing:
        raise ModelError(f"{id} has no {', '.join(missing)} on the hub.")
    return Download(id, None, commit, tuple(_remote_file(id, siblings[name]) for name in names))


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


def download(
    query: Download, accept: Callable[[str, str], None] = lambda id, revision: None
) -> Generator[Transfer, None, Path]:
    """Download the missing files into the cache and return the snapshot folder; raises ModelError.

    Small files come first, so that an interrupted download can be identified, and so that ``accept`` can
    inspect them and raise. All resume where they were interrupted, and their hashes are verified.
    """
    missing, free = query.missing(), free_space()
    if missing > free:
        raise ModelError(
            f"{query.id} needs {missing / 1e9:.1f} GB more, but {paths.hub_cache()} has {free / 1e9:.1f} GB "
            "free.",
            Remedy("Free some space, or point HF_HOME to another disk."),
        )
    with hub_errors(query.id):
        for large in (False, True):
            for file in query.files:
                if bool(file.sha256) == large:
                    yield from _download_file(query, file)
            if not large:
                if query.ref != query.revision:
                    ref = _repository(query.id) / "refs" / (query.ref or "main")
                    ref.parent.mkdir(parents=True, exist_ok=True)
                    write_bytes(ref, query.revision.encode())
                accept(query.id, query.revision)
    return query.folder


def _download_file(query: Download, file: RemoteFile) -> Generator[Transfer, None, None]:
    """Download one file into the blobs of its model, and link to it from the commit, as the library does.

    While another process downloads the same file, its progress is shown.
    """
    from filelock import FileLock, Timeout

    path, blob = query.folder / file.name, query.blob(file)
    if path.exists():
        return
    # The library's own lock.
    lock = paths.hub_cache() / ".locks" / _repository(query.id).name / f"{file.blob}.lock"
    for folder in (lock.parent, blob.parent, path.parent):
        folder.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        while True:
            try:
                stack.enter_context(holding(FileLock(lock, timeout=POLL)))
                break
            except Timeout:
                yield Transfer(file.name, _size(_partial(blob)), file.bytes)
        if path.exists():
            return
        if not blob.exists():
            yield from _download_blob(query, file)
        path.unlink(missing_ok=True)
        try:
            path.symlink_to(os.path.relpath(blob, path.parent))
        except OSError:  # a file system or an account without links
            shutil.move(blob, path)


def _download_blob(query: Download, file: RemoteFile) -> Generator[Transfer, None, None]:
    """Download the bytes of one file from where they were interrupted, again after each lost connection."""
    url = f"{endpoint()}/{quote(query.id)}/resolve/{query.revision}/{quote(file.name)}"
    partial, lost = _partial(query.blob(file)), 0
    while (before := _size(partial)) != file.bytes or not partial.exists():
        try:
            with partial.open("ab") as stream:
                pieces = read(url, file.bytes, before if before < file.bytes else 0)
                stream.truncate(next(pieces))
                shown = time.monotonic()
                for piece in pieces:
                    stream.write(piece)
                    if time.monotonic() - shown > POLL:
                        shown = time.monotonic()
                        yield Transfer(file.name, stream.tell(), file.bytes)
        except TooLarge:
            partial.unlink()
            raise
        except Exception as error:
            came = _size(partial) - before
            lost = 0 if came > ENOUGH else lost + 1
            if lost and (lost == (ATTEMPTS if came > 0 else 2) or isinstance(error, Refused | TimeoutError)):
                raise
        else:
            if _size(partial) == before < file.bytes:
                raise ConnectionError(f"{file.name} ends after {before} of {file.bytes} bytes")
    if hub_hash(partial, file.blob) != file.blob:
        partial.unlink()
        raise ModelError(
            f"{file.name} of {query.id} is damaged: its hash differs from the hub's.",
            Remedy("Run the command again."),
        )
    yield Transfer(file.name, file.bytes, file.bytes)
    place(partial, query.blob(file), force=True)


def hub_hash(path: Path, like: str) -> str:
    """The hash by which the hub names a file: SHA-256 or, if ``like`` is that short, git's SHA-1."""
    with path.open("rb") as stream:
        if len(like) == 64:
            return hashlib.file_digest(stream, "sha256").hexdigest()
        digest = hashlib.sha1(b"blob %d\0" % path.stat().st_size, usedforsecurity=False)
        return hashlib.file_digest(stream, lambda: digest).hexdigest()


def _partial(blob: Path) -> Path:
    return blob.with_name(f"{blob.name}.incomplete")


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0


# Answers


def _query(id: str, revision: str | None) -> tuple[str, dict[str, Any]]:
    """The commit of a revision, and what the hub says about each of its files, by name."""
    with hub_errors(id):
        branch = f"/revision/{quote(revision, safe='')}" if revision else ""
        pieces = read(f"{endpoint()}/api/models/{quote(id)}{branch}?blobs=true", LARGEST_ANSWER)
        next(pieces)
        data = b"".join(pieces)
        try:
            answer = json.loads(data)
            siblings = {sibling["rfilename"]: sibling for sibling in answer["siblings"]}
            if not all(isinstance(name, str) for name in siblings):
                raise TypeError("the name of a file is not text")
            return _hash(answer["sha"], 40), siblings
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            raise _invalid(id, error) from error


def _remote_file(id: str, sibling: dict[str, Any]) -> RemoteFile:
    """What the hub says about a file; raises ModelError unless its name and its hash can be paths."""
    try:
        name, size, lfs = sibling["rfilename"], sibling["size"], sibling.get("lfs")
        parts = name.split("/")
        if any(part in ("", ".", "..") or len(part.encode()) > 200 for part in parts) or re.search(
            r"[\\:\x00-\x1f]", name
        ):
            raise ValueError(f"{name[:200]!r} is no name of a file")
        if type(size) is not int or not 0 <= size <= LARGEST_FILE:
            raise ValueError(f"{name} cannot have {str(size)[:40]} bytes")
        digest = _hash(lfs["sha256"], 64) if lfs else None
        return RemoteFile(name, size, digest or _hash(sibling["blobId"], 40), digest)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise _invalid(id, error) from error


def _hash(value: Any, length: int) -> str:
    if not isinstance(value, str) or not re.fullmatch(rf"[0-9a-f]{{{length}}}", value):
        raise ValueError(f"{str(value)[:80]!r} is no hash")
    return value


def _invalid(id: str, error: Exception) -> ModelError:
    reason = str(error) if type(error) is ValueError else f"{type(error).__name__}: {error}"
    return ModelError(
        f"{endpoint()} gave an invalid answer about {id}: {reason[:300]}.",
        Remedy("Check that HF_ENDPOINT names a hub, and try again later."),
    )


@contextmanager
def hub_errors(id: str, action: str = "download") -> Iterator[None]:
    """Turn the errors of the hub, of its library, of HTTP and of the disk into ModelError."""
    try:
        yield
    except UnziploraError:
        raise
    except Exception as error:  # the HTTP library, and so its errors, differ between versions of the hub's
        message, *remedies = _explain(error, id, action)
        raise ModelError(message, *remedies) from error


def _explain(error: Exception, id: str, action: str) -> tuple[str, *tuple[Remedy, ...]]:
    """What an error means, and its remedies."""
    login = Remedy("Log in", program="hf", command="auth login")
    token = Remedy("Or set HF_TOKEN to a token with permission.")
    again = "run the command again" + ("; what was downloaded is kept." if action == "download" else ".")
    root = _root(error)
    response = getattr(root, "response", None)
    status, headers = getattr(response, "status_code", None), getattr(response, "headers", None) or {}
    code = headers.get("X-Error-Code", "")
    rejected = headers.get("X-Error-Message") == "Invalid credentials in Authorization header"
    if code == "GatedRepo":
        return f"{id} requires that you accept its terms.", Remedy(f"Accept them at {endpoint()}/{id}"), login
    if code == "RevisionNotFound":
        return f"{id} has no such revision.", Remedy(f"See {endpoint()}/{id}")
    if code == "RepoNotFound" or (status in (401, 404) and action == "download" and not rejected):
        return f"There is no model {id} on the hub, or it is private.", login, token
    if status in (401, 403):
        message = f"The hub refused to {action} {id} ({status}): no token, or one without permission."
        return message, login, token
    if status in (429, 503):
        seconds = headers.get("Retry-After", "")
        when = f"in {seconds} s" if seconds.isdecimal() and len(seconds) < 8 else "later"
        return f"{endpoint()} is busy ({status}): it asks to try again {when}.", Remedy(f"Wait, then {again}")
    if isinstance(root, OSError) and root.errno in _DISK_FULL:
        message = f"The disk of {paths.hub_cache()} is full ({root.strerror})."
        return message, Remedy(f"Free some space and {again}")
    if isinstance(root, OSError) and root.filename:
        message = f"Cannot write to {paths.hub_cache()}: {root.strerror} ({root.filename})."
        return message, Remedy("Point HF_HOME to a folder that you may write to.")
    named = str(root) if isinstance(root, TimeoutError) else f"{type(root).__name__}: {root}"
    reason = re.sub(r"\?[^\s'\"]*", "", named.splitlines()[0])
    return f"Cannot {action} {id} ({endpoint()}): {reason}", Remedy(f"Check the connection and {again}")


def _root(error: BaseException) -> BaseException:
    """The first error of the chain that has a response, else its last one."""
    while error.__cause__ is not None and getattr(error, "response", None) is None:
        error = error.__cause__
    return error


def _matches(name: str, pattern: str) -> bool:
    """Glob match in which `*` does not match a slash."""
    return name.count("/") == pattern.count("/") and fnmatchcase(name, pattern)
