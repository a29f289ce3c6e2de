"""Which files on the disk are a pair: a release of the paper's authors, our own exports, or any two LoRAs."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

import unziplora_cli
from unziplora_cli import files
from unziplora_cli.config import Prompts, Words
from unziplora_cli.errors import AdapterError, UsageError
from unziplora_cli.projects import manifest
from unziplora_cli.projects.manifest import Artifact, BaseRecord, Manifest
from unziplora_cli.projects.store import Project, ProjectStore
from unziplora_cli.prompts import make_prompts
from unziplora_cli.workflows.export_lora import check_compatible
from unziplora_cli.workflows.provenance import origin
from unziplora_cli.workflows.train import LORA_FORMAT, MERGE_FORMAT, copy_images, disk_errors

if TYPE_CHECKING:
    from torch import Tensor

    from unziplora_cli.adapters.lora_file import LoadedLoRA
    from unziplora_cli.method.lora import LoRA, MergeWeights


BRANCHES = ("content", "style")
RELEASED = "pytorch_lora_weights.safetensors"
"""What a LoRA is called in a folder that diffusers wrote, as the authors' releases are."""

_CALLED = {"merge": r"merge", "combined": r"combined", "content": r"content|subject", "style": r"style"}
_PAIR = "Name the content LoRA, then the style LoRA: unziplora import CONTENT STYLE"


@dataclass(frozen=True)
class AdapterPair:
    """The files of one import; without a file of merge weights a branch's are one."""

    name: str
    content: Path
    style: Path
    content_merge: Path | None = None
    style_merge: Path | None = None


def find(paths: Sequence[Path]) -> AdapterPair:
    """Which files are meant by a folder, by a release's ``FOLDER/NAME``, or by the files themselves.

    A file tells what it is by its metadata if it is ours, else by its name; of two that tell nothing, the
    first is the content. What is called as a given file is but for the branch, and lies beside it, is found.
    Raises AdapterError when there is no pair, UsageError when it is not clear which.
    """
    if len(paths) == 1:
        path = paths[0]
        release = _release(path)
        if release is not None:
            return release
        if path.is_dir():
            files = sorted([*path.glob("*.safetensors"), *path.glob("*.pth")])
            return _pair(files, path.resolve().name, ordered=False)
    missing = [path for path in paths if not path.is_file()]
    if missing:
        raise AdapterError(f"There is no file or folder {missing[0]}.", hint="Check the spelling.")
    beside = [
        path.with_name(path.name.replace(role, other))
        for path in paths
        if (role := _role(path)) in BRANCHES
        for other in ((*BRANCHES, "merge") if len(paths) == 1 else ("merge",))
    ]
    files = dict.fromkeys([*paths, *(each for each in beside if each.is_file())])
    return _pair(list(files), paths[0].stem, ordered=True)


