"""Base models on this disk: the built-in one and those in Hugging Face's cache, which are used in place."""

import os
import re
from dataclasses import dataclass
from pathlib import Path

from unziplora_cli import resources
from unziplora_cli.errors import ModelError, Remedy
from unziplora_cli.files import Problem, delete, size_and_links
from unziplora_cli.hub import DESCRIBER, Snapshot, blob_path, check_transformers, hub_hash, list_snapshots
from unziplora_cli.paths import expand_user
from unziplora_cli.sdxl.base import HUB_ID, SDXL_ID, SDXL_REVISION, check_file, find_vae
from unziplora_cli.sdxl.folder import check_folder
from unziplora_cli.sdxl.single_file import read_header


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
    return _own_model("mini", resources.mini_base()), *cached


def locate(spec: str) -> Path:
    """The folder or the file of a model; raises ModelError if it is not on this disk."""
    if spec == "mini":
        return resources.mini_base()
    return Path(os.path.realpath(expand_user(spec))) if _is_path(spec) else find_cached(spec).path


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
    if _is_path(spec):
        raise ModelError(
            f"{spec} is your own file or folder: only models in Hugging Face's cache are pulled and removed.",
            Remedy("List those", command="models list"),
        )
    if not HUB_ID.fullmatch(spec) or any(not part.strip(".") for part in re.split("[/@]", spec)):
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
    system without links, have no hash to compare with. In other folders and files, what is compared are the
    names and shapes of the weights, and the size of each file.
    """
    if _is_path(spec):
        folder, checked = locate(spec), 0
        files = [folder] if folder.is_file() else sorted(folder.glob("**/*.safetensors"))
        reasons = {file: _header_problem(file) for file in files if file != folder}
        model = _own_model(spec, folder)
    else:
        snapshot = find_cached(spec)
        folder, files = snapshot.path, list(snapshot.files())
        hashes = {file: _hash_in_name(file) for file in files}
        reasons = {file: _damage(file, digest) for file, digest in hashes.items()}
        model, checked = _cached_model(snapshot), sum(digest != "" for digest in hashes.values())
    damaged = (Problem(f.relative_to(folder).as_posix(), reason) for f, reason in reasons.items() if reason)
    return Verification(model, checked, len(files) - checked, tuple(damaged))


def _hash_in_name(file: Path) -> str:
    """The hash in the name of a file's blob; empty for a copy."""
    name = getattr(blob_path(file), "name", "")
    return name if len(name) in (40, 64) else ""


def _damage(file: Path, expected: str) -> str:
    if not file.is_file():
        return "is missing"
    damaged = expected and hub_hash(file, expected) != expected
    return "is damaged: its hash differs from the hub's" if damaged else ""


def _header_problem(file: Path) -> str:
    try:
        read_header(file)
    except ModelError as error:
        return error.message.removeprefix(f"{file} ").rstrip(".")
    return ""


# Remove


def removable_bytes(snapshot: Snapshot) -> int:
    """What deleting a commit would free, without the files that it shares with other commits.

    The library of the hub has a plan, too, but it ignores models with missing files, follows links to
    wherever they point, and deletes equal commits of other models.
    """
    copies = {file for file in snapshot.files() if not file.is_symlink()}
    freed = sum(path.lstat().st_size for path in _exclusive_blobs(snapshot) | copies)
    return freed + snapshot.incomplete_bytes()


def remove(snapshot: Snapshot) -> None:
    """Delete a commit; what its links point to outside of the model's folder stays."""
    for path in (*_exclusive_blobs(snapshot), *(snapshot.repository / "refs" / r for r in snapshot.refs)):
        path.unlink()
    delete(snapshot.repository if snapshot.is_only_revision else snapshot.path)
    if os.path.lexists(snapshot.path):
        raise ModelError(
            f"{snapshot.path} could not be removed.", Remedy("Check the permissions of this folder.")
        )


def _exclusive_blobs(snapshot: Snapshot) -> set[Path]:
    """The blobs of the model that no other commit of it uses."""
    others = (other for other in list_snapshots(snapshot.id) if other != snapshot)
    shared = {blob_path(file) for other in others for file in other.files()}
    blobs = {blob_path(file) for file in snapshot.files()} - shared
    folder = snapshot.repository / "blobs"
    return {blob for blob in blobs if blob and blob.parent == folder and os.path.lexists(blob)}


# Descriptions


def _is_path(spec: str) -> bool:
    return spec == "mini" or (spec != "" and expand_user(spec).exists())


def _own_model(spec: str, path: Path) -> Model:
    size = path.stat().st_size if path.is_file() else size_and_links(path)[0]
    return Model(spec, spec, None, path, size, None, _problem(path))


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
    """What a model lacks, or why it cannot be used; empty if it is complete."""
    try:
        if is_describer:
            check_transformers(folder)
        elif folder.is_file():
            check_file(folder)
        elif (folder / "config.json").is_file() and not (folder / "model_index.json").is_file():
            find_vae(str(folder))
        else:
            check_folder(folder)
    except ModelError as error:
        return error.message
    return ""
