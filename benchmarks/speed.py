"""Speed of training and generation on this machine, beside other implementations and the hardware's limit.

    python benchmarks/speed.py --base DIR --out results  # DIR as random_sdxl.py writes it, or any base
    python benchmarks/speed.py --base DIR --scaling --only scaling
    python benchmarks/speed.py --device cpu              # the built-in base, two minutes on a laptop

Every row runs in its own process, so that rows share neither memory nor caches.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import platform
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import asdict
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.speed_methods import full_matrices, generation, ours, peft_lora, tables
from benchmarks.speed_methods.floor import floor
from benchmarks.speed_methods.measurement import Measurement
from benchmarks.speed_methods.task import Setting
from unziplora_cli import resources
from unziplora_cli.paths import set_openmp_wait_policy
from unziplora_cli.sdxl.base import native_resolution, resolve_base

PRESETS = ("paper", "fast", "low-vram")
"""The shipped ones of these are measurement by default."""

RANKS, BATCHES = (4, 16, 64, 128), (2, 4)
"""Rows of the scaling table; the rank of all other rows is among them."""
RENDERERS = {"training": tables.training, "generation": tables.generation, "scaling": tables.scaling}

Row = Callable[[], Measurement] | None
"""Measures one row; None if this machine cannot."""


def rows(setting: Setting, presets: list[str]) -> dict[str, dict[str, Row]]:
    """All rows by table and name; names are unique."""
    on_gpu = setting.device.type == "cuda"
    training: dict[str, Row] = {
        tables.FLOOR: partial(floor, setting),
        **{f"ours, {preset}": partial(ours.trained, setting, preset) for preset in presets},
        "one LoRA, diffusers + peft": partial(peft_lora.eager, setting),
        "one LoRA, diffusers + peft, CUDA graph": partial(peft_lora.captured, setting) if on_gpu else None,
        "two LoRAs, full matrices": partial(full_matrices.eager, setting),
    }
    images: dict[str, Row] = {name: partial(row, setting) for name, row in generation.VARIANTS.items()}
    sizes = [("rank", rank) for rank in RANKS]
    sizes += [("resolution", setting.resolution * quarters // 4) for quarters in (2, 3)]
    sizes += [("batch_size", size) for size in BATCHES]
    scaling: dict[str, Row] = {}
    for name, size in sizes:
        measure = partial(ours.trained, setting, presets[0], **{name: size})
        scaling[f"scaling, {name.replace('_', ' ')} {size}"] = measure
    return {"training": training, "generation": images, "scaling": scaling}


def measure_in_process(row: Callable[[], Measurement], seconds: float) -> Measurement:
    """Measure ``row`` in a new process; a failure becomes its note."""
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_send, args=(row, sender))
    process.start()
    sender.close()
    measurement = Measurement(note="out of time")
    if receiver.poll(seconds):
        try:
            measurement = receiver.recv()
        except EOFError:
            process.join()
            measurement = Measurement(note=f"ended with exit code {process.exitcode}")
    process.kill()
    process.join()
    return measurement


def _send(row: Callable[[], Measurement], sender: Connection) -> None:
    try:
        sender.send(row())
    except Exception as error:
        traceback.print_exc()
        sender.send(Measurement(note=f"{type(error).__name__}: {error}".splitlines()[0][:200]))


def write_random_base(folder: str) -> str:
    """Write a base of SDXL's size into ``folder``, in a process that returns its memory."""
    script = Path(__file__).with_name("random_sdxl.py")
    subprocess.run([sys.executable, str(script), folder], check=True, stdout=sys.stderr)
    return folder


def header(setting: Setting) -> str:
    """The machine and the settings that all rows share."""
    device = (
        torch.cuda.get_device_name(setting.device)
        if setting.device.type == "cuda"
        else f"{platform.processor() or platform.machine()}, CPU threads: {torch.get_num_threads()}"
    )
    return (
        f"{device}; torch {torch.__version__}; base {setting.base.spec}, {setting.resolution} px, batch 1, "
        f"rank {setting.common_rank}, {str(setting.dtype).removeprefix('torch.')}\n"
    )


