"""The result of one row of the speed benchmark, and the stopwatch behind it."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import torch

READ_EVERY = 5
"""Steps between two readings on a GPU: a reading waits for the device, which would stall short steps."""


@dataclass(frozen=True)
class Measurement:
    """One row; a quantity that was not measured is None.

    ``seconds`` is the median time of a step, ``memory`` the peak in bytes, ``before`` the seconds before the
    first step at full speed, ``whole`` the seconds of a whole training. ``note`` is a remark, or why the
    measurement failed.
    """

    seconds: float | None = None
    memory: int | None = None
    before: float | None = None
    whole: float | None = None
    note: str = ""


@dataclass
class Stopwatch:
    """Measures seconds per step: the first tick starts the clock, every further tick ends a step."""

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
        """Record the end of a step."""
        self._ticks += 1
        if self._ticks % self.every:
            return
        synchronize(self.device)
        now = time.perf_counter()
        if self._ticks:
            self.readings.append((now - self._last) / self.every)
        else:
            self.started = now
        self._last = now

    def median(self, skip: int = 0) -> float:
        """The median of all readings but the first ``skip``."""
        return statistics.median(self.readings[skip:])


def synchronize(device: torch.device) -> None:
    """Wait until ``device`` has finished its work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def time_steps(step: Callable[[], object], device: torch.device, *, warm_up: int, steps: int) -> Stopwatch:
    """Time ``steps`` steps after ``warm_up`` untimed ones."""
    for _ in range(warm_up):
        step()
    watch = Stopwatch(device)
    watch.tick()
    for _ in range(steps):
        step()
        watch.tick()
    return watch
