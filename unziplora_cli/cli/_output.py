"""The one sink of everything that a command says, and the only module that knows Rich.

Results go to stdout, progress and messages to stderr. With --json, stdout carries one envelope only, which
templates/envelope.schema.json describes.
"""

import math
import os
import re
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from unziplora_cli import paths
from unziplora_cli.errors import ModelError, Remedy, UsageError

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress as ProgressBar

    from unziplora_cli.projects.store import ProjectStore
    from unziplora_cli.sdxl.generate import Progress
    from unziplora_cli.training.events import Event


ENVELOPE_SCHEMA = 1


class Output:
    """How one run of the program talks; the global options set its flags before a command starts."""

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
        table: "Table | Sequence[Table] | None" = None,
    ) -> None:
        """The result of a command: `data` with --json, else the table or tables and the text."""
        if self.json:
            self._envelope({"ok": True, "result": data})
            return
        for each in [table] if isinstance(table, Table) else table or ():
            _print_table(self._console(), each)
        if text:
            self._console().print(printable(text), markup=False, highlight=False, soft_wrap=True)

    def message(self, text: str) -> None:
        """Tell what is going on; silent with --quiet."""
        if not self.quiet:
            self.console().print(printable(text), markup=False, highlight=False, soft_wrap=True)

    def warning(self, text: str) -> None:
        """Tell what the user should know; not silenced, and part of the envelope with --json."""
        if self.json:
            self._warnings.append(text)
            return
        from rich.text import Text

        self.console().print(Text.assemble(("Note: ", "yellow"), printable(text)), soft_wrap=True)

    def error(self, error: BaseException, message: str, hint: str, exit_code: int) -> None:
        """Say what failed and what to do next; the traceback only with --verbose."""
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
        """Ask on the terminal; without one, raise UsageError with the remedy to use `instead`."""
        import typer

        if self.json or not sys.stdin.isatty():
            raise UsageError(f"{question} There is no terminal to ask on.", instead)
        return typer.confirm(question, err=True)

    def console(self) -> "Console":
        """The console for progress and messages (stderr)."""
        from rich.console import Console

        return Console(stderr=True)

    def progress_bar(self) -> "ProgressBar | None":
        """A bar on stderr, not started yet; None where nobody watches it: no terminal, or --quiet."""
        console = self.console()
        if self.quiet or not console.is_terminal:
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

    def _console(self) -> "Console":
        from rich.console import Console

        return Console()

    def _envelope(self, content: Mapping[str, Any]) -> None:
        import json

        about = {"schema": ENVELOPE_SCHEMA, "command": self.command, "warnings": self._warnings}
        text = json.dumps(_plain({**about, **content}), ensure_ascii=False, indent=2, allow_nan=False)
        print(without_tokens(text))


@dataclass
class Session:
    """One run of the program: its output, its home and whether it may use the network."""

    output: Output = field(default_factory=Output)
    home: Path | None = None
    offline: bool = False
    command_line: tuple[str, ...] = ()
    """The words of the command line."""

    def store(self) -> "ProjectStore":
        """The projects of the chosen home."""
        from unziplora_cli.projects.store import ProjectStore

        return ProjectStore(paths.home(self.home))

    def use_network(self, purpose: str) -> None:
        """Let the hub's library, which is not imported yet, use the network; raises ModelError if offline."""
        if self.offline:
            raise ModelError(
                f"{purpose} needs the network.", Remedy("Run it without --offline and unset HF_HUB_OFFLINE.")
            )
        os.environ["HF_HUB_OFFLINE"] = "0"
        if self.output.quiet:
            os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"
            os.environ["HF_HUB_VERBOSITY"] = "error"