def report(setting: Setting, results: Mapping[str, Mapping[str, Measurement]]) -> str:
    """The header and every table that has rows."""
    parts = [RENDERERS[table](measurement) for table, measurement in results.items() if measurement]
    return "\n".join([header(setting), *parts])


def save(folder: Path, setting: Setting, results: Mapping[str, Mapping[str, Measurement]]) -> None:
    """Write the tables and their numbers."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "speed.md").write_text(report(setting, results), encoding="utf-8")
    numbers = {
        table: {name: asdict(row) for name, row in measurement.items()}
        for table, measurement in results.items()
    }
    text = json.dumps({"header": header(setting).strip(), **numbers}, indent=2)
    (folder / "speed.json").write_text(text, encoding="utf-8")


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--base",
        help="any base, or `random` to write one of SDXL's size (default: random on a GPU, otherwise mini)",
    )
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--presets", help="presets of our rows, separated by commas; the first one is scaled")
    parser.add_argument("--rank", type=int, help="rank of all rows (default: the preset's or 64; on mini 16)")
    parser.add_argument("--resolution", type=int, help="image size in all rows (default: the base's own)")
    parser.add_argument("--steps", type=int, help="steps of our rows (default: 40; on a CPU 16)")
    parser.add_argument("--quick", action="store_true", help="half the steps")
    parser.add_argument("--scaling", action="store_true", help="also scale rank, resolution and batch size")
    parser.add_argument("--only", default="", help="rows whose names contain this")
    parser.add_argument("--deadline", type=float, default=9.0, help="minutes after which rows are skipped")
    parser.add_argument("--out", type=Path, help="folder for speed.md and speed.json")
    return parser.parse_args()


def prepare(args: argparse.Namespace, spec: str) -> tuple[Setting, list[str]]:
    """The setting of all rows, and the presets."""
    base = resolve_base(spec, offline=True)[0]
    device = torch.device(args.device)
    if device.index is not None:
        torch.cuda.set_device(device)
    small = base.kind == "builtin"
    steps = args.steps or (16 if device.type == "cpu" else 40)
    shipped = [name for name in (*PRESETS, *(["mini"] if small else [])) if name in resources.preset_names()]
    setting = Setting(
        base=base,
        device=device,
        rank=args.rank or (16 if small else None),
        resolution=args.resolution or native_resolution(base),
        steps=max(12, steps // 2) if args.quick else steps,
    )
    return setting, args.presets.split(",") if args.presets else shipped


def measure_all(args: argparse.Namespace, spec: str, started: float) -> None:
    """Measure row by row and print the tables."""
    setting, presets = prepare(args, spec)
    results: dict[str, dict[str, Measurement]] = {}
    for table, named in rows(setting, presets).items():
        results[table] = {}
        for name, row in named.items():
            if args.only not in name or (table == "scaling" and not args.scaling):
                continue
            remaining = 60 * args.deadline - (time.monotonic() - started)
            if row is None:
                measurement = Measurement(note=f"not on {setting.device.type}")
            elif remaining <= 0:
                measurement = Measurement(note="out of time")
            else:
                measurement = measure_in_process(row, remaining)
            results[table][name] = measurement
            elapsed = time.monotonic() - started
            print(f"[{elapsed:5.0f}s] {name}: {measurement}", file=sys.stderr, flush=True)
            if args.out:
                save(args.out, setting, results)
    print(report(setting, results))


def main() -> None:
    """Run the benchmark."""
    args = parse()
    started = time.monotonic()
    spec = args.base or ("random" if args.device.startswith("cuda") else "mini")
    with ExitStack() as stack:
        if spec == "random":
            spec = write_random_base(stack.enter_context(tempfile.TemporaryDirectory()))
        measure_all(args, spec, started)


if __name__ == "__main__":
    set_openmp_wait_policy()
    main()
