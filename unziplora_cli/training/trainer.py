"""The training loop: runs the steps, and reads, writes and checks what is due after each one."""

from __future__ import annotations

import math
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from types import FrameType, TracebackType
from typing import Any

import torch
from accelerate import Accelerator
from safetensors import SafetensorError
from torch import Tensor

from unziplora_cli.errors import Interrupted, UnziploraError
from unziplora_cli.files import fsync
from unziplora_cli.method.inject import extract, extract_merge
from unziplora_cli.method.schedule import Action, Schedule
from unziplora_cli.method.separation import Layers, shared_columns
from unziplora_cli.projects.unfinished import checkpoint_steps
from unziplora_cli.training import callbacks
from unziplora_cli.training.batches import BatchSource
from unziplora_cli.training.callbacks import WINDOW, DivergenceMonitor, MetricLogger, Validation
from unziplora_cli.training.checkpoint import Checkpoints, Identity, TrainingState, closed, write_layers
from unziplora_cli.training.events import (
    ColumnsChosen,
    Event,
    Notice,
    Saved,
    StepDone,
    Stopped,
    TrainResult,
    Validated,
)
from unziplora_cli.training.memory import peak_memory
from unziplora_cli.training.request import TrainRequest
from unziplora_cli.training.step import CapturedStep, StepResult, TrainingStep

GPU_STEPS_PER_READING = 10
"""Reading a number from a GPU waits for it, so losses are read this often only."""


class Diverged(UnziploraError):
    """The loss is no longer a number, or far from any sense."""


