"""The queue of the page: order, cancelling, failures, and what a job shows."""

import threading
import time
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from unziplora_cli import events
from unziplora_cli.cli._errors import describe
from unziplora_cli.errors import Interrupted, Remedy, UsageError
from unziplora_cli.training.events import StepDone
from unziplora_cli.ui.jobs import KEPT, Job, JobQueue

Operation = Callable[[], Generator[Any, None, Any]]
LONG = 30.0
STEP_3 = StepDone(3, 4, "separate", 0.25, 0.25, None, 1.0, (1e-4, 1e-4, 1e-4), 0.1, 0)


def wait(job: Job) -> None:
    """Wait until a job has ended."""
    end = time.monotonic() + LONG
    while not job.ended and time.monotonic() < end:
        time.sleep(0.01)


@pytest.fixture
def queue() -> Iterator[JobQueue]:
    queue = JobQueue(describe)
    yield queue
    queue.close()


def held(gate: threading.Event, log: list[str], name: str) -> Operation:
    """An operation that reports itself in ``log`` and ends once ``gate`` is open."""

    def operation() -> Generator[Any, None, str]:
        log.append(name)
        try:
            while not gate.wait(0.01):
                yield events.Progress("generate", 0, 1)
        except KeyboardInterrupt:
            log.append(f"{name} saved")
            raise Interrupted("Stopped at step 3.", Remedy("Resume it")) from None
        return name

    return operation


def opened() -> threading.Event:
    gate = threading.Event()
    gate.set()
    return gate


def test_jobs_run_one_at_a_time_in_the_order_of_their_submission(queue: JobQueue) -> None:
    gate, log = threading.Event(), []
    jobs = [queue.submit(name, "draw", held(gate, log, name)) for name in ("a", "b", "c")]
    assert [job.number for job in jobs] == [1, 2, 3]
    while not log:
        time.sleep(0.01)
    assert queue.current() is jobs[0]
    assert [job.state for job in jobs] == ["running", "waiting", "waiting"]
    gate.set()
    wait(jobs[2])
    assert log == ["a", "b", "c"]
    assert [job.result for job in jobs] == ["a", "b", "c"]
    assert queue.current() is None


def test_a_cancelled_waiting_job_never_starts_and_the_rest_runs(queue: JobQueue) -> None:
    gate, log = threading.Event(), []
    jobs = [queue.submit(name, "draw", held(gate, log, name)) for name in ("a", "b", "c")]
    queue.cancel(jobs[1].number)
    gate.set()
    wait(jobs[2])
    assert log == ["a", "c"]
    assert [job.state for job in jobs] == ["done", "stopped", "done"]


def test_a_cancelled_running_job_saves_like_after_ctrl_c(queue: JobQueue) -> None:
    log: list[str] = []
    job = queue.submit("a", "train", held(threading.Event(), log, "a"))
    while not log:
        time.sleep(0.01)
    queue.cancel(job.number)
    wait(job)
    assert log == ["a", "a saved"]
    assert (job.state, job.error, job.remedy) == ("stopped", "Stopped at step 3.", "Resume it")


@pytest.mark.parametrize(
    ("error", "message"),
    [(UsageError("Too small."), "Too small."), (ZeroDivisionError("x"), "ZeroDivisionError: x")],
)
def test_a_failure_is_explained_and_the_next_job_runs(
    queue: JobQueue, error: Exception, message: str
) -> None:
    def fail() -> Generator[Any, None, None]:
        yield events.Phase("load base")
        raise error

    def fail_at_once() -> Generator[Any, None, None]:
        raise error

    failed = [queue.submit("a", "draw", operation) for operation in (fail, fail_at_once)]
    last = queue.submit("b", "draw", held(opened(), [], "b"))
    wait(last)
    assert [(job.state, job.error) for job in failed] == [("failed", message)] * 2
    assert last.state == "done"


def test_closing_stops_the_running_job_and_those_that_wait() -> None:
    queue, log = JobQueue(describe), []
    jobs = [queue.submit(name, "train", held(threading.Event(), log, name)) for name in ("a", "b")]
    while not log:
        time.sleep(0.01)
    queue.close()
    assert [job.state for job in jobs] == ["stopped", "stopped"]
    assert log == ["a", "a saved"]


def test_only_the_newest_ended_jobs_are_kept(queue: JobQueue) -> None:
    jobs = [queue.submit(str(index), "draw", held(opened(), [], "")) for index in range(KEPT + 5)]
    wait(jobs[-1])
    queue.submit("last", "draw", held(opened(), [], ""))
    numbers = [job.number for job in queue.jobs()]
    assert len(numbers) <= KEPT + 1
    assert numbers[-1] == KEPT + 6


def test_a_job_shows_what_its_events_say() -> None:
    job = Job(1, "a", "train", lambda: iter(()))  # type: ignore[arg-type, return-value]
    job.watch(events.Progress("generate", 1, 4, 5, 10))
    assert (job.phase, job.fraction) == ("generate: 2 of 4", 0.375)
    job.watch(STEP_3)
    assert (job.fraction, job.losses) == (0.75, [(3, 0.25)])
    job.watch(events.ImageSaved(Path("a.png")))
    job.watch(slow := events.Notice("Slow."))
    assert (job.images, job.notices) == ([Path("a.png")], [slow])


def test_a_job_shows_how_much_time_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    seconds = iter((100.0, 110.0, 120.0))
    monkeypatch.setattr("unziplora_cli.ui.jobs.time", SimpleNamespace(monotonic=lambda: next(seconds)))
    job = Job(1, "a", "draw", lambda: iter(()))  # type: ignore[arg-type, return-value]
    shown = []
    for event in (
        events.Progress("generate", 0, 4),
        events.Progress("generate", 1, 4),
        events.Phase("decode"),
    ):
        job.watch(event)
        shown.append(job.left)
    assert shown == ["", "30 s left", ""]
