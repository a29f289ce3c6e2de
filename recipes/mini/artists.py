"""What artists drew: the sets of cut-outs, the subjects they show, and what each is for.

Every set shows the same subjects, each in its own look, so together they are a table of content and style.
`artists.json` is the table of subjects: what a person would draw and six or more trained sets show, without
faces, people, hands, flags, signs, lettering and scenes. `fetch` writes the cut-outs, one sheet for each set.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image

from recipes.mini.scene import SUBJECTS

CUTOUT = 104
"""Pixels of a cut-out's longer side."""
COLUMNS = 24
"""Cut-outs in a row of a sheet."""
TRAIN, TEST, HELD_OUT = "train", "test", "held out"
"""What a cut-out is for: everything; the classifier and tests alone; tests alone."""


@dataclass(frozen=True)
class Set:
    """One set of pictures: its package, what captions call its look, and whether the base may see it."""

    package: str
    look: str
    held_out: bool = False


SETS: Mapping[str, Set] = {
    "fluent": Set("@iconify-json/fluent-emoji", "glossy"),
    "flat": Set("@iconify-json/fluent-emoji-flat", "flat"),
    "contrast": Set("@iconify-json/fluent-emoji-high-contrast", "stencil"),
    "noto": Set("@iconify-json/noto", "cartoon"),
    "noto-v1": Set("@iconify-json/noto-v1", "sticker"),
    "twemoji": Set("@iconify-json/twemoji", "vector"),
    "emojione": Set("@iconify-json/emojione", "clipart"),
    "3d": Set("@lobehub/fluent-emoji-3d", "render"),
    "openmoji": Set("@iconify-json/openmoji", "openmoji", held_out=True),
    "fxemoji": Set("@iconify-json/fxemoji", "fxemoji", held_out=True),
}
TRAINED = tuple(name for name, entry in SETS.items() if not entry.held_out)
LOOKS: tuple[str, ...] = tuple(SETS[name].look for name in TRAINED)
"""Style words of the sets that the base learns."""
HELD_OUT_LOOKS: tuple[str, ...] = tuple(entry.look for entry in SETS.values() if entry.held_out)


@cache
def table() -> dict[str, tuple[str, tuple[str, ...]]]:
    """Subject to its code point (hexadecimal, as in file names) and its other names."""
    values = json.loads((Path(__file__).parent / "artists.json").read_text(encoding="utf-8"))
    return {name: (code, tuple(others)) for name, (code, *others) in values.items()}


def subjects() -> tuple[str, ...]:
    """Every subject that the base knows: first those that are drawn here, then the artists' alone."""
    return (*SUBJECTS, *(name for name in table() if name not in SUBJECTS))


def synonyms(subject: str) -> tuple[str, ...]:
    """Other names of a subject, which captions use now and then."""
    return table()[subject][1] if subject in table() else ()


def split(subject: str, name: str) -> str:
    """What the cut-out of a subject in a set is for; one in 33 of the trained sets is for tests alone."""
    if SETS[name].held_out:
        return HELD_OUT
    return TEST if zlib.crc32(f"{subject}/{name}".encode()) % 33 == 0 else TRAIN


def shown(folder: Path) -> dict[str, list[str]]:
    """The subjects of every set in the order in which they stand on its sheet."""
    values: dict[str, list[str]] = json.loads((folder / "sheets.json").read_text(encoding="utf-8"))
    return {name: values[name] for name in SETS if name in values}


def load(folder: Path, name: str) -> dict[str, np.ndarray]:
    """The cut-outs of a set by subject, uint8 [104, 104, 4] with straight alpha, as `fetch` packed them."""
    with Image.open(folder / f"{name}.webp") as opened:
        sheet = np.asarray(opened.convert("RGBA"))
    values = {}
    for number, subject in enumerate(shown(folder)[name]):
        top, left = (CUTOUT * part for part in divmod(number, COLUMNS))
        values[subject] = sheet[top : top + CUTOUT, left : left + CUTOUT]
    return values
