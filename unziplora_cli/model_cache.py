"""Base models on this disk: the built-in one and those in Hugging Face's own cache, which is never copied."""

import hashlib
import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from unziplora_cli import paths, resources
from unziplora_cli.errors import ModelError
from unziplora_cli.files import Problem, folder_size, sha256
from unziplora_cli.hub import Snapshot, blob_path, list_snapshots

if TYPE_CHECKING:
    from huggingface_hub import DeleteCacheStrategy

VAE_FIX = "madebyollin/sdxl-vae-fp16-fix"
"""SDXL's VAE, mended so that it works in fp16."""


@dataclass(frozen=True)
class Model:
    """One model on this disk. `spec` is what --base takes; `problem` is empty when it is complete.

    `last_used` is when a program last read it, ISO 8601 in UTC; None outside Hugging Face's cache.
    """

    spec: str
    id: str
    revision: str | None
    path: Path
    bytes: int
    last_used: str | None
    problem: str


@dataclass(frozen=True)
class Verification:
    """What checking a model found: `checked` files had a hash of the hub to compare with."""

    model: Model
    checked: int
    unchecked: int
    problems: tuple[Problem, ...]


@dataclass(frozen=True)
class Removal:
    """Deleting one commit of a model, and what that would free: not what other commits share with it."""

    snapshot: Snapshot
    bytes: int

    def run(self) -> None:
        """Delete it."""
        strategy = _strategy(self.snapshot)
        if strategy is not None:
            strategy.execute()
            return
        for file in _own_blobs(self.snapshot):
            file.unlink()
        for ref in self.snapshot.refs:
            (self.snapshot.repository / "refs" / ref).unlink()
        shutil.rmtree(self.snapshot.repository if self.snapshot.is_only_revision else self.snapshot.path)


def list_models() -> tuple[Model, ...]:
    """The built-in base, then every cached model that is of SDXL's class or a VAE, by name."""
    return (
        _folder("mini", resources.mini_base()),
        *(_model(each) for each in list_snapshots() if each.is_supported),
    )


def verify(spec: str) -> Verification:
    """Check a model's parts, and in Hugging Face's cache each file against the hub's hash.

    The cache names its blobs as the hub does: by SHA-256, or by git's SHA-1 when they are small. Copies, on a
    file system without links, stay unchecked. In other folders, weights that were cut short are found.
    """
    if _is_folder(spec):
        folder = locate(spec)
        files = sorted(folder.glob("**/*.safetensors"))
        problems = [Problem(file.relative_to(folder).as_posix(), _cut_short(file)) for file in files]
        found = tuple(each for each in problems if each.reason)
        return Verification(_folder(spec, folder), 0, len(files), found)
    found = find_cached(spec)
    problems, hashes = [], []
    for file in found.files():
        hashes.append(_hub_hash(file))
        reason = _damage(file, hashes[-1])
        if reason:
            problems.append(Problem(file.relative_to(found.path).as_posix(), reason))
    checked = len([each for each in hashes if each])
    return Verification(_model(found), checked, len(hashes) - checked, tuple(problems))


def locate(spec: str) -> Path:
    """The folder of a model; raises ModelError when it is not on this disk."""
    if spec == "mini":
        return resources.mini_base()
    return Path(spec).expanduser().resolve() if _is_folder(spec) else find_cached(spec).path


def find_cached(spec: str) -> Snapshot:
    """The cached commit that `spec` means; raises ModelError."""
    id, revision = hub_id(spec)
    for each in list_snapshots(id):
        if each.is_supported and revision in (None, each.revision, *each.refs):
            return each
    raise ModelError(f"{spec} is not on this disk.", hint="See what is: unziplora models list")


def plan_removal(snapshot: Snapshot) -> Removal:
    """What deleting a commit would do."""
    strategy = _strategy(snapshot)
    if strategy is not None:
        return Removal(snapshot, strategy.expected_freed_size + snapshot.incomplete_bytes())
    blobs = sum(file.lstat().st_size for file in _own_blobs(snapshot))
    return Removal(snapshot, blobs + snapshot.incomplete_bytes())


def describe_snapshot(id: str, revision: str) -> Model:
    """A commit of a model in Hugging Face's cache."""
    return _model(next(each for each in list_snapshots(id) if each.revision == revision))


