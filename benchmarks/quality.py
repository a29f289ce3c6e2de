"""How well content and style come apart on the built-in base: methods side by side, named by the classifier.

    python benchmarks/quality.py --quick            # four pictures, three methods, a CPU, minutes
    python benchmarks/quality.py --out results      # the table of benchmarks/README.md, one GPU, ten minutes
    python benchmarks/quality.py --tune --out tuned # learning rates and steps, on pictures of their own

Every method trains on the same pictures, with the same noise; all trainings of one shape run as one batch.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.separation import rows, verdict
from benchmarks.separation.destyle import destyle_all
from benchmarks.separation.drawing import drawn, rebuilding_errors
from benchmarks.separation.methods import Drawing, Method, Trained, drawings
from benchmarks.separation.scenes import Sample, gallery, real_photos, samples
from benchmarks.separation.stack import Job, Stack
from benchmarks.separation.tables import markdown, sheet
from unziplora_cli import resources
from unziplora_cli.evaluation.classifier import Classifier
from unziplora_cli.paths import set_openmp_wait_policy
from unziplora_cli.sdxl.base import BaseRef, resolve_base
from unziplora_cli.sdxl.latents import encode_latents, prepare
from unziplora_cli.sdxl.load import alphas_cumprod, load_text_encoders, load_unet, load_vae
from unziplora_cli.sdxl.text import encode, time_ids


@dataclass
class Bench:
    """What all methods share: the pictures, the base, the classifier."""

    pictures: tuple[Sample, ...]
    base: BaseRef
    device: torch.device
    dtype: torch.dtype
    steps: int
    guidance: float
    chunk: int
    each: int
    begun: float

    def __post_init__(self) -> None:
        self.classifier = Classifier.load(resources.classifier()).to(self.device)
        self.vae = load_vae(self.base, device=self.device)
        self._encoders = load_text_encoders(self.base, device=self.device, dtype=torch.float32)
        self._texts: dict[str, tuple[Tensor, Tensor]] = {}
        self.alphas = alphas_cumprod(self.base)
        images = [Image.fromarray(each.picture()) for each in self.pictures]
        found = [encode_latents(self.vae, prepare(image, 128, 1)) for image in images]
        self.latents = torch.stack([torch.stack([each.mean[0], each.std[0]]) for each in found]).to(
            self.device
        )
        self.galleries = [gallery(each, self.classifier) for each in self.pictures]
        self.say(f"{len(self.pictures)} pictures")

    def say(self, text: str) -> None:
        print(f"[{time.monotonic() - self.begun:5.0f}s] {text}", file=sys.stderr, flush=True)

    def text(self, prompt: str) -> tuple[Tensor, Tensor]:
        """The embeddings of a prompt, encoded once."""
        if prompt not in self._texts:
            found = encode(self._encoders, [prompt])
            self._texts[prompt] = (found.tokens, found.pooled)
        return self._texts[prompt]

    def stack(self, jobs: Sequence[Job]) -> Stack:
        """A fresh stack of trainings."""
        unet = load_unet(self.base, device=self.device, dtype=self.dtype)
        ids, echoes = time_ids(128, 128).to(self.device), None
        if any(job.config.destyle_images for job in jobs):
            args = (self.latents[:, 0], self.text, ids, self.dtype)
            echoes = destyle_all(unet, self.alphas, jobs, *args)
        return Stack(unet, jobs, self.latents, self.text, ids, self.alphas, self.dtype, echoes)


def ceiling(bench: Bench) -> dict[str, np.ndarray]:
    """What the classifier says of drawn photos of the very individuals."""
    seen = []
    for number, each in enumerate(bench.pictures):
        photos = torch.from_numpy(real_photos(each, 3)).to(bench.device)
        wanted = Drawing("content", number, None, None, False, None, 0, each.subject, "photo")  # type: ignore[arg-type]
        seen += verdict.look(bench.classifier, [wanted] * 3, photos, bench.galleries)
    return verdict.scores(seen, bench.pictures)


@dataclass
class Result:
    """One method's columns by sample, and its pictures by purpose."""

    method: Method
    columns: dict[str, np.ndarray]
    pictures: dict[tuple[str, int], list[np.ndarray]]


def measure(
    bench: Bench, methods: Sequence[Method], *, limit: int, keep: set[str], deadline: float
) -> Iterator[Result]:
    """Train and evaluate all ``methods``, at most ``limit`` trainings at once; no stack begins after
    ``deadline`` minutes."""
    for group in _groups(methods, bench, limit):
        began = time.monotonic()
        if began - bench.begun > 60 * deadline:
            bench.say("out of time")
            return
        jobs: list[Job] = []
        trained: dict[str, dict[int, Trained]] = {}
        for method in group:
            for each in bench.pictures:
                own = method.jobs(each)
                places = tuple(range(len(jobs), len(jobs) + len(own)))
                trained.setdefault(method.name, {})[each.number] = Trained(method, each, places)
                jobs += own
        # The base alone needs some training to stand in: its drawings use no branch.
        stack = bench.stack(jobs or [Job(0, group[0].config(0), group[0].prompts(bench.pictures[0]))])
        if jobs:
            for done, _losses in stack.train():
                if done in (1, 20) or done % 100 == 0:
                    bench.say(f"{len(jobs)} trainings of {len(group)} methods: step {done}")
        ready = time.monotonic()
        of_method = {m.name: list(drawings(trained[m.name], each=bench.each)) for m in group}
        orders = [order for own in of_method.values() for order in own]
        owners = [name for name, own in of_method.items() for _ in own]
        rebuilt = rebuilding_errors(
            stack, [order for order in orders if order.purpose == "combine"], chunk=bench.chunk
        )
        seen: dict[str, list[verdict.Seen]] = {method.name: [] for method in group}
        pictures: dict[str, dict[tuple[str, int], list[np.ndarray]]] = {name: {} for name in seen}
        position = 0
        for some, images in drawn(
            stack,
            bench.base,
            bench.vae,
            orders,
            steps=bench.steps,
            guidance=bench.guidance,
            chunk=bench.chunk,
        ):
            for verdict_, image in zip(
                verdict.look(bench.classifier, some, images, bench.galleries), images, strict=True
            ):
                name = owners[position]
                seen[name].append(verdict_)
                if name in keep:
                    key = (verdict_.drawing.purpose, verdict_.drawing.sample)
                    pictures[name].setdefault(key, []).append(image.cpu().numpy())
                position += 1
        drawing = time.monotonic() - ready
        bench.say(
            f"{len(jobs)} trainings in {ready - began:.0f} s, {len(orders)} pictures in {drawing:.0f} s"
        )
        errors = iter(rebuilt.tolist())
        for method in group:
            columns = verdict.scores(seen[method.name], bench.pictures)
            for order in of_method[method.name]:
                if order.purpose == "combine":
                    columns["rebuilt"][order.sample] = next(errors)
            yield Result(method, columns, pictures[method.name])
        del stack
        if bench.device.type == "cuda":
            torch.cuda.empty_cache()


