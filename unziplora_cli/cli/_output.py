"""Everything that a command prints: results, messages, errors and progress. The only module that uses Rich.

Results go to stdout, progress and messages to stderr. With --json, stdout carries a single envelope, which
templates/envelope.schema.json describes.
"""

import json
import math
import os
import re
import sys
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

import typer

from unziplora_cli import paths
from unziplora_cli.cli._errors import remedy_text
from unziplora_cli.errors import ModelError, Remedy, UsageError

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress as ProgressBar

    from unziplora_cli.events import Notice
    from unziplora_cli.projects.store import ProjectStore
    from unziplora_cli.training.events import Event

ENVELOPE_SCHEMA = 1

LOG_INTERVAL = 15.0
"""Seconds between progress lines where there is no terminal."""

LONGEST_TASK_NAME = 16
"""Characters of the name before the progress bar, so that the rest fits into 80 columns."""


@dataclass(frozen=True)
class Table:
    """Rows of text under column headings; the first column never wraps."""

    columns: Sequence[str]
    rows: Sequence[Sequence[str]]


class Output:
    """Prints for one run of the program; the global options set its flags before the command starts."""

    def __init__(self) -> None:
        self.json = False
        self.quiet = False
        self.verbose = False
        self.command = ""
        self._warnings: list[str] = []

    def result(
        self,
        data: Mapping[str, Any],
        *,
        text: str = "",
        table: Table | Sequence[Table] | None = None,
    ) -> None:
        """Print the result of a command: `data` with --json, otherwise the tables and the text."""
        if self.json:
            self._envelope({"ok": True, "result": data})
            return
        from rich.console import Console

        console = Console()
        for item in [table] if isinstance(table, Table) else table or ():
            _print_table(console, item)
        if text:
            console.print(printable(text), markup=False, highlight=False, soft_wrap=True)

    def message(self, text: str) -> None:
        """Print what is going on; --quiet silences it."""
        if not self.quiet:
            self.console().print(printable(text), markup=False, highlight=False, soft_wrap=True)

    def warning(self, text: str) -> None:
        """Print a note that --quiet does not silence; with --json it becomes part of the envelope."""
        if self.json:
            self._warnings.append(text)
            return
        from rich.text import Text

        self.console().print(Text.assemble(("Note: ", "yellow"), printable(text)), soft_wrap=True)

    def error(self, error: BaseException, message: str, hint: str, exit_code: int) -> None:
        """Print what failed and what to do next; with --verbose the traceback too."""
        if self.verbose:
            import traceback

            print(without_tokens("".join(traceback.format_exception(error))), end="", file=sys.stderr)
        if self.json:
            failure = {"type": type(error).__name__, "message": message, "hint": hint, "exit_code": exit_code}
            self._envelope({"ok": False, "error": failure})
            return
        from rich.text import Text

        console = self.console()
        console.print(Text.assemble(("Error: ", "bold red"), printable(message)), soft_wrap=True)
        for line in hint.splitlines():
            console.print(Text.assemble(("  -> ", "dim"), printable(line)), soft_wrap=True)

    def confirm(self, question: str, *, instead: Remedy) -> bool:
        """Ask a yes-or-no question on the terminal; without one, raise UsageError with the remedy."""
        if self.json or not sys.stdin.isatty():
            raise UsageError(f"{question} There is no terminal to ask on.", instead)
        return typer.confirm(question, err=True)

    def console(self) -> "Console":
        """The console for progress and messages (stderr)."""
        from rich.console import Console

        return Console(stderr=True)

    def _envelope(self, content: Mapping[str, Any]) -> None:
        header = {"schema": ENVELOPE_SCHEMA, "command": self.command, "warnings": self._warnings}
        text = json.dumps(_json_value({**header, **content}), ensure_ascii=False, indent=2, allow_nan=False)
        print(without_tokens(text))


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

    def use_network(self, purpose: str) -> None:
        """Let huggingface_hub, not imported yet, use the network; raises ModelError if offline."""
        if self.offline:
            raise ModelError(
                f"{purpose} needs the network, but this run is offline.",
                Remedy("Run the command without --offline, and unset HF_HUB_OFFLINE."),
            )
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


def _print_table(console: "Console", table: Table) -> None:
    from rich import box
    from rich.table import Table as RichTable
    from rich.text import Text

    rendered = RichTable(box=box.SIMPLE_HEAD, pad_edge=False)
    for index, column in enumerate(table.columns):
        rendered.add_column(column, no_wrap=index == 0, overflow="fold")
    for row in table.rows:
        rendered.add_row(*(Text(printable(cell)) for cell in row))
    console.print(rendered)


def format_size(number: int) -> str:
    """Bytes as text: `6.9 GB`."""
    from rich.filesize import decimal

    return decimal(number)


