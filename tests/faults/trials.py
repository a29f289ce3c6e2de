"""The faults of the campaign; each is one trial that raises AssertionError when anything was lost."""

import os
import random
import signal
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.faults.lab import EVERY, Lab, clock_jumps_back, full_disk_at, kill_at, signal_at, whole_checkpoints


class Skip(Exception):
    """This machine does not allow the fault; the text says why."""


Trial = Callable[[Lab, Path, random.Random], None]


def moment(moments: list[str], chance: random.Random) -> int:
    """A random moment: first a random kind of file, then one of its moments, so that rare ones come too."""
    kinds: dict[str, list[int]] = {}
    for index, event in enumerate(moments):
        kinds.setdefault(kind_of(event), []).append(index)
    return chance.choice(kinds[chance.choice(sorted(kinds))])


def kind_of(event: str) -> str:
    """What a moment is part of."""
    for part, kind in (
        ("/checkpoints", "checkpoint"),
        ("history.csv", "history"),
        ("manifest.json", "manifest"),
        ("plan.json", "plan"),
        ("/locks", "lock"),
        ("content.", "weights"),
        ("style.", "weights"),
        ("merge.", "weights"),
        (".ready", "publish"),
    ):
        if part in event:
            return kind
    return "folders"


def killed_training(lab: Lab, folder: Path, chance: random.Random) -> None:
    trial = lab.trial(folder.name)
    lab.run(trial, *lab.train(), arm=kill_at(moment(lab.moments, chance)))
    assert set(lab.verify(trial)) <= {"fox"}
    lab.finish(trial)


def killed_anywhere(lab: Lab, folder: Path, chance: random.Random) -> None:
    trial = lab.trial(folder.name)
    lab.run(trial, *lab.train(), kill_after=chance.uniform(0.05, 2.0))
    assert set(lab.verify(trial)) <= {"fox"}
    lab.finish(trial)


def killed_replacement(lab: Lab, folder: Path, chance: random.Random) -> None:
    """An older project has to be whole at every moment until the new one is."""
    trial = lab.trial(folder.name, lab.done)
    (trial / "home/projects/fox/keepsake.txt").write_text("old")
    completed = lab.run(trial, *lab.train("--force"), arm=kill_at(moment(lab.moments, chance)))
    assert lab.verify(trial) == ["fox"]
    old = (trial / "home/projects/fox/keepsake.txt").exists()
    assert old or completed.code in (0, -signal.SIGKILL)
    lab.finish(trial, "--force") if old else lab.finish(trial)


