"""Train the classifier and the reader on drawn images, many of them decoded by the autoencoder.

The classifier sees every style of the benchmark's rendered images, since it measures them. The reader
proposes words for a user's image, so it sees the base's styles alone, and for all others these images painted
anew in styles made at random. Neither sees a look of the artists that is held out. Both begin with weights
of an earlier reader.

    python -m recipes.mini.classifier --work work --out out      # beside `recipes.mini.run draw`, or after it
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from torch import Tensor

from recipes.mini.optimize import learning_rate
from recipes.mini.pictures import ARTWORK, ARTWORK_TEST, BASE, GROUPED, NAMES, TEST, Store
from recipes.mini.random_styles import FAMILIES, Planes, paint_randomly
from recipes.mini.scene import COLORS, GENERIC, HELD_OUT_STYLES, MARKINGS
from recipes.mini.train_vae import DevicePictures, rebuild
from unziplora_cli import resources
from unziplora_cli.evaluation.reader import NONE, UNKNOWN, Reader
from unziplora_cli.evaluation.scorers import Classifier
from unziplora_cli.sdxl.base import resolve_base
from unziplora_cli.sdxl.load import load_vae

PEAK, PEAK_AGAIN = 2e-3, 1.2e-3
"""Highest learning rate of a new network, and of one that is trained on."""
WIDTHS = (48, 96, 160, 224)
CLASSIFIER_SHARE = 0.6
"""Of the time, for the classifier; the rest is for the reader."""
GROUP_SHARE = 3
"""One batch in this many parts is made of pairs of pictures of one individual."""
READER_NAMES: dict[str, tuple[str, ...]] = {
    **NAMES,
    "style": (*(s for s in NAMES["style"] if s != GENERIC and s not in HELD_OUT_STYLES), UNKNOWN),
    "second_color": (*COLORS, NONE),
}
PRECISION = 0.85
"""How often a word that the reader says must be right, in styles made at random."""
SURE_OF_STYLE = 0.8
"""Least probability of a style: a wrong name for it is worse than none."""
LIMITS = (0.3, 0.35, 0.4, 0.45, 0.5, 0.55, 0.6, 0.65, 0.7, 0.75, 0.8, 0.85, 0.9)

Batch = tuple[Tensor, Tensor, int]
"""Images [n, 3, h, w] in -1..1, labels [n, fields], and how many of them are in pairs of one individual."""


@dataclass
class Examples:
    """The drawn pictures on the device, some of them decoded by the autoencoder as generated ones are."""

    vae: AutoencoderKL
    store: Store
    device: torch.device

    def __post_init__(self) -> None:
        self.pictures = DevicePictures(self.store, self.device)
        self.pictures.update()
        self.ready = np.flatnonzero(self.pictures.ready)
        self.kinds = self.store.kinds[self.ready]
        chosen = self.ready[~np.isin(self.kinds, (BASE, ARTWORK)) | (self.ready % 4 == 0)]
        self.has_rebuilt = torch.zeros(len(self.pictures.images), dtype=torch.bool, device=self.device)
        self.rebuilt = self.pictures.images.clone()
        for start in range(0, len(chosen), 4096):
            rows = torch.from_numpy(chosen[start : start + 4096]).to(self.device)
            self.rebuilt[rows] = rebuild(self.vae, self.pictures.images[rows])
            self.has_rebuilt[rows] = True
        self.pairs = self._pairs()

    def rows(self, *kinds: int) -> Tensor:
        """The pictures of these kinds."""
        return torch.from_numpy(self.ready[np.isin(self.kinds, kinds)]).to(self.device)

    def images(self, index: Tensor) -> Tensor:
        """Pictures in -1..1, [n, 3, h, w]; of those that were decoded, three in five as decoded."""
        through = self.has_rebuilt[index] & (torch.rand(len(index), device=self.device) < 0.6)
        levels = torch.where(through[:, None, None, None], self.rebuilt[index], self.pictures.images[index])
        return levels.permute(0, 3, 1, 2).float() / 127.5 - 1.0

    def for_classifier(self, batch: int) -> Callable[[], Batch]:
        """Draws batches of all pictures, a part of them in pairs."""
        train = self.rows(*(kind for kind in range(6) if kind not in (TEST, ARTWORK_TEST)))
        pairs = batch // GROUP_SHARE // 2

        def draw() -> Batch:
            same = self.pairs[torch.randint(len(self.pairs), (pairs,), device=self.device)]
            index = torch.cat((same.T.reshape(-1), pick(train, batch - 2 * pairs)))  # firsts, then seconds
            return degrade(self.images(index)), self.pictures.labels[index, : len(NAMES)], 2 * pairs

        return draw

    def for_reader(self, batch: int) -> Callable[[], Batch]:
        """Draws batches in the base's styles, half of them painted anew, whose style is unknown."""
        train, labels = self.rows(BASE, ARTWORK), self.reader_labels
        painted = -(-batch // 2 // len(FAMILIES)) * len(FAMILIES)
        style = list(READER_NAMES).index("style")

        def draw() -> Batch:
            index = pick(train, batch)
            images, truth = self.images(index), labels[index]
            images = torch.cat((restyle(images[:painted]), images[painted:]))
            truth[:painted, style] = READER_NAMES["style"].index(UNKNOWN)
            return degrade(images), truth, 0

        return draw

    @cached_property
    def reader_labels(self) -> Tensor:
        """Labels by the reader's names, [pictures, fields]; -1 where a picture says nothing of a field."""
        labels = self.pictures.labels[:, : len(NAMES)].clone()
        styles, style = READER_NAMES["style"], list(NAMES).index("style")
        labelled = [styles.index(name if name in styles else UNKNOWN) for name in NAMES["style"]]
        labels[:, style] = torch.tensor(labelled, device=self.device)[labels[:, style]]
        second = np.full(len(labels), -1)
        of_use = self.ready[np.isin(self.kinds, (BASE, TEST))]
        plan, kinds, groups = self.store.plan, self.store.kinds, self.store.groups
        for index in of_use.tolist():
            who = plan.scene(index, int(kinds[index]), int(groups[index])).individual
            word = NONE if who.marking == MARKINGS[0] else who.second_color
            second[index] = READER_NAMES["second_color"].index(word)
        return torch.cat((labels, torch.from_numpy(second)[:, None].to(self.device)), 1)

    def _pairs(self) -> Tensor:
        """All pairs of drawn pictures of one individual: [m, 2]."""
        grouped = self.ready[self.kinds == GROUPED]
        grouped = grouped[np.argsort(self.store.groups[grouped], kind="stable")]
        result = []
        for apart in (1, 2, 3):
            same = self.store.groups[grouped[:-apart]] == self.store.groups[grouped[apart:]]
            result.append(np.stack((grouped[:-apart][same], grouped[apart:][same]), 1))
        return torch.from_numpy(np.concatenate(result)).to(self.device)


def train_both(
    vae: AutoencoderKL,
    work: Path,
    out: Path,
    device: torch.device,
    seconds: float,
    *,
    batch: int,
    max_steps: int = 10**9,
) -> None:
    """Train both on what is drawn in ``work``, and write them to ``out``, in folders of their names."""
    end = time.monotonic() + seconds
    out.mkdir(parents=True, exist_ok=True)
    examples = Examples(vae, Store(work), device)
    left = end - time.monotonic()
    print(f"{len(examples.ready)} pictures; {left:.0f} s of training are left", flush=True)
    former = Classifier.load(resources.reader(), "reader")
    classifier = grown(former, NAMES)
    options = {"batch": batch, "max_steps": max_steps}
    results: dict[str, object] = {
        "classifier": train_classifier(examples, CLASSIFIER_SHARE * left, trained=classifier, **options)
    }
    classifier.save(out / "classifier")
    print(json.dumps(results), flush=True)
    reader, results["reader"] = train_reader(
        examples, max(end - time.monotonic(), 5.0), trained=grown(former, READER_NAMES), **options
    )
    reader.save(out / "reader")
    print(json.dumps(results["reader"]), flush=True)
    (out / "networks.json").write_text(json.dumps(results, indent=2) + "\n")


def train_classifier(
    examples: Examples, seconds: float, *, batch: int, max_steps: int, trained: Classifier
) -> dict[str, float]:
    """Train ``trained`` on for `seconds`; returns its accuracy on test pictures."""
    steps = _train(
        "classifier", trained, NAMES, examples.for_classifier(batch), examples.device, seconds, max_steps
    )
    report = {"steps": float(steps)}
    for kind, images in (("real", examples.pictures.images), ("rebuilt", examples.rebuilt)):
        for source, purpose in (("drawn", TEST), ("artists'", ARTWORK_TEST)):
            index = examples.rows(purpose)
            if len(index):
                labels = examples.pictures.labels[index]
                for label, value in accuracy(trained, images[index], labels).items():
                    report[f"{kind} {source} {label}"] = value
        report[f"{kind} identity of 6"] = retrieval(trained, images, examples.pairs)
    return report


def train_reader(
    examples: Examples, seconds: float, *, batch: int, max_steps: int, trained: Classifier
) -> tuple[Reader, dict[str, object]]:
    """Train ``trained`` on for `seconds`; returns the reader, and how good it is.

    Its thresholds are chosen on test pictures painted in styles made at random.
    """
    draw = examples.for_reader(batch)
    steps = _train("reader", trained, READER_NAMES, draw, examples.device, seconds, max_steps)
    index = examples.rows(TEST, ARTWORK_TEST)
    truth = examples.reader_labels[index]
    unknown = READER_NAMES["style"].index(UNKNOWN)
    style = list(READER_NAMES).index("style")
    logits, labels = [], []
    for part, wanted in zip(index.split(280), truth.split(280), strict=True):
        usable = len(part) - len(part) % len(FAMILIES)
        painted = restyle(examples.images(part[:usable]))
        again = wanted[:usable].clone()
        again[:, style] = unknown
        for images, answers in ((painted, again), (examples.images(part), wanted)):
            if len(images):
                with torch.no_grad():
                    logits.append(trained(images)[0])
                labels.append(answers)
    joined = {name: torch.cat([part[name] for part in logits]).float() for name in READER_NAMES}
    limits, report = thresholds(joined, torch.cat(labels))
    return Reader(trained, limits), {"steps": steps, **report}


def thresholds(
    logits: Mapping[str, Tensor], labels: Tensor
) -> tuple[dict[str, float], dict[str, list[float]]]:
    """Of every field, the lowest probability from which on the words are right often enough.

    And how often the likeliest word is right, a word is said, and a said word is right.
    """
    limits, report = {}, {}
    for n, name in enumerate(READER_NAMES):
        labelled = labels[:, n] >= 0
        probability, guess = logits[name][labelled].softmax(1).max(1)
        words = [word not in (UNKNOWN, NONE) for word in READER_NAMES[name]]
        named = torch.tensor(words, device=guess.device)[guess]
        right = (guess == labels[labelled, n]).float()
        limits[name] = 0.95
        for limit in LIMITS:
            kept = named & (probability >= limit)
            if kept.any() and float(right[kept].mean()) >= PRECISION:
                limits[name] = limit
                break
        if name == "style":
            limits[name] = max(limits[name], SURE_OF_STYLE)
        certain = named & (probability >= limits[name])
        values = (right.mean(), certain.float().mean(), right[certain].mean())
        report[name] = [round(float(value), 3) for value in values]
    return limits, report


def _train(
    title: str,
    network: Classifier,
    names: Mapping[str, Sequence[str]],
    draw: Callable[[], Batch],
    device: torch.device,
    seconds: float,
    max_steps: int,
) -> int:
    """The training loop; returns the number of steps."""
    network.float().to(device, memory_format=torch.channels_last).train()
    optimizer = torch.optim.AdamW(network.parameters(), lr=PEAK_AGAIN, betas=(0.9, 0.99), weight_decay=0.02)
    begun = last_log = time.monotonic()
    steps = logged = 0
    while (now := time.monotonic()) - begun < seconds and steps < max_steps:
        share = max((now - begun) / seconds, steps / max_steps)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(PEAK, steps, share)
        images, labels, paired = draw()
        images = images.contiguous(memory_format=torch.channels_last)
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            logits, identity = network(images)
        losses = [
            F.cross_entropy(
                logits[name].float(), labels[:, n], label_smoothing=0.02, ignore_index=-1, reduction="sum"
            )
            for n, name in enumerate(names)
        ]
        loss = torch.stack(losses).sum() / len(labels)
        if paired:
            loss = loss + 0.5 * _contrast(identity[:paired].float())
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        steps += 1
        if steps % 20 == 0 and device.type == "cuda":
            torch.cuda.synchronize()
        if now - last_log > 15:
            rate = (steps - logged) / (now - last_log)
            print(
                f"{title} {now - begun:4.0f}s step {steps} loss {float(loss.detach()):.3f} {rate:.1f}/s",
                flush=True,
            )
            last_log, logged = now, steps
    network.eval()
    return steps


def grown(former: Classifier, names: Mapping[str, Sequence[str]]) -> Classifier:
    """A network of other classes that begins with the weights of a former one, where these have a place."""
    torch.manual_seed(3)
    network = Classifier(names, former.size, former.widths)
    weights = {key: value for key, value in former.state_dict().items() if not key.startswith("heads.")}
    network.load_state_dict(weights, strict=False)
    with torch.no_grad():
        for label in set(names) & set(former.names):
            head, source = network.heads[label], former.heads[label]
            for row, name in enumerate(network.names[label]):
                if name in former.names[label]:
                    at = former.names[label].index(name)
                    head.weight[row], head.bias[row] = source.weight[at], source.bias[at]
    return network


def accuracy(classifier: Classifier, images: Tensor, labels: Tensor) -> dict[str, float]:
    """Accuracy of each label on images uint8 [n, h, w, 3], where a picture says something of it."""
    parts = [classifier.predict(part)[0] for part in images.split(512)]
    result = {}
    for n, name in enumerate(NAMES):
        labelled = labels[:, n] >= 0
        right = torch.cat([part[name] for part in parts]) == labels[:, n]
        result[name] = round(float(right[labelled].float().mean()), 4)
    return result


def retrieval(classifier: Classifier, images: Tensor, pairs: Tensor, trials: int = 500) -> float:
    """How often the most similar of six pictures shows the same individual.

    The individuals were part of the training, so this is a sanity check, not a measurement.
    """
    generator = torch.Generator().manual_seed(0)
    trials = min(trials, len(pairs))
    rows = torch.randint(len(pairs), (trials, 6), generator=generator).to(pairs.device)
    _, queries = classifier.predict(images[pairs[rows[:, 0], 0]])
    candidates = torch.stack([classifier.predict(images[pairs[rows[:, n], 1]])[1] for n in range(6)], 1)
    return round(float(((queries[:, None] * candidates).sum(-1).argmax(1) == 0).float().mean()), 4)


def pick(rows: Tensor, count: int) -> Tensor:
    """``count`` random ones of ``rows``."""
    return rows[torch.randint(len(rows), (count,), device=rows.device)]


def restyle(images: Tensor) -> Tensor:
    """Images in -1..1 in styles made at random, which take all that is shown for the subject.

    Their number is a multiple of that of the families.
    """
    front = (images + 1) / 2
    tone = front.mean(1, keepdim=True)
    across = F.pad(tone, (1, 1, 0, 0), "replicate")
    down = F.pad(tone, (0, 0, 1, 1), "replicate")
    edges = (across[..., 2:] - across[..., :-2]).abs() + (down[..., 2:, :] - down[..., :-2, :]).abs()
    edges, blank = (edges * 4 - 0.3).clamp(0, 1), torch.zeros_like(tone)
    planes = Planes(front, front, blank + 1, tone, edges, edges, blank, blank)
    return paint_randomly(planes) * 2 - 1


def degrade(x: Tensor) -> Tensor:
    """Blur, shift, mirror, brighten, tint and add noise, each a little and each to some of the pictures."""
    n, device = len(x), x.device
    pick = torch.rand(5, n, 1, 1, 1, device=device)
    x = torch.where(pick[0] < 0.5, x.flip(3), x)
    x = torch.where(pick[1] < 0.35, F.avg_pool2d(F.pad(x, (1, 1, 1, 1), "replicate"), 3, 1), x)
    across, down = torch.randint(-4, 5, (2,)).tolist()
    x = F.pad(x, (4, 4, 4, 4), "replicate")[
        :, :, 4 + down : x.shape[2] + 4 + down, 4 + across : x.shape[3] + 4 + across
    ]
    gain = 1.0 + 0.08 * (2 * pick[2] - 1)
    tint = 0.04 * torch.randn(n, 3, 1, 1, device=device)
    noise = 0.06 * pick[3] * (pick[4] < 0.5) * torch.randn_like(x)
    return (x * gain + tint + noise).clamp(-1.0, 1.0)


def _contrast(identity: Tensor, temperature: float = 0.1) -> Tensor:
    """Each picture must find its partner in the batch; identity holds the firsts, then the seconds."""
    similarity = identity @ identity.T / temperature
    similarity = similarity.masked_fill(
        torch.eye(len(identity), dtype=torch.bool, device=identity.device), -1e4
    )
    return F.cross_entropy(
        similarity, torch.arange(len(identity), device=identity.device).roll(len(identity) // 2)
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--work", type=Path, required=True, help="folder of the drawn pictures")
    parser.add_argument("--out", type=Path, required=True, help="folder for results")
    parser.add_argument("--seconds", type=float, default=200.0)
    parser.add_argument("--batch", type=int, default=768)
    parser.add_argument("--max-steps", type=int, default=10**9)
    args = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    vae = load_vae(resolve_base("mini", offline=True)[0], device=device)
    train_both(vae, args.work, args.out, device, args.seconds, batch=args.batch, max_steps=args.max_steps)


if __name__ == "__main__":
    main()