def format_duration(seconds: float) -> str:
    """Seconds as text: `12.3 s`, `1 min 30 s`, `2 h 5 min`."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"


# Text is sanitized before it is printed: names can come from untrusted files, messages from libraries.

_SECRETS = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HUGGINGFACE_HUB_TOKEN", "WANDB_API_KEY")
_TOKEN = re.compile(r"\b(?:hf_|api_org_)[A-Za-z0-9]{16,}|(?<=Bearer )[^\s'\"]+|(?<=://)[^/\s@]+(?=@)")
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


def without_tokens(text: str) -> str:
    """Replace access tokens with `***`: those in the environment, and everything that looks like one."""
    for name in _SECRETS:
        secret = os.environ.get(name, "").strip()
        if len(secret) >= 8:
            text = text.replace(secret, "***")
    return _TOKEN.sub("***", text)


def printable(text: str) -> str:
    """Remove access tokens, and replace control characters, which a terminal would execute."""
    return _CONTROL.sub("\N{REPLACEMENT CHARACTER}", without_tokens(text))


def notice_text(notice: "Notice") -> str:
    """A notice and its remedies as text."""
    return " ".join([notice.text, *(remedy_text(remedy) for remedy in notice.remedies)])


class ProgressDisplay:
    """Renders events: a progress bar on a terminal, otherwise one line every `LOG_INTERVAL` seconds."""

    def __init__(self, output: Output, title: str) -> None:
        self.output = output
        self.title = title
        self.bar = self._make_bar()
        self.task_name = ""
        self.logged = time.monotonic()

    def _make_bar(self) -> "ProgressBar | None":
        console = self.output.console()
        if self.output.quiet or not console.is_terminal:
            return None
        from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

        return Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=None),
            TextColumn("{task.completed:.0f}/{task.total:.0f}"),
            TextColumn("{task.fields[detail]}", markup=False),
            TimeRemainingColumn(compact=True),
            console=console,
            transient=True,
            speed_estimate_period=60,
        )

    def __enter__(self) -> "ProgressDisplay":
        if self.bar is not None:
            self.bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.bar is not None:
            self.bar.stop()

    def message(self, text: str) -> None:
        """Print one line above the bar."""
        if self.bar is not None:
            self.bar.console.print(printable(text), markup=False, highlight=False)
        else:
            self.output.message(text)

    def update(self, name: str, completed: float, total: float, detail: str, line: str) -> None:
        """Move the bar of the task `name`, or print `line` if the last one is long enough ago."""
        if self.bar is not None:
            if name != self.task_name:
                for task in self.bar.task_ids:
                    self.bar.remove_task(task)
                label = name if len(name) <= LONGEST_TASK_NAME else name[: LONGEST_TASK_NAME - 1] + "…"
                self.bar.add_task(label, total=total, detail=detail)
                self.task_name = name
            self.bar.update(self.bar.task_ids[0], completed=completed, detail=detail)
        elif time.monotonic() - self.logged >= LOG_INTERVAL or completed == total:
            self.logged = time.monotonic()
            self.output.message(line)

    def event(self, event: "Event") -> None:
        """Render one event; a closed terminal or pipe does not stop the operation."""
        with suppress(OSError):
            self._event(event)

    def _event(self, event: "Event") -> None:
        from unziplora_cli import events as common
        from unziplora_cli.training import events as training

        match event:
            case common.Phase(name, detail) if name != "finish":
                self.task_name = ""
                self.message(f"{self.title}: {name}{f' ({detail})' if detail else ''}")
            case common.Notice():
                self.message(f"Note: {notice_text(event)}")
            case common.Progress(name, done, total, step, steps):
                detail = f"step {step}/{steps}" if steps else ""
                line = f"{self.title}: {name} {min(done + 1, total)}/{total} {detail}".rstrip()
                self.update(name, done + (step / steps if steps else 0), total, detail, line)
            case training.StepDone(step, total):
                left = format_duration((total - step) * event.seconds)
                memory = format_size(event.memory)
                detail = f"{event.phase:8} loss {event.loss:.3f} {event.seconds:.2f} s/step {memory}"
                line = f"{self.title}: step {step}/{total} {detail}, {left} left"
                self.update(self.title, step, total, detail, line)
            case training.ColumnsChosen():
                self.message(
                    f"{self.title}: columns chosen after step {event.step}: content {event.content}, "
                    f"style {event.style}, shared {event.shared} of {event.total}"
                )
            case training.Validated(step, files):
                self.message(f"{self.title}: validation images after step {step}: {files[-1].name}")
            case training.Saved(step, folder):
                self.message(f"{self.title}: saved after step {step}: {folder.name}")
