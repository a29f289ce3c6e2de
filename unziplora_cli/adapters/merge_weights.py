"""Merge weights: our safetensors file with both branches, and the pickled files of the authors' releases."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from unziplora_cli.adapters.tensors import DAMAGED, read_tensors, require_regular, summarize, write_tensors
from unziplora_cli.errors import AdapterError, Remedy
from unziplora_cli.method.layer import BRANCHES
from unziplora_cli.method.lora import MergeWeights

FORMAT = "unziplora-merge"
VERSION = "1"
_LARGEST_PICKLE = 1 << 30


@dataclass(frozen=True, slots=True)
class LoadedMerge:
    """The merge weights of both branches, float32 on the CPU."""

    content: MergeWeights
    style: MergeWeights


def write_merge(
    path: Path, content: MergeWeights, style: MergeWeights, metadata: Mapping[str, str] | None = None
) -> None:
    """Write both branches as float32 tensors ``<layer>.content`` and ``<layer>.style``."""
    tensors = {
        f"{layer}.{branch}": merge.float()
        for branch, weights in zip(BRANCHES, (content, style), strict=True)
        for layer, merge in weights.items()
    }
    version = {"unziplora_format": FORMAT, "unziplora_version": VERSION}
    write_tensors(path, tensors, {**(metadata or {}), **version})


def read_merge(path: Path) -> LoadedMerge:
    """Read what :func:`write_merge` wrote; raises AdapterError."""
    tensors, metadata = read_tensors(path)
    if metadata.get("unziplora_format") != FORMAT:
        raise AdapterError(
            f"{path.name} is not a file of merge weights.", Remedy("Train or import the project again.")
        )
    if metadata.get("unziplora_version") != VERSION:
        raise AdapterError(
            f"{path.name} has version {metadata.get('unziplora_version')}; this program reads {VERSION}.",
            Remedy("Use a newer version of unziplora."),
        )
    branches: dict[str, dict[str, Tensor]] = {branch: {} for branch in BRANCHES}
    unknown = []
    for key, tensor in tensors.items():
        layer, _, branch = key.rpartition(".")
        if branch in branches and tensor.ndim == 1:
            branches[branch][layer] = _checked(path, tensor)
        else:
            unknown.append(key)
    if unknown:
        raise AdapterError(f"{path.name} holds more than merge weights: {summarize(unknown)}.")
    return LoadedMerge(**branches)


def read_pickled_merge(path: Path) -> tuple[str, dict[str, Tensor]]:
    """Read the branch and the merge weights of one ``.pth`` file of a release; raises AdapterError.

    Such files are pickles; they are loaded with ``weights_only``, which runs no code.
    """
    require_regular(path, _LARGEST_PICKLE)
    try:
        with warnings.catch_warnings(action="ignore"):
            stored = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # damaged bytes make the unpickler raise nearly anything
        raise AdapterError(
            f"{path} cannot be read as merge weights: it is damaged, or it holds more than tensors.",
            Remedy("Download the file again; do not use files of unknown origin."),
        ) from error
    merges: dict[str, dict[str, Tensor]] = {branch: {} for branch in BRANCHES}
    for key, tensor in stored.items() if isinstance(stored, dict) else ():
        layer, _, branch = str(key).rpartition(".lora.merge_")
        if branch in merges and isinstance(tensor, Tensor) and tensor.ndim == 1:
            merges[branch][layer.removeprefix("unet.")] = _checked(path, tensor.detach())
    (branch, merge), *others = [(branch, merge) for branch, merge in merges.items() if merge] or [("", {})]
    if others or not merge:
        raise AdapterError(f"{path} does not hold the merge weights of one branch.")
    return branch, merge


def _checked(path: Path, merge: Tensor) -> Tensor:
    """The merge weights of a layer in float32; a pickled tensor may claim a size that it does not store."""
    stored = merge.layout == torch.strided and merge.device.type == "cpu" and not merge.is_quantized
    if not stored or merge.numel() * merge.element_size() > merge.untyped_storage().nbytes():
        raise AdapterError(f"{path.name} holds merge weights without their numbers.", DAMAGED)
    if not merge.is_floating_point() or not torch.isfinite(merge).all():
        raise AdapterError(f"{path.name} holds merge weights that are not finite numbers.", DAMAGED)
    merge = merge.float()
    if bool(((merge < 0) | (merge > 1)).any()):
        raise AdapterError(
            f"{path.name} holds merge weights outside of 0 to 1 ({float(merge.min()):.3g} to "
            f"{float(merge.max()):.3g}).",
            DAMAGED,
        )
    return merge