def _plain(value: Any) -> Any:
    """A value as JSON has it: paths and the like as text, numbers that are not finite as null."""
    if isinstance(value, Mapping):
        return {str(key): _plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if value is None or isinstance(value, str | int) else str(value)


class Table:
    """Rows for people; the first column never wraps."""

    def __init__(self, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        self.columns = columns
        self.rows = rows


def _print_table(console: "Console", table: Table) -> None:
    from rich import box
    from rich.table import Table as RichTable
    from rich.text import Text

    drawn = RichTable(box=box.SIMPLE_HEAD, pad_edge=False)
    for index, column in enumerate(table.columns):
        drawn.add_column(column, no_wrap=index == 0, overflow="fold")
    for row in table.rows:
        drawn.add_row(*(Text(printable(cell)) for cell in row))
    console.print(drawn)


def format_size(number: int) -> str:
    """Bytes for people: `6.9 GB`."""
    power = min(max(len(str(number)) - 1, 0) // 3, 4)
    unit = ("B", "kB", "MB", "GB", "TB")[power]
    amount = number / 1000**power
    return f"{amount:.1f} {unit}" if power and amount < 100 else f"{amount:.0f} {unit}"


def format_duration(seconds: float) -> str:
    """Seconds for people: `1 min 30 s`."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"


# What may be printable of a text: names and words can come from strangers' files, errors from libraries.


_SECRETS = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HUGGINGFACE_HUB_TOKEN", "WANDB_API_KEY")
_TOKEN = re.compile(r"\b(?:hf_|api_org_)[A-Za-z0-9]{16,}|(?<=Bearer )[^\s'\"]+|(?<=://)[^/\s@]+(?=@)")
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


def without_tokens(text: str) -> str:
    """The text with `***` for access tokens: those of the environment and all that look like one."""
    for name in _SECRETS:
        secret = os.environ.get(name, "").strip()
        if len(secret) >= 8:
            text = text.replace(secret, "***")
    return _TOKEN.sub("***", text)


def printable(text: str) -> str:
    """The text as a terminal may get it: without tokens, and without control characters, which could act."""
    return _CONTROL.sub("\N{REPLACEMENT CHARACTER}", without_tokens(text))


# What a person sees while work is going on: a bar on a terminal, plain lines in a log.


LOG_EVERY = 15.0
"""Seconds between the lines of a log."""

LONGEST = 16
"""Letters of a name beside the bar, so that the rest fits into 80 columns."""


class ProgressDisplay:
    """A progress bar on a terminal; elsewhere lines, no more often than every few seconds."""

    def __init__(self, output: Output, title: str) -> None:
        self.output = output
        self.title = title
        self.bar = output.progress_bar()
        self.task_name = ""
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

    def message(self, text: str) -> None:
        """One line that stays."""
        if self.bar is not None:
            self.bar.console.print(printable(text), markup=False, highlight=False)
        else:
            self.output.message(text)

    def update(self, name: str, completed: float, total: float, detail: str, line: str) -> None:
        """Move the bar, or write ``line`` when it is time for one."""
        if self.bar is not None:
            if name != self.task_name:
                for task in self.bar.task_ids:
                    self.bar.remove_task(task)
                label = name if len(name) <= LONGEST else name[: LONGEST - 1] + "…"
                self.bar.add_task(label, total=total, detail=detail)
                self.task_name = name
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
                self.task_name = ""
                self.message(f"{self.title}: {name}{f' ({detail})' if detail else ''}")
            case events.Notice(text):
                self.message(f"Note: {text}")
            case events.StepDone():
                left = format_duration((event.total - event.step) * event.seconds)
                memory = format_size(event.memory)
                detail = f"{event.phase:8} loss {event.loss:.3f} {event.seconds:.2f} s/step {memory}"
                self.update(
                    self.title,
                    event.step,
                    event.total,
                    detail,
                    f"{self.title}: step {event.step}/{event.total} {detail}, {left} left",
                )
            case events.ColumnsChosen():
                self.message(
                    f"{self.title}: columns chosen after step {event.step}: content {event.content}, "
                    f"style {event.style}, shared {event.shared} of {event.total}"
                )
            case events.Validated(step, paths):
                self.message(f"{self.title}: validation pictures after step {step}: {paths[-1].name}")
            case events.Saved(step, folder):
                self.message(f"{self.title}: saved after step {step}: {folder.name}")

    def progress(self, progress: "Progress") -> None:
        """Show how far pictures are drawn."""
        if progress.phase == "load":
            self.message(f"{self.title}: loading the base")
            return
        if progress.phase == "note":
            self.message(f"Note: {progress.note}")
        if progress.phase == "draw":
            done = progress.picture + progress.step / progress.steps
            detail = f"step {progress.step}/{progress.steps}"
            line = f"{self.title}: picture {progress.picture + 1} of {progress.pictures}, {detail}"
            self.update("drawing", done, progress.pictures, detail, line)
