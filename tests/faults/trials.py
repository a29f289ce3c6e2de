"""The trials of the campaign; a trial raises AssertionError if anything is lost."""

import os
import random
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.faults.lab import (
    EVERY,
    Completed,
    Lab,
    Moments,
    clock_jumps_back,
    complete_checkpoints,
    full_disk_at,
    kill_at,
    signal_at,
)


class Skip(Exception):
    """This machine cannot inject the fault; the message is the reason."""


Trial = Callable[[Lab, Path, random.Random], None]


def moment(moments: list[str], rng: random.Random) -> int:
    """A random moment of a random kind of file, so that rare kinds are tried too."""
    kinds: dict[str, list[int]] = {}
    for index, event in enumerate(moments):
        kinds.setdefault(kind_of(event), []).append(index)
    return rng.choice(kinds[rng.choice(sorted(kinds))])


def kind_of(event: str) -> str:
    """The kind of file that a moment belongs to."""
    for part, kind in (
        ("/checkpoints", "checkpoint"),
        ("history.csv", "history"),
        ("manifest.json", "manifest"),
        ("training.json", "record"),
        ("/locks", "lock"),
        ("content.", "weights"),
        ("style.", "weights"),
        ("merge.", "weights"),
        (".ready", "publish"),
    ):
        if part in event:
            return kind
    return "folders"


def killed_training(lab: Lab, folder: Path, rng: random.Random) -> None:
    trial = lab.trial(folder.name)
    lab.run(trial, *lab.train(), arm=kill_at(moment(lab.moments, rng)))
    assert set(lab.verify(trial)) <= {"fox"}
    lab.finish(trial)


def killed_anywhere(lab: Lab, folder: Path, rng: random.Random) -> None:
    trial = lab.trial(folder.name)
    lab.run(trial, *lab.train(), kill_after=rng.uniform(0.05, 2.0))
    assert set(lab.verify(trial)) <= {"fox"}
    lab.finish(trial)


def killed_replacement(lab: Lab, folder: Path, rng: random.Random) -> None:
    """The older project stays complete at every moment until the new one is, and its images stay."""
    from unziplora_cli.projects.store import ProjectStore

    trial = lab.trial(folder.name, lab.done)
    project = trial / "home/projects/fox"
    (project / "images").mkdir()
    (project / "images/content-001.png").write_text("old")
    completed = lab.run(trial, *lab.train("--force"), arm=kill_at(moment(lab.moments, rng)))
    assert lab.verify(trial) == ["fox"]
    old = (project / "images/content-001.png").exists()
    assert old or completed.code in (0, -signal.SIGKILL)
    with ProjectStore(trial / "home").writing("fox"):
        kept = list(project.rglob("content-001.png"))
    assert [path.read_text() for path in kept] == ["old"]
    shutil.rmtree(kept[0].parent if old else kept[0].parents[1])
    lab.finish(trial, "--force") if old else lab.finish(trial)


