"""Pictures that artists drew: a set whose look the base never saw, and pictures that no set contains.

The same subjects stand in every set, so the true picture of another subject in the held-out look is there to
compare with. Neither the base nor the shipped networks learned from the held-out sets: their looks are named
by a linear classifier of the measuring network's features, fitted at the beginning of a run on pictures of
other subjects (:class:`Looks`).
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from functools import cache, partial
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from benchmarks.separation.scenes import PHOTO, SIZE
from recipes.mini import artists, cutouts
from recipes.mini.artists import SETS
from recipes.mini.cutouts import Artwork
from recipes.mini.scene import CONTEXTS, STYLES, random_individual
from unziplora_cli.evaluation.scorers import Classifier

LOOK, OTHER_LOOK = "openmoji", "fxemoji"
"""The sets of the training images: all columns but cross are about the first."""
PHOTO_LOOKS = (PHOTO, SETS["3d"].look, SETS["fluent"].look)
"""Photos, the 3D set, and its twin in smooth colours: looks in which nothing of the held-out ones is left."""
SEED = 1_618
PICTURES = 160
"""Of each look; three quarters of them to learn it by, the rest to check that."""


@dataclass(frozen=True)
class ArtSample:
    """One training image, as :class:`benchmarks.separation.scenes.Sample`; the individual is not measured."""

    number: int
    subject: str
    style: str
    others: tuple[str, ...]
    contexts: tuple[str, ...]
    partners: tuple[int, ...]
    folder: Path
    """Of the cut-outs, or the picture itself."""
    marking: str = ""

    def image(self) -> np.ndarray:
        """The training image, uint8 [128, 128, 3]."""
        return self._drawn(self.style, self.number)

    def photo(self) -> np.ndarray:
        """The subject in 3D."""
        return self.photos(1)[0]

    def photos(self, count: int) -> np.ndarray:
        """The subject in 3D, in several poses."""
        return np.stack([self._drawn(PHOTO, 100 + pose) for pose in range(count)])

    def _drawn(self, look: str, pose: int) -> np.ndarray:
        if self.folder.is_dir():
            return draw(self.folder, self.subject, look, pose)
        with Image.open(self.folder) as opened:
            return np.asarray(opened.convert("RGB").resize((SIZE, SIZE), Image.Resampling.LANCZOS))

    def true_styles(self) -> Iterator[tuple[str, np.ndarray]]:
        """Other subjects in the style of the image, as its artist drew them; none if nobody did."""
        for other in self.others if self.folder.is_dir() else ():
            yield other, draw(self.folder, other, self.style, 11)


def draw(folder: Path, subject: str, look: str, pose: int, context: str = "") -> np.ndarray:
    """A subject in the look of a set, or as a photo, which is the 3D set's cut-out: uint8 [128, 128, 3]."""
    name = "3d" if look == PHOTO else cutouts.LOOK_SETS[look]
    who = replace(random_individual(np.random.default_rng(pose)), subject=subject)
    return cutouts.draw(Artwork(who, name, look, context, pose, recolored=False), folder, SIZE)


def true_pictures(folder: Path) -> dict[str, dict[str, np.ndarray]]:
    """The subjects that stand in every set, by look: the held-out ones and the photo."""
    shown = artists.shown(folder)
    common = [name for name in artists.subjects() if all(name in entry for entry in shown.values())]
    looks = (LOOK, OTHER_LOOK, PHOTO)
    pictures = iter(_drawn([partial(draw, folder, name, look, 7) for look in looks for name in common]))
    return {look: {name: next(pictures) for name in common} for look in looks}


