"""Train the reader and the destyler of the base, on pairs that are drawn meanwhile.

    python -m recipes.mini.train_destyler --work work --out out

One step paints a batch of scenes, most of them in random styles, and trains both networks on it. Weights that
lie in the work folder, beside the artists' `cutouts`, are trained on. Held-out styles are seen by the
evaluation alone, after the training.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from recipes.mini.optimize import FlatAdam, capture, learning_rate
from recipes.mini.pairs import NAMES, NOTHING, PLANES, Plan, Store, start_drawing
from recipes.mini.random_styles import FAMILIES, TUNING, Planes, blur, finish, paint_randomly
from recipes.mini.scene import COLORS, HELD_OUT_STYLES
from recipes.mini.train_vae import picture_loss
from unziplora_cli import resources
from unziplora_cli.evaluation.reader import NONE, UNKNOWN, Reader
from unziplora_cli.evaluation.scorers import Classifier
from unziplora_cli.training.destyler import MiniDestyler

PEAK_DESTYLER, PEAK_READER = 1.2e-3, 1.5e-3
"""Highest learning rates."""
READER_WIDTHS = (48, 96, 160, 224)
PAIRS = 128
"""Pairs of a styled picture and its photo, by which the reader learns what an individual is, in a step."""
PRECISION = 0.85
"""How often a word that the reader says must be right, on the tuning styles."""
SURE_OF_STYLE = 0.8
"""Least probability of a style: a wrong name for it is worse than none."""
CANDIDATES = 6
FEW_PARTS = 0.08
"""Pixels on borders of parts for every pixel of a subject, below which outlines leave it recognizable."""


class DevicePairs:
    """The pairs on the device; `update` takes in those drawn since, `draw` picks a batch for training."""

    def __init__(self, store: Store, device: torch.device) -> None:
        self.store = store
        total = store.plan.total
        self.planes = torch.zeros(total, *store.planes.shape[1:], dtype=torch.uint8, device=device)
        self.labels = torch.zeros(total, store.labels.shape[1], dtype=torch.long, device=device)
        self.index = torch.zeros(total, dtype=torch.long, device=device)
        self.count = torch.zeros((), device=device)
        self.loaded = np.zeros(total, bool)

    def update(self, most: int = 10**9) -> int:
        """Load at most so many new pairs; returns how many there are to train on."""
        ready = self.store.ready()
        new = ready[~self.loaded[ready]][:most]
        for start in range(0, len(new), 256):
            rows = new[start : start + 256]
            at = torch.from_numpy(rows).to(self.planes.device)
            self.planes[at] = torch.from_numpy(self.store.planes[rows]).to(self.planes.device)
            self.labels[at] = torch.from_numpy(self.store.labels[rows]).to(self.planes.device).long()
        self.loaded[new] = True
        plan = self.store.plan
        usable = np.flatnonzero(self.loaded)
        usable = usable[usable >= plan.held_out + plan.tune]
        if len(usable):
            self.index[: len(usable)] = torch.from_numpy(usable).to(self.index.device)
            self.count.fill_(len(usable))
        return len(usable)

    def draw(self, count: int) -> tuple[Tensor, Tensor]:
        """Planes [count, 18, h, w] in 0..1 and labels of random training pairs."""
        at = torch.rand(count, device=self.count.device) * self.count
        picked = self.index[at.minimum(self.count - 1).long()]
        return self.planes[picked].float() / 255, self.labels[picked]


class _Both(torch.nn.Module):
    """The destyler as it is trained: photos in given colours, and the logits of the guesses."""

    def __init__(self, destyler: MiniDestyler) -> None:
        super().__init__()
        self.destyler = destyler

    def forward(self, images: Tensor, colors: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        maps = self.destyler.encode(images)
        return self.destyler.decode(maps, colors), *self.destyler.guess_colors(maps[-1])


def train(
    destyler: MiniDestyler,
    reader: Classifier,
    pairs: DevicePairs,
    seconds: float,
    *,
    chunk: int,
    painted: int,
    peak_share: float,
    train_reader: bool,
    compiled: bool,
    graph: bool,
    max_steps: int,
) -> int:
    """Train both in place for `seconds`, the reader only if wanted; returns the number of steps.

    A batch holds `painted` scenes in base styles and `chunk` of every random family.
    """
    device = pairs.planes.device
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    batch = painted + chunk * len(FAMILIES)
    trained = MiniDestyler(destyler.palette, destyler.widths, destyler.size)
    trained.load_state_dict(destyler.state_dict())
    model = _Both(trained).to(device).train()
    run = torch.compile(model) if compiled else model
    reader.to(device, memory_format=torch.channels_last).train(train_reader)
    optimizer = FlatAdam([model], dtype)
    reading = FlatAdam([reader], torch.float32, weight_decay=0.02) if train_reader else None
    sums = torch.zeros(3, device=device)
    color, second, style = (list(NAMES).index(n) for n in ("color", "second_color", "style"))
    twins = min(PAIRS, batch)

    def step() -> None:
        planes, labels = pairs.draw(batch)
        vary_looks(planes[:painted], labels[:painted])
        images = paint(planes, painted)
        labels[painted:, style].fill_(NAMES["style"].index(UNKNOWN))
        photos = planes[:, PLANES["photo"]] * 2 - 1
        colors = colors_of(torch.stack((labels[:, color], labels[:, second]), 1))
        made, body, marking = run(images.to(dtype), hide(colors, trained.unknown))
        weight = 0.5 + blur(planes[:, PLANES["alpha"]], 3.0)
        loss = picture_loss(made.float() * weight, photos * weight)
        guessed = F.cross_entropy(body.float(), colors[:, 0].clamp(max=trained.unknown))
        guessed = guessed + F.cross_entropy(marking.float(), colors[:, 1].clamp(max=trained.unknown))
        read = torch.zeros((), device=device)
        if reading is not None:
            read = reading_loss(reader, images, photos[:twins], labels)
        (loss + 0.1 * guessed + read).backward()
        optimizer.step()
        if reading is not None:
            reading.step()
        sums.add_(torch.stack((loss.detach(), guessed.detach(), read.detach())))

    def uncompile() -> bool:
        nonlocal run
        was_compiled, run = run is not model, model
        optimizer.gradients.zero_()
        if reading is not None:
            reading.gradients.zero_()
        return was_compiled

    start = time.monotonic()
    optimizer.set(0.0, 0)
    if reading is not None:
        reading.set(0.0, 0)
    replay = capture(step, uncompile, graph=graph)
    begun = last_log = time.monotonic()
    print(f"first step after {begun - start:.0f} s, {batch} pictures a step", flush=True)
    seconds = max(seconds - (begun - start), 1.0)
    steps = logged = 0
    sums.zero_()
    while (now := time.monotonic()) - begun < seconds and steps < max_steps:
        share = (now - begun) / seconds
        optimizer.set(learning_rate(PEAK_DESTYLER * peak_share, steps, share), steps)
        if reading is not None:
            reading.set(learning_rate(PEAK_READER * peak_share, steps, share), steps, decay=0.0)
        replay()
        steps += 1
        if steps % 10 == 0 and device.type == "cuda":
            torch.cuda.synchronize()
        if steps % 50 == 0:
            pairs.update(2048)
        if now - last_log > 15:
            picture, guess, read = (sums / (steps - logged)).tolist()
            rate = (steps - logged) / (now - last_log)
            print(
                f"{now - begun:4.0f}s step {steps} picture {picture:.4f} colours {guess:.3f} "
                f"reader {read:.3f} {rate:.1f}/s of {int(pairs.count)} pairs",
                flush=True,
            )
            sums.zero_()
            last_log, logged = now, steps
    optimizer.write_average([destyler])
    reader.eval()
    return steps


def reading_loss(reader: Classifier, images: Tensor, photos: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy of all fields, and a contrastive loss of the first images and their `photos`."""
    device, twins, batch = images.device, len(photos), len(images)
    plain = labels[:twins].clone()
    for name in ("style", "context"):
        plain[:, list(NAMES).index(name)] = 0
    seen = torch.cat((images, photos))
    seen = torch.where(torch.rand(len(seen), 1, 1, 1, device=device) < 0.5, seen.flip(3), seen)
    with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
        logits, identity = reader(seen.contiguous(memory_format=torch.channels_last))
    truth = torch.cat((labels, plain))
    read = sum(
        (F.cross_entropy(logits[name].float(), truth[:, n]) for n, name in enumerate(NAMES)),
        torch.zeros((), device=device),
    )
    similarity = identity[:twins].float() @ identity[batch:].float().T / 0.1
    same = torch.arange(twins, device=device)
    return read + 0.25 * (F.cross_entropy(similarity, same) + F.cross_entropy(similarity.T, same))


