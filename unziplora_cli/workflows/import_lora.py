"""Import a pair of LoRAs as a project: a release of the paper's authors, exported files, or any two LoRAs."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import torch
from torch import Tensor

from unziplora_cli.adapters.lora_file import (
    STANDARD_NAMES,
    LoadedLoRA,
    exact_dtype,
    lora_in,
    read_lora,
    write_lora,
)
from unziplora_cli.adapters.merge_weights import read_merge, read_pickled_merge, write_merge
from unziplora_cli.adapters.metadata import project_metadata
from unziplora_cli.adapters.tensors import is_safetensors, read_metadata
from unziplora_cli.config import Prompts, Words
from unziplora_cli.errors import AdapterError, Remedy, UsageError
from unziplora_cli.job import BaseRecord, Job, now
from unziplora_cli.method.layer import BRANCHES
from unziplora_cli.method.lora import LoRA, LoRAPair, MergeWeights
from unziplora_cli.projects import manifest
from unziplora_cli.projects.manifest import Manifest
from unziplora_cli.projects.names import check_name, slugify
from unziplora_cli.projects.store import Project, ProjectStore
from unziplora_cli.prompts import TRIGGER, make_prompts, make_words
from unziplora_cli.workflows.export_lora import check_compatible, detect_base, lookup_base
from unziplora_cli.workflows.train import copy_images, read_sources

RELEASED = STANDARD_NAMES[0]
"""The name of a LoRA in the authors' releases."""

_ROLES = {"merge": r"merge", "combined": r"combined", "content": r"content|subject", "style": r"style"}
"""The roles of files, and the words in a file name that mean them."""

_NAME_BOTH = Remedy(
    "Name the content LoRA, then the style LoRA", command="import", arguments=("CONTENT", "STYLE")
)
_LONGEST_TEXT = 200


@dataclass(frozen=True)
class AdapterPair:
    """The files of one import; a branch without a file of merge weights gets merge weights of one."""

    name: str
    content: Path
    style: Path
    content_merge: Path | None = None
    style_merge: Path | None = None


@dataclass(frozen=True)
class LoadedPair:
    """The contents of a pair's files; ``notes`` are for the user."""

    content: LoadedLoRA
    style: LoadedLoRA
    content_merge: MergeWeights
    style_merge: MergeWeights
    notes: tuple[str, ...] = ()

    @property
    def loras(self) -> LoRAPair:
        """Both LoRAs with their merge weights."""
        return LoRAPair(self.content.lora, self.style.lora, self.content_merge, self.style_merge)

    def word(self, key: str, branch: str) -> str | None:
        """A word from the metadata of an exported file; None if missing, too long or not printable."""
        loaded = self.content if branch == "content" else self.style
        text = loaded.metadata.get(f"unziplora.{key}", "").strip()
        return text if text and len(text) <= _LONGEST_TEXT and text.isprintable() else None


@dataclass(frozen=True)
class ImportedProject:
    """A project made of LoRA files; ``replaced`` says what was kept of the project that it replaces."""

    project: Project
    sources: AdapterPair
    pair: LoadedPair
    replaced: tuple[str, ...]


def import_project(
    store: ProjectStore,
    paths: Sequence[Path],
    words: Mapping[str, str | None],
    missing: Callable[[str, BaseRecord], str],
    *,
    name: str | None = None,
    base: str | None = None,
    image: Path | None = None,
    force: bool = False,
) -> ImportedProject:
    """Make a project of the files of a pair; the name, the words and the base come from them if not given.

    ``words`` are subject, style and trigger. ``missing(word, base)`` returns a word that neither they nor the
    files name. Raises as :func:`find_pair`, :func:`read_pair` and :func:`import_pair` do.
    """
    if name is not None:
        check_name(name)
    if image is not None:
        read_sources([image])
    sources = find_pair(paths)
    pair = read_pair(sources)
    record = detect_base(pair.loras) if base is None else lookup_base(base)

    def word(key: str, branch: str) -> str | None:
        return pair.word(key, branch) if words.get(key) is None else words[key]

    subject, style = word("subject", "content"), word("style", "style")
    chosen = make_words(
        missing("subject", record) if subject is None else subject,
        missing("style", record) if style is None else style,
        word("trigger", "content") or TRIGGER,
    )
    name = slugify(sources.name) if name is None else name
    former = store.former_versions(name)
    project = import_pair(store, name, pair, chosen, record, image=image, force=force)
    return ImportedProject(project, sources, pair, tuple(store.replaced_notes(name, former)))


