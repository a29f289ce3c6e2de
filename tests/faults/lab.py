"""Run commands in forked processes with a fault at a chosen moment, and check the files that remain.

A moment is an audit event of Python in the folder of the trial: a file is opened, renamed or removed, or a
folder is created. The parent imports everything before it forks, so that a trial takes little longer than its
training steps.
"""

import contextlib
import io
import os
import re
import select
import shutil
import signal
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

STEPS = 6
EVERY = 2
CREATED = "2025-01-02T03:04:05Z"
TRAIN = ("train", "--name=fox", "--subject=fox", "--style=sketch")

Arm = Callable[["Moments"], None]


@dataclass(frozen=True)
class Completed:
    """The exit code of a command, or minus its signal, and its output."""

    code: int
    message: str

    def orderly(self) -> None:
        """Fail if the output holds a traceback or reports a bug."""
        assert "Traceback" not in self.message, self.message
        assert "This is a bug" not in self.message, self.message


@dataclass
class Moments:
    """The audit events in a folder of this process, and an action at one of them."""

    folder: Path
    events: list[str] = field(default_factory=list)
    at: int = -1
    act: Callable[[], object] = lambda: None
    end: Callable[[], object] = lambda: None

    def watch(self) -> None:
        """Install the audit hook, which lasts until the process ends."""
        sys.addaudithook(self._hook)

    def _hook(self, event: str, args: tuple[object, ...]) -> None:
        if event not in ("open", "os.rename", "os.remove", "os.mkdir", "os.rmdir", "shutil.rmtree"):
            return
        path = args[1] if event == "os.rename" else args[0]
        if not isinstance(path, str | os.PathLike) or not str(path).startswith(str(self.folder)):
            return
        if "status.txt" in str(path):  # its moments depend on the clock
            return
        self.events.append(f"{event} {path}")
        if len(self.events) - 1 == self.at:
            self.act()


