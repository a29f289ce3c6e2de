"""Which files on the disk are a pair: a release of the paper's authors, our own exports, or any two LoRAs."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from unziplora_cli.errors import AdapterError, UsageError

BRANCHES = ("content", "style")
RELEASED = "pytorch_lora_weights.safetensors"
"""What a LoRA is called in a folder that diffusers wrote, as the authors' releases are."""

_CALLED = {"merge": r"merge", "combined": r"combined", "content": r"content|subject", "style": r"style"}
_PAIR = "Name the content LoRA, then the style LoRA: unziplora import CONTENT STYLE"


@dataclass(frozen=True)
class Pair:
    """The files of one import; without a file of merge weights a branch's are one."""

    name: str
    content: Path
    style: Path
    content_merge: Path | None = None
    style_merge: Path | None = None


def find(paths: Sequence[Path]) -> Pair:
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


def _release(path: Path) -> Pair | None:
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
    halves = path.glob(f"*_content/{RELEASED}")
    names = sorted(half.parent.name.removesuffix("_content") for half in halves)
    if len(names) > 1:
        raise UsageError(
            f"{path} holds {len(names)} pairs: {', '.join(names[:8])}.",
            hint=f"Name one: unziplora import {path / names[0]}",
        )
    return _named_release(path / names[0]) if names else None


def _named_release(path: Path) -> Pair | None:
    halves = [path.with_name(f"{path.name}_{branch}") / RELEASED for branch in BRANCHES]
    merges = [path.with_name(f"{path.name}_merger_{branch}.pth") for branch in BRANCHES]
    lacking = [half for half in halves if not half.is_file()]
    if len(lacking) == 2:
        return None
    if lacking:
        raise AdapterError(f"There is no file {lacking[0]}.", hint="Fetch the release again.")
    return Pair(path.name, *halves, *(merge if merge.is_file() else None for merge in merges))


def _pair(paths: Sequence[Path], name: str, *, ordered: bool) -> Pair:
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
    return Pair(
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