def check_supported(id: str, revision: str) -> None:
    """Raise ModelError when a commit, of which the small files are there, is not of SDXL's class or a VAE."""
    found = next(each for each in list_snapshots(id) if each.revision == revision)
    if not found.is_supported:
        raise ModelError(
            f"{id} is {'a ' + found.class_name if found.class_name else 'no diffusers model'}, "
            "but neither of SDXL's class nor a VAE.",
            hint="Use SDXL or a model made from it: unziplora models pull sdxl",
        )


def _lack(folder: Path) -> str:
    """What a model lacks, or nothing."""
    from unziplora_cli.sdxl.base import check, find_vae

    try:
        if (folder / "config.json").is_file() and not (folder / "model_index.json").is_file():
            find_vae(str(folder))
        else:
            check(folder)
    except ModelError as error:
        return error.message
    return ""


def hub_id(spec: str) -> tuple[str, str | None]:
    """Id and revision of `sdxl`, `owner/name` or `owner/name@revision`; raises ModelError."""
    from unziplora_cli.sdxl.base import HUB_ID, SDXL_ID, SDXL_REVISION

    if spec == "sdxl":
        return SDXL_ID, SDXL_REVISION
    if spec == "mini":
        raise ModelError("mini is built in: it is always here and cannot be pulled or removed.")
    if not HUB_ID.fullmatch(spec) or spec.startswith("."):
        raise ModelError(f"{spec!r} is not a model of the hub.", hint="Give sdxl or owner/name.")
    id, _, revision = spec.partition("@")
    return id, revision or None


def _is_folder(spec: str) -> bool:
    return spec == "mini" or (spec != "" and Path(spec).expanduser().is_dir())


def _folder(spec: str, folder: Path) -> Model:
    return Model(spec, spec, None, folder, folder_size(folder), None, _lack(folder))


def _model(snapshot: Snapshot) -> Model:
    return Model(
        spec=_spec(snapshot),
        id=snapshot.id,
        revision=snapshot.revision,
        path=snapshot.path,
        bytes=snapshot.bytes(),
        last_used=snapshot.last_used(),
        problem=_lack(snapshot.path),
    )


def _spec(snapshot: Snapshot) -> str:
    """The shortest name that means this very commit."""
    from unziplora_cli.sdxl.base import SDXL_ID, SDXL_REVISION

    if (snapshot.id, snapshot.revision) == (SDXL_ID, SDXL_REVISION):
        return "sdxl"
    first = find_cached(snapshot.id).revision
    return snapshot.id if first == snapshot.revision else f"{snapshot.id}@{snapshot.revision}"


def _strategy(snapshot: Snapshot) -> "DeleteCacheStrategy | None":
    """The hub library's plan to delete a commit; None for repositories that it calls damaged."""
    from huggingface_hub import scan_cache_dir

    scan = scan_cache_dir(paths.hub_cache())
    for each in scan.repos:
        if each.repo_path.name == snapshot.repository.name:
            return replace(scan, repos=frozenset({each})).delete_revisions(snapshot.revision)
    return None


def _own_blobs(snapshot: Snapshot) -> set[Path]:
    """The blobs that no other commit of the repository uses."""
    mine = {blob_path(file) for file in snapshot.files()}
    others = (each for each in list_snapshots(snapshot.id) if each != snapshot)
    kept = {blob_path(file) for other in others for file in other.files()}
    return {file for file in mine - kept if file is not None and file.exists()}


def _hub_hash(file: Path) -> str:
    """The hash that names a file's blob; empty for a copy."""
    name = getattr(blob_path(file), "name", "")
    return name if len(name) in (40, 64) else ""


def _cut_short(file: Path) -> str:
    """What is wrong with a file of weights, by what it says of itself."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, framework="numpy"):
            return ""
    except (OSError, SafetensorError) as error:
        return f"is damaged: {error}"


def _damage(file: Path, expected: str) -> str:
    """What is wrong with one file."""
    if not file.exists():
        return "is missing"
    if len(expected) == 40:
        data = file.read_bytes()
        actual = hashlib.sha1(b"blob %d\0" % len(data) + data, usedforsecurity=False).hexdigest()
    else:
        actual = sha256(file) if expected else ""
    return "" if actual == expected else "is damaged: its hash is not the hub's"
