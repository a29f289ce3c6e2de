"""What a row of the speed benchmark says, and the watch that it is read from."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import torch

READ_EVERY = 5
"""Steps between two readings on a GPU: each reading waits for the device, which would stall short steps."""


@dataclass(frozen=True)
class Measured:
    """One row; what was not measured is None.

    ``seconds`` is the median of a step, ``memory`` the peak in bytes, ``before`` the seconds until the steps
    ran at that pace, ``whole`` those of a whole training. ``note`` says more, or why nothing was measured.
    """

    seconds: float | None = None
    memory: int | None = None
    before: float | None = None
    whole: float | None = None
    note: str = ""


@dataclass
class Stopwatch:
    """Seconds per step; the first tick starts it, each further one ends a step."""

    device: torch.device
    every: int = READ_EVERY
    readings: list[float] = field(default_factory=list)
    started: float = 0.0
    _ticks: int = -1
    _last: float = 0.0

    def __post_init__(self) -> None:
        if self.device.type == "cpu":
            self.every = 1

    def tick(self) -> None:
        """Note that a step is over."""
        self._ticks += 1
        if self._ticks % self.every:
            return
        wait_for(self.device)
        now = time.perf_counter()
        if self._ticks:
            self.readings.append((now - self._last) / self.every)
        else:
            self.started = now
        self._last = now

    def median(self, skip: int = 0) -> float:
        """The median reading, the first ``skip`` left out."""
        return statistics.median(self.readings[skip:])


def wait_for(device: torch.device) -> None:
    """Wait until ``device`` has done all its work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def time_steps(step: Callable[[], object], device: torch.device, *, warm_up: int, steps: int) -> Stopwatch:
    """Make ``steps`` steps after ``warm_up`` others."""
    for _ in range(warm_up):
        step()
    watch = Stopwatch(device)
    watch.tick()
    for _ in range(steps):
        step()
        watch.tick()
    return watch