def artists_samples(
    folder: Path, pictures: Mapping[str, Mapping[str, np.ndarray]], namer: Classifier, count: int
) -> tuple[ArtSample, ...]:
    """``count`` images in the held-out look, then half as many in the other one, for the cross column.

    Subjects are chosen by a seed among those of ``pictures`` that the network of subjects names right
    in each of them: elsewhere it cannot measure.
    """
    common = list(pictures[LOOK])
    readable = set(common)
    for shown in pictures.values():
        images = torch.from_numpy(np.stack(list(shown.values()))).to(namer.identity.weight.device)
        named = namer.classify(images)
        readable &= {name for name, entry in zip(common, named, strict=True) if entry["subject"] == name}
    print(f"{len(readable)} of {len(common)} subjects can be measured", flush=True)
    rng = np.random.default_rng(SEED)
    order = [name for i in rng.permutation(len(common)) if (name := common[int(i)]) in readable]
    total = count + count // 2
    chosen, pool = order[:total], order[total:]
    looks = [LOOK] * count + [OTHER_LOOK] * (count // 2)
    samples = []
    for number, (subject, look) in enumerate(zip(chosen, looks, strict=True)):
        partners = [n for n in range(total) if looks[n] != look]
        samples.append(
            ArtSample(
                number,
                subject,
                look,
                others=tuple(pool[int(i)] for i in rng.permutation(len(pool))[:3]),
                contexts=tuple(CONTEXTS[1:][int(i)] for i in rng.permutation(len(CONTEXTS) - 1)[:3]),
                partners=tuple(int(n) for n in rng.permutation(partners)[:3]),
                folder=folder,
            )
        )
    return tuple(samples)


def stranger_samples(folder: Path, count: int) -> tuple[ArtSample, ...]:
    """Pictures that no set contains, as `recipes.mini.strangers` wrote them."""
    listed = json.loads((folder / "strangers.json").read_text(encoding="utf-8"))[:count]
    rng = np.random.default_rng(SEED)
    samples = []
    for number, entry in enumerate(listed):
        others = [other["subject"] for other in listed if other["subject"] != entry["subject"]]
        partners = [n for n, other in enumerate(listed) if other["style"] != entry["style"]]
        samples.append(
            ArtSample(
                number,
                entry["subject"],
                entry["style"],
                others=tuple(others[int(i)] for i in rng.permutation(len(others))[:3]),
                contexts=tuple(CONTEXTS[1:][int(i)] for i in rng.permutation(len(CONTEXTS) - 1)[:3]),
                partners=tuple(int(n) for n in rng.permutation(partners)[:3]),
                folder=folder / entry["file"],
            )
        )
    return tuple(samples)


@dataclass(frozen=True)
class LookPictures:
    """Pictures of many subjects in every look, and in the base's drawn styles, to tell these apart by."""

    folder: Path
    looks: tuple[str, ...]
    images: np.ndarray
    labels: np.ndarray
    subjects: tuple[str, ...]

    @classmethod
    def draw(cls, folder: Path, pictures: int = PICTURES) -> LookPictures:
        """``pictures`` of every look."""
        shown = artists.shown(folder)
        rng = np.random.default_rng(SEED)
        looks = (*(entry.look for entry in SETS.values()), *STYLES)
        works: list[Artwork] = []
        for look in looks:
            sources = [cutouts.LOOK_SETS[look]] if look in cutouts.LOOK_SETS else list(cutouts.PAINTED)
            if look == PHOTO:
                sources = ["3d"]
            for _ in range(pictures):
                name = sources[int(rng.integers(len(sources)))]
                subject, pose = shown[name][int(rng.integers(len(shown[name])))], int(rng.integers(2**31))
                context = CONTEXTS[int(rng.integers(len(CONTEXTS)))] if pose % 3 else ""
                who = replace(random_individual(rng), subject=subject)
                works.append(Artwork(who, name, look, context, pose, recolored=False))
        images = _drawn([partial(cutouts.draw, work, folder, SIZE) for work in works])
        labels = np.repeat(np.arange(len(looks)), pictures)
        return cls(folder, looks, images, labels, tuple(work.individual.subject for work in works))


class Looks:
    """The measuring classifier with names of the artists' looks, held-out ones included.

    ``subjects`` names the subject. A linear classifier of the mean and spread of the classifier's
    feature maps, by which styles differ, names the style; everything else is the classifier's own.
    """

    def __init__(
        self,
        classifier: Classifier,
        subjects: Classifier,
        pictures: LookPictures,
        without: Collection[str],
    ) -> None:
        self.network, self.names, self.identity = classifier, classifier.names, classifier.identity
        self.subjects, self.folder, self.looks = subjects, pictures.folder, pictures.looks
        self._true: dict[str, Tensor] = {}
        usable = np.array([subject not in without for subject in pictures.subjects])
        features = self.features(torch.from_numpy(pictures.images[usable]).to(self.identity.weight.device))
        truth = torch.from_numpy(pictures.labels[usable]).to(features.device)
        self.mean, self.scale = features.mean(0), features.std(0) + 1e-4
        checked = torch.arange(len(truth), device=features.device) % 4 == 3
        self.weights = fit_linear(self._scaled(features[~checked]), truth[~checked], len(self.looks))
        right = (self.style(features[checked]) == truth[checked]).float()
        entry = {look: right[truth[checked] == number] for number, look in enumerate(self.looks)}
        self.accuracy = {look: float(hits.mean()) for look, hits in entry.items()}

    @torch.no_grad()
    def features(self, images: Tensor) -> Tensor:
        """Mean and spread of every feature map of uint8 images [n, h, w, 3]: [n, features]."""
        parts = []
        for batch in images.split(256):
            x = batch.permute(0, 3, 1, 2).float() / 127.5 - 1.0
            maps = [self.network.stem(x)]
            for block in self.network.blocks:
                maps.append(block(maps[-1]))
            moments = [value for m in maps for value in (m.mean(dim=(2, 3)), m.std(dim=(2, 3)))]
            parts.append(torch.cat(moments, 1))
        return torch.cat(parts)

    def nearest(self, images: Tensor, subjects: Sequence[str]) -> list[str]:
        """The look whose true picture of its subject is the nearest to each of ``images`` [n, h, w, 3]."""
        looks = tuple(entry.look for entry in SETS.values())
        missing = [subject for subject in dict.fromkeys(subjects) if subject not in self._true]
        if missing:
            drawn = _drawn([partial(draw, self.folder, s, look, 7) for s in missing for look in looks])
            features = self._scaled(self.features(torch.from_numpy(drawn).to(images.device)))
            self._true.update(zip(missing, features.unflatten(0, (-1, len(looks))), strict=True))
        true = torch.stack([self._true[subject] for subject in subjects])  # [n, looks, features]
        distances = (self._scaled(self.features(images))[:, None] - true).square().mean(2)
        return [looks[index] for index in distances.argmin(1).tolist()]

    def style(self, features: Tensor) -> Tensor:
        """The number of the likeliest look, [n]."""
        scaled = self._scaled(features)
        return (torch.cat((scaled, torch.ones_like(scaled[:, :1])), 1) @ self.weights).argmax(1)

    def predict(self, images: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        """As the classifier's, with the look as style."""
        predictions, embeddings = self.network.predict(images)
        named, _ = self.subjects.predict(images)
        return {**predictions, **named, "style": self.style(self.features(images))}, embeddings

    def class_names(self, predictions: Mapping[str, Tensor]) -> list[dict[str, str]]:
        """Names of the classes; 3D counts as a photo."""
        others = {k: v for k, v in predictions.items() if k not in ("style", "subject")}
        subjects = self.subjects.class_names({"subject": predictions["subject"]})
        rest = self.network.class_names(others)
        names = [{**one, **other} for one, other in zip(rest, subjects, strict=True)]
        looks = [self.looks[index] for index in predictions["style"].tolist()]
        return [
            {**classes, "style": PHOTO if look in PHOTO_LOOKS else look}
            for classes, look in zip(names, looks, strict=True)
        ]

    def _scaled(self, features: Tensor) -> Tensor:
        return (features - self.mean) / self.scale


def fit_linear(features: Tensor, labels: Tensor, classes: int) -> Tensor:
    """Weights [features + 1, classes] of a multinomial logistic regression with a penalty."""
    x = torch.cat((features, torch.ones_like(features[:, :1])), 1)
    weights = torch.zeros(x.shape[1], classes, device=x.device, requires_grad=True)
    optimizer = torch.optim.LBFGS([weights], max_iter=60, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimizer.zero_grad()
        value = F.cross_entropy(x @ weights, labels) + 3e-3 * weights.square().sum()
        value.backward()
        return value

    optimizer.step(loss)
    return weights.detach()


def _call(maker: Callable[[], np.ndarray]) -> np.ndarray:
    return maker()


def _drawn(makers: Sequence[Callable[[], np.ndarray]]) -> np.ndarray:
    """What all of them draw, by as many processes as there are cores: [n, 128, 128, 3]."""
    if len(os.sched_getaffinity(0)) < 4 or len(makers) < 64:
        return np.stack([maker() for maker in makers])
    return np.stack(list(_pool().map(_call, makers, chunksize=16)))


@cache
def _pool() -> ProcessPoolExecutor:
    return ProcessPoolExecutor(mp_context=get_context("spawn"))  # a fork of a process with CUDA may hang
