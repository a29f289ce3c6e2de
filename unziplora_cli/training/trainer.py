"""The training loop: runs the steps, and reads, writes and checks what is due after each one."""

from __future__ import annotations

import math
import signal
import threading
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from types import FrameType
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor

from unziplora_cli.errors import Interrupted, Remedy, UnziploraError
from unziplora_cli.files import fsync
from unziplora_cli.method.inject import extract, extract_merge
from unziplora_cli.method.schedule import Action
from unziplora_cli.method.separation import Layers, shared_columns
from unziplora_cli.projects.unfinished import checkpoint_steps
from unziplora_cli.training.callbacks import (
    DIVERGENCE_WINDOW,
    HISTORY_FILE,
    DivergenceMonitor,
    HistoryRow,
    MetricLogger,
    Validation,
    append_history,
    truncate_history,
)
from unziplora_cli.training.checkpoint import (
    Checkpoints,
    Identity,
    TrainingState,
    chosen_columns_only,
    write_adapters,
)
from unziplora_cli.training.events import (
    ColumnsChosen,
    Event,
    Notice,
    Saved,
    StepDone,
    TrainResult,
    Validated,
)
from unziplora_cli.training.memory import peak_memory
from unziplora_cli.training.request import TrainRequest
from unziplora_cli.training.step import Batches, CapturedStep, Step, StepResult, TrainingStep

GPU_READ_INTERVAL = 10
"""Steps between readings of the losses on a GPU: reading a value waits for the device."""


class Diverged(UnziploraError):
    """The loss is NaN or infinite, or higher than predicting zero."""


