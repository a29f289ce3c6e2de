"""Base models on this disk: the built-in one and those in Hugging Face's own cache, which is never copied.

Only `pull` talks to the hub.
"""

import hashlib
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from unziplora_cli import paths, resources
from unziplora_cli.errors import ModelError
from unziplora_cli.project.files import Problem, folder_size, sha256

VAE_FIX = "madebyollin/sdxl-vae-fp16-fix"
"""SDXL's VAE, mended so that it works in fp16."""

# What an SDXL-class model in diffusers' layout consists of, beside its weights; and a VAE of its own.
_TEXTS = (
    "model_index.json",
    "config.json",
    "*/config.json",
    "*/*.index*.json",
    "scheduler/scheduler_config.json",
    "tokenizer*/*.json",
    "tokenizer*/*.txt",
)
_WEIGHTS = ("", "unet/", "vae/", "text_encoder/", "text_encoder_2/")
_NAMES = ("model", "diffusion_pytorch_model")


@dataclass(frozen=True)
class Model:
    """One model on this disk. `spec` is what --base takes; `problem` is empty when it is complete."""

    spec: str
    revision: str | None
    path: Path
    bytes: int
    problem: str


@dataclass(frozen=True)
class Cached:
    """One commit of a model in Hugging Face's cache, with the branches and tags that point to it."""

    id: str
    revision: str
    path: Path
    refs: tuple[str, ...]

    def bytes(self) -> int:
        """Bytes of its files on this disk."""
        return sum(file.stat().st_size for file in self.path.rglob("*") if file.is_file())


@dataclass(frozen=True)
class Download:
    """What `pull` would fetch: the files of one commit, and their bytes together."""

    id: str
    revision: str
    files: tuple[str, ...]
    bytes: int


def list_models() -> tuple[Model, ...]:
    """The built-in base, then every cached model that is of SDXL's class or a VAE, by name."""
    from unziplora_cli.diffusion import base

    mini = resources.mini_base()
    models = [Model("mini", None, mini, folder_size(mini), _lack(mini))]
    for each in _cached():
        spec = "sdxl" if (each.id, each.revision) == (base.SDXL_ID, base.SDXL_REVISION) else each.id
        models.append(_model(spec, each))
    return tuple(models)


def plan(spec: str) -> Download:
    """Ask the hub what `sdxl`, `owner/name` or `owner/name@revision` consists of; raises ModelError."""
    from huggingface_hub import HfApi

    id, revision = _hub_id(spec)
    with_sizes: Any = _from_hub(id, lambda: HfApi().model_info(id, revision=revision, files_metadata=True))
    sizes = {file.rfilename: file.size or 0 for file in with_sizes.siblings or ()}
    files = choose_files(sizes)
    if not any(file.endswith(".safetensors") for file in files):
        raise ModelError(
            f"{id} has no safetensors in diffusers' layout.",
            hint="If it is a single checkpoint, download the .safetensors yourself and give --base FILE.",
        )
    return Download(id, with_sizes.sha, tuple(files), sum(sizes[file] for file in files))


def choose_files(names: Iterable[str]) -> list[str]:
    """The files that a base needs: of each part's weights one variant, fp16 where there is one."""
    names = sorted(names)
    chosen = [name for name in names if any(_matches(name, pattern) for pattern in _TEXTS)]
    for part in _WEIGHTS:
        for ending in (".fp16*.safetensors", ".safetensors", "-?????-of-?????.safetensors"):
            found = [
                name for name in names if any(_matches(name, f"{part}{stem}{ending}") for stem in _NAMES)
            ]
            if found:
                chosen += found
                break
    return chosen


def pull(download: Download) -> Model:
    """Fetch what is missing of a download into Hugging Face's cache; raises ModelError."""
    from huggingface_hub import snapshot_download

    cache = paths.hub_cache()
    missing = download.bytes - sum(
        (file.stat().st_size for file in _present(cache, download) if file.is_file()), start=0
    )
    free = shutil.disk_usage(_existing_parent(cache)).free
    if missing > free:
        raise ModelError(
            f"{download.id} needs {missing / 1e9:.1f} GB more, but {cache} has {free / 1e9:.1f} GB free.",
            hint="Make room, or point HF_HOME at another disk.",
        )
    folder = _from_hub(
        download.id,
        lambda: snapshot_download(
            download.id,
            revision=download.revision,
            allow_patterns=list(download.files),
            cache_dir=cache,
        ),
    )
    return Model(download.id, download.revision, Path(folder), download.bytes, _lack(Path(folder)))


def verify(spec: str) -> tuple[Model, tuple[Problem, ...]]:
    """Check a model's parts and, in the hub's cache, each file against the hash that names its blob."""
    if spec == "mini" or Path(spec).expanduser().is_dir():
        folder = resources.mini_base() if spec == "mini" else Path(spec).expanduser()
        model = Model(spec, None, folder, folder_size(folder), _lack(folder))
        return model, ()
    cached = find(spec)
    problems = []
    for file in sorted(path for path in cached.path.rglob("*") if path.is_symlink() or path.is_file()):
        reason = _damage(file)
        if reason:
            problems.append(Problem(file.relative_to(cached.path).as_posix(), reason))
    return _model(spec, cached), tuple(problems)


