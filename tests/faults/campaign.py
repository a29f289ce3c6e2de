"""Inject faults at random moments and report whether projects survive, as a table.

    python -m tests.faults.campaign                 # 50 kills, 6 other faults, 2 of each failing call
    python -m tests.faults.campaign --kills 6 --others 1 --disk 1 --seed 3 --only eval

A trial survives if no project is damaged, no file is lost, the next command of a user produces the same bytes
as an undisturbed training, and no temporary file remains.
"""

import argparse
import os
import random
import re
import shutil
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path


@dataclass
class Score:
    """One line of the table."""

    tried: int = 0
    lost: list[str] = field(default_factory=list)
    skipped: str = ""
    seconds: float = 0.0


def main() -> int:
    """Run the campaign; returns 1 if anything was lost."""
    parser = argparse.ArgumentParser(prog="python -m tests.faults.campaign")
    parser.add_argument("--kills", type=int, default=50, help="moments at which a process is killed")
    parser.add_argument("--others", type=int, default=6, help="trials of every other fault")
    parser.add_argument("--disk", type=int, default=2, help="trials of every command with every failing call")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", default="", help="only faults whose names match this regular expression")
    options = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")

    from tests.faults.disk import DISK, is_preloaded
    from tests.faults.lab import Lab
    from tests.faults.trials import KILLS, OTHERS, Skip

    if options.disk and not is_preloaded():
        return preloaded()

    rng = random.Random(options.seed)
    scores: dict[str, Score] = {}
    with tempfile.TemporaryDirectory(prefix="faults-") as root:
        lab = Lab(Path(root))
        share = sum(weight for weight, _ in KILLS.values())
        trials: list[tuple[str, Callable[..., None], int]] = [
            (name, trial, max(min(1, options.kills), round(options.kills * weight / share)))
            for name, (weight, trial) in KILLS.items()
        ]
        trials += [(name, trial, options.others) for name, trial in OTHERS.items()]
        trials += [(name, trial, options.disk) for name, trial in DISK.items()]
        for name, trial, count in trials:
            if not re.search(options.only, name) or not count:
                continue
            score = scores.setdefault(name, Score())
            started = time.monotonic()
            for number in range(count):
                folder = Path(root) / f"trial-{len(scores)}-{number}"
                try:
                    trial(lab, folder, random.Random(rng.random()))
                    score.tried += 1
                except Skip as reason:
                    score.skipped = str(reason)
                    break
                except Exception:
                    score.tried += 1
                    score.lost.append(traceback.format_exc())
                shutil.rmtree(folder, ignore_errors=True)
            score.seconds = time.monotonic() - started
            print(f"{name}: {score.tried} tried, {len(score.lost)} lost", file=sys.stderr, flush=True)
    report(scores)
    return 1 if any(score.lost for score in scores.values()) else 0


def preloaded() -> int:
    """Run the campaign again with the library that lets system calls fail."""
    from tests.faults.disk import compile_shim

    with tempfile.TemporaryDirectory(prefix="shim-") as folder:
        library = compile_shim(Path(folder))
        if library is None:
            print("no C compiler: the trials with failing system calls are skipped", file=sys.stderr)
        more = ["--disk=0"] if library is None else []
        environment = {**os.environ, "LD_PRELOAD": str(library or "")}
        command = [sys.executable, "-m", "tests.faults.campaign", *sys.argv[1:], *more]
        return subprocess.run(command, env=environment, check=False).returncode


def report(scores: dict[str, Score]) -> None:
    """Print the table, and the traceback of every loss."""
    width = max(map(len, scores))
    print(f"{'fault':{width}}  tried  survived  lost  seconds")
    for name, score in scores.items():
        survived = score.tried - len(score.lost)
        line = f"{name:{width}}  {score.tried:5}  {survived:8}  {len(score.lost):4}  {score.seconds:7.0f}"
        print(line + (f"  skipped: {score.skipped}" if score.skipped else ""))
    tried, lost = sum(s.tried for s in scores.values()), sum(len(s.lost) for s in scores.values())
    print(f"{'all':{width}}  {tried:5}  {tried - lost:8}  {lost:4}")
    for name, score in scores.items():
        for trace in score.lost:
            print(f"\n{name}:\n{trace}", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