def killed_resumption(lab: Lab, folder: Path, rng: random.Random) -> None:
    trial = lab.trial(folder.name, lab.killed)
    lab.run(trial, "train", "--resume=fox", arm=kill_at(rng.randrange(len(lab.moments) // 2)))
    lab.verify(trial)
    lab.finish(trial)


def killed_resumption_of_a_project(lab: Lab, folder: Path, rng: random.Random) -> None:
    """The project that Ctrl-C left stays complete or becomes an unfinished training."""
    trial = lab.trial(folder.name, lab.interrupted)
    assert lab.verify(trial) == ["fox"]
    lab.run(trial, "train", "--resume=fox", arm=kill_at(rng.randrange(len(lab.moments) // 2)))
    lab.verify(trial)
    lab.finish(trial)


def killed_rename(lab: Lab, folder: Path, rng: random.Random) -> None:
    trial = lab.trial(folder.name, lab.done)
    lab.run(trial, "rename", "fox", "rose", arm=kill_at(rng.randrange(16)))
    (name,) = lab.verify(trial)
    completed = lab.run(trial, "rename", name, "fox")
    assert completed.code == 0, completed.message
    lab.finish(trial)


def killed_removal(lab: Lab, folder: Path, rng: random.Random) -> None:
    trial = lab.trial(folder.name, lab.done)
    lab.run(trial, "remove", "fox", "--yes", arm=kill_at(rng.randrange(20)))
    lab.verify(trial)
    lab.finish(trial)


def killed_export(lab: Lab, folder: Path, rng: random.Random) -> None:
    from unziplora_cli.adapters.lora_file import read_lora

    trial = lab.trial(folder.name, lab.done)
    out = trial / "out"
    out.mkdir()
    command = ("export", "fox", "--out", str(out), "--force")
    lab.run(trial, *command, arm=kill_at(rng.randrange(30)))
    for file in out.glob("*.safetensors"):
        if "merge" not in file.name:
            read_lora(file)
    lab.verify(trial)
    completed = lab.run(trial, *command)
    assert completed.code == 0, completed.message
    assert not list(out.glob(".*"))


def full_disk(lab: Lab, folder: Path, rng: random.Random) -> None:
    trial = lab.trial(folder.name)
    room = rng.choice((0, 100, 5000))
    completed = lab.run(trial, *lab.train(), arm=full_disk_at(moment(lab.moments, rng), room))
    completed.orderly()
    assert completed.code in (0, 2, 3), completed
    lab.verify(trial)
    lab.finish(trial)


def full_disk_under_an_older_project(lab: Lab, folder: Path, rng: random.Random) -> None:
    trial = lab.trial(folder.name, lab.done)
    completed = lab.run(trial, *lab.train("--force"), arm=full_disk_at(moment(lab.moments, rng), 0))
    completed.orderly()
    assert lab.verify(trial) == ["fox"]
    lab.finish(trial)


def interrupted(number: signal.Signals) -> Trial:
    """A signal that the program handles: it exits cleanly and can be resumed."""

    def trial(lab: Lab, folder: Path, rng: random.Random) -> None:
        trial = lab.trial(folder.name)
        completed = lab.run(trial, *lab.train(), arm=signal_at(moment(lab.moments, rng), number))
        completed.orderly()
        assert completed.code in (0, 130, -number), completed
        lab.verify(trial)
        if "what was learned is kept" in completed.message:
            assert lab.verify(trial) == ["fox"]
        lab.finish(trial)

    return trial


def flipped_bytes(lab: Lab, folder: Path, rng: random.Random) -> None:
    trial = lab.trial(folder.name, lab.killed)
    (damaged,) = trial.rglob("checkpoints/step-*.safetensors")
    data = bytearray(damaged.read_bytes())
    for _ in range(rng.randrange(1, 4)):
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    damaged.write_bytes(data)
    completed = lab.run(trial, "train", "--resume=fox")
    assert completed.code == 0, completed.message
    assert "is damaged and skipped" in completed.message
    lab.finish(trial)


def damaged_record(lab: Lab, folder: Path, rng: random.Random) -> None:
    trial = lab.trial(folder.name, lab.killed)
    (record,) = trial.rglob("training.json")
    record.write_bytes(record.read_bytes()[: rng.randrange(400)])
    for command in (("train", "--resume=fox"), ("list",), lab.train()):
        completed = lab.run(trial, *command)
        completed.orderly()
        assert completed.code == (0 if command == ("list",) else 3), completed
    completed = lab.run(trial, "remove", "fox", "--yes", "--unfinished")
    assert completed.code == 0, completed
    lab.finish(trial)


def clock(lab: Lab, folder: Path, rng: random.Random) -> None:
    trial = lab.trial(folder.name, lab.killed)
    completed = lab.run(trial, "train", "--resume=fox", arm=clock_jumps_back())
    assert completed.code == 0, completed.message
    lab.finish(trial)


def two_at_once(lab: Lab, folder: Path, rng: random.Random) -> None:
    """While a training holds a project, no other command changes it; after it is killed, all may."""
    trial = lab.trial(folder.name)
    stop = signal_at(lab.after_first_checkpoint(), signal.SIGSTOP)
    pid, pipe = lab.start(trial, *lab.train(), arm=stop)
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
        lab.wait(pid, pipe)
    assert max(complete_checkpoints(trial)) == EVERY
    lab.finish(trial)


def vanishing_home(lab: Lab, folder: Path, rng: random.Random) -> None:
    """The disk of the home is unplugged while training: nothing is written to the empty mount point."""
    trial = lab.trial(folder.name)
    home, unplugged = trial / "home", trial / "unplugged"

    def unplug() -> None:
        home.rename(unplugged)
        home.mkdir()

    def arm(moments: Moments) -> None:
        first = lab.after_first_checkpoint() // 2
        moments.at, moments.act = rng.randrange(first, len(lab.moments) - 30), unplug

    completed = lab.run(trial, *lab.train(), arm=arm)
    completed.orderly()
    if unplugged.exists():
        assert completed.code == 3, completed
        assert f"The home {home} is gone" in " ".join(completed.message.split()), completed
        assert list(home.iterdir()) == []
        home.rmdir()
        unplugged.rename(home)
    lab.verify(trial)
    lab.finish(trial)


def together(lab: Lab, trial: Path, *commands: tuple[str, ...]) -> list[Completed]:
    """Run several commands at once."""
    started = [lab.start(trial, *command) for command in commands]
    return [lab.wait(*process) for process in started]


def two_trainings_of_one_name(lab: Lab, folder: Path, rng: random.Random) -> None:
    trial = lab.trial(folder.name)
    first, second = together(lab, trial, lab.train(), lab.train())
    for completed in (first, second):
        completed.orderly()
    assert sorted((first.code, second.code)) == [0, 3], (first, second)
    lab.finish(trial)


def two_combinations_into_one_folder(lab: Lab, folder: Path, rng: random.Random) -> None:
    trial = lab.trial(folder.name, lab.done)
    out = trial / "out [v1]"
    size = ("--steps=1", "--width=64", "--height=64")
    combine = ("combine", "fox", "--count=3", "--seed=1", "--out", str(out), *size)
    weak, strong = (*combine, "--guidance=2"), (*combine, "--guidance=9")  # want the same names
    for completed in together(lab, trial, weak, strong, ("cross", "fox", *size)):
        assert completed.code == 0, completed.message
    images = {path.read_bytes() for path in out.glob("combine-*.png")}
    assert len(images) == 6, list(out.iterdir())
    lab.verify(trial)


def renaming_meets_a_forced_training(lab: Lab, folder: Path, rng: random.Random) -> None:
    trial = lab.trial(folder.name, lab.done)
    (trial / "home/projects/fox/notes.txt").write_text("mine")
    train, rename = together(lab, trial, lab.train("--force"), ("rename", "fox", "rose"))
    for completed in (train, rename):
        completed.orderly()
        assert completed.code in (0, 3), completed
    names = lab.verify(trial)
    assert names in (["fox"], ["rose"], ["fox", "rose"]), names
    assert [path.read_text() for path in trial.rglob("notes.txt")] == ["mine"]


def removal_meets_an_evaluation(lab: Lab, folder: Path, rng: random.Random) -> None:
    trial = lab.trial(folder.name, lab.done)
    remove, evaluate = together(lab, trial, ("remove", "fox", "--yes"), ("eval", "fox"))
    for completed in (remove, evaluate):
        completed.orderly()
        assert completed.code in (0, 3), completed
    assert lab.verify(trial) == ([] if remove.code == 0 else ["fox"])


def read_only_project(lab: Lab, folder: Path, rng: random.Random) -> None:
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
    """Make a folder unchangeable, even for root."""
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
    "SIGKILL while resuming": (4, killed_resumption),
    "SIGKILL while resuming after SIGINT": (3, killed_resumption_of_a_project),
    "SIGKILL in a rename": (3, killed_rename),
    "SIGKILL in a removal": (2, killed_removal),
    "SIGKILL in an export": (3, killed_export),
}
"""The share of all kills, and the trial."""

OTHERS: dict[str, Trial] = {
    "full disk": full_disk,
    "full disk, forced training": full_disk_under_an_older_project,
    "SIGINT": interrupted(signal.SIGINT),
    "SIGTERM": interrupted(signal.SIGTERM),
    "SIGHUP": interrupted(signal.SIGHUP),
    "flipped bytes in a checkpoint": flipped_bytes,
    "damaged record of a training": damaged_record,
    "clock that runs backwards": clock,
    "two commands on one project": two_at_once,
    "read-only project": read_only_project,
    "home that vanishes": vanishing_home,
    "two trainings of one name": two_trainings_of_one_name,
    "two combinations into one folder": two_combinations_into_one_folder,
    "rename against train --force": renaming_meets_a_forced_training,
    "remove against eval": removal_meets_an_evaluation,
}
