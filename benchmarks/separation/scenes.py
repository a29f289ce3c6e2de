"""The benchmark's images: rendered individuals in styles that the base was not trained on.

The test set and the tuning set share the eight styles, but no individual, shape, pose or seed.
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
from unziplora_cli.evaluation.scorers import Classifier

SIZE = 128
CANDIDATES = 6
"""Number of individuals among which the correct one must be identified."""
POSES = 4
"""Rendered photos of every candidate."""
PHOTO = STYLES[0]
SEEDS = {"test": 271_828, "tune": 777, "quick": 4_711}


@dataclass(frozen=True)
class Sample:
    """One training image: its scene, what it is compared with, and how it is used.

    ``others`` are subjects for the style LoRA, ``contexts`` places for the content LoRA, ``partners`` the
    numbers of the images whose styles are used in the cross column. ``rivals`` are other individuals of the
    same subject.
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

    @property
    def marking(self) -> str:
        return self.scene.individual.marking

    def photos(self, count: int) -> np.ndarray:
        """Photos of the same individual in other poses: the upper bound of every content column."""
        return _render_photos(self.scene.individual, count, 5)

    def image(self) -> np.ndarray:
        """The training image, uint8 [128, 128, 3]."""
        return draw(self.scene, SIZE)

    def photo(self) -> np.ndarray:
        """A photo of the individual in the pose of the training image, before a plain background."""
        return draw(replace(self.scene, style=PHOTO, context=""), SIZE)


def samples(name: str, count: int) -> tuple[Sample, ...]:
    """``count`` samples of the set ``name``: styles in turn, subjects and markings shuffled evenly."""
    rng = np.random.default_rng(SEEDS[name])
    subjects = _shuffled(rng, SUBJECTS, count)
    markings = _shuffled(rng, MARKINGS, count)
    scenes = []
    for number in range(count):
        individual = replace(random_individual(rng), subject=subjects[number], marking=markings[number])
        style = HELD_OUT_STYLES[number % len(HELD_OUT_STYLES)]
        context = CONTEXTS[0] if number % 3 else _shuffled(rng, CONTEXTS[1:], 1)[0]
        scenes.append(Scene(individual, style, context, int(rng.integers(2**31))))
    result = []
    for number, scene in enumerate(scenes):
        subject = scene.individual.subject
        partners = [n for n in range(count) if scenes[n].style != scene.style]
        result.append(
            Sample(
                number,
                scene,
                others=_shuffled(rng, [s for s in SUBJECTS if s != subject], 3),
                contexts=_shuffled(rng, [c for c in CONTEXTS[1:] if c != scene.context], 3),
                partners=tuple(int(n) for n in rng.permutation(partners)[:3]),
                rivals=tuple(replace(random_individual(rng), subject=subject) for _ in range(CANDIDATES - 1)),
            )
        )
    return tuple(result)


@cache
def _render_photos(individual: Individual, count: int, seed: int) -> np.ndarray:
    rng = np.random.default_rng([seed, individual.shape_seed])
    return np.stack(
        [draw(Scene(individual, PHOTO, "", int(rng.integers(2**31))), SIZE) for _ in range(count)]
    )


def reference_embeddings(sample: Sample, classifier: Classifier) -> torch.Tensor:
    """Classifier embeddings of the individual and its five rivals, [6, 64], the correct one first."""
    rows = []
    device = classifier.identity.weight.device
    for individual in (sample.scene.individual, *sample.rivals):
        _, embeddings = classifier.predict(torch.from_numpy(_render_photos(individual, POSES, 9)).to(device))
        rows.append(F.normalize(embeddings.mean(dim=0), dim=0))
    return torch.stack(rows)


def _shuffled(rng: np.random.Generator, options: tuple[str, ...] | list[str], count: int) -> tuple[str, ...]:
    """``count`` of ``options`` in random order, all equally often."""
    rounds = [rng.permutation(len(options)) for _ in range(-(-count // len(options)))]
    return tuple(options[int(i)] for i in np.concatenate(rounds)[:count])
