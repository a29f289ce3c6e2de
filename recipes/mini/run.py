"""Make the mini base: `python -m recipes.mini.run STAGES --work DIR --out DIR`, or `join PARTS FOLDER`.

Stages are run in the order given: `draw`, `vae`, `classifier`, `speed`, `unet`, `evaluate`. Drawing goes on
beside the stages after it; it needs the cut-outs that `fetch` wrote in WORK/cutouts. The work folder keeps
everything needed to go on in a later call; the out folder receives what is worth keeping, in files of at most
15 MiB. `--widen FOLDER` begins with the weights of an older base. Started by `torchrun --nproc-per-node N -m
recipes.mini.run draw,unet ...`, the U-Net trains on N GPUs, each with a batch of its own.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import shutil
import sys
import tarfile
import time
from pathlib import Path

import torch

from recipes.mini import evaluate as report_card
from recipes.mini.classifier import train_both
from recipes.mini.model import load_components, new_components, save_components, widen
from recipes.mini.optimize import CaptureError
from recipes.mini.pictures import Plan, Store, start_drawing
from recipes.mini.train_unet import PEAK, measure, processes, rank, train_unet
from recipes.mini.train_vae import reconstruct, train_vae
from unziplora_cli.evaluation.scorers import Classifier

PART = 15 * 2**20
STAGES = ("draw", "vae", "classifier", "speed", "unet", "evaluate")


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = argparse.ArgumentParser(description=__doc__)
    made.add_argument("stages", help=f"comma-separated, of {', '.join(STAGES)}")
    made.add_argument("--work", type=Path, required=True, help="folder that later calls go on from")
    made.add_argument("--out", type=Path, required=True, help="folder for results")
    made.add_argument(
        "--deadline", type=float, default=9.3, help="minutes after which this call must be over"
    )
    made.add_argument("--minutes-draw", type=float, default=5.8, help="longest time for drawing")
    made.add_argument("--minutes-vae", type=float, default=5.6)
    made.add_argument("--minutes-classifier", type=float, default=1.2)
    made.add_argument(
        "--minutes-unet", type=float, default=11.0, help="the U-Net's whole schedule, all calls together"
    )
    made.add_argument(
        "--peak-unet",
        type=float,
        default=PEAK,
        help="highest learning rate; lower it to anneal finished weights",
    )
    made.add_argument(
        "--workers", type=int, default=max(1, (os.cpu_count() or 2) - 1), help="drawing processes"
    )
    made.add_argument("--batch-vae", type=int, default=192)
    made.add_argument("--batch-classifier", type=int, default=768)
    made.add_argument("--batch-unet", type=int, default=768)
    made.add_argument("--base", type=int, default=Plan.base, help="pictures for the U-Net")
    made.add_argument("--held-out", type=int, default=Plan.held_out, help="pictures in held-out styles")
    made.add_argument(
        "--groups", type=int, default=Plan.groups, help="individuals drawn four times for the classifier"
    )
    made.add_argument("--test", type=int, default=Plan.test, help="pictures never trained on")
    made.add_argument("--artworks", type=int, default=Plan.artworks, help="pictures made of cut-outs")
    made.add_argument("--artworks-test", type=int, default=Plan.artworks_test)
    made.add_argument("--seed", type=int, default=Plan.seed, help="of the pictures that are drawn")
    made.add_argument("--widen", type=Path, help="older base whose weights to begin with")
    made.add_argument("--compile-vae", action=argparse.BooleanOptionalAction, default=True)
    made.add_argument("--compile-unet", action=argparse.BooleanOptionalAction, default=True)
    made.add_argument(
        "--channels-last", action=argparse.BooleanOptionalAction, default=True, help="of the U-Net"
    )
    made.add_argument(
        "--graphs", action=argparse.BooleanOptionalAction, default=True, help="capture whole steps"
    )
    made.add_argument(
        "--begun", type=float, default=0.0, help="when this call began, if it starts itself again"
    )
    made.add_argument("--tiny", action="store_true", help="a few steps of everything, to try the code")
    return made


def main() -> None:
    """Run the stages asked for; if a step cannot be captured, start over from its stage without capturing."""
    args = parser().parse_args()
    args.begun = args.begun or time.time()
    stages = args.stages.split(",")
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        if torch.cuda.is_available():
            torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
        torch.distributed.init_process_group()
    try:
        run(args, stages)
    except CaptureError as error:
        print(f"{error}\nstarting again without graphs from {stages[0]}", flush=True)
        options = [option for option in sys.argv[1:] if option != args.stages]
        again = [",".join(stages), *options, "--no-graphs", "--begun", str(args.begun)]
        os.execv(sys.executable, [sys.executable, "-m", "recipes.mini.run", *again])


def run(args: argparse.Namespace, stages: list[str]) -> None:
    """Run stages; each is taken off the list when it is done."""
    if unknown := set(stages) - set(STAGES):
        raise SystemExit(f"unknown stage: {', '.join(sorted(unknown))}; stages are {', '.join(STAGES)}")
    if args.tiny:
        args.base, args.held_out, args.groups, args.test = 160, 64, 12, 32
        args.artworks, args.artworks_test = 160, 32
        args.batch_vae, args.batch_classifier, args.batch_unet = 2, 24, 4
        args.compile_vae = args.compile_unet = False
    max_steps = 12 if args.tiny else 10**9
    sampling = 2 if args.tiny else report_card.STEPS
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    args.out.mkdir(parents=True, exist_ok=True)
    work: Path = args.work
    work.mkdir(parents=True, exist_ok=True)
    base = work / "base"

    def left(reserve: float = 0.0) -> float:
        """Seconds until `reserve` minutes before the deadline."""
        return max(5.0, 60 * (args.deadline - reserve) - (time.time() - args.begun))

    def say(text: str) -> None:
        print(f"[{time.time() - args.begun:5.0f}s] {text}", flush=True)

    if rank() > 0:
        torch.distributed.barrier()  # until the first process has laid out the files
        stages[:] = [stage for stage in stages if stage == "unet"]
    report = _Report(work / "report.json")
    if (base / "model_index.json").exists():
        parts = load_components(base)
    elif args.widen:
        parts = widen(load_components(args.widen), work / "tokenizer")
    else:
        parts = new_components(work / "tokenizer")
    if "draw" in stages:
        counts = (args.base, args.held_out, args.groups, args.test, args.artworks, args.artworks_test)
        plan = Plan(*counts, args.seed)
        Store.create(work, plan)
        start_drawing(work, args.workers, args.begun + 60 * args.minutes_draw)
        say(f"drawing {plan.total} pictures in {args.workers} processes")
        stages.remove("draw")
    if processes() > 1 and rank() == 0:
        torch.distributed.barrier()
    if "vae" in stages:
        later = args.minutes_classifier if "classifier" in stages else 0.0
        results = train_vae(
            parts.vae,
            Store(work),
            device,
            min(60 * args.minutes_vae, left(0.5 + later)),
            batch=args.batch_vae,
            compiled=args.compile_vae,
            graph=args.graphs,
            max_steps=max_steps,
        )
        report["vae"] = results
        say(f"vae done: {json.dumps(results)}")
        save_components(parts, base)
        keep(base, args.out)
        store = Store(work)
        tested = report_card.tested(store)
        rebuilt = reconstruct(parts.vae, store.pictures[tested], device)
        report_card.reconstruction_sheet(store, rebuilt, tested, args.out / "reconstructions.png")
        stages.remove("vae")
    if "classifier" in stages:
        seconds = min(60 * args.minutes_classifier, left(0.4))
        vae = parts.vae.to(device)
        train_both(vae, work, args.out, device, seconds, batch=args.batch_classifier, max_steps=max_steps)
        shutil.copytree(args.out / "classifier", work / "classifier", dirs_exist_ok=True)
        stages.remove("classifier")
    if "speed" in stages:
        report["speed"] = measure(
            parts,
            work,
            device,
            args.batch_unet,
            graph=args.graphs,
            compilers=(False,) if args.tiny else (False, True),
            steps=1 if args.tiny else 30,
        )
        stages.remove("speed")
    if "unet" in stages:
        results = train_unet(
            parts,
            work,
            device,
            total_seconds=60 * args.minutes_unet,
            piece_seconds=left(1.6 if "evaluate" in stages else 0.8),
            batch=args.batch_unet,
            compiled=args.compile_unet,
            channels_last=args.channels_last,
            graph=args.graphs,
            peak=args.peak_unet,
            max_steps=max_steps,
            seen=lambda: save_components(parts, base),
        )
        if rank() > 0:
            return
        report["unet"] = results
        say(f"unet: {json.dumps(results)}")
        save_components(parts, base)
        keep(base, args.out)
        report_card.generated_sheet(base, device, args.out / "generated.png", steps=sampling)
        say("sheet drawn")
    if "evaluate" in stages:
        classifier = Classifier.load(work / "classifier")
        count = 32 if args.tiny else 2200
        report["generated"] = report_card.evaluate(base, classifier, device, count=count, steps=sampling)
        report["held-out styles before any LoRA"] = report_card.held_out_check(
            base, classifier, device, steps=sampling
        )
        say(f"evaluated: {json.dumps(report['generated']['overall'])}")
    (args.out / "report.json").write_text(json.dumps(report, indent=2) + "\n")
    say("all written")


def keep(folder: Path, out: Path) -> None:
    """Write a folder as a tar file, cut into parts."""
    packed = _tar(folder)
    for n, start in enumerate(range(0, len(packed), PART)):
        (out / f"base.tar.{n}").write_bytes(packed[start : start + PART])


def join(parts: Path, folder: Path) -> None:
    """Put the parts that `keep` wrote together again."""
    pieces = sorted(parts.glob("base.tar.*"), key=lambda path: int(path.suffix[1:]))
    packed = b"".join(piece.read_bytes() for piece in pieces)
    with tarfile.open(fileobj=io.BytesIO(packed)) as archive:
        archive.extractall(folder, filter="data")


def _tar(folder: Path) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        archive.add(folder, arcname=".")
    return buffer.getvalue()


class _Report(dict[str, object]):
    """What was results so far, kept in a file from call to call."""

    def __init__(self, path: Path) -> None:
        super().__init__(json.loads(path.read_text()) if path.exists() else {})
        self.path = path

    def __setitem__(self, key: str, value: object) -> None:
        super().__setitem__(key, value)
        self.path.write_text(json.dumps(self, indent=2) + "\n")


if __name__ == "__main__":
    if len(sys.argv) == 4 and sys.argv[1] == "join":
        join(Path(sys.argv[2]), Path(sys.argv[3]))
    else:
        main()
