"""Files of a training: checkpoints with its whole state, and the LoRA files it produces.

Noise, timesteps and crops are functions of the step (see ``noise``), so a checkpoint holds only weights,
optimizer moments and counters. It is a safetensors file: tensors are stored as such, everything else as JSON
in the file's metadata; nothing is pickled.
"""

from __future__ import annotations

import errno
import json
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from unziplora_cli import files
from unziplora_cli.adapters.lora_file import write_lora
from unziplora_cli.adapters.merge_weights import write_merge
from unziplora_cli.adapters.tensors import read_tensors
from unziplora_cli.errors import AdapterError, ProjectError, Remedy, system_errno
from unziplora_cli.files import atomic_write
from unziplora_cli.job import Scalar, differences, identity_of_schema_1
from unziplora_cli.method.layer import BRANCHES
from unziplora_cli.method.separation import Layers, TrainedLayers
from unziplora_cli.training.events import TrainResult

FORMAT = "unziplora-training-state-3"

Identity = Mapping[str, Scalar]


class OtherTraining(ProjectError):
    """A checkpoint of a training with other settings."""


@dataclass(frozen=True, slots=True)
class TrainingState:
    """Everything that changes during a training; ``scaler`` is fp16's loss scaler."""

    layers: TrainedLayers
    optimizer: Optimizer
    lr_scheduler: LRScheduler
    scaler: torch.amp.GradScaler | None = None

    def save(self, path: Path, step: int, identity: Identity) -> None:
        """Write the state after ``step`` steps atomically.

        ``identity`` names everything that must be equal for the training to resume.
        """
        optimizer = self.optimizer.state_dict()
        tensors, scalars = _layer_tensors(self.layers), {}
        for index, state in optimizer["state"].items():
            for key, value in state.items():
                if isinstance(value, Tensor):
                    tensors[f"optimizer.{index}.{key}"] = value
                else:
                    scalars[f"{index}.{key}"] = value
        rest = {
            "step": step,
            "identity": dict(identity),
            "learning_merge": [n for n, layer in self.layers.items() if layer.content.merge.requires_grad],
            "optimizer_groups": optimizer["param_groups"],
            "optimizer_scalars": scalars,
            "lr_scheduler": self.lr_scheduler.state_dict(),
            "scaler": None if self.scaler is None else self.scaler.state_dict(),
        }
        copies = {name: tensor.detach().to("cpu", copy=True) for name, tensor in tensors.items()}
        with atomic_write(path) as part:
            part.touch()
            mode = part.stat().st_mode
            try:
                save_file(copies, part, metadata={"format": FORMAT, "state": json.dumps(rest, default=float)})
            except SafetensorError as error:  # an OSError in words
                number = system_errno(error) or errno.EIO
                raise OSError(number, os.strerror(number), str(path)) from error
            with suppress(OSError):  # some file systems have no modes
                part.chmod(mode)  # save_file ignores the umask: only the owner could read the file

    def size(self) -> int:
        """Approximate size of a checkpoint in bytes, with two moments per weight as in Adam."""
        tensors = _layer_tensors(self.layers).values()
        return sum(3 * t.nbytes if t.is_floating_point() else t.nbytes for t in tensors)

    def load(self, path: Path, identity: Identity) -> int:
        """Load the state in ``path`` and return its step.

        Learning rates are the current optimizer's, multiplied by the factor of the schedule. Raises
        ProjectError if the file cannot be read, and OtherTraining if its identity differs.
        """
        rates = [float(group["initial_lr"]) for group in self.optimizer.param_groups]
        on_device = [group["lr"] for group in self.optimizer.param_groups]
        tensors, rest = _read(path)
        different = differences(identity, identity_of_schema_1(rest["identity"], identity))
        if different:
            raise OtherTraining(
                f"{path.name} belongs to a training with other settings: {'; '.join(different)}.",
                Remedy("Resume with the settings that it was started with, or replace the training."),
            )
        current = _layer_tensors(self.layers)
        saved = {name: tensor for name, tensor in tensors.items() if name.startswith("layers.")}
        if saved.keys() != current.keys() or any(
            saved[name].shape != current[name].shape for name in current
        ):
            raise OtherTraining(f"The checkpoint {path} belongs to another base or rank.")
        with torch.no_grad():
            for name, tensor in current.items():
                tensor.copy_(saved[name])
        for name, layer in self.layers.items():
            for branch in layer.branches():
                branch.merge.requires_grad_(name in rest["learning_merge"])
        self.optimizer.load_state_dict(
            {"state": _optimizer_state(tensors, rest), "param_groups": rest["optimizer_groups"]}
        )
        self.lr_scheduler.load_state_dict(rest["lr_scheduler"])
        if self.scaler is not None and rest["scaler"] is not None:
            self.scaler.load_state_dict(rest["scaler"])
        self._set_rates(rates)
        for group, rate in zip(self.optimizer.param_groups, on_device, strict=True):
            if isinstance(rate, Tensor):  # a CUDA graph reads this very tensor
                group["lr"] = rate.fill_(float(group["lr"]))
        return int(rest["step"])

    def _set_rates(self, rates: list[float]) -> None:
        """Replace the learning rates of the checkpoint, at the same position of the schedule."""
        for i, (group, rate) in enumerate(zip(self.optimizer.param_groups, rates, strict=True)):
            before = group["initial_lr"]
            if rate != before:
                group["lr"] *= rate / before if before else 0.0
                group["initial_lr"] = self.lr_scheduler.base_lrs[i] = rate


def _layer_tensors(layers: TrainedLayers) -> dict[str, Tensor]:
    """Every tensor of every branch by name; they share memory with the layers."""
    return {
        f"layers.{name}.{branch_name}.{key}": tensor
        for name, layer in layers.items()
        for branch_name, branch in zip(BRANCHES, layer.branches(), strict=True)
        for key, tensor in branch.state_dict().items()
    }


