"""The pictures of the benchmark: drawn individuals in styles that the base has never seen.

The test set and the tuning set share the styles, for there are eight, and nothing else: other individuals,
other shapes, other poses, from other seeds.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache

import numpy as np
import torch
import torch.nn.functional as F

from recipes.mini.draw import draw
from recipes.mini.scene import (
    CONTEXTS,
    HELD_OUT_STYLES,
    MARKINGS,
    STYLES,
    SUBJECTS,
    Individual,
    Scene,
    random_individual,
)
from unziplora_cli.evaluation.classifier import Classifier

SIZE = 128
GALLERY = 6
"""Individuals among which the right one is to be found."""
POSES = 4
"""Drawn photos of each individual of a gallery."""
PHOTO = STYLES[0]
SEEDS = {"test": 31_415, "tune": 777, "quick": 4_711}


@dataclass(frozen=True)
class Sample:
    """One training picture: its scene, what it is compared with, and what it is asked to do.

    ``others`` are subjects for the style LoRA, ``contexts`` places for the content LoRA, ``partners`` the
    numbers of the pictures whose styles the content takes in the cross column. ``rivals`` are other
    individuals of the same subject.
    """

    number: int
    scene: Scene
    others: tuple[str, ...]
    contexts: tuple[str, ...]
    partners: tuple[int, ...]
    rivals: tuple[Individual, ...]

    @property
    def subject(self) -> str:
        return self.scene.individual.subject

    @property
    def style(self) -> str:
        return self.scene.style

    def picture(self) -> np.ndarray:
        """The training picture, uint8 [128, 128, 3]."""
        return draw(self.scene, SIZE)


def samples(name: str, count: int) -> tuple[Sample, ...]:
    """``count`` samples of the set ``name``: styles in turn, subjects and markings shuffled evenly."""
    rng = np.random.default_rng(SEEDS[name])
    subjects = _shuffled(rng, SUBJECTS, count)
    markings = _shuffled(rng, MARKINGS, count)
    scenes = []
    for number in range(count):
        who = replace(random_individual(rng), subject=subjects[number], marking=markings[number])
        style = HELD_OUT_STYLES[number % len(HELD_OUT_STYLES)]
        context = CONTEXTS[0] if number % 3 else _shuffled(rng, CONTEXTS[1:], 1)[0]
        scenes.append(Scene(who, style, context, int(rng.integers(2**31))))
    made = []
    for number, scene in enumerate(scenes):
        subject = scene.individual.subject
        partners = [n for n in range(count) if scenes[n].style != scene.style]
        made.append(
            Sample(
                number,
                scene,
                others=_shuffled(rng, [s for s in SUBJECTS if s != subject], 3),
                contexts=_shuffled(rng, [c for c in CONTEXTS[1:] if c != scene.context], 3),
                partners=tuple(int(n) for n in rng.permutation(partners)[:3]),
                rivals=tuple(replace(random_individual(rng), subject=subject) for _ in range(GALLERY - 1)),
            )
        )
    return tuple(made)


@cache
def _photos(who: Individual, count: int, seed: int) -> np.ndarray:
    rng = np.random.default_rng([seed, who.shape_seed])
    return np.stack([draw(Scene(who, PHOTO, "", int(rng.integers(2**31))), SIZE) for _ in range(count)])


def real_photos(sample: Sample, count: int) -> np.ndarray:
    """Drawn photos of the individual itself in other poses: the ceiling of every column of content."""
    return _photos(sample.scene.individual, count, 5)


def gallery(sample: Sample, classifier: Classifier) -> torch.Tensor:
    """The classifier's embedding of the individual and its five rivals, [6, 64], the right one first."""
    rows = []
    device = classifier.identity.weight.device
    for who in (sample.scene.individual, *sample.rivals):
        _, found = classifier.predict(torch.from_numpy(_photos(who, POSES, 9)).to(device))
        rows.append(F.normalize(found.mean(dim=0), dim=0))
    return torch.stack(rows)


def _shuffled(rng: np.random.Generator, options: tuple[str, ...] | list[str], count: int) -> tuple[str, ...]:
    """``count`` of ``options`` in random order, each as often as any other."""
    rounds = [rng.permutation(len(options)) for _ in range(-(-count // len(options)))]
    return tuple(options[int(i)] for i in np.concatenate(rounds)[:count])
