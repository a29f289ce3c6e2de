"""Everything that a command prints: results, messages, errors and progress. The only module that uses Rich.

Results go to stdout, progress and messages to stderr. With --json, stdout carries a single envelope, which
templates/envelope.schema.json describes.
"""

import json
import math
import os
import sys
import time
import warnings
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import typer

from unziplora_cli import paths
from unziplora_cli.cli._errors import remedy_text
from unziplora_cli.cli._streams import is_unicode, uncleaned
from unziplora_cli.cli._text import (
    UNSAFE,
    one_line,
    print_image,
    print_table,
    print_text,
    without_tokens,
    wrap,
)
from unziplora_cli.cli._text import Table as Table
from unziplora_cli.cli._text import format_duration as format_duration
from unziplora_cli.cli._text import format_size as format_size
from unziplora_cli.cli._text import log_text as log_text
from unziplora_cli.cli._text import printable as printable
from unziplora_cli.errors import ModelError, Remedy, UsageError
from unziplora_cli.events import Part, RemainingTime, format_left, run

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress as ProgressBar

    from unziplora_cli.events import Notice
    from unziplora_cli.projects.store import ProjectStore
    from unziplora_cli.training.events import Event

T = TypeVar("T")
ENVELOPE_SCHEMA = 1

LOG_INTERVAL = 15.0
"""Seconds between progress lines where there is no terminal."""

MOST_SHOWN = 4
"""Images that a terminal shows of several."""

LONGEST_TASK_NAME = 14
"""Characters of the name before the progress bar, so that the rest fits into 80 columns."""


class Output:
    """Prints for one run of the program; the global options set its flags before the command starts."""

    def __init__(self) -> None:
        self.json = False
        self.quiet = False
        self.verbose = False
        self.command = ""
        self.opener: Callable[[Path | str], bool] | None = None
        self.live: Console | None = None  # that of the progress line, above which messages are printed
        self._warnings: list[str] = []

    def result(
        self,
        data: Mapping[str, Any],
        *,
        lead: str = "",
        text: str = "",
        table: Table | Sequence[Table] | None = None,
        links: Sequence[Path] = (),
        made: Path | str | None = None,
    ) -> None:
        """Print the result of a command: `data` with --json, otherwise the lead, the tables and the text.

        On terminals, the paths in `links` are hyperlinks. `made`, a path or a URL, is what `--open` opens; if
        that is an image it is also shown in terminals that can, else the first images of `links` are.
        """
        if made is not None and self.opener is not None:
            self.opener(made)
        if self.json:
            self._envelope({"ok": True, "result": data})
            return
        console = self.console(stderr=False)
        if lead:
            print_text(console, lead)
        for item in [table] if isinstance(table, Table) else table or ():
            print_table(console, item)
        if text:
            print_text(console, text, links=links)
        if made is not None and not self.quiet:
            for path in [made] if isinstance(made, Path) and made.is_file() else links[:MOST_SHOWN]:
                print_image(console, path)

    def message(self, text: str) -> None:
        """Print one line about what is going on; --quiet silences it."""
        if not self.quiet:
            print_text(self.console(), one_line(text))

    def notice(self, notice: "Notice", label: str = "") -> None:
        """Print a notice, and its remedies below it; --quiet silences them."""
        if not self.quiet:
            print_text(self.console(), one_line(label + notice.text))
            for remedy in notice.remedies:
                print_text(self.console(), one_line(remedy_text(remedy)), ("  -> ", "dim"))

    def warning(self, text: str) -> None:
        """Print a note that --quiet does not silence; with --json it becomes part of the envelope."""
        if self.json:
            self._warnings.append(text)
            return
        print_text(self.console(), one_line(text), ("Note: ", "yellow"))

    def error(self, error: BaseException, message: str, hint: str, exit_code: int) -> None:
        """Print what failed and what to do next; with --verbose the traceback too."""
        if self.verbose:
            import traceback

            trace = printable("".join(traceback.format_exception(error)))
            print(trace, end="", file=uncleaned(sys.stderr))
        if self.json:
            failure = {"type": type(error).__name__, "message": message, "hint": hint, "exit_code": exit_code}
            self._envelope({"ok": False, "error": failure})
            return
        console = self.console()
        print_text(console, one_line(message), ("Error: ", "bold red"))
        for line in hint.splitlines():
            print_text(console, line, ("  -> ", "dim"))

    @property
    def can_ask(self) -> bool:
        """Whether there is a terminal to ask on."""
        return not self.json and sys.stdin.isatty()

    def confirm(self, question: str, *, instead: Remedy, default: bool = False) -> bool:
        """Ask a yes-or-no question on the terminal; without one, raise UsageError with the remedy."""
        if not self.can_ask:
            raise UsageError(f"{question} There is no terminal to ask on.", instead)
        with self._interrupts_on_a_new_line():
            return typer.confirm(one_line(question), default=default, err=True)

    def ask(self, question: str, default: str | None = None) -> str:
        """Ask for a text on the terminal; check `can_ask` before."""
        default = None if default is None else one_line(default)
        text = one_line(f"{question} [{default}]" if default else question)
        lines = wrap(text, self.console().width - len(": "))
        with self._interrupts_on_a_new_line():
            answer: str = typer.prompt("\n".join(lines), default=default, show_default=False, err=True)
        return answer

    @contextmanager
    def _interrupts_on_a_new_line(self) -> Iterator[None]:
        """End the line of a question that Ctrl-C answers."""
        try:
            yield
        except typer.Abort:
            self.console().print()
            raise

    def console(self, *, stderr: bool = True) -> "Console":
        """The console for progress and messages (stderr), or for results (stdout)."""
        if stderr and self.live is not None:
            return self.live
        from rich.console import Console

        return Console(file=uncleaned(sys.stderr if stderr else sys.stdout))

    def _envelope(self, content: Mapping[str, Any]) -> None:
        header = {"schema": ENVELOPE_SCHEMA, "command": self.command, "warnings": self._warnings}
        value = _json_value({**header, **content})
        ascii_only = not is_unicode(sys.stdout)
        text = json.dumps(value, ensure_ascii=ascii_only, indent=2, allow_nan=False)
        print(UNSAFE.sub(lambda match: json.dumps(match[0])[1:-1], without_tokens(text)))


