"""How well methods separate content and style on the built-in base, scored by the classifier.

    python benchmarks/quality.py --quick            # two images and three methods, a minute on a CPU
    python benchmarks/quality.py --out results      # the table of benchmarks/README.md, one GPU, ten minutes
    python benchmarks/quality.py --tune --out tuned # the grid of settings, on the tuning images
    python benchmarks/quality.py --set artists --artwork FOLDER --out results      # or --set strangers

FOLDER holds what `recipes.mini.fetch` and `recipes.mini.strangers` wrote.

Every method trains on the same images with the same noise. All trainings of one shape run as one batch.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.separation import classification, rows
from benchmarks.separation.artists import (
    PICTURES,
    ArtSample,
    LookPictures,
    Looks,
    artists_samples,
    stranger_samples,
    true_pictures,
)
from benchmarks.separation.destyle import destyle_all, redrawn, shows
from benchmarks.separation.generation import decode, generate_images, reconstruction_errors
from benchmarks.separation.methods import ImageRequest, Method, Trained, image_requests
from benchmarks.separation.scenes import Sample, reference_embeddings, samples
from benchmarks.separation.stack import Stack, StackedJob
from benchmarks.separation.tables import by_style, markdown, sheet
from unziplora_cli import resources
from unziplora_cli.config import Prompts
from unziplora_cli.evaluation.scorers import Classifier
from unziplora_cli.paths import set_openmp_wait_policy
from unziplora_cli.sdxl.base import BaseRef, resolve_base
from unziplora_cli.sdxl.latents import crop_image, encode_latents
from unziplora_cli.sdxl.load import alphas_cumprod, load_text_encoders, load_unet, load_vae
from unziplora_cli.sdxl.text import encode, time_ids

ROWS = {"quick": "quick", "tune": "tuning", "test": "table"}
NO_PROMPTS = Prompts("", "", "")


@dataclass
class Bench:
    """What all methods share: the images, the base and what scores the generated ones.

    Images after the first ``measured`` lend their style to the cross column, and count for nothing else.
    """

    images: Sequence[Sample | ArtSample]
    measured: int
    base: BaseRef
    scorers: Mapping[str, Classifier | Looks]
    device: torch.device
    dtype: torch.dtype
    steps: int
    guidance: float
    batch_size: int
    per_purpose: int
    started: float

    def __post_init__(self) -> None:
        self.vae = load_vae(self.base, device=self.device)
        self._encoders = load_text_encoders(self.base, device=self.device, dtype=torch.float32)
        self._texts: dict[str, tuple[Tensor, Tensor]] = {}
        self.alphas = alphas_cumprod(self.base)
        images = [Image.fromarray(sample.image()) for sample in self.images]
        encoded = [encode_latents(self.vae, crop_image(image, 128, 1)) for image in images]
        self.latents = torch.stack([torch.stack([item.mean[0], item.std[0]]) for item in encoded]).to(
            self.device
        )
        self.references = {
            name: [reference_embeddings(s, scorer) for s in self.images if isinstance(s, Sample)]
            for name, scorer in self.scorers.items()
        }
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
            subjects = [self.images[job.sample].subject for job in jobs]
            checked = {index for index, job in enumerate(jobs) if job.source == "checked"}
            pixels = [torch.from_numpy(np.stack([draw() for draw in drawn])) for drawn in self._drawn()]
            images, photos = (p.permute(0, 3, 1, 2).to(self.device) / 127.5 - 1 for p in pixels)
            made = redrawn(jobs, images, photos)
            jobs = list(jobs)
            for index in checked:
                source = images[jobs[index].sample]
                seen = shows(made[index], subjects[index], source, redrawn=True)
                jobs[index] = replace(jobs[index], source="destyler" if seen else "inversion")
            args = (self.latents[:, 0], self.text, ids, self.dtype)
            destyled = destyle_all(unet, self.alphas, jobs, *args)
            for index, job in enumerate(jobs):
                if job.source != "inversion":
                    latents = encode_latents(self.vae, made[index : index + 1]).mean
                    destyled[index] = latents.to(self.device)
                elif index in checked:
                    drawn = decode(self.vae, destyled[index]).permute(0, 3, 1, 2) / 127.5 - 1
                    source = images[job.sample]
                    kept = [n for n, image in enumerate(drawn) if shows(image, subjects[index], source)]
                    self.log(f"{subjects[index]}: by inversion, {len(kept)} images show it")
                    if kept:  # the others are omitted; a training learns each of the rest as often
                        destyled[index] = destyled[index][(kept * len(drawn))[: len(drawn)]]
        return Stack(unet, jobs, self.latents, self.text, ids, self.alphas, self.dtype, destyled)


def ceiling(bench: Bench, scorer: str) -> dict[str, np.ndarray]:
    """The scores of true pictures, the upper bound: photos of the subject, and others in the style."""
    classified = []

    for number, sample in enumerate(bench.images[: bench.measured]):
        true = [("content", sample.subject, "photo", photo) for photo in sample.photos(3)]
        if isinstance(sample, ArtSample):
            true += [("style", other, sample.style, image) for other, image in sample.true_styles()]
        requests = [
            ImageRequest(purpose, number, None, None, False, NO_PROMPTS, 0, subject, style)
            for purpose, subject, style, _ in true
        ]
        images = torch.from_numpy(np.stack([image for *_, image in true])).to(bench.device)
        references = bench.references[scorer]
        classified += classification.classify(bench.scorers[scorer], requests, images, references)
    return classification.scores(classified, bench.images[: bench.measured])


@dataclass
class Result:
    """The columns of one method by sample, as a scorer sees it, and its images by purpose and sample."""

    method: Method
    scorer: str
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
        by_method = {
            m.name: [
                request
                for request in image_requests(trained[m.name], count=bench.per_purpose)
                if request.sample < bench.measured
            ]
            for m in group
        }
        requests = [request for items in by_method.values() for request in items]
        owners = [name for name, items in by_method.items() for _ in items]
        errors_by_request = reconstruction_errors(
            stack,
            [request for request in requests if request.purpose == "combine"],
            batch_size=bench.batch_size,
        )
        classified: dict[tuple[str, str], list[classification.Classified]] = {}
        images: dict[str, dict[tuple[str, int], list[np.ndarray]]] = {name: {} for name in by_method}
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
            names = owners[position : position + len(batch)]
            for scorer, network in bench.scorers.items():
                classes = classification.classify(network, batch, generated, bench.references[scorer])
                for name, result in zip(names, classes, strict=True):
                    classified.setdefault((scorer, name), []).append(result)
            for name, request, image in zip(names, batch, generated, strict=True):
                if name in keep:
                    key = (request.purpose, request.sample)
                    images[name].setdefault(key, []).append(image.cpu().numpy())
            position += len(batch)
        generating = time.monotonic() - ready
        bench.log(
            f"{len(jobs)} trainings in {ready - begin:.0f} s, {len(requests)} images in {generating:.0f} s"
        )
        errors = iter(errors_by_request.tolist())
        for method in group:
            rebuilt = [(r.sample, next(errors)) for r in by_method[method.name] if r.purpose == "combine"]
            for scorer in bench.scorers:
                classes = classified[scorer, method.name]
                columns = classification.scores(classes, bench.images[: bench.measured])
                for number, error in rebuilt:
                    columns["rebuilt"][number] = error
                yield Result(method, scorer, columns, images[method.name])
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
    for _, alike in sorted(kinds.items(), reverse=True):  # with destyled images first
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
    parser.add_argument("--set", choices=("drawn", "artists", "strangers"), default="drawn")
    parser.add_argument(
        "--artwork", type=Path, default=Path("artwork"), help="folder of the fetched pictures"
    )
    parser.add_argument("--base", default="mini", help="another base, as a folder")
    parser.add_argument("--classifier", type=Path, help="folder of another classifier")
    parser.add_argument("--subjects", type=Path, help="folder of a network that names subjects instead")
    parser.add_argument("--also", type=Path, help="folder of a former classifier, for more rows")
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
    methods = rows.artists() if args.set != "drawn" else getattr(rows, ROWS[name])()
    methods = [method for method in methods if not args.only or args.only in method.name]
    if args.quick and args.set != "drawn":
        methods = [rows.shortened(method) for method in methods]
    base = resolve_base(args.base, offline=True)[0]
    folders = {"": args.classifier or resources.classifier(), **({"former": args.also} if args.also else {})}
    scorers: dict[str, Classifier | Looks] = {
        title: Classifier.load(folder).to(device) for title, folder in folders.items()
    }
    images: Sequence[Sample | ArtSample]
    if args.set == "drawn":
        images = samples(name, args.images or {"quick": 2, "tune": 16, "test": 32}[name])
        measured = len(images)
    else:
        cutouts, strangers = args.artwork / "cutouts", args.artwork / "strangers"
        look_pictures = LookPictures.draw(cutouts, 8 if args.quick else PICTURES)
        true = true_pictures(cutouts) if args.set == "artists" else {}
        classifier = Classifier.load(args.classifier or resources.classifier()).to(device)
        namer = Classifier.load(args.subjects, "subjects").to(device) if args.subjects else classifier
        if args.set == "artists":
            measured = args.images or 32
            images = artists_samples(cutouts, true, namer, measured)
        else:
            images = stranger_samples(strangers, args.images or 16)
            measured = len(images)
        seen = {s for image in images for s in (image.subject, *image.others)}
        looks = Looks(classifier, namer, look_pictures, seen)
        print("accuracy of looks:", {k: round(v, 2) for k, v in looks.accuracy.items()}, flush=True)
        scorers = {"": looks}
    bench = Bench(
        images,
        measured,
        base,
        scorers,
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
    title = "rendered photos (ceiling)" if args.set == "drawn" else "true pictures (ceiling)"
    results = {_row(title, scorer): ceiling(bench, scorer) for scorer in bench.scorers}
    keep = set(rows.WITH_IMAGES) if args.out else set()
    if args.out:
        args.out.mkdir(parents=True, exist_ok=True)
    limit = args.limit if device.type == "cuda" else 8
    for result in measure(bench, methods, limit=limit, keep=keep, deadline=args.deadline):
        row = _row(result.method.name, result.scorer)
        results[row] = result.columns
        means = {c: np.nanmean(v) for c, v in result.columns.items() if not np.isnan(v).all()}
        bench.log(f"{row}: " + "  ".join(f"{c} {mean:.2f}" for c, mean in means.items()))
        if args.out:
            numbers = {n: {c: v.tolist() for c, v in columns.items()} for n, columns in results.items()}
            (args.out / "scores.json").write_text(json.dumps(numbers))
            if result.images and not result.scorer:
                sheet(bench.images[:measured], result.images).save(
                    args.out / f"{result.method.name.replace(' ', '-').replace('/', '-')}.png"
                )
    order = [title, *(method.name for method in methods)]
    named = [row for name in order for scorer in bench.scorers if (row := _row(name, scorer)) in results]
    text = markdown({name: results[name] for name in named})
    ours = {name: results[name] for name in named if name.startswith("ours")}
    text += "\n" + by_style(bench.images[:measured], ours)
    print(text)
    if args.out:
        (args.out / "table.md").write_text(text)


def _row(name: str, scorer: str) -> str:
    return f"{name}, by the {scorer} classifier" if scorer else name


if __name__ == "__main__":
    set_openmp_wait_policy()
    main()
