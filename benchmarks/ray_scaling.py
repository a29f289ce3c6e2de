"""How many GPUs one driver can serve: a simulation of `train --list ... --ray` from measured times.

python -m benchmarks.ray_scaling --folder DISK

Measured here: the processor time in which the driver makes a delivered project of SDXL at rank 64 one of its
own (copy, compare every hash). Given: the times of a worker, measured on one H200, and the speeds of network
and disk. Results arrive and are written side by side, so that the slowest of the three limits the driver;
training on all GPUs is simulated around it.
"""

import argparse
import heapq
import time
from dataclasses import replace
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

import numpy as np

from unziplora_cli import files
from unziplora_cli.job import BaseRecord, Job, SourceImage, Words, now
from unziplora_cli.projects import manifest
from unziplora_cli.projects.manifest import Artifact, Manifest
from unziplora_cli.projects.store import ProjectStore
from unziplora_cli.prompts import make_prompts
from unziplora_cli.training.request import TrainRequest
from unziplora_cli.workflows.train_ray import WRITERS, Delivery, unpack

STEPS, STEP_SECONDS = 600, 0.0574
AROUND_STEPS = 4.0
"""Seconds of a training besides its steps in a worker that has the base loaded: inputs, files."""
TRAINING = STEPS * STEP_SECONDS + AROUND_STEPS
START = 20.0
"""Seconds until a worker has loaded the base."""
LORA_PARAMETERS = 64 * (60 * 22_016 + 10 * 13_056)
"""Of one branch: SDXL adapts 60 blocks of width 1280 and 10 of width 640."""


def delivery(size: int) -> tuple[Delivery, TrainRequest]:
    """A project of ``size`` bytes per LoRA, as a node delivers it, and its request."""
    random = np.random.default_rng(0)
    with TemporaryDirectory() as scratch:
        folder = Path(scratch)
        arrays = {f"{name}.safetensors": random.bytes(size) for name in ("content", "style")}
        for name, data in {"source.png": b"image", **arrays}.items():
            (folder / name).write_bytes(data)
        words = Words("fox", "ink")
        job = Job(
            name="fox",
            created=now(),
            base=BaseRecord("mini", "builtin", "mini"),
            images=(SourceImage("source.png", files.sha256(folder / "source.png"), 1, 1, "PNG"),),
            words=words,
            prompts=make_prompts(words),
        )
        artifacts = tuple(Artifact.of(folder, name.partition(".")[0], name, "kohya") for name in arrays)
        written = Manifest(
            job=job, state="complete", steps_done=1, seconds=1.0, versions={}, metrics={}, artifacts=artifacts
        )
        manifest.write(folder, written)
        contents = {path.name: np.fromfile(path, np.uint8) for path in folder.iterdir()}
    return Delivery(contents, 0.1), TrainRequest(job, None, ())  # type: ignore[arg-type]


def measure(folder: Path, size: int, runs: int = 3) -> float:
    """Seconds of processor time to make a delivered project one of the driver's own, in ``folder``."""
    parcel, request = delivery(size)
    seconds = []
    with TemporaryDirectory(dir=folder) as home:
        for _ in range(runs):
            started = time.process_time()
            unpack(parcel, replace(request, replaces=True), ProjectStore(Path(home)))
            seconds.append(time.process_time() - started)
    return median(seconds)


def simulate(pictures: int, gpus: int, driver: float) -> tuple[float, float]:
    """Hours until all pictures are projects, and the share of that in which the driver was busy.

    ``driver`` is how many seconds it needs per result. A worker gets its next image before its result is
    written, but only when the driver looks.
    """
    ends = [START + TRAINING] * min(gpus, pictures)
    begun, free = len(ends), 0.0
    while ends:
        noticed = max(free, heapq.heappop(ends))
        free = noticed + driver
        if begun < pictures:
            begun += 1
            heapq.heappush(ends, noticed + TRAINING)
    return free / 3600, pictures * driver / free


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, default=Path(), help="Where to write projects.")
    parser.add_argument("--pictures", type=int, default=1000)
    parser.add_argument("--network", type=float, default=1250.0, help="The network of the driver, MB/s.")
    parser.add_argument("--disk", type=float, default=1000.0, help="What the driver's disk writes, MB/s.")
    arguments = parser.parse_args()
    size = 2 * LORA_PARAMETERS  # fp16
    megabytes, compute = 2 * size / 1e6, measure(arguments.folder, size)
    driver = max(megabytes / arguments.network, megabytes / arguments.disk, compute / WRITERS)
    print(
        f"{megabytes:.0f} MB per project, {compute:.2f} s of processor time; one every {driver:.2f} s at most"
    )
    print(f"The driver is busy all the time from {TRAINING / driver:.0f} GPUs on.")
    alone, _ = simulate(arguments.pictures, 1, 0.0)
    for gpus in (1, 8, 16, 32, 64, 128):
        hours, busy = simulate(arguments.pictures, gpus, driver)
        print(
            f"{gpus:4} GPUs  {hours:7.2f} h  {arguments.pictures / hours:6.0f} an hour  "
            f"{alone / hours / gpus:4.0%} of linear  driver busy {busy:4.0%}"
        )


if __name__ == "__main__":
    main()