@dataclass
class Session:
    """One run of the program, which every command gets through `ctx.obj`."""

    output: Output = field(default_factory=Output)
    home: Path | None = None
    offline: bool = False
    command_line: tuple[str, ...] = ()

    def store(self) -> "ProjectStore":
        """The projects of the chosen home."""
        from unziplora_cli.projects.store import ProjectStore

        return ProjectStore(paths.home(self.home))

    def run(self, title: str, operation: "Generator[Event, None, T]", *, quiet_phases: bool = False) -> T:
        """Run an operation, and show its progress; returns its result."""
        with ProgressDisplay(self.output, title, quiet_phases=quiet_phases) as display:
            return run(operation, display.event)

    def use_network(self, purpose: str) -> None:
        """Let huggingface_hub, not imported yet, use the network; raises ModelError if offline."""
        if self.offline:
            raise ModelError(
                f"{purpose} needs the network, but this run is offline.",
                Remedy("Run the command without --offline, and unset HF_HUB_OFFLINE."),
            )
        paths.hub_endpoint()
        os.environ["HF_HUB_OFFLINE"] = "0"
        if self.output.quiet:
            os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"
            os.environ["HF_HUB_VERBOSITY"] = "error"


@contextmanager
def slow_paths_as_notes(output: Output) -> Iterator[None]:
    """Print each SlowPathWarning as a note; other warnings are shown as usual."""
    show = warnings.showwarning

    def show_note(message: Warning | str, category: type[Warning], *rest: Any, **options: Any) -> None:
        if category.__name__ == "SlowPathWarning":  # importing the class would import torch
            output.warning(str(message))
        else:
            show(message, category, *rest, **options)

    warnings.showwarning = show_note
    try:
        yield
    finally:
        warnings.showwarning = show


