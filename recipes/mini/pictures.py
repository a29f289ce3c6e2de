"""The data set: scenes drawn by parallel processes into memory-mapped files, readable while it grows.

`python -m recipes.mini.pictures FOLDER WORKER WORKERS UNTIL` is one drawing process; `start_drawing` starts
them all.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np

from recipes.mini import cutouts
from recipes.mini.artists import LOOKS, TRAIN, subjects
from recipes.mini.artists import TEST as FOR_TESTS
from recipes.mini.cutouts import Artwork, random_artwork
from recipes.mini.draw import draw
from recipes.mini.scene import (
    COLORS,
    CONTEXTS,
    GENERIC,
    HELD_OUT_STYLES,
    MARKINGS,
    STYLES,
    VOCABULARY,
    Individual,
    Scene,
    caption,
    random_individual,
    random_scene,
)

SIZE = 128
BLOCK = 32
"""Pictures that one process finishes before it says so."""
CAPTIONS = 4
"""Captions of each picture."""
GROUP = 4
"""Pictures of one individual in a group."""
BASE, HELD_OUT, GROUPED, TEST, ARTWORK, ARTWORK_TEST = range(6)
"""What a picture is for: the U-Net; the VAE and classifier alone; the classifier's identity; tests alone;
made of an artist's cut-out, for the U-Net; the same for tests alone."""

NAMES: dict[str, tuple[str, ...]] = {
    "subject": subjects(),
    "style": (*STYLES, GENERIC, *HELD_OUT_STYLES, *LOOKS),
    "context": CONTEXTS,
    "marking": MARKINGS,
    "color": tuple(COLORS),
}
"""What each label column counts (-1: a picture says nothing of it); a sixth column numbers the individual."""

TRAINED_MARKINGS = (*2 * ("plain", "striped", "patched"), *3 * ("dotted",), *4 * ("checkered", "starred"))
"""The markings that the U-Net learns, those oftener that it finds harder to draw."""

_DISTRACTORS = tuple(
    word for word in VOCABULARY if word not in {w for names in NAMES.values() for w in names}
)