def find_pair(paths: Sequence[Path]) -> AdapterPair:
    """Find the files of a pair, given a folder, a release as ``FOLDER/NAME``, or the files themselves.

    The role of a file follows from its metadata if we wrote it, else from its name; of two files without
    either, the first is the content. Files beside a given one that differ only in the role are found too.
    Raises AdapterError when there is no pair, UsageError when it is ambiguous.
    """
    if len(paths) == 1:
        path = paths[0]
        release = _find_release(path.absolute())
        if release is not None:
            return release
        if path.is_dir():
            listed = sorted(file for file in path.iterdir() if is_safetensors(file) or _is_pickled(file))
            return _sort_files(listed, path.resolve().name, ordered=False)
    paths = [lora_in(path) for path in paths]
    missing = [path for path in paths if not path.exists()]
    if missing:
        raise AdapterError(f"There is no file or folder {missing[0]}.", Remedy("Check the spelling."))
    siblings = [
        path.with_name(path.name.replace(role, other))
        for path in paths
        if (role := _role(path)) in BRANCHES
        for other in ((*BRANCHES, "merge") if len(paths) == 1 else ("merge",))
    ]
    listed = list(dict.fromkeys([*paths, *(path for path in siblings if path.is_file())]))
    return _sort_files(listed, paths[0].stem, ordered=True)


def read_pair(pair: AdapterPair) -> LoadedPair:
    """Read and check the files of a pair; raises AdapterError."""
    content, style = read_lora(pair.content), read_lora(pair.style)
    notes = tuple(
        f"There are no merge weights for the {branch}: all are 1."
        for branch, path in zip(BRANCHES, (pair.content_merge, pair.style_merge), strict=True)
        if path is None
    )
    return LoadedPair(
        content,
        style,
        _read_merge("content", pair.content_merge, content.lora),
        _read_merge("style", pair.style_merge, style.lora),
        notes,
    )


def import_pair(
    store: ProjectStore,
    name: str,
    pair: LoadedPair,
    words: Words,
    base: BaseRecord,
    *,
    image: Path | None = None,
    force: bool = False,
) -> Project:
    """Make a project of a pair without rounding its weights; when it fails, nothing is left behind.

    ``image`` is the image that the pair was trained on. Raises AdapterError when the LoRAs do not fit the
    base, UsageError for an unusable image, ProjectError when the name is taken or the disk fails.
    """
    check_compatible(base, pair.loras)
    with store.home_errors(), store.create(name, force=force) as folder:
        images = (image,) if image else ()
        sources = read_sources(images)
        copy_images(images, sources, folder)
        job = Job(
            name=name, created=now(), base=base, images=sources, words=words, prompts=_prompts(pair, words)
        )
        metadata = project_metadata(job, image)
        for branch, loaded in (("content", pair.content), ("style", pair.style)):
            path = folder / f"{branch}.safetensors"
            write_lora(path, loaded.lora, metadata[branch], dtype=exact_dtype(loaded.lora))
        write_merge(folder / "merge.safetensors", pair.content_merge, pair.style_merge, metadata["merge"])
        manifest.write(
            folder,
            Manifest(
                job=job,
                versions={name: version(name) for name in ("torch", "safetensors")},
                seconds=0.0,
                steps_done=0,
                state="complete",
                artifacts=manifest.adapter_artifacts(folder, pair.content.rank, pair.style.rank),
            ),
        )
    return store.open(name)


# Files and their roles


def _find_release(path: Path) -> AdapterPair | None:
    """A release of the authors: ``NAME_content/``, ``NAME_style/``, ``NAME_merger_….pth`` in one folder.

    ``path`` is that folder, one of the two in it, or the folder with ``NAME``.
    """
    release = _named_release(path)
    if release is not None or not path.is_dir():
        return release
    for branch in BRANCHES:
        if (path / RELEASED).is_file() and path.name.endswith(f"_{branch}"):
            return _named_release(path.with_name(path.name.removesuffix(f"_{branch}")))
    contents = path.glob(f"*_content/{RELEASED}")
    names = sorted(content.parent.name.removesuffix("_content") for content in contents)
    if len(names) > 1:
        raise UsageError(
            f"{path} holds {len(names)} pairs: {', '.join(names[:8])}.",
            Remedy("Name one", command="import", arguments=(str(path / names[0]),)),
        )
    return _named_release(path / names[0]) if names else None


def _named_release(path: Path) -> AdapterPair | None:
    loras = [path.with_name(f"{path.name}_{branch}") / RELEASED for branch in BRANCHES]
    merges = [path.with_name(f"{path.name}_merger_{branch}.pth") for branch in BRANCHES]
    missing = [lora for lora in loras if not lora.is_file()]
    if len(missing) == 2:
        return None
    if missing:
        raise AdapterError(f"There is no file {missing[0]}.", Remedy("Download the release again."))
    return AdapterPair(path.name, *loras, *(merge if merge.is_file() else None for merge in merges))