def killed_resumption(lab: Lab, folder: Path, chance: random.Random) -> None:
    trial = lab.trial(folder.name, lab.cut)
    lab.run(trial, "train", "--resume=fox", arm=kill_at(chance.randrange(len(lab.moments) // 2)))
    lab.verify(trial)
    lab.finish(trial)


def killed_resumption_of_a_project(lab: Lab, folder: Path, chance: random.Random) -> None:
    """What Ctrl-C left is a project, and stays one that is whole or becomes an unfinished training."""
    trial = lab.trial(folder.name, lab.stopped)
    assert lab.verify(trial) == ["fox"]
    lab.run(trial, "train", "--resume=fox", arm=kill_at(chance.randrange(len(lab.moments) // 2)))
    lab.verify(trial)
    lab.finish(trial)


def killed_rename(lab: Lab, folder: Path, chance: random.Random) -> None:
    trial = lab.trial(folder.name, lab.done)
    lab.run(trial, "rename", "fox", "rose", arm=kill_at(chance.randrange(16)))
    (name,) = lab.verify(trial)
    completed = lab.run(trial, "rename", name, "fox")
    assert completed.code == 0, completed.message
    lab.finish(trial)


def killed_removal(lab: Lab, folder: Path, chance: random.Random) -> None:
    trial = lab.trial(folder.name, lab.done)
    lab.run(trial, "remove", "fox", "--yes", arm=kill_at(chance.randrange(20)))
    lab.verify(trial)
    lab.finish(trial)


def killed_export(lab: Lab, folder: Path, chance: random.Random) -> None:
    from unziplora_cli.adapters.lora_file import read_lora

    trial = lab.trial(folder.name, lab.done)
    out = trial / "out"
    out.mkdir()
    command = ("export", "fox", "--out", str(out), "--force")
    lab.run(trial, *command, arm=kill_at(chance.randrange(30)))
    for file in out.glob("*.safetensors"):
        if "merge" not in file.name:
            read_lora(file)
    lab.verify(trial)
    completed = lab.run(trial, *command)
    assert completed.code == 0, completed.message
    assert not list(out.glob(".*"))


def full_disk(lab: Lab, folder: Path, chance: random.Random) -> None:
    trial = lab.trial(folder.name)
    room = chance.choice((0, 100, 5000))
    completed = lab.run(trial, *lab.train(), arm=full_disk_at(moment(lab.moments, chance), room))
    completed.orderly()
    assert completed.code in (0, 2, 3), completed
    lab.verify(trial)
    lab.finish(trial)


def full_disk_under_an_older_project(lab: Lab, folder: Path, chance: random.Random) -> None:
    trial = lab.trial(folder.name, lab.done)
    completed = lab.run(trial, *lab.train("--force"), arm=full_disk_at(moment(lab.moments, chance), 0))
    completed.orderly()
    assert lab.verify(trial) == ["fox"]
    lab.finish(trial)


def stopped(number: signal.Signals) -> Trial:
    """A signal that a program may handle: it ends in order, and goes on as if nothing had been."""

    def trial(lab: Lab, folder: Path, chance: random.Random) -> None:
        trial = lab.trial(folder.name)
        completed = lab.run(trial, *lab.train(), arm=signal_at(moment(lab.moments, chance), number))
        completed.orderly()
        assert completed.code in (0, 130, -number), completed
        lab.verify(trial)
        if "what was learned is kept" in completed.message:
            assert lab.verify(trial) == ["fox"]
        lab.finish(trial)

    return trial


def flipped_bytes(lab: Lab, folder: Path, chance: random.Random) -> None:
    trial = lab.trial(folder.name, lab.cut)
    (hurt,) = trial.rglob("checkpoints/step-*.safetensors")
    data = bytearray(hurt.read_bytes())
    for _ in range(chance.randrange(1, 4)):
        data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
    hurt.write_bytes(data)
    completed = lab.run(trial, "train", "--resume=fox")
    assert completed.code == 0, completed.message
    assert "is damaged and left out" in completed.message
    lab.finish(trial)


def damaged_plan(lab: Lab, folder: Path, chance: random.Random) -> None:
    trial = lab.trial(folder.name, lab.cut)
    (plan,) = trial.rglob("plan.json")
    plan.write_bytes(plan.read_bytes()[: chance.randrange(400)])
    for command in (("train", "--resume=fox"), ("list",), lab.train()):
        completed = lab.run(trial, *command)
        completed.orderly()
        assert completed.code == (0 if command == ("list",) else 3), completed
    completed = lab.run(trial, "remove", "fox", "--yes", "--unfinished")
    assert completed.code == 0, completed
    lab.finish(trial)


def clock(lab: Lab, folder: Path, chance: random.Random) -> None:
    trial = lab.trial(folder.name, lab.cut)
    completed = lab.run(trial, "train", "--resume=fox", arm=clock_jumps_back())
    assert completed.code == 0, completed.message
    lab.finish(trial)


def two_at_once(lab: Lab, folder: Path, chance: random.Random) -> None:
    """While a training holds a project, nothing else changes it; when it is killed, all may."""
    trial = lab.trial(folder.name)
    stop = signal_at(lab.after_first_checkpoint(), signal.SIGSTOP)
    pid, talk = lab.start(trial, *lab.train(), arm=stop)
    os.waitpid(pid, os.WUNTRACED)
    try:
        for command in (
            lab.train(),
            lab.train("--force"),
            ("train", "--resume=fox"),
            ("remove", "fox", "--yes"),
            ("remove", "fox", "--yes", "--unfinished"),
        ):
            completed = lab.run(trial, *command)
            assert completed.code == 3, completed
            assert f"in use by process {pid}" in " ".join(completed.message.split()), completed.message
    finally:
        os.kill(pid, signal.SIGKILL)
        lab.wait(pid, talk)
    assert max(whole_checkpoints(trial)) == EVERY
    lab.finish(trial)


def read_only_project(lab: Lab, folder: Path, chance: random.Random) -> None:
    trial = lab.trial(folder.name, lab.done)
    project = trial / "home/projects/fox"
    with immutable(project):
        for command in (lab.train("--force"), ("rename", "fox", "rose"), ("remove", "fox", "--yes")):
            completed = lab.run(trial, *command)
            completed.orderly()
            assert completed.code == 3, (command, completed)
            assert lab.verify(trial) == ["fox"]
            assert lab.weights(trial) == lab.reference
    lab.finish(trial)


@contextmanager
def immutable(folder: Path) -> Iterator[None]:
    """Nobody, not even root, may change the folder or move it."""
    tried = subprocess.run(["chattr", "+i", folder], capture_output=True, text=True, check=False)
    if tried.returncode:
        raise Skip(tried.stderr.strip() or "chattr is not allowed")
    try:
        yield
    finally:
        subprocess.run(["chattr", "-i", folder], check=True)


KILLS: dict[str, tuple[int, Trial]] = {
    "SIGKILL in a training, at a file": (19, killed_training),
    "SIGKILL in a training, at any time": (8, killed_anywhere),
    "SIGKILL in a forced training": (8, killed_replacement),
    "SIGKILL while going on": (4, killed_resumption),
    "SIGKILL while going on after SIGINT": (3, killed_resumption_of_a_project),
    "SIGKILL in a rename": (3, killed_rename),
    "SIGKILL in a removal": (2, killed_removal),
    "SIGKILL in an export": (3, killed_export),
}
"""Of so many kills in all, and the trial."""

OTHERS: dict[str, Trial] = {
    "full disk": full_disk,
    "full disk, forced training": full_disk_under_an_older_project,
    "SIGINT": stopped(signal.SIGINT),
    "SIGTERM": stopped(signal.SIGTERM),
    "SIGHUP": stopped(signal.SIGHUP),
    "flipped bytes in a checkpoint": flipped_bytes,
    "damaged plan": damaged_plan,
    "clock that jumps back": clock,
    "two commands on one project": two_at_once,
    "read-only project": read_only_project,
}