def _optimizer_state(tensors: dict[str, Tensor], rest: dict[str, Any]) -> dict[int, dict[str, Any]]:
    state: dict[int, dict[str, Any]] = {}
    named = {
        name.removeprefix("optimizer."): t for name, t in tensors.items() if name.startswith("optimizer.")
    }
    for name, value in {**named, **rest["optimizer_scalars"]}.items():
        index, key = name.split(".", 1)
        state.setdefault(int(index), {})[key] = value
    return state


def _read(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    try:
        tensors, metadata = read_tensors(path)
        if metadata.get("format") != FORMAT:
            raise ProjectError(f"{path} is not a checkpoint that this version can read.")
        return tensors, json.loads(metadata["state"])
    except (AdapterError, ValueError) as error:
        raise ProjectError(f"The checkpoint {path} cannot be read: {error}") from error


KEPT = 2
"""Checkpoints that are kept."""
TIME_SHARE = 0.02
"""Share of the training time spent on automatic checkpoints."""
MIN_INTERVAL = 10.0
"""Minimum seconds between automatic checkpoints."""
WRITE_SPEED = 500e6
"""Assumed bytes per second of writing, flushing and hashing, until the first checkpoint is timed."""


@dataclass(slots=True)
class Checkpoints:
    """The checkpoints ``step-000100.safetensors`` in ``folder``, each with its hash in sha256sum format.

    A checkpoint is valid once its hash file exists; the last two are kept. ``every`` is the interval in
    steps; None spends about 2% of the time on checkpoints, 0 writes none during the training.
    """

    folder: Path
    every: int | None
    _last: float = field(default_factory=time.monotonic)
    _cost: float | None = None

    def planned(self, step: int) -> bool:
        """Whether ``every`` requests a checkpoint after ``step``."""
        return self.every is not None and self.every > 0 and step % self.every == 0

    def affordable(self, state: TrainingState) -> bool:
        """Whether an automatic checkpoint is due: enough time has passed since the last one."""
        cost = state.size() / WRITE_SPEED if self._cost is None else self._cost
        return self.every is None and time.monotonic() - self._last >= max(MIN_INTERVAL, cost / TIME_SHARE)

    def save(self, state: TrainingState, step: int, identity: Identity) -> None:
        """Write the checkpoint after ``step`` and delete outdated ones; raises OSError."""
        began = time.monotonic()
        self.folder.mkdir(exist_ok=True)
        path = self.folder / f"step-{step:06d}.safetensors"
        _hash_file(path).unlink(missing_ok=True)
        try:
            state.save(path, step, identity)
            files.write_bytes(_hash_file(path), f"{files.sha256(path)}  {path.name}\n".encode())
            self._keep(path)
        finally:
            self._last = time.monotonic()
            self._cost = self._last - began

    def restore(self, state: TrainingState, identity: Identity) -> tuple[int, tuple[str, ...]]:
        """Load the newest valid checkpoint; returns its step and a note on each damaged one.

        Without a valid checkpoint the step is 0 and ``state`` unchanged. Raises OtherTraining if the
        checkpoint belongs to a training with other settings.
        """
        notes = []
        for path in sorted(self.folder.glob("step-*.safetensors"), reverse=True):
            if not _hash_file(path).exists():
                continue  # the process was killed before it wrote the hash
            try:
                if files.sha256(path) != _hash_file(path).read_text(encoding="ascii").split()[0]:
                    raise ProjectError("its SHA-256 differs")
            except (ProjectError, OSError, ValueError, IndexError) as error:
                notes.append(f"The checkpoint {path.name} is damaged and skipped: {error}.")
                continue
            try:
                return state.load(path, identity), tuple(notes)
            except ProjectError:
                raise
            except Exception as error:  # the hash is right, but another program wrote the file
                raise OtherTraining(
                    f"The checkpoint {path.name} cannot be used: {type(error).__name__}: {error}.",
                    Remedy("Replace the training", settings={"force": True}),
                ) from error
        return 0, tuple(notes)

    def _keep(self, newest: Path) -> None:
        """Delete all checkpoints but ``newest`` and the valid one before it."""
        older = sorted(path for path in self.folder.glob("step-*.safetensors") if path.name < newest.name)
        kept = {newest, *[path for path in older if _hash_file(path).exists()][1 - KEPT :]}
        for path in self.folder.iterdir():
            if path not in kept and path not in map(_hash_file, kept):
                path.unlink()


def _hash_file(path: Path) -> Path:
    return path.with_suffix(".sha256")


@contextmanager
def chosen_columns_only(layers: Layers) -> Iterator[None]:
    """Close the gates of all columns that are not chosen, and restore the gates afterwards."""
    branches = [branch for layer in layers.values() for branch in layer.branches()]
    gates = [branch.gate.clone() for branch in branches]
    for branch in branches:
        branch.close()
    try:
        yield
    finally:
        for branch, gate in zip(branches, gates, strict=True):
            branch.gate.copy_(gate)


def write_adapters(folder: Path, result: TrainResult, metadata: Mapping[str, Mapping[str, str]]) -> None:
    """Write content.safetensors, style.safetensors and merge.safetensors into ``folder``.

    ``metadata`` is that of the files ``content``, ``style`` and ``merge``.
    """
    folder.mkdir(exist_ok=True)
    write_lora(folder / "content.safetensors", result.content, metadata.get("content"))
    write_lora(folder / "style.safetensors", result.style, metadata.get("style"))
    merges = result.content_merge, result.style_merge
    write_merge(folder / "merge.safetensors", *merges, metadata.get("merge"))