@dataclass(slots=True)
class Run:
    """A training under way."""

    request: TrainRequest
    accelerator: Accelerator
    layers: Layers
    schedule: Schedule
    batches: BatchSource
    step: TrainingStep | CapturedStep
    state: TrainingState
    validation: Validation
    metric_logger: MetricLogger
    checkpoints: Checkpoints
    identity: Identity
    precision: str
    started: float
    done: int = 0
    losses: list[float] = field(default_factory=list)
    watch: DivergenceMonitor = field(default_factory=DivergenceMonitor)
    earlier: float = 0.0
    """Seconds of the steps that were made before this process went on."""
    _whole: bool = True
    """Not in the middle of a step."""
    _unread: list[Tensor] = field(default_factory=list)
    _seconds: float = 0.0

    def resume_from_checkpoint(self) -> Iterator[str]:
        """Take over the last good checkpoint; yields what the user should know."""
        self.done, notes = self.checkpoints.restore(self.state, self.identity)
        yield from notes
        yield f"Going on after step {self.done}." if self.done else "There is no checkpoint: starting anew."
        if self.accelerator.is_main_process:
            rows = callbacks.truncate_history(self.request.folder / callbacks.HISTORY_FILE, self.done)
            self.losses = [math.nan if row.loss is None else row.loss for row in rows]
            self.earlier = sum(row.seconds or 0.0 for row in rows)
            for row in rows[:WINDOW]:
                self.watch.see(row.step, row.loss or 0.0, row.reconstruction or 0.0, row.grad_norm or 0.0)

    def steps(self) -> Iterator[Event]:
        """All steps that are left."""
        config = self.request.config
        every = 1 if self.accelerator.device.type == "cpu" else GPU_STEPS_PER_READING
        agreed = False
        with StopRequest() as stop:
            try:
                while self.done < config.steps:
                    step, began = self.done, time.monotonic()
                    self._whole = False
                    outcome = self.step(step, self.batches(step))
                    self._unread.append(_scalars(outcome))
                    self.done, self._whole = step + 1, True
                    reads = self.done % every == 0 or self.done == config.steps
                    if reads or self.checkpoints.planned(self.done):
                        rows = self._read(began)
                        yield self._told(step, rows, separated=outcome.overlap is not None)
                    else:
                        self._seconds += time.monotonic() - began
                    yield from self._after(step)
                    if self.done < config.steps and (reads or self.accelerator.num_processes == 1):
                        agreed = self._agreed(stop.received)
                    if agreed:
                        raise KeyboardInterrupt
            except KeyboardInterrupt:
                stop.received = True
                yield from self._stop(together=agreed)

    def _after(self, step: int) -> Iterator[Event]:
        """What is due after ``step``: column maps, pictures, files."""
        config = self.request.config
        if self.schedule.action(step) is Action.SELECT:
            self.metric_logger.columns(self.done, self.layers)
            yield _columns_chosen(self.done, self.layers)
            bare = _bare_layers(self.layers)
            if bare > len(self.layers) / 2:
                yield Notice(
                    f"In {bare} of {len(self.layers)} layers a branch has no column: their scores tie. "
                    "Try --importance-score magnitude."
                )
        if not self.accelerator.is_main_process:
            return
        if config.validate_every and self.done % config.validate_every == 0:
            if isinstance(self.step, CapturedStep):
                self.step.release()
            yield Validated(self.done, self.validation.draw(self.done))
        if config.save_every and self.done % config.save_every == 0:
            yield self._save()
        if self.done == config.steps or self._unread:
            return
        if self.checkpoints.planned(self.done) or self.checkpoints.affordable(self.state):
            yield from self._checkpoint()

    def _read(self, began: float) -> list[list[float]]:
        """The numbers of all steps since the last reading, mean over processes, also into the history.

        ``began`` is when the last of them did. Raises Diverged.
        """
        first = self.done - len(self._unread)
        rows: list[list[float]] = self.accelerator.reduce(
            torch.stack(self._unread), reduction="mean"
        ).tolist()
        self._unread.clear()
        self._seconds += time.monotonic() - began
        for number, row in enumerate(rows, start=first + 1):
            if lost := self.watch.see(number, row[0], row[1], row[3]):
                raise self._diverged(lost)
        self.losses += [row[0] for row in rows]
        if self.accelerator.is_main_process:
            self._write_history(rows)
        return rows

    def _write_history(self, rows: list[list[float]]) -> None:
        """Add the last steps; the merge weights are known for the very last alone."""
        content, style = (
            torch.cat([layer.branches()[i].merge.detach() for layer in self.layers.values()]).mean().item()
            for i in range(2)
        )
        told = []
        for step, (loss, reconstruction, overlap, grad_norm) in enumerate(rows, start=self.done - len(rows)):
            told.append(
                callbacks.HistoryRow(
                    step=step + 1,
                    loss=loss,
                    reconstruction=reconstruction,
                    overlap=overlap if self.schedule.separated(step) else None,
                    grad_norm=grad_norm,
                    merge_content=content if step + 1 == self.done else None,
                    merge_style=style if step + 1 == self.done else None,
                    seconds=round(self._seconds / len(rows), 6),
                )
            )
        callbacks.append_history(self.request.folder / callbacks.HISTORY_FILE, told)

    def _told(self, step: int, rows: list[list[float]], *, separated: bool) -> StepDone:
        loss, reconstruction, overlap, grad_norm = rows[-1]
        content, style, merge = (float(group["lr"]) for group in self.state.optimizer.param_groups)
        done = StepDone(
            step=self.done,
            total=self.request.config.steps,
            phase=self.schedule.phase(step),
            loss=loss,
            reconstruction=reconstruction,
            overlap=overlap if separated else None,
            grad_norm=grad_norm,
            learning_rates=(content, style, merge),
            seconds=self._seconds / len(rows),
            memory=peak_memory(self.accelerator.device),
        )
        self._seconds = 0.0
        self.metric_logger.step(done, self.layers)
        return done

    def _save(self) -> Saved:
        folder = self.request.folder / "saved" / f"step-{self.done:06d}"
        write_layers(folder, self.layers, self.request.metadata, chosen=self._chosen())
        return Saved(self.done, folder)

    def _chosen(self) -> bool:
        """Whether columns were chosen, so that only they may take part."""
        return self.schedule.selects and self.done > self.request.config.importance_steps

    def _checkpoint(self) -> Iterator[Event]:
        """Write a checkpoint; a disk that has no room for it is no reason to stop."""
        try:
            path = self.request.folder / callbacks.HISTORY_FILE
            if path.exists():
                fsync(path)
            self.checkpoints.save(self.state, self.done, self.identity)
        except (OSError, SafetensorError) as error:
            yield Notice(f"The checkpoint after step {self.done} cannot be written: {error}.")

    def _stop(self, *, together: bool) -> Iterator[Event]:
        """Keep what there is, and end with Interrupted.

        Of several processes that stop ``together`` the others wait for the main one: their launcher ends all
        when the first does.
        """
        self.metric_logger.close()
        if self._unread and self._whole:
            self._read(time.monotonic())
        if self.done and self.accelerator.is_main_process:
            if self._whole:
                yield from self._checkpoint()
            yield Stopped(self.result())
        if together:
            self.accelerator.wait_for_everyone()
        raise Interrupted(f"Stopped after step {self.done} of {self.request.config.steps}.")

    def _agreed(self, stop: bool) -> bool:
        """Whether any process was asked to stop: all of them end after the same step."""
        if self.accelerator.num_processes == 1:
            return stop
        wish = torch.tensor(float(stop), device=self.accelerator.device)
        return bool(self.accelerator.reduce(wish, reduction="sum") > 0)

    def _diverged(self, what: str) -> Diverged:
        """The error, with where to go on from and how."""
        config = self.request.config
        lower = f"--content-lr {config.content_lr / 3:.1g} --style-lr {config.style_lr / 3:.1g}"
        precision = " --precision bf16" if self.state.scaler is not None else ""
        last = max(checkpoint_steps(self.request.folder), default=0)
        if last and not precision:
            hint = f"Go on after step {last} with lower learning rates: "
            hint += f"unziplora train --resume {self.request.job.name} {lower}"
        else:
            hint = f"Train again with lower learning rates: {lower}{precision}"
        saved = sorted((self.request.folder / "saved").glob("step-*"))
        if saved:
            hint += f"   The last saved LoRAs: {saved[-1]}"
        return Diverged(what, hint=hint)

    def result(self) -> TrainResult:
        """The LoRAs and merge weights as they are, closed to all but the chosen columns."""
        with closed(self.layers) if self._chosen() else nullcontext():
            return TrainResult(
                content=extract(self.layers, "content"),
                style=extract(self.layers, "style"),
                content_merge=extract_merge(self.layers, "content"),
                style_merge=extract_merge(self.layers, "style"),
                steps=self.done,
                losses=tuple(self.losses),
                seconds=self.earlier + time.monotonic() - self.started,
                memory=peak_memory(self.accelerator.device),
                device=str(self.accelerator.device),
                precision=self.precision,
            )