def find(spec: str) -> Cached:
    """The cached commit that `spec` means, the newest when it names none; raises ModelError."""
    id, wanted = _hub_id(spec)
    found = [
        each
        for each in _cached()
        if each.id == id and (wanted is None or wanted == each.revision or wanted in each.refs)
    ]
    if not found:
        raise ModelError(f"{spec} is not on this disk.", hint="See what is: unziplora models list")
    return max(found, key=lambda each: ("main" in each.refs, each.path.stat().st_mtime))


def remove(cached: Cached) -> int:
    """Delete one commit from Hugging Face's cache; returns the bytes that became free."""
    from huggingface_hub import scan_cache_dir

    scan = scan_cache_dir(paths.hub_cache())
    if cached.revision in {
        revision.commit_hash for repository in scan.repos for revision in repository.revisions
    }:
        strategy = scan.delete_revisions(cached.revision)
        strategy.execute()
        return strategy.expected_freed_size
    repository = cached.path.parent.parent  # damaged, and useless to every other program too
    freed = folder_size(repository)
    shutil.rmtree(repository)
    return freed


def _cached() -> list[Cached]:
    """Every commit of every model of ours in the cache; damaged ones, which the hub library omits, too."""
    found = []
    for repository in paths.hub_cache().glob("models--*--*"):
        refs = {
            ref.relative_to(repository / "refs").as_posix(): ref.read_text(encoding="utf-8").strip()
            for ref in (repository / "refs").rglob("*")
            if ref.is_file()
        }
        id = repository.name.removeprefix("models--").replace("--", "/", 1)
        for snapshot in (repository / "snapshots").glob("*"):
            if _is_ours(snapshot):
                names = tuple(name for name, revision in refs.items() if revision == snapshot.name)
                found.append(Cached(id, snapshot.name, snapshot, names))
    return sorted(found, key=lambda each: (each.id, each.revision))


def _is_ours(folder: Path) -> bool:
    """Whether a snapshot is an SDXL pipeline or an autoencoder; other programs share the cache."""
    from unziplora_cli.diffusion.base import read_json

    for name, kind in (("model_index.json", "StableDiffusionXL"), ("config.json", "AutoencoderKL")):
        if (folder / name).is_file():
            try:
                return str(read_json(folder / name).get("_class_name", "")).startswith(kind)
            except ModelError:
                return False
    return False


def _model(spec: str, cached: Cached) -> Model:
    return Model(spec, cached.revision, cached.path, cached.bytes(), _lack(cached.path))


def _lack(folder: Path) -> str:
    """What a model lacks, or nothing."""
    from unziplora_cli.diffusion.base import check, find_vae

    try:
        if (folder / "config.json").is_file() and not (folder / "model_index.json").is_file():
            find_vae(str(folder))
        else:
            check(folder)
    except ModelError as error:
        return error.message
    return ""


def _hub_id(spec: str) -> tuple[str, str | None]:
    from unziplora_cli.diffusion.base import SDXL_ID, SDXL_REVISION

    if spec == "sdxl":
        return SDXL_ID, SDXL_REVISION
    if spec == "mini":
        raise ModelError("mini is built in: it is always here and cannot be pulled or removed.")
    id, _, revision = spec.partition("@")
    if id.count("/") != 1 or id.startswith((".", "/", "~")):
        raise ModelError(f"{spec!r} is not a model of the hub.", hint="Give sdxl or owner/name.")
    return id, revision or None


def _from_hub(id: str, ask: Any) -> Any:
    """Call the hub; each of its many errors becomes a ModelError."""
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError

    try:
        return ask()
    except GatedRepoError as error:
        raise ModelError(
            f"{id} asks you to accept its terms first.",
            hint=f"Open https://huggingface.co/{id}, accept, then: hf auth login",
        ) from error
    except RevisionNotFoundError as error:
        raise ModelError(f"{id} has no such revision.") from error
    except RepositoryNotFoundError as error:
        raise ModelError(
            f"There is no model {id} on the hub, or it is private.", hint="For a private one: hf auth login"
        ) from error
    except Exception as error:  # the HTTP library beneath, and so its errors, differ between hub versions
        raise ModelError(
            f"Cannot fetch {id}: {type(error).__name__}: {error}".splitlines()[0],
            hint="Check the connection and run the command again; what was fetched already is kept.",
        ) from error


def _damage(file: Path) -> str:
    """What is wrong with one file of a snapshot: a link to a blob that is named by its hash."""
    try:
        blob = file.resolve(strict=True)
    except OSError:
        return "is missing"
    if len(blob.name) == 64:
        actual = sha256(blob)
    elif len(blob.name) == 40:
        data = blob.read_bytes()
        actual = hashlib.sha1(b"blob %d\0" % len(data) + data, usedforsecurity=False).hexdigest()
    else:
        return ""  # a copy, on a file system without links, says nothing about its hash
    return "" if actual == blob.name else "is damaged: its hash differs"


def _present(cache: Path, download: Download) -> list[Path]:
    snapshot = cache / f"models--{download.id.replace('/', '--')}" / "snapshots" / download.revision
    return [snapshot / file for file in download.files]


def _existing_parent(folder: Path) -> Path:
    return next(parent for parent in (folder, *folder.absolute().parents) if parent.exists())


def _matches(name: str, pattern: str) -> bool:
    """Glob match in which `*` stays within one folder."""
    return name.count("/") == pattern.count("/") and fnmatchcase(name, pattern)
