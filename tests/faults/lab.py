"""Commands in forked processes that meet a fault at a chosen moment, and a look at what they leave.

A moment is an event of Python's audit hook that touches the folder of the trial: a file opened, renamed or
removed, a folder made. The parent has imported everything already, so that a trial costs little more than its
training steps.
"""

import contextlib
import io
import os
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
    """How a command completed: its exit code, or minus the signal, and all that it message."""

    code: int
    message: str

    def orderly(self) -> None:
        """Fail when it completed with anything but a message for people."""
        assert "Traceback" not in self.message, self.message
        assert "This is a bug" not in self.message, self.message


@dataclass
class Moments:
    """The events below a folder in this process, and what is to happen at one of them."""

    folder: Path
    seen: list[str] = field(default_factory=list)
    at: int = -1
    act: Callable[[], object] = lambda: None
    end: Callable[[], object] = lambda: None

    def watch(self) -> None:
        """Begin; it lasts until the process ends."""
        sys.addaudithook(self._hook)

    def _hook(self, event: str, args: tuple[object, ...]) -> None:
        if event not in ("open", "os.rename", "os.remove", "os.mkdir", "os.rmdir", "shutil.rmtree"):
            return
        path = args[1] if event == "os.rename" else args[0]
        if not isinstance(path, str | os.PathLike) or not str(path).startswith(str(self.folder)):
            return
        self.seen.append(f"{event} {path}")
        if len(self.seen) - 1 == self.at:
            self.act()


class Lab:
    """A tiny base, a picture, and what an undisturbed training on them leaves."""

    def __init__(self, root: Path) -> None:
        from PIL import Image

        from tests.tiny_base import make_tiny_base

        self.root = root
        self.base = make_tiny_base(root / "base")
        self.picture = root / "fox.png"
        Image.linear_gradient("L").resize((96, 80)).convert("RGB").save(self.picture)
        preset = root / "preset.toml"
        preset.write_text('[train]\nimportance_score = "magnitude"\nstrict_top = false\n')
        self.options = (
            *(f"--base={self.base}", f"--preset={preset}", "--device=cpu", "--resolution=64", "--rank=2"),
            *(f"--steps={STEPS}", "--recalibrations=2", "--importance-steps=1"),
            f"--checkpoint-every={EVERY}",
        )
        warm = self.trial("warm")
        with contextlib.redirect_stdout(io.StringIO()):
            self.command(warm, *self.train(), "--quiet")()
        self.done = self.trial("done")
        self.moments = self.record(self.done, *self.train())
        self.reference = self.weights(self.done)
        self.files = self.listing(self.done)
        self.stopped = self.trial("stopped")
        ctrl_c = signal_at(self.after_first_checkpoint(), signal.SIGINT)
        completed = self.run(self.stopped, *self.train(), arm=ctrl_c)
        assert completed.code == 130, completed
        self.cut = self.trial("cut")
        self.run(self.cut, *self.train(), arm=kill_at(self.after_first_checkpoint()))

    def after_first_checkpoint(self) -> int:
        """The moment at which the first checkpoint is whole."""
        return max(i for i, each in enumerate(self.moments) if "step-000002.sha256" in each) + 2

    def train(self, *more: str) -> tuple[str, ...]:
        """The command that trains the project fox."""
        return (TRAIN[0], str(self.picture), *TRAIN[1:], *self.options, *more)

    def trial(self, name: str, like: Path | None = None) -> Path:
        """A new folder for one trial, with the home of another in it."""
        folder = self.root / name
        if like is not None:
            shutil.copytree(like, folder)
        else:
            folder.mkdir()
        return folder

    def command(self, trial: Path, *arguments: str) -> Callable[[], int]:
        """A command line in this process."""
        from unziplora_cli.__main__ import run
        from unziplora_cli.projects import manifest

        manifest.now = lambda: CREATED
        os.environ["UNZIPLORA_HOME"] = str(trial / "home")
        return lambda: run(arguments)

    def record(self, trial: Path, *arguments: str) -> list[str]:
        """The moments of a command that nothing disturbs."""
        notes = self.root / "moments"

        def arm(moments: Moments) -> None:
            moments.end = lambda: notes.write_text("\n".join(moments.seen))

        completed = self.run(trial, *arguments, arm=arm)
        assert completed.code == 0, completed.message
        return notes.read_text().splitlines()

    def run(self, trial: Path, *arguments: str, arm: Arm | None = None, kill_after: float = 0.0) -> Completed:
        """A command line in a process of its own; it is killed after so many seconds, if any."""
        return self.wait(*self.start(trial, *arguments, arm=arm), kill_after=kill_after)

    def start(self, trial: Path, *arguments: str, arm: Arm | None = None) -> tuple[int, int]:
        """Fork a process that runs a command line; returns its id and where it talks."""
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
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):  # a background job ignores some
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

    def wait(self, pid: int, talk: int, *, kill_after: float = 0.0) -> Completed:
        """Read what a process says until it ends."""
        if kill_after:
            handle = os.pidfd_open(pid)
            if not select.select([handle], [], [], kill_after)[0]:
                os.kill(pid, signal.SIGKILL)
            os.close(handle)
        with os.fdopen(talk, encoding="utf-8", errors="replace") as file:
            message = file.read()
        _, status = os.waitpid(pid, 0)
        code = os.waitstatus_to_exitcode(status)
        return Completed(code, message)

    def weights(self, trial: Path, name: str = "fox") -> dict[str, str]:
        """The hashes of a project's weights, which have to load."""
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
        """Every file of a trial but the locks, which stay."""
        files = [path for path in trial.rglob("*") if not path.is_dir() and path.suffix != ".lock"]
        return sorted(str(path.relative_to(trial)) for path in files)

    def verify(self, trial: Path) -> list[str]:
        """All projects of a trial, each of them whole."""
        from unziplora_cli.projects.store import ProjectStore

        store = ProjectStore(trial / "home")
        projects, damaged = store.list()
        _, lost = store.all_unfinished()
        assert not damaged, damaged
        assert not lost, lost
        for project in projects:
            assert not store.verify(project.name).problems, store.verify(project.name)
            self.weights(trial, project.name)
        return [each.name for each in projects]

    def finish(self, trial: Path, *more: str) -> str:
        """Do what a person would: go on, or type the command again; nothing of the fault may remain."""
        from unziplora_cli.projects.store import ProjectStore

        store = ProjectStore(trial / "home")
        message = ""
        if store.unfinished("fox"):
            kept = max(whole_checkpoints(trial), default=0)
            completed = self.run(trial, "train", "--resume=fox")
            message = completed.message
            assert completed.code == 0, message
            assert not kept or f"Going on after step {kept}." in message, message
        elif "fox" not in store.names() or more:
            completed = self.run(trial, *self.train(*more))
            assert completed.code == 0, completed.message
        else:
            assert self.run(trial, *self.train()).code == 3
        assert self.verify(trial) == ["fox"]
        assert self.weights(trial) == self.reference
        assert steps_told(trial) == list(range(1, STEPS + 1))
        assert self.listing(trial) == self.files, set(self.listing(trial)) ^ set(self.files)
        return message