class Lab:
    """A tiny base, an image, and the files of an undisturbed training on them."""

    def __init__(self, root: Path) -> None:
        from PIL import Image

        from tests.tiny_base import make_tiny_base

        self.root = root
        self.base = make_tiny_base(root / "base")
        self.image = root / "fox.png"
        Image.linear_gradient("L").resize((96, 80)).convert("RGB").save(self.image)
        preset = root / "preset.toml"
        preset.write_text('[train]\nimportance_score = "magnitude"\nstrict_top = false\n')
        self.options = (
            *(f"--base={self.base}", f"--preset={preset}", "--device=cpu", "--resolution=64", "--rank=2"),
            *(f"--steps={STEPS}", "--recalibrations=2", "--importance-steps=1"),
            *(f"--checkpoint-every={EVERY}", "--no-sheet"),
        )
        warm = self.trial("warm")
        with contextlib.redirect_stdout(io.StringIO()):
            self.command(warm, *self.train(), "--quiet")()
        self.done = self.trial("done")
        self.moments = self.record(self.done, *self.train())
        self.reference = self.weights(self.done)
        self.files = self.listing(self.done)
        self.interrupted = self.trial("interrupted")
        ctrl_c = signal_at(self.after_first_checkpoint(), signal.SIGINT)
        completed = self.run(self.interrupted, *self.train(), arm=ctrl_c)
        assert completed.code == 130, completed
        self.calls: dict[str, dict[int, int]] = {}
        self.exported = root / "exported"
        completed = self.run(self.done, "export", "fox", "--part=all", "--out", str(self.exported))
        assert completed.code == 0, completed
        self.killed = self.trial("killed")
        self.run(self.killed, *self.train(), arm=kill_at(self.after_first_checkpoint()))

    def after_first_checkpoint(self) -> int:
        """The moment at which the first checkpoint is complete."""
        named = [
            i for i, event in enumerate(self.moments) if re.match("os.rename .*step-000002.sha256", event)
        ]
        return named[0] + 2

    def train(self, *more: str) -> tuple[str, ...]:
        """The command line that trains the project fox."""
        return (TRAIN[0], str(self.image), *TRAIN[1:], *self.options, *more)

    def trial(self, name: str, like: Path | None = None) -> Path:
        """A new folder for a trial, empty or a copy of another one."""
        folder = self.root / name
        if like is not None:
            shutil.copytree(like, folder)
        else:
            folder.mkdir()
        return folder

    def command(self, trial: Path, *arguments: str) -> Callable[[], int]:
        """A function that runs a command line in this process."""
        from unziplora_cli import job
        from unziplora_cli.__main__ import run

        job.now = lambda: CREATED
        os.environ["UNZIPLORA_HOME"] = str(trial / "home")
        return lambda: run(arguments)

    def record(self, trial: Path, *arguments: str) -> list[str]:
        """The moments of an undisturbed command."""
        notes = self.root / "moments"

        def arm(moments: Moments) -> None:
            moments.end = lambda: notes.write_text("\n".join(moments.events))

        completed = self.run(trial, *arguments, arm=arm)
        assert completed.code == 0, completed.message
        return notes.read_text().splitlines()

    def run(self, trial: Path, *arguments: str, arm: Arm | None = None, kill_after: float = 0.0) -> Completed:
        """Run a command line in a new process; kill it after `kill_after` seconds unless that is 0."""
        return self.wait(*self.start(trial, *arguments, arm=arm), kill_after=kill_after)

    def start(self, trial: Path, *arguments: str, arm: Arm | None = None) -> tuple[int, int]:
        """Fork a process that runs a command line; returns its id and the pipe of its output."""
        ours, theirs = os.pipe()
        pid = os.fork()
        if pid:
            os.close(theirs)
            return pid, ours
        code = 70
        try:
            os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
            os.dup2(theirs, 1)
            os.dup2(theirs, 2)
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):  # background jobs ignore some
                signal.signal(
                    number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL
                )
            sys.stdin, sys.stdout, sys.stderr = (os.fdopen(i, "r" if i == 0 else "w", 1) for i in range(3))
            command = self.command(trial, *arguments)
            moments = Moments(trial)
            if arm is not None:
                arm(moments)
            moments.watch()
            code = command()
            moments.end()
            sys.stdout.flush()
            sys.stderr.flush()
        finally:
            os._exit(code)

    def wait(self, pid: int, pipe: int, *, kill_after: float = 0.0) -> Completed:
        """Read the output of a process until it ends."""
        if kill_after:
            handle = os.pidfd_open(pid)
            if not select.select([handle], [], [], kill_after)[0]:
                os.kill(pid, signal.SIGKILL)
            os.close(handle)
        with os.fdopen(pipe, encoding="utf-8", errors="replace") as file:
            message = file.read()
        _, status = os.waitpid(pid, 0)
        code = os.waitstatus_to_exitcode(status)
        return Completed(code, message)

    def weights(self, trial: Path, name: str = "fox") -> dict[str, str]:
        """The hashes of a project's weights; fails if they do not load."""
        from unziplora_cli import files
        from unziplora_cli.adapters.lora_file import read_lora
        from unziplora_cli.adapters.merge_weights import read_merge
        from unziplora_cli.projects.store import ProjectStore

        project = ProjectStore(trial / "home").open(name)
        read_merge(project.path("merge"))
        for role in ("content", "style"):
            read_lora(project.path(role))
        return {role: files.sha256(project.path(role)) for role in ("content", "style", "merge")}

    def listing(self, trial: Path) -> list[str]:
        """Every file of a trial except locks, which remain, and sheets, which follow a whole project."""
        files = [path for path in trial.rglob("*") if not path.is_dir()]
        files = [path for path in files if path.suffix != ".lock" and path.name != "sheet.png"]
        return sorted(str(path.relative_to(trial)) for path in files)

    def verify(self, trial: Path) -> list[str]:
        """The names of all projects of a trial; fails if one is damaged."""
        from unziplora_cli.projects.store import ProjectStore

        store = ProjectStore(trial / "home")
        projects, damaged = store.list()
        _, lost = store.all_unfinished()
        assert not damaged, damaged
        assert not lost, lost
        for project in projects:
            assert not store.verify(project.name).problems, store.verify(project.name)
            self.weights(trial, project.name)
        return [project.name for project in projects]

    def finish(self, trial: Path, *more: str) -> str:
        """Resume or repeat the training as a user would; fails if anything of the fault remains."""
        from unziplora_cli.projects.store import ProjectStore

        store = ProjectStore(trial / "home")
        message = ""
        if store.unfinished("fox"):
            step = max(complete_checkpoints(trial), default=0)
            completed = self.run(trial, "train", "--resume=fox", "--no-sheet")
            message = completed.message
            assert completed.code == 0, message
            assert not step or f"Resuming after step {step}." in message, message
        elif "fox" not in store.names() or more:
            completed = self.run(trial, *self.train(*more))
            assert completed.code == 0, completed.message
        else:
            assert self.run(trial, *self.train()).code == 3
        assert self.verify(trial) == ["fox"]
        assert self.weights(trial) == self.reference
        assert recorded_steps(trial) == list(range(1, STEPS + 1))
        assert self.listing(trial) == self.files, set(self.listing(trial)) ^ set(self.files)
        return message


def kill_at(moment: int) -> Arm:
    """Kill the process at a moment, like a power failure."""

    def arm(moments: Moments) -> None:
        moments.at, moments.act = moment, lambda: os.kill(os.getpid(), signal.SIGKILL)

    return arm


def signal_at(moment: int, number: int) -> Arm:
    """Send the process a signal at a moment."""

    def arm(moments: Moments) -> None:
        moments.at, moments.act = moment, lambda: os.kill(os.getpid(), number)

    return arm


def full_disk_at(moment: int, room: int) -> Arm:
    """From a moment on, limit the size of files to ``room`` bytes."""
    import resource

    def arm(moments: Moments) -> None:
        _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        moments.at = moment
        moments.act = lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (room, hard))

    return arm


def clock_jumps_back() -> Arm:
    """Let every reading of the clock return a day less than the last one."""
    import itertools
    import time

    def arm(moments: Moments) -> None:
        days = itertools.count()
        time.time = lambda: 1.7e9 - 86400.0 * next(days)

    return arm


def complete_checkpoints(trial: Path) -> Iterator[int]:
    """The steps of all checkpoints that have a hash file."""
    for file in trial.rglob("checkpoints/step-*.sha256"):
        yield int(file.stem.removeprefix("step-"))


def recorded_steps(trial: Path) -> list[int]:
    """The steps in the history of the project fox."""
    from unziplora_cli.training import callbacks

    return [row.step for row in callbacks.read_history(trial / "home/projects/fox/history.csv")]
