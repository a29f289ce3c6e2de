"""What happens to projects when things go wrong: tries faults at random moments, and prints a table.

    python -m tests.faults.campaign                 # 50 kills and some of every other fault
    python -m tests.faults.campaign --kills 6 --others 1 --seed 3

A trial survives when no project is damaged, no file is lost, the command that a person would type next ends
with the very bytes of an undisturbed training, and nothing of the fault is left on the disk.
"""

import argparse
import os
import random
import shutil
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
    """Run the campaign that the command line asks for; 1 when anything was lost."""
    parser = argparse.ArgumentParser(prog="python -m tests.faults.campaign")
    parser.add_argument("--kills", type=int, default=50, help="moments at which a process is killed")
    parser.add_argument("--others", type=int, default=6, help="trials of every other fault")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", default="", help="faults whose name has this in it")
    given = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")

    from tests.faults.lab import Lab
    from tests.faults.trials import KILLS, OTHERS, Skip

    chance = random.Random(given.seed)
    scores: dict[str, Score] = {}
    with tempfile.TemporaryDirectory(prefix="faults-") as root:
        lab = Lab(Path(root))
        share = sum(weight for weight, _ in KILLS.values())
        plan: list[tuple[str, Callable[..., None], int]] = [
            (name, trial, max(1, round(given.kills * weight / share)))
            for name, (weight, trial) in KILLS.items()
        ]
        plan += [(name, trial, given.others) for name, trial in OTHERS.items()]
        for name, trial, count in plan:
            if given.only not in name:
                continue
            score = scores.setdefault(name, Score())
            began = time.monotonic()
            for number in range(count):
                folder = Path(root) / f"trial-{len(scores)}-{number}"
                try:
                    trial(lab, folder, random.Random(chance.random()))
                    score.tried += 1
                except Skip as reason:
                    score.skipped = str(reason)
                    break
                except Exception:
                    score.tried += 1
                    score.lost.append(traceback.format_exc())
                shutil.rmtree(folder, ignore_errors=True)
            score.seconds = time.monotonic() - began
            print(f"{name}: {score.tried} tried, {len(score.lost)} lost", file=sys.stderr, flush=True)
    report(scores)
    return 1 if any(score.lost for score in scores.values()) else 0


def report(scores: dict[str, Score]) -> None:
    """Print the table, and how every loss came about."""
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