def kill_at(moment: int) -> Arm:
    """Kill the process at a moment, as a power cut does."""

    def arm(moments: Moments) -> None:
        moments.at, moments.act = moment, lambda: os.kill(os.getpid(), signal.SIGKILL)

    return arm


def signal_at(moment: int, number: int) -> Arm:
    """Send the process a signal at a moment."""

    def arm(moments: Moments) -> None:
        moments.at, moments.act = moment, lambda: os.kill(os.getpid(), number)

    return arm


def full_disk_at(moment: int, room: int) -> Arm:
    """From a moment on let no file grow beyond ``room`` bytes."""
    import resource

    def arm(moments: Moments) -> None:
        _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        moments.at = moment
        moments.act = lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (room, hard))

    return arm


def clock_jumps_back() -> Arm:
    """Let every look at the clock be a day before the last one."""
    import itertools
    import time

    def arm(moments: Moments) -> None:
        days = itertools.count()
        time.time = lambda: 1.7e9 - 86400.0 * next(days)

    return arm


def whole_checkpoints(trial: Path) -> Iterator[int]:
    """The steps of the checkpoints whose hash is there."""
    for file in trial.rglob("checkpoints/step-*.sha256"):
        yield int(file.stem.removeprefix("step-"))


def steps_told(trial: Path) -> list[int]:
    """The steps in the history of the project fox."""
    from unziplora_cli.training import callbacks

    return [row.step for row in callbacks.read_history(trial / "home/projects/fox/history.csv")]