def read_metadata(path: Path) -> Mapping[str, str]:
    """What a safetensors file says about itself; nothing when it cannot be read, as reading it will tell."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            return file.metadata() or {}
    except (SafetensorError, OSError, AttributeError, ValueError, TypeError):
        return {}


def _release(path: Path) -> AdapterPair | None:
    """A release of the authors: ``NAME_content/``, ``NAME_style/``, ``NAME_merger_….pth`` in one folder.

    ``path`` is that folder, one of the two in it, or the folder and ``NAME``.
    """
    path = path.absolute()
    named = _named_release(path)
    if named is not None or not path.is_dir():
        return named
    for branch in BRANCHES:
        if (path / RELEASED).is_file() and path.name.endswith(f"_{branch}"):
            return _named_release(path.with_name(path.name.removesuffix(f"_{branch}")))
    loras = path.glob(f"*_content/{RELEASED}")
    names = sorted(half.parent.name.removesuffix("_content") for half in loras)
    if len(names) > 1:
        raise UsageError(
            f"{path} holds {len(names)} pairs: {', '.join(names[:8])}.",
            hint=f"Name one: unziplora import {path / names[0]}",
        )
    return _named_release(path / names[0]) if names else None


def _named_release(path: Path) -> AdapterPair | None:
    loras = [path.with_name(f"{path.name}_{branch}") / RELEASED for branch in BRANCHES]
    merges = [path.with_name(f"{path.name}_merger_{branch}.pth") for branch in BRANCHES]
    lacking = [half for half in loras if not half.is_file()]
    if len(lacking) == 2:
        return None
    if lacking:
        raise AdapterError(f"There is no file {lacking[0]}.", hint="Fetch the release again.")
    return AdapterPair(path.name, *loras, *(merge if merge.is_file() else None for merge in merges))


def _pair(paths: Sequence[Path], name: str, *, ordered: bool) -> AdapterPair:
    """Sort files into content, style and merge weights; ``ordered`` files mean something by their place."""
    of: dict[str, list[Path]] = {role: [] for role in (*_CALLED, "unknown")}
    for path in paths:
        of[_role(path)].append(path)
    for branch in BRANCHES:
        if not of[branch] and of["unknown"] and (ordered or len(of["unknown"]) == 1):
            of[branch].append(of["unknown"].pop(0))
    listed = ", ".join(path.name for path in (*of["content"], *of["style"], *of["unknown"]))
    if of["unknown"] or len(of["content"]) > 1 or len(of["style"]) > 1:
        raise UsageError(f"It is not clear which files are the pair: {listed}.", hint=_PAIR)
    if of["combined"] and not of["content"] and not of["style"]:
        raise AdapterError(
            f"{of['combined'][0].name} is content and style added up, which cannot be taken apart again.",
            hint="Export both alone: unziplora export PROJECT",
        )
    for branch in BRANCHES:
        if not of[branch]:
            raise AdapterError(f"There is no {branch} LoRA; found: {listed or 'none'}.", hint=_PAIR)
    (content,), (style,) = of["content"], of["style"]
    told = {read_metadata(path).get("unziplora.project", "") for path in (content, style)}
    if len(told) == 1 and (project := told.pop()):
        name = project
    return AdapterPair(
        re.sub(r"[-_. ]?(content|subject)$", "", name, flags=re.IGNORECASE) or name,
        content,
        style,
        _merge_of("content", content, of["merge"]),
        _merge_of("style", style, of["merge"]),
    )


def _role(path: Path) -> str:
    """``content``, ``style``, ``combined``, ``merge`` or ``unknown``."""
    if path.suffix == ".pth":
        return "merge"
    metadata = read_metadata(path)
    told = "merge" if "unziplora_format" in metadata else metadata.get("unziplora.part", "")
    if told in _CALLED:
        return told
    name = path.parent.name if path.name == RELEASED else path.stem
    called = [role for role, pattern in _CALLED.items() if re.search(pattern, name, re.IGNORECASE)]
    return called[0] if called and (len(called) == 1 or called[0] == "merge") else "unknown"


def _merge_of(branch: str, lora: Path, merges: Sequence[Path]) -> Path | None:
    """The merge weights of one branch: those called after its file, else the only ones that can be meant."""
    pickled = [path for path in merges if path.suffix == ".pth" and branch in path.stem.lower()]
    possible = pickled or [path for path in merges if path.suffix != ".pth" and _of_one_training(lora, path)]
    called = [path for path in possible if path.name == lora.name.replace(branch, "merge")]
    if len(called or possible) > 1:
        names = ", ".join(path.name for path in possible)
        raise UsageError(
            f"It is not clear which merge weights belong to {lora.name}: {names}.",
            hint="Put the files of one pair into a folder of their own.",
        )
    return next(iter(called or possible), None)


def _of_one_training(*paths: Path) -> bool:
    """Whether these files may come from the same project, by what they tell."""
    projects = {read_metadata(path).get("unziplora.project") for path in paths}
    return len(projects - {None}) < 2


# From a pair of LoRA files to a project that every command takes.


_LONGEST = 200


@dataclass(frozen=True)
class Weights:
    """What the files of a pair hold; ``notes`` are for the user."""

    content: LoadedLoRA
    style: LoadedLoRA
    content_merge: MergeWeights
    style_merge: MergeWeights
    notes: tuple[str, ...] = ()

    def told(self, key: str, branch: str) -> str | None:
        """A word from a file's own metadata, if it is one of ours and fit to be shown."""
        loaded = self.content if branch == "content" else self.style
        text = loaded.metadata.get(f"unziplora.{key}", "").strip()
        return text if text and len(text) <= _LONGEST and text.isprintable() else None


@dataclass(frozen=True)
class ImportRequest:
    """One project to be made; ``picture`` is what the pair was learned from, if the user has it."""

    name: str
    weights: Weights
    words: Words
    base: BaseRecord
    picture: Path | None = None
    force: bool = False


def read(pair: AdapterPair) -> Weights:
    """Read and check the files of a pair; raises AdapterError."""
    from unziplora_cli.adapters.lora_file import read_lora

    content, style = read_lora(pair.content), read_lora(pair.style)
    notes = tuple(
        f"There are no merge weights for the {branch}: all are 1."
        for branch, path in zip(BRANCHES, (pair.content_merge, pair.style_merge), strict=True)
        if path is None
    )
    return Weights(
        content,
        style,
        _merge("content", pair.content_merge, content.lora),
        _merge("style", pair.style_merge, style.lora),
        notes,
    )