def _scalars(outcome: StepResult) -> Tensor:
    """Loss, reconstruction, overlap (0 where it does not count), gradient norm: [4], still on the device."""
    overlap = torch.zeros_like(outcome.loss) if outcome.overlap is None else outcome.overlap
    values = (outcome.loss, outcome.reconstruction, overlap, outcome.grad_norm)
    return torch.stack([value.detach().float() for value in values])


def _columns_chosen(step: int, layers: Layers) -> ColumnsChosen:
    content, style = (sum(int(layer.branches()[i].mask.sum()) for layer in layers.values()) for i in range(2))
    shared, total = shared_columns(layers.values())
    return ColumnsChosen(step, content, style, shared, total)


def _bare_layers(layers: Layers) -> int:
    """How many layers have a branch without any column."""
    return sum(not (layer.content.mask.any() and layer.style.mask.any()) for layer in layers.values())


SIGNALS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))


class StopRequest:
    """While this lasts, the first signal only sets ``received``; a second one raises KeyboardInterrupt.

    So the step at hand is finished first, and no half-updated weights are kept. A signal that the process
    was started to ignore, as by nohup, stays ignored. Outside the main thread, where signals cannot be
    caught, it does nothing.
    """

    def __init__(self) -> None:
        self.received = False
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> StopRequest:
        self._previous = _catch(self._receive)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        _restore(self._previous)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if self.received:
            raise KeyboardInterrupt
        self.received = True


@contextmanager
def signals_as_keyboard_interrupt() -> Iterator[None]:
    """Have every signal to stop raise KeyboardInterrupt, so that what is under way is left in order."""

    def receive(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    previous = _catch(receive)
    try:
        yield
    finally:
        _restore(previous)


def _catch(handler: Any) -> dict[int, Any]:
    if threading.current_thread() is not threading.main_thread():
        return {}
    wanted = [number for number in SIGNALS if signal.getsignal(number) is not signal.SIG_IGN]
    return {number: signal.signal(number, handler) for number in wanted}


def _restore(previous: dict[int, Any]) -> None:
    for number, handler in previous.items():
        signal.signal(number, handler)
