"""Pairs for reader and destyler: scenes in a base style, as photos, and as the planes that styles paint.

The photo of a pair shows the individual in the same pose before a plain background. The planes (colours,
coverage, outlines) are drawn once; `random_styles` paints them anew in every step of a training, on its
device. Half of the pairs are made of artists' cut-outs, so that the networks meet subjects that are not
drawn here. The pictures in held-out styles are for evaluation alone.

`python -m recipes.mini.pairs FOLDER WORKER WORKERS UNTIL` is one drawing process.
"""

from __future__ import annotations

import copy
import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np

from recipes.mini.cutouts import PAINTED, PHOTO, Artwork, CutoutLayers, paint, random_artwork
from recipes.mini.layers import Array, Layers
from recipes.mini.paint import photograph
from recipes.mini.scene import (
    COLORS,
    CONTEXTS,
    HELD_OUT_STYLES,
    MARKINGS,
    STYLES,
    SUBJECTS,
    Scene,
    random_scene,
)
from recipes.mini.styles import PAINTERS
from unziplora_cli.evaluation.reader import NONE, UNKNOWN

SIZE = 128
BLOCK = 16
"""Pairs that one process finishes before it says so."""
PLANES: dict[str, slice] = {
    "styled": slice(0, 3),
    "photo": slice(3, 6),
    "front": slice(6, 9),  # weighted by alpha
    "back": slice(9, 12),
    "alpha": slice(12, 13),
    "tone": slice(13, 14),  # weighted by alpha
    "outline": slice(14, 15),
    "detail": slice(15, 16),
    "far": slice(16, 17),
    "marks": slice(17, 18),
}
"""Channels of a pair. In evaluation pairs, `front` and `back` are photos of the individual in other poses."""

NAMES: dict[str, tuple[str, ...]] = {
    "subject": SUBJECTS,
    "style": (*STYLES, UNKNOWN),
    "context": CONTEXTS,
    "marking": MARKINGS,
    "color": tuple(COLORS),
    "second_color": (*COLORS, NONE),
}
"""What each label column counts; a seventh column holds the held-out style of evaluation pairs, else -1.

Of an artwork, `NOTHING` stands for a subject that is not drawn here, and for an artist's own colours.
"""
NOTHING = -100
"""The label that cross-entropy passes over."""


@dataclass(frozen=True)
class Plan:
    """How many pairs to draw: for training, for tuning (base styles), for evaluation (held-out styles).

    ``artworks`` is the share of the training pairs that are made of cut-outs.
    """

    train: int = 48_000
    tune: int = 512
    held_out: int = 512
    artworks: float = 0.5
    seed: int = 5

    @property
    def total(self) -> int:
        return self.train + self.tune + self.held_out

    def scene(self, index: int, sheets: Path) -> Scene | Artwork:
        """The scene of pair `index`; evaluation and tuning come first. ``sheets`` holds the cut-outs.

        Those in black alone are not used: nothing in them tells what a photo shows.
        """
        rng = np.random.default_rng([self.seed, index])
        if index >= self.held_out + self.tune and rng.spawn(1)[0].random() < self.artworks:
            while (art := random_artwork(rng, sheets)).name == "contrast":
                pass
            return art
        scene = random_scene(rng)
        if index < self.held_out:
            return replace(scene, style=HELD_OUT_STYLES[index % len(HELD_OUT_STYLES)])
        return scene


