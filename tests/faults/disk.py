"""Trials with a failing disk: the n-th write, flush, rename or lock fails, in every command that writes.

`shim.c` is preloaded into the process of the campaign; a forked command arms it for its own folder.
"""

import ctypes
import errno
import json
import os
import random
import re
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tests.faults.lab import Arm, Completed, Lab, Moments, complete_checkpoints

READ, CREATE, WRITE, FLUSH, NAME, REMOVE, MODE, LOCK = (1 << bit for bit in range(8))

FAULTS: dict[str, tuple[int, tuple[int, ...]]] = {
    "write": (WRITE, (errno.ENOSPC, errno.EIO, errno.EDQUOT)),
    "flush": (FLUSH, (errno.EIO, errno.ENOSPC)),
    "create": (CREATE, (errno.EMFILE, errno.EACCES, errno.EROFS, errno.ESTALE, errno.ENOSPC)),
    "rename": (NAME, (errno.ENOSPC, errno.EIO, errno.ESTALE, errno.EROFS)),
    "remove": (REMOVE, (errno.EIO, errno.EROFS)),
    "mode": (MODE, (errno.EPERM,)),
    "lock": (LOCK, (errno.EIO, errno.ENOLCK)),
    "read": (READ, (errno.EIO, errno.EMFILE, errno.ESTALE)),
}
"""What fails, and with which errors."""

OUTCOME = re.compile(
    r"kept|unchanged|Nothing was|still named|is (named|written|removed|complete)"
    r"|may be replaced|cannot be read|Cannot"
)


@dataclass(frozen=True)
class Command:
    """A command line, the state of the folder before it, and the projects that may be there afterwards."""

    line: Callable[[Lab, Path], tuple[str, ...]]
    before: str | None = "done"
    after: tuple[tuple[str, ...], ...] = (("fox",),)
    training: bool = False


COMMANDS: dict[str, Command] = {
    "train": Command(lambda lab, _: lab.train(), None, ((), ("fox",)), training=True),
    "train --force": Command(lambda lab, _: lab.train("--force"), training=True),
    "train --resume": Command(
        lambda lab, _: ("train", "--resume=fox"), "killed", ((), ("fox",)), training=True
    ),
    "eval": Command(lambda lab, _: ("eval", "fox")),
    "replay": Command(lambda lab, _: ("replay", "fox")),
    "import --force": Command(
        lambda lab, _: (
            *("import", str(lab.exported), f"--base={lab.base}", "--name=fox"),
            *("--subject=fox", "--style=sketch", "--force"),
        ),
    ),
    "export": Command(lambda lab, trial: ("export", "fox", "--out", str(trial / "out"))),
    "report": Command(lambda lab, trial: ("report", "fox", "--out", str(trial / "a.html"))),
    "push": Command(lambda lab, trial: ("push", "fox", "me/fox", "--dry-run", "--out", str(trial / "card"))),
    "content": Command(lambda lab, _: ("content", "fox", "--steps=1", "--width=64", "--height=64")),
    "rename": Command(lambda lab, _: ("rename", "fox", "rose"), after=(("fox",), ("rose",))),
    "remove": Command(lambda lab, _: ("remove", "fox", "--yes"), after=(("fox",), ())),
}


def compile_shim(folder: Path) -> Path | None:
    """Compile the library to preload; None where there is no C compiler."""
    library, source = folder / "shim.so", Path(__file__).with_name("shim.c")
    command = ["cc", "-shared", "-fPIC", "-w", "-o", str(library), str(source), "-ldl"]
    if shutil.which("cc") is None or subprocess.run(command, check=False).returncode:
        return None
    return library


def is_preloaded() -> bool:
    """Whether this process was started with the library."""
    return hasattr(ctypes.CDLL(None), "fault_arm")


def fail_at(kinds: int, moment: int, number: int, *, sticky: bool = False, calls: Path | None = None) -> Arm:
    """Let the call number `moment` fail, and with `sticky` all later ones; `calls` receives the counts."""
    library = ctypes.CDLL(None)
    library.fault_count.restype = ctypes.c_long

    def disarm() -> None:
        library.fault_arm(b"/", 0, ctypes.c_long(0), 0, 0)
        if calls is not None:
            calls.write_text(json.dumps({1 << bit: library.fault_count(1 << bit) for bit in range(8)}))

    def arm(moments: Moments) -> None:
        moments.end = disarm
        root = os.fsencode(moments.folder)
        library.fault_arm(root, kinds, ctypes.c_long(moment), number, int(sticky))

    return arm


def failing(name: str, fault: str) -> Callable[[Lab, Path, random.Random], None]:
    """A trial: a command meets a fault at a random call."""
    command, (kinds, numbers) = COMMANDS[name], FAULTS[fault]

    def trial(lab: Lab, folder: Path, rng: random.Random) -> None:
        calls = _calls(lab, name, kinds)
        if not calls:
            return
        failing_once(
            lab, folder, name, kinds, rng.randint(1, calls), rng.choice(numbers), sticky=rng.random() < 0.3
        )

    assert command
    return trial


def failing_once(
    lab: Lab, folder: Path, name: str, kinds: int, moment: int, number: int, *, sticky: bool
) -> Completed:
    """Run a command with one fault, and check its message, its projects and the next command."""
    command = COMMANDS[name]
    trial = lab.trial(folder.name, getattr(lab, command.before) if command.before else None)
    completed = lab.run(trial, *command.line(lab, trial), arm=fail_at(kinds, moment, number, sticky=sticky))
    about = f"{name}, call {moment}, {errno.errorcode[number]}: {completed}"
    completed.orderly()
    message = " ".join(completed.message.split())
    if completed.code:
        assert completed.code in (3, 4, 6) or (completed.code == 2 and kinds == READ), about
        assert os.strerror(number).lower() in message.lower(), about
        assert "/" in message, about
        assert OUTCOME.search(message), about
    names = tuple(lab.verify(trial))
    assert names in command.after, (names, about)
    if command.training:
        step = max(complete_checkpoints(trial), default=0)
        assert step or not (trial / "home/projects/.fox.unfinished").exists() or completed.code, about
        lab.finish(trial, "--force") if command.before == "done" else lab.finish(trial)
    elif names == ("fox",) and (completed.code or name in ("eval", "replay", "content", "import --force")):
        again = lab.run(trial, *command.line(lab, trial))
        assert again.code == 0 or "is written" in message, (about, again)  # then it exists
    leftovers = [path for path in trial.rglob(".*") if path.name.endswith((".partial", ".ready", ".former"))]
    assert not leftovers or sticky or command.after != (("fox",),), (
        about,
        leftovers,
    )
    return completed


def _calls(lab: Lab, name: str, kinds: int) -> int:
    """How many calls of these kinds the command makes."""
    if name not in lab.calls:
        command, notes = COMMANDS[name], lab.root / "calls"
        trial = lab.trial(f"count-{len(lab.calls)}", getattr(lab, command.before) if command.before else None)
        completed = lab.run(trial, *command.line(lab, trial), arm=fail_at(0, 0, 0, calls=notes))
        shutil.rmtree(trial)
        assert completed.code == 0, completed.message
        lab.calls[name] = {int(kind): count for kind, count in json.loads(notes.read_text()).items()}
    return lab.calls[name][kinds]


DISK = {f"{command}: {fault} fails": failing(command, fault) for command in COMMANDS for fault in FAULTS}