@dataclass(slots=True)
class Trainer:
    """A training in progress; ``run_step`` runs ``step``, ``done`` counts the finished steps."""

    request: TrainRequest
    accelerator: Accelerator
    layers: Layers
    batches: Callable[[int], Batches]
    step: TrainingStep
    run_step: Step
    state: TrainingState
    validation: Validation
    precision: str
    started: float
    done: int = 0
    losses: list[float] = field(default_factory=list)
    clock: Callable[[], float] = time.monotonic
    """Measures the steps."""
    seconds_before: float = 0.0
    """Seconds of the steps done before this process resumed the training."""
    metric_logger: MetricLogger = field(init=False)
    checkpoints: Checkpoints = field(init=False)
    identity: Identity = field(init=False)
    monitor: DivergenceMonitor = field(init=False)
    _unread: list[Tensor] = field(default_factory=list)
    _seconds: float = 0.0

    def __post_init__(self) -> None:
        request, processes = self.request, self.accelerator.num_processes
        self.metric_logger = MetricLogger(self.accelerator, request.config, request.folder / "logs")
        self.checkpoints = Checkpoints(request.checkpoint_folder, request.config.checkpoint_every)
        self.identity = {**request.job.identity(), "precision": self.precision, "processes": processes}
        self.monitor = DivergenceMonitor(scaled=self.accelerator.scaler is not None)

    def resume(self) -> Iterator[Notice]:
        """Load the newest valid checkpoint."""
        self.done, notes = self.checkpoints.restore(self.state, self.identity)
        yield from map(Notice, notes)
        yield Notice(f"Resuming after step {self.done}." if self.done else "No checkpoint: starting anew.")
        if self.accelerator.is_main_process:
            rows = truncate_history(self.request.folder / HISTORY_FILE, self.done)
            self.losses = [math.nan if row.loss is None else row.loss for row in rows]
            self.seconds_before = sum(row.seconds or 0.0 for row in rows)
            for row in rows[:DIVERGENCE_WINDOW]:
                self.monitor.update(
                    row.step, row.loss or 0.0, row.reconstruction or 0.0, row.grad_norm or 0.0
                )

    def run(self) -> Generator[Event, None, TrainResult]:
        """Run all remaining steps and return the result.

        The first signal to stop ends the training after the current step, a second one at once: a checkpoint
        is written, and the result has fewer steps than requested. Raises Interrupted if there is no result:
        without a finished step, and if weights are half updated, which must not be kept.
        """
        total = self.request.config.steps
        interval = 1 if self.accelerator.device.type == "cpu" else GPU_READ_INTERVAL
        stopped = False
        self.metric_logger.open()
        with stop_signals() as received:
            try:
                while self.done < total and not stopped:
                    started = self.clock()
                    outcome = self.run_step(self.done, self.batches(self.done))
                    self._unread.append(_metrics(outcome))
                    self.done += 1
                    self.step.updating = False
                    reads = self.done % interval == 0 or self.done == total
                    if reads or self.checkpoints.planned(self.done):
                        yield self._read_metrics(started)
                    else:
                        self._seconds += self.clock() - started
                    yield from self._after_step()
                    if self.done < total and (reads or self.accelerator.num_processes == 1):
                        stopped = self._any_process(bool(received))
            except KeyboardInterrupt:
                received.append(signal.SIGINT)
                if self.step.updating:
                    self._raise_interrupted(f"in the middle of step {self.done + 1}")
            if stopped or (received and self.done < total):
                yield from self._stop(together=stopped)
        self.metric_logger.close()
        return self.result()

    def result(self) -> TrainResult:
        """The LoRAs and merge weights as they are now, restricted to the chosen columns."""
        with chosen_columns_only(self.layers) if self._columns_chosen() else nullcontext():
            return TrainResult(
                content=extract(self.layers, "content"),
                style=extract(self.layers, "style"),
                content_merge=extract_merge(self.layers, "content"),
                style_merge=extract_merge(self.layers, "style"),
                steps=self.done,
                losses=tuple(self.losses),
                seconds=self.seconds_before + time.monotonic() - self.started,
                memory=peak_memory(self.accelerator.device),
                device=str(self.accelerator.device),
                precision=self.precision,
            )

    def _after_step(self) -> Iterator[Event]:
        """Column maps, validation images, saved LoRAs and checkpoints that are due."""
        config = self.request.config
        if self.step.schedule.action(self.done - 1) is Action.SELECT:
            self.metric_logger.log_columns(self.done, self.layers)
            layers = self.layers.values()
            content, style = (sum(int(layer.branches()[i].mask.sum()) for layer in layers) for i in range(2))
            yield ColumnsChosen(self.done, content, style, *shared_columns(layers))
            empty = sum(not (layer.content.mask.any() and layer.style.mask.any()) for layer in layers)
            if empty > len(layers) / 2:
                yield Notice(
                    f"In {empty} of {len(layers)} layers a branch has no column, because their scores "
                    "tie. Train with importance-score = magnitude."
                )
        if not self.accelerator.is_main_process:
            return
        if config.validate_every and self.done % config.validate_every == 0:
            if isinstance(self.run_step, CapturedStep):
                self.run_step.release()
            yield Validated(self.done, self.validation.generate(self.done))
        if config.save_every and self.done % config.save_every == 0:
            folder = self.request.folder / "saved" / f"step-{self.done:06d}"
            folder.parent.mkdir(exist_ok=True)
            write_adapters(folder, self.result(), self.request.metadata)
            yield Saved(self.done, folder)
        if self.done == config.steps or self._unread:
            return
        if self.checkpoints.planned(self.done) or self.checkpoints.affordable(self.state):
            yield from self._checkpoint()

    def _read_metrics(self, started: float) -> StepDone:
        """Read the metrics of all unread steps, averaged over processes, and write them to the history.

        ``started`` is the time at which the last of these steps started. Returns the event of that step;
        raises Diverged.
        """
        first = self.done - len(self._unread)
        metrics = self.accelerator.reduce(torch.stack(self._unread), reduction="mean").tolist()
        self._unread.clear()
        seconds = (self._seconds + self.clock() - started) / len(metrics)
        self._seconds = 0.0
        for number, (loss, reconstruction, _, grad_norm) in enumerate(metrics, start=first + 1):
            if problem := self.monitor.update(number, loss, reconstruction, grad_norm):
                raise self._diverged(problem)
            self.losses.append(loss)
        if self.accelerator.is_main_process:
            self._write_history(first, metrics, seconds)
        loss, reconstruction, overlap, grad_norm = metrics[-1]
        content, style, merge = (float(group["lr"]) for group in self.state.optimizer.param_groups)
        event = StepDone(
            step=self.done,
            total=self.request.config.steps,
            phase=self.step.schedule.phase(self.done - 1),
            loss=loss,
            reconstruction=reconstruction,
            overlap=overlap if self.step.schedule.separated(self.done - 1) else None,
            grad_norm=grad_norm,
            learning_rates=(content, style, merge),
            seconds=seconds,
            memory=peak_memory(self.accelerator.device),
        )
        self.metric_logger.log_step(event, self.layers)
        return event

    def _write_history(self, first: int, metrics: list[list[float]], seconds: float) -> None:
        """Append the steps after ``first``; only the merge weights after the last of them are known."""
        rows = [
            HistoryRow(
                step + 1,
                loss,
                reconstruction,
                overlap if self.step.schedule.separated(step) else None,
                grad_norm,
                seconds=round(seconds, 6),
            )
            for step, (loss, reconstruction, overlap, grad_norm) in enumerate(metrics, start=first)
        ]
        content, style = (
            torch.cat([layer.branches()[i].merge.detach() for layer in self.layers.values()]).mean().item()
            for i in range(2)
        )
        rows[-1] = replace(rows[-1], merge_content=content, merge_style=style)
        append_history(self.request.folder / HISTORY_FILE, rows)

    def _columns_chosen(self) -> bool:
        return self.step.schedule.selects and self.done > self.request.config.importance_steps

    def _checkpoint(self) -> Iterator[Event]:
        """Write a checkpoint; a full disk does not end the training."""
        try:
            history = self.request.folder / HISTORY_FILE
            if history.exists():
                fsync(history)
            self.checkpoints.save(self.state, self.done, self.identity)
        except OSError as error:
            if not self.request.folder.is_dir():  # the disk is gone, with everything that was learned
                raise
            yield Notice(f"The checkpoint after step {self.done} cannot be written: {error}.")

    def _stop(self, *, together: bool) -> Iterator[Event]:
        """Write a last checkpoint; raises Interrupted if no step is done.

        Processes that stop ``together`` wait for the main one: their launcher ends all when the first ends.
        """
        if self._unread:
            self._read_metrics(self.clock())
        if self.done and self.accelerator.is_main_process:
            yield from self._checkpoint()
        if together:
            self.accelerator.wait_for_everyone()
        if not self.done:
            self._raise_interrupted("before the end of the first step")

    def _raise_interrupted(self, when: str) -> None:
        self.metric_logger.close()
        last = max(checkpoint_steps(self.request.folder), default=0)
        if not last:
            raise Interrupted(f"Stopped {when}. Nothing was learned.")
        resume = Remedy("Resume it", "train", settings={"resume": self.request.job.name})
        raise Interrupted(f"Stopped {when}. The training can resume after step {last}.", resume)

    def _any_process(self, stop: bool) -> bool:
        """Whether any process received a signal to stop, so that all of them stop after the same step."""
        if self.accelerator.num_processes == 1:
            return stop
        requests = torch.tensor(float(stop), device=self.accelerator.device)
        return bool(self.accelerator.reduce(requests, reduction="sum") > 0)

    def _diverged(self, problem: str) -> Diverged:
        config = self.request.config
        lower: dict[str, Any] = {
            "content_lr": float(f"{config.content_lr / 3:.1g}"),
            "style_lr": float(f"{config.style_lr / 3:.1g}"),
        }
        last = max(checkpoint_steps(self.request.folder), default=0)
        if last and self.state.scaler is None:
            settings = {"resume": self.request.job.name, **lower}
            remedies = [
                Remedy(f"Resume after step {last} with lower learning rates", "train", settings=settings)
            ]
        else:
            settings = lower if self.state.scaler is None else {**lower, "precision": "bf16"}
            remedies = [Remedy("Train again with lower learning rates", settings=settings)]
        saved = sorted((self.request.folder / "saved").glob("step-*"))
        if saved:
            remedies.append(Remedy(f"The last saved LoRAs are in {saved[-1]}."))
        return Diverged(problem, *remedies)


def _metrics(outcome: StepResult) -> Tensor:
    """Loss, reconstruction, overlap (0 before columns are chosen), gradient norm: [4], on the device."""
    overlap = torch.zeros_like(outcome.loss) if outcome.overlap is None else outcome.overlap
    values = (outcome.loss, outcome.reconstruction, overlap, outcome.grad_norm)
    return torch.stack([value.detach().float() for value in values])


STOP_SIGNALS = tuple(
    getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)
)


@contextmanager
def stop_signals() -> Iterator[list[int]]:
    """A context that collects the first signal to stop; a second one raises KeyboardInterrupt.

    Signals that the process was started to ignore, as by ``nohup``, stay ignored. Outside the main thread,
    where signals cannot be handled, the context does nothing.
    """
    received: list[int] = []

    def receive(number: int, frame: FrameType | None) -> None:
        if received:
            raise KeyboardInterrupt
        received.append(number)

    main = threading.current_thread() is threading.main_thread()
    handled = [number for number in STOP_SIGNALS if signal.getsignal(number) is not signal.SIG_IGN]
    previous = {number: signal.signal(number, receive) for number in handled} if main else {}
    try:
        yield received
    finally:
        for number, old in previous.items():
            signal.signal(number, old)
