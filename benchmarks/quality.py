"""How well methods separate content and style on the built-in base, scored by the classifier.

    python benchmarks/quality.py --quick            # two images and three methods, a minute on a CPU
    python benchmarks/quality.py --out results      # the table of benchmarks/README.md, one GPU, ten minutes
    python benchmarks/quality.py --tune --out tuned # the grid of settings, on the tuning images

Every method trains on the same images with the same noise. All trainings of one shape run as one batch.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.separation import classification, rows
from benchmarks.separation.destyle import destyle_all, redrawn
from benchmarks.separation.generation import generate_images, reconstruction_errors
from benchmarks.separation.methods import ImageRequest, Method, Trained, image_requests
from benchmarks.separation.scenes import Sample, reference_embeddings, render_photos, samples
from benchmarks.separation.stack import Stack, StackedJob
from benchmarks.separation.tables import by_style, markdown, sheet
from unziplora_cli import resources
from unziplora_cli.evaluation.scorers import Classifier
from unziplora_cli.paths import set_openmp_wait_policy
from unziplora_cli.sdxl.base import BaseRef, resolve_base
from unziplora_cli.sdxl.latents import crop_image, encode_latents
from unziplora_cli.sdxl.load import alphas_cumprod, load_text_encoders, load_unet, load_vae
from unziplora_cli.sdxl.text import encode, time_ids


@dataclass
class Bench:
    """What all methods share: the images, the base and the classifier."""

    images: tuple[Sample, ...]
    base: BaseRef
    device: torch.device
    dtype: torch.dtype
    steps: int
    guidance: float
    batch_size: int
    per_purpose: int
    started: float

    def __post_init__(self) -> None:
        self.classifier = Classifier.load(resources.classifier()).to(self.device)
        self.vae = load_vae(self.base, device=self.device)
        self._encoders = load_text_encoders(self.base, device=self.device, dtype=torch.float32)
        self._texts: dict[str, tuple[Tensor, Tensor]] = {}
        self.alphas = alphas_cumprod(self.base)
        images = [Image.fromarray(sample.image()) for sample in self.images]
        encoded = [encode_latents(self.vae, crop_image(image, 128, 1)) for image in images]
        self.latents = torch.stack([torch.stack([item.mean[0], item.std[0]]) for item in encoded]).to(
            self.device
        )
        self.references = [reference_embeddings(sample, self.classifier) for sample in self.images]
        self.log(f"{len(self.images)} images")

    def log(self, text: str) -> None:
        print(f"[{time.monotonic() - self.started:5.0f}s] {text}", file=sys.stderr, flush=True)

    def text(self, prompt: str) -> tuple[Tensor, Tensor]:
        """The embeddings of a prompt, encoded once."""
        if prompt not in self._texts:
            embeddings = encode(self._encoders, [prompt])
            self._texts[prompt] = (embeddings.tokens, embeddings.pooled)
        return self._texts[prompt]

    def _drawn(self) -> tuple[list[Callable[[], np.ndarray]], ...]:
        return [sample.image for sample in self.images], [sample.photo for sample in self.images]

    def stack(self, jobs: Sequence[StackedJob]) -> Stack:
        """A new stack of trainings, before its first step."""
        unet = load_unet(self.base, device=self.device, dtype=self.dtype)
        ids, destyled = time_ids(128, 128).to(self.device), None
        if any(job.config.destyle_images for job in jobs):
            args = (self.latents[:, 0], self.text, ids, self.dtype)
            destyled = destyle_all(unet, self.alphas, jobs, *args)
            others = [index for index, job in enumerate(jobs) if job.source != "inversion"]
            if others:
                pixels = [torch.from_numpy(np.stack([draw() for draw in drawn])) for drawn in self._drawn()]
                images, photos = (p.permute(0, 3, 1, 2).to(self.device) / 127.5 - 1 for p in pixels)
                made = redrawn([jobs[index] for index in others], images, photos)
                latents = torch.cat([encode_latents(self.vae, image[None]).mean for image in made])
                destyled[others] = latents[:, None].to(self.device)
        return Stack(unet, jobs, self.latents, self.text, ids, self.alphas, self.dtype, destyled)


def ceiling(bench: Bench) -> dict[str, np.ndarray]:
    """The scores of rendered photos of the individuals: the upper bound."""
    classified = []
    for number, sample in enumerate(bench.images):
        photos = torch.from_numpy(render_photos(sample, 3)).to(bench.device)
        wanted = ImageRequest("content", number, None, None, False, None, 0, sample.subject, "photo")  # type: ignore[arg-type]
        classified += classification.classify(bench.classifier, [wanted] * 3, photos, bench.references)
    return classification.scores(classified, bench.images)


@dataclass
class Result:
    """The columns of one method by sample, and its images by purpose and sample."""

    method: Method
    columns: dict[str, np.ndarray]
    images: dict[tuple[str, int], list[np.ndarray]]


def measure(
    bench: Bench, methods: Sequence[Method], *, limit: int, keep: set[str], deadline: float
) -> Iterator[Result]:
    """Train and evaluate all ``methods``, at most ``limit`` trainings at once.

    No new batch starts after ``deadline`` minutes. Images of methods in ``keep`` are returned too.
    """
    for group in _batches(methods, bench, limit):
        begin = time.monotonic()
        if begin - bench.started > 60 * deadline:
            bench.log("out of time")
            return
        jobs: list[StackedJob] = []
        trained: dict[str, dict[int, Trained]] = {}
        for method in group:
            for sample in bench.images:
                new = method.jobs(sample)
                positions = tuple(range(len(jobs), len(jobs) + len(new)))
                trained.setdefault(method.name, {})[sample.number] = Trained(method, sample, positions)
                jobs += new
        # The base alone uses no branch, but a stack needs at least one training.
        stack = bench.stack(jobs or [StackedJob(0, group[0].config(0), group[0].prompts(bench.images[0]))])
        if jobs:
            for done, _losses in stack.train():
                if done in (1, 20) or done % 100 == 0:
                    bench.log(f"{len(jobs)} trainings of {len(group)} methods: step {done}")
        ready = time.monotonic()
        by_method = {m.name: list(image_requests(trained[m.name], count=bench.per_purpose)) for m in group}
        requests = [request for items in by_method.values() for request in items]
        owners = [name for name, items in by_method.items() for _ in items]
        errors_by_request = reconstruction_errors(
            stack,
            [request for request in requests if request.purpose == "combine"],
            batch_size=bench.batch_size,
        )
        classified: dict[str, list[classification.Classified]] = {method.name: [] for method in group}
        images: dict[str, dict[tuple[str, int], list[np.ndarray]]] = {name: {} for name in classified}
        position = 0
        for batch, generated in generate_images(
            stack,
            bench.base,
            bench.vae,
            requests,
            steps=bench.steps,
            guidance=bench.guidance,
            batch_size=bench.batch_size,
        ):
            for result, image in zip(
                classification.classify(bench.classifier, batch, generated, bench.references),
                generated,
                strict=True,
            ):
                name = owners[position]
                classified[name].append(result)
                if name in keep:
                    key = (result.request.purpose, result.request.sample)
                    images[name].setdefault(key, []).append(image.cpu().numpy())
                position += 1
        generating = time.monotonic() - ready
        bench.log(
            f"{len(jobs)} trainings in {ready - begin:.0f} s, {len(requests)} images in {generating:.0f} s"
        )
        errors = iter(errors_by_request.tolist())
        for method in group:
            columns = classification.scores(classified[method.name], bench.images)
            for request in by_method[method.name]:
                if request.purpose == "combine":
                    columns["rebuilt"][request.sample] = next(errors)
            yield Result(method, columns, images[method.name])
        del stack
        if bench.device.type == "cuda":
            torch.cuda.empty_cache()


def seconds(bench: Bench, method: Method, steps: int = 12) -> float:
    """Seconds that this machine needs for one image with ``method``, destyling included."""
    total = 0.0
    for job in method.jobs(bench.images[0]):
        begin = time.monotonic()
        stack = bench.stack([job])
        total += time.monotonic() - begin if job.config.destyle_images else 0.0
        for done, _losses in stack.train():
            if done == 2:
                begin = time.monotonic()
            if done == 2 + steps:
                break
        total += (time.monotonic() - begin) / steps * job.config.steps
    return total


def _batches(methods: Sequence[Method], bench: Bench, limit: int) -> Iterator[list[Method]]:
    """Batches of methods whose trainings have the same shape; those of similar length together."""
    kinds: dict[tuple[int, ...], list[Method]] = {}
    for method in sorted(methods, key=lambda method: method.config(0).steps):
        config = method.config(0)
        kinds.setdefault(() if method.kind == "none" else (config.rank, config.destyle_images), []).append(
            method
        )
    for alike in kinds.values():
        group: list[Method] = []
        size = 0
        for method in alike:
            count = sum(len(method.jobs(sample)) for sample in bench.images)
            if group and size + count > limit:
                yield group
                group, size = [], 0
            group.append(method)
            size += count
        yield group


def main() -> None:
    """Run the benchmark and write its table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="two images and few methods, for a CPU")
    parser.add_argument("--tune", action="store_true", help="the tuning images and the grid of every method")
    parser.add_argument("--seconds", action="store_true", help="only the time of every method for one image")
    parser.add_argument("--only", help="methods whose names contain this")
    parser.add_argument("--images", type=int, help="number of images")
    parser.add_argument("--out", type=Path, help="folder for the table, the numbers and the sheets")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--precision", choices=("fp32", "bf16"))
    parser.add_argument("--limit", type=int, default=800, help="trainings at once")
    parser.add_argument("--batch-size", type=int, default=512, help="images generated at once")
    parser.add_argument("--per-purpose", type=int, help="images for every purpose")
    parser.add_argument("--deadline", type=float, default=9.0, help="minutes after which no new batch starts")
    args = parser.parse_args()
    started = time.monotonic()
    device = torch.device(args.device)
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    precision = args.precision or ("bf16" if device.type == "cuda" else "fp32")
    name = "quick" if args.quick else "tune" if args.tune else "test"
    count = args.images or {"quick": 2, "tune": 16, "test": 32}[name]
    methods = {"quick": rows.quick, "tune": rows.tuning, "test": rows.table}[name]()
    methods = [method for method in methods if not args.only or args.only in method.name]
    bench = Bench(
        samples(name, count),
        resolve_base("mini", offline=True)[0],
        device,
        torch.bfloat16 if precision == "bf16" else torch.float32,
        steps=6 if args.quick else 20,
        guidance=2.5,
        batch_size=args.batch_size if device.type == "cuda" else 16,
        per_purpose=args.per_purpose or (1 if args.quick else 2),
        started=started,
    )
    if args.seconds:
        for method in methods:
            if method.kind != "none":
                print(f"{method.name:40s} {seconds(bench, method):6.0f} s")
        return
    results: dict[str, dict[str, np.ndarray]] = {"rendered photos (ceiling)": ceiling(bench)}
    keep = set(rows.WITH_IMAGES) if args.out else set()
    if args.out:
        args.out.mkdir(parents=True, exist_ok=True)
    limit = args.limit if device.type == "cuda" else 8
    for result in measure(bench, methods, limit=limit, keep=keep, deadline=args.deadline):
        results[result.method.name] = result.columns
        bench.log(
            f"{result.method.name}: "
            + "  ".join(f"{c} {np.nanmean(v):.2f}" for c, v in result.columns.items())
        )
        if args.out:
            numbers = {n: {c: v.tolist() for c, v in columns.items()} for n, columns in results.items()}
            (args.out / "scores.json").write_text(json.dumps(numbers))
            if result.images:
                sheet(bench.images, result.images).save(
                    args.out / f"{result.method.name.replace(' ', '-').replace('/', '-')}.png"
                )
    named = [next(iter(results)), *(method.name for method in methods if method.name in results)]
    text = markdown({name: results[name] for name in named})
    text += "\n" + by_style(bench.images, {name: results[name] for name in named if name.startswith("ours")})
    print(text)
    if args.out:
        (args.out / "table.md").write_text(text)


if __name__ == "__main__":
    set_openmp_wait_policy()
    main()
