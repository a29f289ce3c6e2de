"""Base models on this disk: the built-in one and those in Hugging Face's cache, which are used in place."""

import hashlib
import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from unziplora_cli import paths, resources
from unziplora_cli.errors import ModelError, Remedy
from unziplora_cli.files import Problem, folder_size, sha256
from unziplora_cli.hub import DESCRIBER, Snapshot, blob_path, check_transformers, list_snapshots
from unziplora_cli.sdxl.base import HUB_ID, SDXL_ID, SDXL_REVISION, check_folder, find_vae

if TYPE_CHECKING:
    from huggingface_hub import DeleteCacheStrategy

VAE_FIX = "madebyollin/sdxl-vae-fp16-fix"
"""SDXL's VAE, modified to work in fp16."""


@dataclass(frozen=True)
class Model:
    """A model on this disk. `spec` is a value for `--base`; `problem` is empty if the model is complete.

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
    """The result of `verify`; `checked` files have a hash of the hub, `unchecked` ones do not."""

    model: Model
    checked: int
    unchecked: int
    problems: tuple[Problem, ...]


def list_models() -> tuple[Model, ...]:
    """The built-in base, then every cached SDXL-class model and VAE, by name."""
    cached = [_cached_model(snapshot) for snapshot in list_snapshots() if _is_used(snapshot)]
    return _folder_model("mini", resources.mini_base()), *cached


def locate(spec: str) -> Path:
    """The folder of a model; raises ModelError if it is not on this disk."""
    if spec == "mini":
        return resources.mini_base()
    return Path(spec).expanduser().resolve() if _is_folder(spec) else find_cached(spec).path


def find_cached(spec: str) -> Snapshot:
    """The cached commit of `spec`; raises ModelError."""
    id, revision = hub_id(spec)
    for snapshot in list_snapshots(id):
        if _is_used(snapshot) and revision in (None, snapshot.revision, *snapshot.refs):
            return snapshot
    raise ModelError(f"{spec} is not on this disk.", Remedy("List those that are", command="models list"))


def describe_snapshot(id: str, revision: str) -> Model:
    """A commit in Hugging Face's cache."""
    return _cached_model(next(s for s in list_snapshots(id) if s.revision == revision))


def hub_id(spec: str) -> tuple[str, str | None]:
    """Id and revision of `sdxl`, `describer`, `owner/name` or `owner/name@revision`; raises ModelError."""
    if spec == "describer":
        return DESCRIBER, None
    if spec == "sdxl":
        return SDXL_ID, SDXL_REVISION
    if spec == "mini":
        raise ModelError("mini is built in: it cannot be pulled or removed.")
    if not HUB_ID.fullmatch(spec) or spec.startswith("."):
        raise ModelError(f"{spec!r} is not the id of a model on the hub.", Remedy("Give sdxl or owner/name."))
    id, _, revision = spec.partition("@")
    return id, revision or None


def check_supported(id: str, revision: str) -> None:
    """Raise ModelError if a cached commit, of which the small files suffice, cannot be used."""
    snapshot = next(s for s in list_snapshots(id) if s.revision == revision)
    if not _is_used(snapshot):
        name = snapshot.class_name
        raise ModelError(
            f"{id} is {'a ' + name if name else 'not a diffusers model'}, not an SDXL-class model or a VAE.",
            Remedy("Use SDXL or a model made from it", command="models pull", arguments=("sdxl",)),
        )


# Verify


def verify(spec: str) -> Verification:
    """Check that a model is complete and its files are intact, without the network.

    The cache names its blobs by the hub's hash: SHA-256, or git's SHA-1 for small files. Copies, on a file
    system without links, have no hash to compare with. In other folders, truncated weights are detected.
    """
    if _is_folder(spec):
        folder = locate(spec)
        files = sorted(folder.glob("**/*.safetensors"))
        problems = [Problem(file.relative_to(folder).as_posix(), _truncation(file)) for file in files]
        damaged = tuple(problem for problem in problems if problem.reason)
        return Verification(_folder_model(spec, folder), 0, len(files), damaged)
    snapshot = find_cached(spec)
    hashes = {file: _hub_hash(file) for file in snapshot.files()}
    reasons = {file.relative_to(snapshot.path): _damage(file, digest) for file, digest in hashes.items()}
    damaged = tuple(Problem(file.as_posix(), reason) for file, reason in reasons.items() if reason)
    checked = sum(digest != "" for digest in hashes.values())
    return Verification(_cached_model(snapshot), checked, len(hashes) - checked, damaged)