def _sort_files(paths: Sequence[Path], name: str, *, ordered: bool) -> AdapterPair:
    """Sort files by their role; if ``ordered``, files of unknown role are content and style by position."""
    by_role: dict[str, list[Path]] = {role: [] for role in (*_ROLES, "unknown")}
    for path in paths:
        by_role[_role(path)].append(path)
    unknown, combined = by_role["unknown"], by_role["combined"]
    for branch in BRANCHES:
        if not by_role[branch] and unknown and (ordered or len(unknown) == 1):
            by_role[branch].append(unknown.pop(0))
    contents, styles = by_role["content"], by_role["style"]
    listed = ", ".join(path.name for path in (*contents, *styles, *unknown)) or "none"
    if unknown or len(contents) > 1 or len(styles) > 1:
        raise UsageError(f"It is not clear which files are the pair: {listed}.", _NAME_BOTH)
    if combined and not contents and not styles:
        raise AdapterError(
            f"{combined[0].name} is the sum of content and style, which cannot be taken apart again.",
            Remedy("Export both separately", command="export", arguments=("PROJECT",)),
        )
    for branch in BRANCHES:
        if not by_role[branch]:
            raise AdapterError(f"There is no {branch} LoRA; found: {listed}.", _NAME_BOTH)
    projects = {read_metadata(path).get("unziplora.project", "") for path in (*contents, *styles)}
    if len(projects) == 1:
        name = projects.pop() or name
    return AdapterPair(
        re.sub(r"[-_. ]?(content|subject)$", "", name, flags=re.IGNORECASE) or name,
        contents[0],
        styles[0],
        _merge_file("content", contents[0], by_role["merge"]),
        _merge_file("style", styles[0], by_role["merge"]),
    )


def _role(path: Path) -> str:
    """``content``, ``style``, ``combined``, ``merge`` or ``unknown``."""
    if _is_pickled(path):
        return "merge"
    metadata = read_metadata(path)
    role = "merge" if "unziplora_format" in metadata else metadata.get("unziplora.part", "")
    if role in _ROLES:
        return role
    name = path.parent.name if path.name in STANDARD_NAMES else path.stem
    roles = [role for role, pattern in _ROLES.items() if re.search(pattern, name, re.IGNORECASE)]
    return roles[0] if roles and (len(roles) == 1 or roles[0] == "merge") else "unknown"


def _is_pickled(path: Path) -> bool:
    return path.suffix.lower() == ".pth" and not path.name.startswith("._")


def _merge_file(branch: str, lora: Path, merges: Sequence[Path]) -> Path | None:
    """The merge weights of one branch: those named after its LoRA, else the only possible ones."""
    pickled = [path for path in merges if _is_pickled(path) and branch in path.stem.lower()]
    possible = pickled or [path for path in merges if not _is_pickled(path) and _same_project(lora, path)]
    named = [path for path in possible if path.name == lora.name.replace(branch, "merge")]
    if len(named or possible) > 1:
        names = ", ".join(path.name for path in possible)
        raise UsageError(
            f"It is not clear which merge weights belong to {lora.name}: {names}.",
            Remedy("Put the files of one pair into a folder of their own."),
        )
    return next(iter(named or possible), None)


def _same_project(*paths: Path) -> bool:
    """Whether the metadata of these files allows that they come from one project."""
    projects = {read_metadata(path).get("unziplora.project") for path in paths}
    return len(projects - {None}) < 2


# Contents of the files


def _read_merge(branch: str, path: Path | None, lora: LoRA) -> dict[str, Tensor]:
    """The merge weights of one branch, one where the file has none; raises AdapterError on a mismatch."""
    merge: MergeWeights = {}
    if path is not None and _is_pickled(path):
        stored_branch, merge = read_pickled_merge(path)
        if stored_branch != branch:
            raise AdapterError(
                f"{path.name} holds the merge weights of the {stored_branch}, not of the {branch}.",
                Remedy("The files were mixed up; download them again."),
            )
    elif path is not None:
        both = read_merge(path)
        merge = both.content if branch == "content" else both.style
    columns = {layer: weights.up.shape[0] for layer, weights in lora.items()}
    for layer, values in merge.items():
        if columns.get(layer, len(values)) != len(values):
            raise AdapterError(
                f"{path.name if path else ''} does not match the {branch} LoRA: {layer} has {columns[layer]} "
                f"columns there and {len(values)} here.",
                Remedy("Use the files of one training."),
            )
    return {**{layer: torch.ones(width) for layer, width in columns.items()}, **merge}


def _prompts(pair: LoadedPair, words: Words) -> Prompts:
    """The prompts in the files' metadata if the words are the same, else new ones."""
    content, style = pair.content.metadata, pair.style.metadata
    stored = content.get("unziplora.prompts", "")
    same_words = (words.subject, words.style, words.trigger) == tuple(
        content.get(f"unziplora.{key}") for key in ("subject", "style", "trigger")
    )
    if same_words and stored == style.get("unziplora.prompts"):
        try:
            prompts = json.loads(stored)
            if all(isinstance(text, str) and text.isprintable() for text in prompts.values()):
                return make_prompts(words, None, prompts)
        except (ValueError, TypeError, AttributeError, RecursionError, UsageError):
            pass  # metadata of a foreign file must not stop the import
    return make_prompts(words)