@dataclass(frozen=True)
class Plan:
    """How many pictures of each kind to draw."""

    base: int = 130_000
    held_out: int = 6_000
    groups: int = 4_000
    test: int = 2_400
    artworks: int = 120_000
    artworks_test: int = 2_400
    seed: int = 1

    @property
    def total(self) -> int:
        """All pictures, rounded up to whole blocks."""
        count = self.base + self.held_out + GROUP * self.groups + self.test
        count += self.artworks + self.artworks_test
        return -(-count // BLOCK) * BLOCK

    def kinds(self) -> tuple[np.ndarray, np.ndarray]:
        """The kind and the group (-1: none) of each picture, in mixed order."""
        kinds = np.full(self.total, BASE, np.uint8)
        groups = np.full(self.total, -1, np.int32)
        grouped = GROUP * self.groups
        kinds[:grouped] = GROUPED
        groups[:grouped] = np.repeat(np.arange(self.groups), GROUP)
        kinds[grouped : grouped + self.held_out] = HELD_OUT
        at = grouped + self.held_out
        for kind, count in (
            (TEST, self.test),
            (ARTWORK, self.artworks),
            (ARTWORK_TEST, self.artworks_test),
        ):
            kinds[at : at + count] = kind
            at += count
        order = np.random.default_rng(self.seed).permutation(self.total)
        return kinds[order], groups[order]

    def artwork(self, index: int, kind: int, sheets: Path) -> Artwork:
        """The artwork of picture `index`."""
        rng = np.random.default_rng([self.seed, 0, index])
        art = random_artwork(rng, sheets, purpose=TRAIN if kind == ARTWORK else FOR_TESTS)
        return replace(art, individual=self._marked(art.individual, index)) if kind == ARTWORK else art

    def scene(self, index: int, kind: int, group: int) -> Scene:
        """The scene of picture `index`."""
        rng = np.random.default_rng([self.seed, 0, index])
        every = (*STYLES, GENERIC, *HELD_OUT_STYLES)
        styles = {BASE: (*STYLES, GENERIC), HELD_OUT: HELD_OUT_STYLES}.get(kind, every)
        scene = random_scene(rng, styles=styles)
        if kind == BASE:
            return replace(scene, individual=self._marked(scene.individual, index))
        if group < 0:
            return scene
        return replace(scene, individual=random_individual(np.random.default_rng([self.seed, 1, group])))

    def _marked(self, individual: Individual, index: int) -> Individual:
        rng = np.random.default_rng([self.seed, 3, index])
        return replace(individual, marking=TRAINED_MARKINGS[int(rng.integers(len(TRAINED_MARKINGS)))])


class Store:
    """The files of a data set: pictures [n, 128, 128, 3], labels [n, 6], captions [n, 4], kinds [n]."""

    def __init__(self, folder: Path, mode: str = "r") -> None:
        self.folder = folder
        self.plan = Plan(**json.loads((folder / "plan.json").read_text()))
        self.pictures = np.load(folder / "pictures.npy", mmap_mode=mode)
        self.labels = np.load(folder / "labels.npy", mmap_mode=mode)
        self.captions = np.load(folder / "captions.npy", mmap_mode=mode)
        self.done = np.load(folder / "done.npy", mmap_mode=mode)
        self.kinds, self.groups = self.plan.kinds()

    @classmethod
    def create(cls, folder: Path, plan: Plan) -> Store:
        """Lay out empty files for `plan`, or open them when they are already there."""
        if not (folder / "plan.json").exists():
            folder.mkdir(parents=True, exist_ok=True)
            _empty(folder / "pictures.npy", np.uint8, (plan.total, SIZE, SIZE, 3))
            _empty(folder / "labels.npy", np.int32, (plan.total, len(NAMES) + 1))
            _empty(folder / "captions.npy", "S256", (plan.total, CAPTIONS))
            _empty(folder / "done.npy", np.uint8, (plan.total // BLOCK,))
            (folder / "plan.json").write_text(json.dumps(asdict(plan)))
        return cls(folder)

    def ready(self) -> np.ndarray:
        """Indices of the pictures that are drawn, in order."""
        blocks = np.flatnonzero(np.array(self.done))
        return (blocks[:, None] * BLOCK + np.arange(BLOCK)).reshape(-1)


def draw_blocks(folder: Path, worker: int, workers: int, until: float) -> None:
    """Draw every `workers`-th block until all are done or the clock passes `until` (seconds since 1970)."""
    store = Store(folder, "r+")
    for block in range(worker, len(store.done), workers):
        if time.time() > until:
            return
        if store.done[block]:
            continue
        for index in range(block * BLOCK, (block + 1) * BLOCK):
            kind, group = int(store.kinds[index]), int(store.groups[index])
            rng = np.random.default_rng([store.plan.seed, 2, index])
            if kind in (ARTWORK, ARTWORK_TEST):
                art = store.plan.artwork(index, kind, folder / "cutouts")
                store.pictures[index] = cutouts.draw(art, folder / "cutouts", SIZE)
                store.labels[index] = (*label(art), -1)
                sentences = [cutouts.caption(art, rng) for _ in range(CAPTIONS)]
            else:
                scene = store.plan.scene(index, kind, group)
                store.pictures[index] = draw(scene, SIZE)
                store.labels[index] = (*label(scene), group)
                sentences = [caption(scene, rng) for _ in range(CAPTIONS)]
            store.captions[index] = [_distracted(text, rng).encode() for text in sentences]
        store.done[block] = 1


def start_drawing(folder: Path, workers: int, until: float) -> list[subprocess.Popen[bytes]]:
    """Start the drawing processes, at low priority and one thread each."""
    single = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
    command = ["nice", "-n", "10", sys.executable, "-m", "recipes.mini.pictures", str(folder)]
    return [
        subprocess.Popen([*command, str(worker), str(workers), str(until)], env={**os.environ, **single})
        for worker in range(workers)
    ]


def label(scene: Scene | Artwork) -> tuple[int, ...]:
    """The class numbers of a scene, in the order of `NAMES`; -1 for an artist's own colour and marking."""
    who = scene.individual
    values: tuple[str, ...] = (who.subject, scene.style, scene.context, who.marking, who.color)
    if isinstance(scene, Artwork) and not scene.recolored:
        values = (*values[:3], "", "")
    return tuple(
        names.index(value) if value in names else -1
        for names, value in zip(NAMES.values(), values, strict=True)
    )


def _distracted(text: str, rng: np.random.Generator) -> str:
    """Now and then slip in a word that means nothing to the pictures, so that such words do no harm."""
    if rng.random() > 0.06:
        return text
    words = text.split()
    words.insert(int(rng.integers(1, len(words) + 1)), _DISTRACTORS[int(rng.integers(len(_DISTRACTORS)))])
    return " ".join(words)


def _empty(path: Path, dtype: object, shape: tuple[int, ...]) -> None:
    np.lib.format.open_memmap(path, mode="w+", dtype=dtype, shape=shape).flush()


if __name__ == "__main__":
    draw_blocks(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), float(sys.argv[4]))