def _hub_hash(file: Path) -> str:
    """The hash in the name of a file's blob; empty for a copy."""
    name = getattr(blob_path(file), "name", "")
    return name if len(name) in (40, 64) else ""


def _damage(file: Path, expected: str) -> str:
    if not file.exists():
        return "is missing"
    if len(expected) == 40:
        data = file.read_bytes()
        actual = hashlib.sha1(b"blob %d\0" % len(data) + data, usedforsecurity=False).hexdigest()
    else:
        actual = sha256(file) if expected else ""
    return "" if actual == expected else "is damaged: its hash differs from the hub's"


def _truncation(file: Path) -> str:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, framework="numpy"):
            return ""
    except (OSError, SafetensorError) as error:
        return f"is damaged: {error}"


# Remove


@dataclass(frozen=True)
class Removal:
    """The deletion of one commit; `bytes` is what it frees, without files shared with other commits."""

    snapshot: Snapshot
    bytes: int

    def run(self) -> None:
        """Delete the commit."""
        strategy = _delete_strategy(self.snapshot)
        if strategy is not None:
            strategy.execute()
            return
        for blob in _exclusive_blobs(self.snapshot):
            blob.unlink()
        for ref in self.snapshot.refs:
            (self.snapshot.repository / "refs" / ref).unlink()
        shutil.rmtree(self.snapshot.repository if self.snapshot.is_only_revision else self.snapshot.path)


def plan_removal(snapshot: Snapshot) -> Removal:
    """What deleting a commit would free."""
    strategy = _delete_strategy(snapshot)
    if strategy is not None:
        freed = strategy.expected_freed_size
    else:
        freed = sum(blob.lstat().st_size for blob in _exclusive_blobs(snapshot))
    return Removal(snapshot, freed + snapshot.incomplete_bytes())


def _delete_strategy(snapshot: Snapshot) -> "DeleteCacheStrategy | None":
    """The library's plan to delete a commit; None for models with missing files, which it ignores."""
    from huggingface_hub import scan_cache_dir

    scan = scan_cache_dir(paths.hub_cache())
    for repository in scan.repos:  # the plan takes every model that has the commit, so it gets only this one
        if repository.repo_path.name == snapshot.repository.name:
            return replace(scan, repos=frozenset({repository})).delete_revisions(snapshot.revision)
    return None


def _exclusive_blobs(snapshot: Snapshot) -> set[Path]:
    """The blobs that no other commit of the model uses."""
    others = (other for other in list_snapshots(snapshot.id) if other != snapshot)
    shared = {blob_path(file) for other in others for file in other.files()}
    blobs = {blob_path(file) for file in snapshot.files()} - shared
    return {blob for blob in blobs if blob is not None and blob.exists()}


# Descriptions


def _is_folder(spec: str) -> bool:
    return spec == "mini" or (spec != "" and Path(spec).expanduser().is_dir())


def _folder_model(spec: str, folder: Path) -> Model:
    return Model(spec, spec, None, folder, folder_size(folder), None, _problem(folder))


def _cached_model(snapshot: Snapshot) -> Model:
    return Model(
        spec=_spec(snapshot),
        id=snapshot.id,
        revision=snapshot.revision,
        path=snapshot.path,
        bytes=snapshot.bytes(),
        last_used=snapshot.last_used(),
        problem=_problem(snapshot.path, is_describer=snapshot.id == DESCRIBER),
    )


def _spec(snapshot: Snapshot) -> str:
    """The shortest spec of exactly this commit."""
    if (snapshot.id, snapshot.revision) == (SDXL_ID, SDXL_REVISION):
        return "sdxl"
    default = find_cached(snapshot.id).revision
    name = "describer" if snapshot.id == DESCRIBER else snapshot.id
    return name if default == snapshot.revision else f"{snapshot.id}@{snapshot.revision}"


def _is_used(snapshot: Snapshot) -> bool:
    return snapshot.is_supported or snapshot.id == DESCRIBER


def _problem(folder: Path, *, is_describer: bool = False) -> str:
    """What a model lacks; empty if it is complete."""
    try:
        if is_describer:
            check_transformers(folder)
        elif (folder / "config.json").is_file() and not (folder / "model_index.json").is_file():
            find_vae(str(folder))
        else:
            check_folder(folder)
    except ModelError as error:
        return error.message
    return ""