@torch.no_grad()
def vary_looks(planes: Tensor, labels: Tensor) -> None:
    """Change, in place, some pictures that nothing paints: photos, and artists' own looks.

    Half of the subjects in their artist's colours become darker, paler or tinted, their photos as well, so
    that the network keeps the tones of photographs, which no set has. Half of all with few parts get dark
    outlines, which their photos do not have.
    """
    style, color = (labels[:, list(NAMES).index(name)] for name in ("style", "color"))
    plain = (style == 0) | (style == NAMES["style"].index(UNKNOWN))
    parts = split(planes)
    toned = (plain & (color == NOTHING))[:, None, None, None] * parts.chance(0.5) * parts.alpha
    gamma, tint = parts.uniform(-0.5, 1.1).exp(), parts.uniform(-0.25, 0.25, 3).exp()
    for name in ("styled", "photo"):
        channels = planes[:, PLANES[name]]
        channels.lerp_((channels**gamma * tint).clamp(max=1.0), toned)
    styled = planes[:, PLANES["styled"]]
    inked = parts.inked(styled, parts.color(0, 0.25), 1.0, 2.6)
    few = parts.outline.mean((2, 3)) < FEW_PARTS * parts.alpha.mean((2, 3))
    styled.lerp_(inked, (plain[:, None] & few)[..., None, None] * parts.chance(0.5))