def _json_value(value: Any) -> Any:
    """A value as JSON holds it: paths and other objects as text, NaN and infinities as null."""
    if isinstance(value, Mapping):
        return {str(key): _json_value(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_json_value(item) for item in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if value is None or isinstance(value, str | int) else str(value)


class ProgressDisplay:
    """Renders events: a line that moves all the time on a terminal, otherwise a line every `LOG_INTERVAL`.

    The line names the phase, with a bar where its length is known. A second one shows the whole of an
    operation that yields Part.
    """

    def __init__(self, output: Output, title: str, *, quiet_phases: bool = False) -> None:
        self.output = output
        self.quiet_phases = quiet_phases
        self.title = title
        self.bar = self._make_bar()
        self.shows_columns = output.verbose or (self.bar.disable and not quiet_phases)
        self.task_name = ""
        self.logged = time.monotonic()
        self.remaining = RemainingTime()
        self.part = Part(0.0, 1.0)
        self.whole: RemainingTime | None = None

    def _make_bar(self) -> "ProgressBar":
        from rich.progress import BarColumn, Progress, ProgressColumn, SpinnerColumn, Task, TextColumn
        from rich.table import Column
        from rich.text import Text

        class Clock(ProgressColumn):
            """The remaining time, or the elapsed one while nothing is known."""

            def render(self, task: Task) -> Text:
                return Text(task.fields["left"] or format_duration(int(task.elapsed or 0)).replace(".0", ""))

        console = self.output.console()
        return Progress(
            SpinnerColumn(),
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=None),
            TextColumn("{task.fields[detail]}", markup=False),
            Clock(table_column=Column(no_wrap=True)),
            console=console,
            disable=self.output.quiet or not console.is_terminal,
            transient=True,
            get_time=lambda: time.monotonic(),
        )

    def __enter__(self) -> "ProgressDisplay":
        if not self.bar.disable:
            self.bar.start()
            self.output.live = self.bar.console
        self._begin("start")
        return self

    def __exit__(self, *_: object) -> None:
        self.output.live = None
        if not self.bar.disable:
            self.bar.stop()

    def _begin(self, name: str) -> None:
        """Show the task `name`, of which nothing is known yet, instead of the one before."""
        self.task_name, self.remaining = name, RemainingTime()
        for task in self.bar.task_ids[-1:]:
            self.bar.remove_task(task)
        label = name if len(name) <= LONGEST_TASK_NAME else name[: LONGEST_TASK_NAME - 1] + "…"
        self.bar.add_task(label, total=None, detail="", left="")

    def update(self, name: str, completed: float, total: float, detail: str, line: str) -> None:
        """Move the bar of the task `name`, or print `line` if the last one is long enough ago."""
        now = time.monotonic()
        if name != self.task_name:
            self._begin(name)
        left = format_left(self.remaining.update(completed, total, now))
        share = self.part.start + (self.part.end - self.part.start) * (completed / total if total else 1)
        whole = format_left(self.whole.update(share, 1.0, now)) if self.whole else ""
        if not self.bar.disable:
            detail = f"{completed:.0f}/{total:.0f} {detail}".rstrip()
            self.bar.update(self.bar.task_ids[-1], completed=completed, total=total, detail=detail, left=left)
            if self.whole:
                self.bar.update(
                    self.bar.task_ids[0], completed=share, detail=f"{share:.0%} of all", left=whole
                )
        elif now - self.logged >= LOG_INTERVAL or completed == total:
            self.logged = now
            notes = [left, f"{share:.0%} of all" if self.whole else "", whole]
            self.output.message(", ".join([line, *filter(None, notes)]))

    def _begin_part(self, part: Part) -> None:
        self.part = part
        if self.whole is None:
            self.whole = RemainingTime()
            name = self.task_name
            self._begin(self.title)
            self.bar.update(self.bar.task_ids[0], total=1.0)
            self.bar.add_task("", total=None, detail="", left="")
            self._begin(name)

    def event(self, event: "Event") -> None:
        """Render one event; a closed terminal or pipe does not stop the operation."""
        with suppress(OSError):
            self._event(event)

    def _event(self, event: "Event") -> None:
        from unziplora_cli import events as common
        from unziplora_cli.training import events as training

        match event:
            case common.Phase(name, detail):
                self._begin(name)
                if name != "finish" and not self.quiet_phases:
                    self.output.message(f"{self.title}: {name}{f' ({detail})' if detail else ''}")
            case common.Part():
                self._begin_part(event)
            case common.Notice():
                self.output.notice(event, "Note: ")
            case common.Progress(name, done, total, step, steps):
                detail = f"step {step}/{steps}" if steps else ""
                line = f"{self.title}: {name} {min(done + 1, total)}/{total} {detail}".rstrip()
                self.update(name, done + (step / steps if steps else 0), total, detail, line)
            case common.Transfer(file, done, total):
                size = f"{format_size(done)} of {format_size(total)}"
                self.update(file, done / 1e6, total / 1e6, "MB", f"{self.title}: {file}, {size}")
            case training.StepDone(step, total):
                memory = format_size(event.memory)
                detail = f"{event.phase:8} loss {event.loss:.3f} {event.seconds:.2f} s/step"
                line = f"{self.title}: step {step}/{total} {detail} {memory}"
                self.update(self.title, step, total, detail, line)
            case training.ColumnsChosen() if self.shows_columns:
                self.output.message(
                    f"{self.title}: columns chosen after step {event.step}: content {event.content}, "
                    f"style {event.style}, shared {event.shared} of {event.total}"
                )
            case training.Validated(step, files):
                self.output.message(f"{self.title}: validation images after step {step}: {files[-1]}")
            case training.Saved(step, folder):
                self.output.message(f"{self.title}: saved after step {step}: {folder.name}")