def import_pair(order: ImportRequest, store: ProjectStore) -> Project:
    """Make a project of the weights, without rounding them; nothing is left behind when it fails.

    Raises AdapterError when they do not fit the base, UsageError for a bad picture, ProjectError when the
    name is taken or the disk refuses.
    """
    weights = order.weights
    check_compatible(
        order.base, weights.content.lora, weights.style.lora, weights.content_merge, weights.style_merge
    )
    with disk_errors(store.home), store.create(order.name, force=order.force) as folder:
        source = copy_images((order.picture,), folder) if order.picture else ()
        prompts = _prompts(order)
        _write(order, prompts, folder)
        manifest.write(
            folder,
            Manifest(
                name=order.name,
                created=manifest.now(),
                tool_version=unziplora_cli.__version__,
                base=order.base,
                source=source,
                words=order.words,
                prompts=prompts,
                training={},
                seed=0,
                device="none",
                versions={name: version(name) for name in ("torch", "safetensors")},
                seconds=0.0,
                steps_done=0,
                state="complete",
                artifacts=_artifacts(folder, {"content": weights.content.rank, "style": weights.style.rank}),
            ),
        )
    return store.open(order.name)


def _merge(branch: str, path: Path | None, lora: LoRA) -> dict[str, Tensor]:
    """One branch's merge weights, one where the file has none; raises AdapterError when they do not fit."""
    import torch

    from unziplora_cli.adapters.merge_weights import read_merge, read_pickled_merge

    merge: MergeWeights = {}
    if path is not None and path.suffix == ".pth":
        found, merge = read_pickled_merge(path)
        if found != branch:
            raise AdapterError(
                f"{path.name} holds the merge weights of the {found}, not of the {branch}.",
                hint="Two files were mixed up; fetch them again.",
            )
    elif path is not None:
        both = read_merge(path)
        merge = both.content if branch == "content" else both.style
    columns = {layer: weights.up.shape[0] for layer, weights in lora.items()}
    for layer, values in merge.items():
        if columns.get(layer, len(values)) != len(values):
            raise AdapterError(
                f"{path.name if path else ''} does not fit the {branch} LoRA: {layer} has {columns[layer]} "
                f"columns there and {len(values)} here.",
                hint="Take all files of one training.",
            )
    return {**{layer: torch.ones(width) for layer, width in columns.items()}, **merge}


def _prompts(order: ImportRequest) -> Prompts:
    """The prompts of the training where the files tell them and the words are theirs, else new ones."""
    one, other = order.weights.content.metadata, order.weights.style.metadata
    told = one.get("unziplora.prompts", "")
    words = (one.get("unziplora.subject"), one.get("unziplora.style"), one.get("unziplora.trigger"))
    if told == other.get("unziplora.prompts") and words == (
        order.words.subject,
        order.words.style,
        order.words.trigger,
    ):
        try:
            given = json.loads(told)
            if all(isinstance(text, str) and text.isprintable() for text in given.values()):
                return make_prompts(order.words, None, given)
        except (ValueError, TypeError, AttributeError, RecursionError, UsageError):
            pass  # a stranger's text is not worth an error
    return make_prompts(order.words)


def _write(order: ImportRequest, prompts: Prompts, folder: Path) -> None:
    from unziplora_cli.adapters.lora_file import exact_dtype, write_lora
    from unziplora_cli.adapters.merge_weights import write_merge
    from unziplora_cli.adapters.metadata import project_metadata

    weights = order.weights
    about = project_metadata(origin(order.name, order.base, order.words, prompts, picture=order.picture))
    for branch, lora in (("content", weights.content.lora), ("style", weights.style.lora)):
        write_lora(folder / f"{branch}.safetensors", lora, about[branch], dtype=exact_dtype(lora))
    write_merge(folder / "merge.safetensors", weights.content_merge, weights.style_merge, about["merge"])


def _artifacts(folder: Path, ranks: Mapping[str, int]) -> tuple[Artifact, ...]:
    return tuple(
        Artifact(
            role=role,
            path=f"{role}.safetensors",
            sha256=files.sha256(folder / f"{role}.safetensors"),
            bytes=(folder / f"{role}.safetensors").stat().st_size,
            format=MERGE_FORMAT if role == "merge" else LORA_FORMAT,
            rank=ranks.get(role),
        )
        for role in ("content", "style", "merge")
    )
