"""What a person sees while work is going on: a bar on a terminal, plain lines in a log."""

import time
from contextlib import suppress
from types import TracebackType
from typing import TYPE_CHECKING, Any

from unziplora_cli.cli.render import Output, duration, size
from unziplora_cli.cli.sanitize import shown

if TYPE_CHECKING:
    from unziplora_cli.diffusion.generate import Progress
    from unziplora_cli.training.events import Event

LOG_EVERY = 15.0
"""Seconds between the lines of a log."""

LONGEST = 16
"""Letters of a name beside the bar, so that the rest fits into 80 columns."""


class Display:
    """A progress bar on a terminal; elsewhere lines, no more often than every few seconds."""

    def __init__(self, output: Output, title: str) -> None:
        self.output = output
        self.title = title
        self.bar = output.progress_bar()
        self.shown = ""
        self.logged = time.monotonic()

    def __enter__(self) -> Any:
        if self.bar is not None:
            self.bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.bar is not None:
            self.bar.stop()

    def say(self, text: str) -> None:
        """One line that stays."""
        if self.bar is not None:
            self.bar.console.print(shown(text), markup=False, highlight=False)
        else:
            self.output.message(text)

    def show(self, name: str, completed: float, total: float, detail: str, line: str) -> None:
        """Move the bar, or write ``line`` when it is time for one."""
        if self.bar is not None:
            if name != self.shown:
                for task in self.bar.task_ids:
                    self.bar.remove_task(task)
                label = name if len(name) <= LONGEST else name[: LONGEST - 1] + "…"
                self.bar.add_task(label, total=total, detail=detail)
                self.shown = name
            self.bar.update(self.bar.task_ids[0], completed=completed, detail=detail)
        elif time.monotonic() - self.logged >= LOG_EVERY or completed == total:
            self.logged = time.monotonic()
            self.output.message(line)

    def event(self, event: "Event") -> None:
        """Show one event of a training; without a word when the terminal or the pipe is gone."""
        with suppress(OSError):
            self._event(event)

    def _event(self, event: "Event") -> None:
        from unziplora_cli.training import events

        match event:
            case events.Phase(name, detail) if name != "finish":
                self.shown = ""
                self.say(f"{self.title}: {name}{f' ({detail})' if detail else ''}")
            case events.Notice(text):
                self.say(f"Note: {text}")
            case events.StepDone():
                left = duration((event.total - event.step) * event.seconds)
                detail = (
                    f"{event.phase:8} loss {event.loss:.3f} {event.seconds:.2f} s/step {size(event.memory)}"
                )
                self.show(
                    self.title,
                    event.step,
                    event.total,
                    detail,
                    f"{self.title}: step {event.step}/{event.total} {detail}, {left} left",
                )
            case events.ColumnsChosen():
                self.say(
                    f"{self.title}: columns chosen after step {event.step}: content {event.content}, "
                    f"style {event.style}, shared {event.shared} of {event.total}"
                )
            case events.Validated(step, paths):
                self.say(f"{self.title}: validation pictures after step {step}: {paths[-1].name}")
            case events.Saved(step, folder):
                self.say(f"{self.title}: saved after step {step}: {folder.name}")

    def progress(self, progress: "Progress") -> None:
        """Show how far pictures are drawn."""
        if progress.phase == "load":
            self.say(f"{self.title}: loading the base")
            return
        if progress.phase == "note":
            self.say(f"Note: {progress.note}")
        if progress.phase == "draw":
            done = progress.picture + progress.step / progress.steps
            detail = f"step {progress.step}/{progress.steps}"
            line = f"{self.title}: picture {progress.picture + 1} of {progress.pictures}, {detail}"
            self.show("drawing", done, progress.pictures, detail, line)
