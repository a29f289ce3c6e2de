"""From a pair of LoRA files to a project that every command takes."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

import unziplora_cli
from unziplora_cli.config import Prompts, Words
from unziplora_cli.errors import AdapterError, UsageError
from unziplora_cli.project import files, manifest
from unziplora_cli.project.manifest import Artifact, BaseRecord, Manifest
from unziplora_cli.project.store import Project, ProjectStore
from unziplora_cli.wording import make_prompts
from unziplora_cli.workflows.fitting import check_fits
from unziplora_cli.workflows.pairs import BRANCHES, Pair
from unziplora_cli.workflows.provenance import origin
from unziplora_cli.workflows.training import LORA_FORMAT, MERGE_FORMAT, copy_pictures, disk_errors

if TYPE_CHECKING:
    from torch import Tensor

    from unziplora_cli.formats import LoadedLoRA
    from unziplora_cli.method.lora import LoRA, MergeWeights

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
class ImportOrder:
    """One project to be made; ``picture`` is what the pair was learned from, if the user has it."""

    name: str
    weights: Weights
    words: Words
    base: BaseRecord
    picture: Path | None = None
    force: bool = False


def read(pair: Pair) -> Weights:
    """Read and check the files of a pair; raises AdapterError."""
    from unziplora_cli.formats import read_lora

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


def adopt(order: ImportOrder, store: ProjectStore) -> Project:
    """Make a project of the weights, without rounding them; nothing is left behind when it fails.

    Raises AdapterError when they do not fit the base, UsageError for a bad picture, ProjectError when the
    name is taken or the disk refuses.
    """
    weights = order.weights
    check_fits(
        order.base, weights.content.lora, weights.style.lora, weights.content_merge, weights.style_merge
    )
    with disk_errors(store.home), store.create(order.name, force=order.force) as folder:
        source = copy_pictures((order.picture,), folder) if order.picture else ()
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

    from unziplora_cli.formats.merge import read_merge, read_reference_merge

    merge: MergeWeights = {}
    if path is not None and path.suffix == ".pth":
        found, merge = read_reference_merge(path)
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


def _prompts(order: ImportOrder) -> Prompts:
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


def _write(order: ImportOrder, prompts: Prompts, folder: Path) -> None:
    from unziplora_cli.formats import exact_dtype, write_lora
    from unziplora_cli.formats.merge import write_merge
    from unziplora_cli.formats.metadata import describe_all

    weights = order.weights
    about = describe_all(origin(order.name, order.base, order.words, prompts, picture=order.picture))
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
