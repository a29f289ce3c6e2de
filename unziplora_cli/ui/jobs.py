"""Jobs of the page: one runs on the device, the rest wait; every tab and every browser sees the same ones."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Generator
from dataclasses import dataclass, field
from pathlib import Path
from queue import SimpleQueue
from typing import Any, Literal

from unziplora_cli import events
from unziplora_cli.errors import Interrupted

State = Literal["waiting", "running", "stopping", "done", "stopped", "failed"]
Operation = Callable[[], Generator[Any, None, Any]]
Explain = Callable[[BaseException], tuple[str, str, int]]

KEPT = 50
"""Ended jobs that are remembered."""


@dataclass
class Job:
    """One operation, its progress and its results so far.

    ``project`` is the name of the project that a training makes. Only the worker changes a job, and
    :meth:`JobQueue.cancel` its state.
    """

    number: int
    title: str
    kind: str
    operation: Operation
    project: str = ""
    state: State = "waiting"
    phase: str = ""
    fraction: float | None = None
    left: str = ""
    remaining: events.RemainingTime = field(default_factory=events.RemainingTime)
    notices: list[events.Notice] = field(default_factory=list)
    losses: list[tuple[int, float]] = field(default_factory=list)
    images: list[Path] = field(default_factory=list)
    """Images as they are made; those of a training that has ended may have moved into its project."""
    result: Any = None
    error: str = ""
    remedy: str = ""

    @property
    def ended(self) -> bool:
        """Whether nothing of it is left to do."""
        return self.state in ("done", "stopped", "failed")

    def watch(self, event: object) -> None:
        """Record the progress or the image that an event reports."""
        before = self.fraction
        from unziplora_cli.training.events import Destyled, StepDone, Validated

        match event:
            case events.Phase(name, detail):
                self.phase, self.fraction = f"{name} {detail}".strip(), None
            case events.Notice():
                self.notices.append(event)
            case events.Progress(name, done, total, step, steps):
                self.phase = name if total == 1 else f"{name}: {min(done + 1, total)} of {total}"
                self.fraction = (done + (step / steps if steps else 0)) / max(total, 1)
            case events.Transfer(file, done, total):
                self.phase, self.fraction = f"download {file}", done / max(total, 1)
            case StepDone():
                self.phase = f"step {event.step} of {event.total}, loss {event.loss:.4f}"
                self.fraction = event.step / event.total
                self.losses.append((event.step, event.loss))
            case events.ImageSaved(path):
                self.images.append(path)
            case Destyled(paths):
                self.images += paths
            case Validated(_, paths):
                self.images.append(paths[-1])
        if self.fraction is None or before is None or self.fraction < before:
            self.remaining = events.RemainingTime()
        seconds = self.remaining.update(self.fraction or 0.0, 1.0, time.monotonic())
        self.left = events.format_left(seconds)


class JobQueue:
    """Runs submitted operations one after the other in a thread of its own.

    Args:
        explain: the message and the remedy of an error, worded as in the terminal.
    """

    def __init__(self, explain: Explain) -> None:
        self._explain = explain
        self._lock = threading.Lock()
        self._jobs: list[Job] = []
        self._submitted: SimpleQueue[Job | None] = SimpleQueue()
        self._thread = threading.Thread(target=self._work, name="jobs", daemon=True)
        self._thread.start()

    def submit(self, title: str, kind: str, operation: Operation, project: str = "") -> Job:
        """Add a job at the end of the queue."""
        with self._lock:
            job = Job(1 + max((job.number for job in self._jobs), default=0), title, kind, operation, project)
            ended = [job for job in self._jobs if job.ended]
            for old in ended[: max(0, len(ended) - KEPT)]:
                self._jobs.remove(old)
            self._jobs.append(job)
            self._submitted.put(job)
            return job

    def jobs(self) -> tuple[Job, ...]:
        """All jobs, oldest first."""
        with self._lock:
            return tuple(self._jobs)

    def projects(self) -> set[str]:
        """The names of the projects that are being trained, or will be."""
        return {job.project for job in self.jobs() if job.project and not job.ended}

    def current(self) -> Job | None:
        """The job that runs, else None."""
        return next((job for job in self.jobs() if job.state in ("running", "stopping")), None)

    def latest(self, kind: str) -> Job | None:
        """The job of this kind that began last, else None."""
        begun = [job for job in self.jobs() if job.kind == kind and job.state != "waiting"]
        return begun[-1] if begun else None

    def cancel(self, number: int) -> None:
        """Stop a job: a waiting one at once, a running one as Ctrl-C does, at its next event."""
        with self._lock:
            for job in self._jobs:
                if job.number == number and job.state in ("waiting", "running"):
                    job.state = "stopped" if job.state == "waiting" else "stopping"

    def close(self, timeout: float = 60) -> None:
        """Stop all jobs and wait until the running one has saved what it learned."""
        for job in self.jobs():
            self.cancel(job.number)
        self._submitted.put(None)
        self._thread.join(timeout)

    def _work(self) -> None:
        for job in iter(self._submitted.get, None):
            with self._lock:
                if job.state != "waiting":
                    continue
                job.state = "running"
            state = self._run(job)
            with self._lock:
                job.state = state

    def _run(self, job: Job) -> State:
        try:
            operation = job.operation()
            while True:
                stop = job.state == "stopping"
                event = operation.throw(KeyboardInterrupt()) if stop else next(operation)
                job.watch(event)
        except StopIteration as end:
            job.result = end.value
            return "done"
        except (Interrupted, KeyboardInterrupt) as error:
            job.error, job.remedy, _ = self._explain(error)
            return "stopped"
        except BaseException as error:  # whatever it is, the next job runs
            job.error, job.remedy, _ = self._explain(error)
            return "failed"