@torch.no_grad()
def paint(planes: Tensor, painted: int) -> Tensor:
    """Images in -1..1: the first `painted` scenes in their base style, half of them as drawn; others anew."""
    parts = split(planes)
    first, rest = parts.part(slice(painted)), parts.part(slice(painted, None))
    styled = planes[:painted, PLANES["styled"]]
    styled = torch.where(first.chance(0.5) > 0, finish(first, styled), styled)
    return torch.cat((styled, paint_randomly(rest))) * 2 - 1


def split(planes: Tensor) -> Planes:
    """The planes that random styles are made of, from all channels of a pair."""
    return Planes(**{name: planes[:, PLANES[name]] for name in Planes.__dataclass_fields__})


def colors_of(labels: Tensor) -> Tensor:
    """Labels [n, 2] of both colours -> the destyler's indices, where *none* is behind *unknown*."""
    none = (labels == len(COLORS)) | (labels == NOTHING)
    return torch.where(none, len(COLORS) + 1, labels)


def hide(colors: Tensor, unknown: int) -> Tensor:
    """Some of the colours made unknown: both of one picture in five, one in ten more."""
    both = torch.rand(len(colors), 1, device=colors.device) < 0.2
    hidden = both | (torch.rand(colors.shape, device=colors.device) < 0.1)
    return torch.where(hidden, unknown, colors)


@torch.no_grad()
def thresholds(reader: Classifier, images: Tensor, labels: Tensor) -> dict[str, float]:
    """The lowest probability of every field from which on the reader's words are right often enough."""
    logits = read(reader, images)
    result = {}
    for n, name in enumerate(NAMES):
        probability, guess = logits[name].softmax(1).max(1)
        named = torch.tensor([word not in (UNKNOWN, NONE) for word in NAMES[name]], device=guess.device)[
            guess
        ]
        right = (guess == labels[:, n]).float()
        result[name] = 0.95
        for limit in (0.3, 0.35, 0.4, 0.45, 0.5, 0.55, 0.6, 0.65, 0.7, 0.75, 0.8, 0.85, 0.9):
            kept = named & (probability >= limit)
            if kept.any() and float(right[kept].mean()) >= PRECISION:
                result[name] = limit
                break
    return {**result, "style": max(result["style"], SURE_OF_STYLE)}


@torch.no_grad()
def read(reader: Classifier, images: Tensor) -> dict[str, Tensor]:
    """Logits of images [n, 3, h, w] in -1..1."""
    parts = [reader(batch)[0] for batch in images.split(256)]
    return {name: torch.cat([part[name] for part in parts]).float() for name in parts[0]}


def reading_report(reader: Reader, images: Tensor, labels: Tensor) -> dict[str, list[float]]:
    """Of every field: how often the likeliest word is right, a word is said, and a said word is right."""
    logits = read(reader.network, images)
    report = {}
    for n, name in enumerate(NAMES):
        probability, guess = logits[name].softmax(1).max(1)
        words = torch.tensor([word not in (UNKNOWN, NONE) for word in NAMES[name]], device=guess.device)
        named = words[guess] & (probability >= reader.thresholds[name])
        right = (guess == labels[:, n]).float()
        values = (right.mean(), named.float().mean(), right[named].mean())
        report[name] = [round(float(value), 3) for value in values]
    return report


