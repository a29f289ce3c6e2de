"""The checkpoints of a training: when one is due, where they lie, and which is the last good one."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from pathlib import Path

from unziplora_cli.errors import ProjectError
from unziplora_cli.project import files
from unziplora_cli.training.checkpoint import Identity, OtherTraining, TrainingState

KEPT = 2
SHARE = 0.02
"""How much of the time checkpoints may take when nobody said how often to write them."""

LEAST_SECONDS = 10.0
"""No more often than this, however cheap they are."""

GUESSED_SPEED = 500e6
"""Bytes per second of writing, flushing and hashing, before the first one was timed."""


@dataclass(slots=True)
class Checkpoints:
    """``step-000100.safetensors`` in ``folder``, with its SHA-256 beside it as ``sha256sum`` writes it.

    A checkpoint counts once its hash is there. The last two are kept. ``every`` is in steps; None spends
    about 2% of the time on them, 0 writes none on the way.
    """

    folder: Path
    every: int | None
    _last: float = field(default_factory=time.monotonic)
    _cost: float | None = None

    def planned(self, step: int) -> bool:
        """Whether one was asked for after ``step``."""
        return self.every is not None and self.every > 0 and step % self.every == 0

    def affordable(self, state: TrainingState) -> bool:
        """Whether nobody said how often, and enough time has passed since the last one."""
        cost = state.size() / GUESSED_SPEED if self._cost is None else self._cost
        return self.every is None and time.monotonic() - self._last >= max(LEAST_SECONDS, cost / SHARE)

    def save(self, state: TrainingState, step: int, identity: Identity) -> None:
        """Write the checkpoint after ``step`` and forget all but the one before; raises OSError."""
        began = time.monotonic()
        self.folder.mkdir(parents=True, exist_ok=True)
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
        """Take over the newest good checkpoint; returns its step and a sentence for each damaged one.

        The step is 0, and ``state`` untouched, when there is none. Raises OtherTraining for one of other
        settings.
        """
        notes = []
        for path in sorted(self.folder.glob("step-*.safetensors"), reverse=True):
            if not _hash_file(path).exists():
                continue  # its process was killed before it wrote the hash
            try:
                if files.sha256(path) != _hash_file(path).read_text(encoding="ascii").split()[0]:
                    raise ProjectError("its SHA-256 differs")
            except (ProjectError, OSError, ValueError, IndexError) as error:
                notes.append(f"The checkpoint {path.name} is damaged and left out: {error}.")
                continue
            try:
                return state.load(path, identity), tuple(notes)
            except ProjectError:
                raise
            except Exception as error:  # it is as it was written, but not by this program
                raise OtherTraining(
                    f"The checkpoint {path.name} cannot be used: {type(error).__name__}: {error}.",
                    hint="Train anew with --force.",
                ) from error
        return 0, tuple(notes)

    def _keep(self, newest: Path) -> None:
        """Delete all but ``newest`` and the whole one before it."""
        older = sorted(path for path in self.folder.glob("step-*.safetensors") if path.name < newest.name)
        kept = {newest, *[path for path in older if _hash_file(path).exists()][1 - KEPT :]}
        for path in self.folder.iterdir():
            if path not in kept and path not in map(_hash_file, kept):
                path.unlink()


def _hash_file(path: Path) -> Path:
    return path.with_suffix(".sha256")