class Store:
    """The files of the pairs: planes uint8 [n, 18, 128, 128], labels [n, 7]; readable while they grow."""

    def __init__(self, folder: Path, mode: str = "r") -> None:
        self.plan = Plan(**json.loads((folder / "plan.json").read_text()))
        self.planes = np.load(folder / "planes.npy", mmap_mode=mode)
        self.labels = np.load(folder / "labels.npy", mmap_mode=mode)
        self.done = np.load(folder / "done.npy", mmap_mode=mode)

    @classmethod
    def create(cls, folder: Path, plan: Plan) -> Store:
        """Lay out empty files for `plan`, or open them if they are there."""
        if not (folder / "plan.json").exists():
            folder.mkdir(parents=True, exist_ok=True)
            for name, dtype, shape in (
                ("planes", np.uint8, (plan.total, PLANES["marks"].stop, SIZE, SIZE)),
                ("labels", np.int32, (plan.total, len(NAMES) + 1)),
                ("done", np.uint8, (-(-plan.total // BLOCK),)),
            ):
                np.lib.format.open_memmap(folder / f"{name}.npy", mode="w+", dtype=dtype, shape=shape).flush()
            (folder / "plan.json").write_text(json.dumps(asdict(plan)))
        return cls(folder)

    def ready(self) -> np.ndarray:
        """Indices of the drawn pairs, in order."""
        index = (np.flatnonzero(np.array(self.done))[:, None] * BLOCK + np.arange(BLOCK)).reshape(-1)
        return index[index < self.plan.total]


def planes(scene: Scene | Artwork, sheets: Path, *, evaluation: bool) -> Array:
    """One pair, uint8 [18, 128, 128]; ``sheets`` holds the cut-outs of artworks."""
    layers: Layers
    if isinstance(scene, Artwork):
        layers = CutoutLayers(scene, sheets, SIZE)
        plain = _plain(layers, scene.scene)
        photo = photograph(plain) if scene.name in PAINTED else paint(plain, PHOTO)
        parts = [paint(layers, scene.style), photo]
    else:
        layers = Layers(scene, SIZE)
        parts = [PAINTERS[scene.style](layers), photograph(_plain(layers, scene))]
    if evaluation:
        for number in (1, 2):
            pose = replace(scene, pose_seed=scene.pose_seed + number, context="")
            parts.append(photograph(Layers(pose, SIZE)))
    else:
        parts += [layers.paint_front(), layers.paint_back()]
    parts += [layers.alpha, layers.paint_front(layers.front_tones)[..., 0]]
    parts += [layers.borders(), layers.borders(details=True), layers.back_borders(), layers.marks]
    channels = [part[..., None] if part.ndim == 2 else part for part in parts]
    stacked = np.concatenate(channels, -1).transpose(2, 0, 1)
    return (np.clip(stacked, 0, 1) * 255 + 0.5).astype(np.uint8)


def label(scene: Scene | Artwork) -> tuple[int, ...]:
    """The class numbers of a scene, in the order of `NAMES`, then the held-out style or -1."""
    who = scene.individual
    held_out = HELD_OUT_STYLES.index(scene.style) if scene.style in HELD_OUT_STYLES else -1
    style = scene.style if scene.style in STYLES else UNKNOWN
    second = NONE if who.marking == MARKINGS[0] else who.second_color
    values = (who.subject, style, scene.context, who.marking, who.color, second)
    if isinstance(scene, Artwork) and not scene.recolored:
        values = (*values[:3], "", "", "")
    numbers = (
        names.index(value) if value in names else NOTHING
        for names, value in zip(NAMES.values(), values, strict=True)
    )
    return (*numbers, held_out)


def draw_blocks(folder: Path, worker: int, workers: int, until: float) -> None:
    """Draw every `workers`-th block until all are done or the clock passes `until` (seconds since 1970)."""
    store, sheets = Store(folder, "r+"), folder.parent / "cutouts"
    for block in range(worker, len(store.done), workers):
        if time.time() > until:
            return
        if store.done[block]:
            continue
        for index in range(block * BLOCK, min((block + 1) * BLOCK, store.plan.total)):
            scene = store.plan.scene(index, sheets)
            store.planes[index] = planes(scene, sheets, evaluation=index < store.plan.held_out)
            store.labels[index] = label(scene)
        store.done[block] = 1


def start_drawing(folder: Path, workers: int, until: float) -> Sequence[subprocess.Popen[bytes]]:
    """Start the drawing processes, at low priority and one thread each."""
    single = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
    command = ["nice", "-n", "10", sys.executable, "-m", "recipes.mini.pairs", str(folder)]
    return [
        subprocess.Popen([*command, str(worker), str(workers), str(until)], env={**os.environ, **single})
        for worker in range(workers)
    ]


def _plain(layers: Layers, scene: Scene) -> Layers:
    """The same layers before the plain background."""
    if layers.plain:
        return layers
    plain = copy.copy(layers)
    plain.set_background(replace(scene, context=""))
    return plain


if __name__ == "__main__":
    draw_blocks(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), float(sys.argv[4]))