def seconds(bench: Bench, method: Method, steps: int = 12) -> float:
    """How long this machine takes for one picture with ``method`` alone, echoes included."""
    total = 0.0
    for job in method.jobs(bench.pictures[0]):
        began = time.monotonic()
        stack = bench.stack([job])
        total += time.monotonic() - began if job.config.destyle_images else 0.0
        for done, _losses in stack.train():
            if done == 2:
                began = time.monotonic()
            if done == 2 + steps:
                break
        total += (time.monotonic() - began) / steps * job.config.steps
    return total


def _groups(methods: Sequence[Method], bench: Bench, limit: int) -> Iterator[list[Method]]:
    """Methods whose trainings have the same shape, packed into stacks; those of like length together."""
    kinds: dict[tuple[int, ...], list[Method]] = {}
    for method in sorted(methods, key=lambda each: each.config(0).steps):
        config = method.config(0)
        kinds.setdefault(() if method.kind == "none" else (config.rank, config.destyle_images), []).append(
            method
        )
    for alike in kinds.values():
        group: list[Method] = []
        size = 0
        for method in alike:
            own = sum(len(method.jobs(each)) for each in bench.pictures)
            if group and size + own > limit:
                yield group
                group, size = [], 0
            group.append(method)
            size += own
        yield group


def main() -> None:
    """Run the benchmark and write its table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="four pictures and few methods, for a CPU")
    parser.add_argument(
        "--tune", action="store_true", help="the tuning pictures and the grid of every method"
    )
    parser.add_argument(
        "--seconds", action="store_true", help="only how long each method takes for a picture"
    )
    parser.add_argument("--only", help="methods whose names contain this")
    parser.add_argument("--pictures", type=int, help="how many pictures")
    parser.add_argument("--out", type=Path, help="folder for the table, the numbers and the sheets")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--precision", choices=("fp32", "bf16"))
    parser.add_argument("--limit", type=int, default=800, help="trainings at once")
    parser.add_argument("--chunk", type=int, default=512, help="pictures drawn at once")
    parser.add_argument("--each", type=int, help="pictures of every purpose")
    parser.add_argument(
        "--deadline", type=float, default=9.0, help="minutes after which no further stack begins"
    )
    args = parser.parse_args()
    begun = time.monotonic()
    device = torch.device(args.device)
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    precision = args.precision or ("bf16" if device.type == "cuda" else "fp32")
    name = "quick" if args.quick else "tune" if args.tune else "test"
    count = args.pictures or {"quick": 4, "tune": 16, "test": 32}[name]
    methods = {"quick": rows.quick, "tune": rows.tuning, "test": rows.table}[name]()
    methods = [method for method in methods if not args.only or args.only in method.name]
    bench = Bench(
        samples(name, count),
        resolve_base("mini", offline=True)[0],
        device,
        torch.bfloat16 if precision == "bf16" else torch.float32,
        steps=12 if args.quick else 20,
        guidance=2.5,
        chunk=args.chunk if device.type == "cuda" else 16,
        each=args.each or (1 if args.quick else 2),
        begun=begun,
    )
    if args.seconds:
        for method in methods:
            if method.kind != "none":
                print(f"{method.name:40s} {seconds(bench, method):6.0f} s")
        return
    results: dict[str, dict[str, np.ndarray]] = {"drawn photos (ceiling)": ceiling(bench)}
    keep = set(rows.SHOWN) if args.out else set()
    if args.out:
        args.out.mkdir(parents=True, exist_ok=True)
    limit = args.limit if device.type == "cuda" else 8
    for result in measure(bench, methods, limit=limit, keep=keep, deadline=args.deadline):
        results[result.method.name] = result.columns
        bench.say(
            f"{result.method.name}: "
            + "  ".join(f"{c} {np.nanmean(v):.2f}" for c, v in result.columns.items())
        )
        if args.out:
            numbers = {n: {c: v.tolist() for c, v in columns.items()} for n, columns in results.items()}
            (args.out / "scores.json").write_text(json.dumps(numbers))
            if result.pictures:
                sheet(bench.pictures, result.pictures).save(
                    args.out / f"{result.method.name.replace(' ', '-').replace('/', '-')}.png"
                )
    named = [next(iter(results)), *(method.name for method in methods if method.name in results)]
    text = markdown({name: results[name] for name in named})
    print(text)
    if args.out:
        (args.out / "table.md").write_text(text)


if __name__ == "__main__":
    set_openmp_wait_policy()
    main()