@torch.no_grad()
def destyling_report(
    classifier: Classifier, photos: Tensor, truth: Tensor, labels: Tensor, others: Sequence[Tensor]
) -> dict[str, float]:
    """What the measuring classifier sees in photos, and how near they are to the true ones.

    `others` are true photos of the individuals, [n, 3, h, w] each; identity is among six of one subject.
    """
    classes: list[dict[str, str]] = []
    for batch in photos.split(256):
        classes += classifier.classify(levels(batch))
    report: dict[str, float] = {"photo": float(np.mean([c["style"] == "photo" for c in classes]))}
    for name in ("subject", "marking", "color"):
        names = [NAMES[name][i] for i in labels[:, list(NAMES).index(name)].tolist()]
        report[name] = float(np.mean([c[name] == n for c, n in zip(classes, names, strict=True)]))
    embed = [torch.cat([classifier.predict(levels(b))[1] for b in x.split(256)]) for x in (photos, *others)]
    references = F.normalize(torch.stack(embed[1:]).mean(0), dim=1)
    similarity = embed[0] @ references.T
    rng, subjects = np.random.default_rng(0), labels[:, 0].tolist()
    hits = []
    for n, subject in enumerate(subjects):
        rivals = [m for m, other in enumerate(subjects) if other == subject and m != n]
        if len(rivals) >= CANDIDATES - 1:
            picked = rng.choice(rivals, CANDIDATES - 1, replace=False)
            hits.append(float(similarity[n, n] > similarity[n, picked].max()))
    report["identity"] = float(np.mean(hits)) if hits else float("nan")
    report["psnr"] = float(-10 * (((photos - truth) / 2) ** 2).mean().log10())
    return {name: round(value, 3) for name, value in report.items()}


def levels(images: Tensor) -> Tensor:
    """Images [n, 3, h, w] in -1..1 -> uint8 [n, h, w, 3]."""
    return ((images.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).permute(0, 2, 3, 1)


def evaluate(
    destyler: MiniDestyler, reader: Classifier, pairs: DevicePairs, out: Path
) -> tuple[Reader, dict[str, object]]:
    """Choose thresholds on the tuning styles, then report on these and on the held-out ones."""
    plan, device = pairs.store.plan, pairs.planes.device
    classifier = Classifier.load(resources.classifier()).to(device)
    ready = torch.from_numpy(np.flatnonzero(pairs.loaded)).to(device)
    held_out, tune = (
        ready[ready < plan.held_out],
        ready[(ready >= plan.held_out) & (ready < plan.held_out + plan.tune)],
    )
    torch.manual_seed(0)
    planes = pairs.planes[tune].float() / 255
    with torch.no_grad():
        tuned = (
            torch.cat([finish(split(planes), family(split(planes))) for family in TUNING.values()]) * 2 - 1
        )
    tune_labels = pairs.labels[tune].repeat(len(TUNING), 1)
    tune_labels[:, list(NAMES).index("style")] = NAMES["style"].index(UNKNOWN)
    base = planes[:, PLANES["styled"]] * 2 - 1
    images, labels = torch.cat((tuned, base)), torch.cat((tune_labels, pairs.labels[tune]))
    chosen = Reader(reader, thresholds(reader, images, labels))
    report: dict[str, object] = {"thresholds": chosen.thresholds}
    sets: dict[str, tuple[Tensor, Tensor, Tensor, list[Tensor]]] = {}
    photos = planes[:, PLANES["photo"]] * 2 - 1
    sets["base styles"] = (base, pairs.labels[tune], photos, [photos])
    for number, name in enumerate(TUNING):
        span = slice(number * len(tune), (number + 1) * len(tune))
        sets[name] = (tuned[span], tune_labels[span], photos, [photos])
    planes = pairs.planes[held_out].float() / 255 * 2 - 1
    every, (true, *others) = (
        pairs.labels[held_out],
        (planes[:, PLANES[n]] for n in ("photo", "front", "back")),
    )
    sets["held-out styles"] = (planes[:, PLANES["styled"]], every, true, others)
    for name, (images, labels, photos, others) in sets.items():
        true_colors = colors_of(labels[:, [list(NAMES).index(n) for n in ("color", "second_color")]])
        blank = torch.full_like(true_colors, destyler.unknown)
        made = {
            "guessed": destyle(destyler, images),
            "in true colours": destyle(destyler, images, true_colors),
        }
        with torch.no_grad():
            made["in no colours"] = torch.cat(
                [
                    destyler.decode(destyler.encode(i), b)
                    for i, b in zip(images.split(128), blank.split(128), strict=True)
                ]
            ).clamp(-1, 1)
        rows: dict[str, object] = {"reader": reading_report(chosen, images, labels)}
        for kind, made_photos in made.items():
            rows[kind] = destyling_report(classifier, made_photos, photos, labels, others)
        report[name] = rows
        if name == "held-out styles":
            by_style = {}
            for number, style in enumerate(HELD_OUT_STYLES):
                at = labels[:, -1] == number
                if at.any():
                    by_style[style] = {
                        "reader": reading_report(chosen, images[at], labels[at]),
                        **destyling_report(
                            classifier, made["guessed"][at], photos[at], labels[at], [o[at] for o in others]
                        ),
                    }
            report["by held-out style"] = by_style
        if name != "base styles":
            tiles = torch.stack(
                (images, made["guessed"], made["in no colours"], made["in true colours"], photos), 1
            )
            sheet(tiles[:40], out / f"{name.replace(' ', '-')}.jpg")
    return chosen, report


def destyle(destyler: MiniDestyler, images: Tensor, colors: Tensor | None = None) -> Tensor:
    """`destyler` in batches."""
    colored = [None] * len(images) if colors is None else colors.split(128)
    return torch.cat([destyler(i, c) for i, c in zip(images.split(128), colored, strict=False)])


def sheet(tiles: Tensor, path: Path, columns: int = 4) -> None:
    """Write a contact sheet of tiles [n, k, 3, h, w] in -1..1: n rows of k tiles, in so many columns."""
    rows = [torch.cat(list(levels(row)), 1) for row in tiles]
    lines = [torch.cat(rows[i : i + columns], 1) for i in range(0, len(rows) - len(rows) % columns, columns)]
    if lines:
        Image.fromarray(torch.cat(lines, 0).cpu().numpy()).save(path, quality=88)


def main() -> None:
    """Draw, train, evaluate, write weights, report and contact sheets."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--work", type=Path, required=True, help="folder of the pairs, and of weights to train on"
    )
    parser.add_argument("--out", type=Path, required=True, help="folder for results")
    parser.add_argument("--deadline", type=float, default=9.3, help="minutes after which all must be over")
    parser.add_argument("--minutes-draw", type=float, default=4.5, help="longest time for drawing")
    parser.add_argument("--pairs", type=int, default=Plan.train)
    parser.add_argument("--chunk", type=int, default=8, help="pictures of every random family in a step")
    parser.add_argument("--painted", type=int, default=48, help="pictures in base styles in a step")
    parser.add_argument("--peak", type=float, default=1.0, help="share of the highest learning rates")
    parser.add_argument("--reader", action=argparse.BooleanOptionalAction, default=True, help="train it too")
    parser.add_argument("--workers", type=int, default=max(1, (os.cpu_count() or 2) - 1))
    parser.add_argument("--compile", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--graphs", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--tiny", action="store_true", help="a few steps, to try the code on a CPU")
    args = parser.parse_args()
    begun = time.time()
    plan = Plan(32, 8, 8) if args.tiny else Plan(train=args.pairs)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    args.out.mkdir(parents=True, exist_ok=True)
    store = Store.create(args.work / "pairs", plan)
    workers = start_drawing(args.work / "pairs", args.workers, begun + 60 * args.minutes_draw)
    pairs = DevicePairs(store, device)
    torch.manual_seed(3)
    destyler, reader = MiniDestyler(COLORS), Classifier(NAMES, widths=READER_WIDTHS)
    if (args.work / "destyler").exists():
        destyler = MiniDestyler.load(args.work / "destyler")
    if (args.work / "reader").exists():
        reader = Reader.load(args.work / "reader").network
    while pairs.update() < (16 if args.tiny else 768):
        if all(worker.poll() is not None for worker in workers) and pairs.update() == 0:
            raise SystemExit("nothing was drawn: look for a drawing process's message above")
        time.sleep(0.5)
    print(f"[{time.time() - begun:4.0f}s] training starts", flush=True)
    steps = train(
        destyler,
        reader,
        pairs,
        60 * args.deadline - (time.time() - begun) - 12,
        chunk=1 if args.tiny else args.chunk,
        painted=2 if args.tiny else args.painted,
        peak_share=args.peak,
        train_reader=args.reader,
        compiled=args.compile and not args.tiny,
        graph=args.graphs,
        max_steps=2 if args.tiny else 10**9,
    )
    pairs.update()
    print(f"[{time.time() - begun:4.0f}s] {steps} steps on {int(pairs.count)} pairs", flush=True)
    chosen, report = evaluate(destyler.to(device).eval(), reader, pairs, args.out)
    for folder in (args.work, args.out):
        destyler.save(folder / "destyler")
        chosen.save(folder / "reader")
    report = {"steps": steps, "pairs": int(pairs.count), **report}
    (args.out / "report.json").write_text(json.dumps(report, indent=1) + "\n")
    print(f"[{time.time() - begun:4.0f}s] {json.dumps(report)}", flush=True)


if __name__ == "__main__":
    main()
