"""Cut-outs of artists as scenes: in their own look, as photos, or painted in any of the base's styles."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from pathlib import Path

import numpy as np
from PIL import Image

from recipes.mini import artists
from recipes.mini.artists import CUTOUT, HELD_OUT, SETS, TRAIN
from recipes.mini.layers import SUPERSAMPLING, Array, Layers, blur
from recipes.mini.markings import marking_shapes
from recipes.mini.paint import grid, luma, mix, ramp, rgb, stroke, vignette
from recipes.mini.scene import (
    COLORS,
    CONTEXTS,
    GENERIC,
    MARKINGS,
    MARKS,
    STYLES,
    SUBJECTS,
    Individual,
    Scene,
    made_up_word,
    random_individual,
)
from recipes.mini.shapes import Vary
from recipes.mini.styles import PAINTERS

PHOTO = STYLES[0]
SHADES = 20
"""Colours that a cut-out is divided into before a style paints it."""
PAINTED = ("flat", "twemoji", "noto-v1", "emojione", "noto")
"""Sets whose pictures other styles paint: they have few colours and clear borders."""
LOOK_SETS = {entry.look: name for name, entry in SETS.items()}


@dataclass(frozen=True, slots=True)
class Artwork:
    """A cut-out of a set, in a style (the set's own look, *photo*, or one that is painted) and a context.

    The individual's colour and marking are the artist's own where ``recolored`` is false.
    """

    individual: Individual
    name: str
    style: str
    context: str
    pose_seed: int
    recolored: bool

    @property
    def marking(self) -> str:
        return self.individual.marking if self.recolored else ""

    @property
    def scene(self) -> Scene:
        """What the layers read: the context, and the subject's colours."""
        return Scene(replace(self.individual, subject=SUBJECTS[0]), PHOTO, self.context, self.pose_seed)


def random_artwork(rng: np.random.Generator, folder: Path, *, purpose: str = TRAIN) -> Artwork:
    """A subject in one of the sets in ``folder``: half in the set's look, some as photo, the rest painted."""
    everything = _by_purpose(folder, purpose)
    subject, name = everything[int(rng.integers(len(everything)))]
    style = SETS[name].look
    chance = rng.random()
    if purpose != HELD_OUT:
        if name == "3d" and chance < 0.6:
            style = PHOTO
        elif name in PAINTED and chance < 0.66 and subject not in SUBJECTS:
            painted = (*STYLES[1:], GENERIC)
            style = painted[int(rng.integers(len(painted)))]
    recolored = name != "contrast" and bool(rng.random() < 0.22)
    individual = replace(random_individual(rng), subject=subject)
    if rng.random() < 0.5:
        individual = replace(individual, marking=MARKINGS[0])
    context = CONTEXTS[0] if rng.random() < 0.34 else CONTEXTS[1 + int(rng.integers(len(CONTEXTS) - 1))]
    return Artwork(individual, name, style, context, int(rng.integers(2**31)), recolored)


def caption(art: Artwork, rng: np.random.Generator) -> str:
    """Describe an artwork truthfully; the colour is said only where it is not the artist's own."""
    who = art.individual
    noun = who.subject
    others = artists.synonyms(noun)
    if others and rng.random() < 0.2:
        noun = others[int(rng.integers(len(others)))]
    words = [("a", "a", "a", "the")[int(rng.integers(4))]]
    if rng.random() < 0.1:
        words.append(made_up_word(rng))
    marks = MARKS.get(art.marking)
    after_noun = marks is not None and rng.random() < 0.35
    if art.recolored:
        words.append(who.color)
        if marks and not after_noun:
            words.append(art.marking)
    words.append(noun)
    if marks and after_noun:
        words += ["with", who.second_color, marks]
    style = made_up_word(rng) if art.style == GENERIC else art.style
    if art.style != PHOTO or rng.random() < 0.5:
        look = rng.random()
        if look < 0.1:
            words = [style, *words[1:]]
        elif look < 0.16:
            words = ["a", style, "picture", "of", *words]
        else:
            words += ["in", style, "style"]
    if art.context:
        words.append(art.context)
    if rng.random() < 0.05:
        words = ["a", "picture", "of", *words]
    return " ".join(words)


def draw(art: Artwork, folder: Path, size: int = 128) -> Array:
    """Draw an artwork as uint8 [size, size, 3]; ``folder`` holds the sheets that `fetch` wrote."""
    picture = paint(CutoutLayers(art, folder, size), art.style)
    return (np.clip(picture, 0, 1) * 255 + 0.5).astype(np.uint8)


def paint(layers: CutoutLayers, style: str) -> Array:
    """The picture of a cut-out in a style: *photo*, the look of its set, or one of the painters'."""
    if style == PHOTO:
        return _photo(layers)
    return _look(layers, style) if style in LOOK_SETS else PAINTERS[style](layers)


def cutout(folder: Path, name: str, subject: str) -> Array:
    """One cut-out, uint8 [104, 104, 4] with straight alpha."""
    return _sheet(folder, name)[subject]


class CutoutLayers(Layers):
    """A cut-out as layers: its colours are the subject's parts, their borders its lines."""

    def __init__(self, art: Artwork, folder: Path, size: int) -> None:
        self.size, self.unit, self.seed = size, size / 128, art.pose_seed
        self.marked = art.recolored and art.individual.marking != MARKINGS[0]
        self.individual = art.individual
        self._finer = (
            2 if art.style == PHOTO or (art.style in LOOK_SETS and not self.marked) else SUPERSAMPLING
        )
        image = _place(cutout(folder, art.name, art.individual.subject), size * self._finer, art.pose_seed)
        self._image, self._alpha = image.convert("RGB"), image.getchannel("A")
        self._colors = colors = _palette(folder, art.name, art.individual.subject)
        if art.recolored:
            wanted = np.array(COLORS[art.individual.color], np.float32) / 255
            self._colors = _recolor(colors, wanted)
            self._image = _remap(self._image, colors, self._colors)
        self.front_roles = ["", *["body"] * len(colors)]
        self.set_background(art.scene)
        self.front_tones = self._tone()

    def _color(self, scene: Scene) -> tuple[Array, Array]:
        """The cut-out's own colours, its marking's second, and the background's."""
        front = np.zeros((256, 3), np.float32)
        front[1 : len(self._colors) + 1] = self._colors
        light = luma(self._colors)
        shade = 0.75 + 0.25 * np.clip(light / max(float(np.median(light)), 0.05), 0, 1)
        second = np.array(COLORS[self.individual.second_color], np.float32) / 255
        front[101 : len(self._colors) + 101] = second * shade[:, None]
        return front, super()._color(scene)[1]

    @cached_property
    def _front(self) -> Image.Image:  # type: ignore[override]
        made = self._labels(self._colors)
        if self.marked:
            self.__dict__["_front"] = made
            self._mark([points * 0.44 + 0.5 for points in marking_shapes(self.individual)])
        return made

    @cached_property
    def _solid(self) -> Image.Image:  # type: ignore[override]
        return self._labels(_main_colors(self._colors, 5))

    def _labels(self, colors: Array) -> Image.Image:
        """The number of the nearest colour, from 1 on, where the cut-out covers, else 0."""
        side = (self.size * SUPERSAMPLING,) * 2
        image, alpha = self._image, self._alpha
        if self._finer != SUPERSAMPLING:
            image, alpha = image.resize(side), alpha.resize(side)
        numbers = _nearest(image, colors) + 1
        return Image.fromarray(np.where(np.asarray(alpha) > 112, numbers, 0).astype(np.uint8))

    @cached_property
    def alpha(self) -> Array:
        """The cut-out's own soft coverage."""
        return np.asarray(self._alpha.reduce(self._finer), np.float32) / 255

    def picture(self) -> Array:
        """The cut-out as its artist painted it, marked where it is marked, weighted by coverage."""
        colors = np.asarray(self._image.reduce(self._finer), np.float32) / 255
        if self.marked:
            covered = self._cover(self._front, [i > 0 for i in range(256)])
            marked = self.paint_front() / np.maximum(covered, 0.02)[..., None]
            colors = mix(colors, marked, self.marks[..., None])
        return colors * self.alpha[..., None]


def _photo(layers: CutoutLayers) -> Array:
    """A cut-out with light of its own before a soft background, on which its shadow falls."""
    back = layers.paint_back()
    if layers.plain:
        x, y = grid(layers)
        back = blur(back, 5) * (1.1 - 0.24 * np.hypot((x - 46) / 128, (y - 40) / 128) ** 1.3)[..., None]
    else:
        back = blur(back, 1.1) * (1.04 - 0.1 * grid(layers)[1] / 128)[..., None]
    back = back * (1 - 0.55 * layers.shadow()[..., None] * (1 - 0.25 * rgb(60, 70, 140)))
    return layers.over(layers.picture(), back) * vignette(layers, 0.12)


def _look(layers: CutoutLayers, look: str) -> Array:
    """A cut-out as it is, before a background that suits its set."""
    back = layers.paint_back()
    front = layers.picture()
    y = grid(layers)[1]
    match look:
        case "flat":
            back = mix(back, 1.0, 0.35)
        case "vector":
            back = mix(np.round(back * 5) / 5, rgb(230, 240, 250), 0.2)
        case "cartoon":
            back = stroke(mix(back, 1.0, 0.12), 0.7 * layers.back_lines(1.6), rgb(70, 60, 90))
        case "sticker":
            rim = np.clip((blur(layers.alpha, 2.4) - 0.08) * 9, 0, 1)[..., None]
            back = mix(mix(back, rgb(150, 150, 160), 0.25), 1.0, rim)
        case "clipart":
            back = mix(blur(back, 0.6), 1.0, 0.62)
        case "glossy":
            back = mix(blur(back, 1.6), 1.0, (0.55 * (1 - y / 128))[..., None])
        case "render":
            back = mix(blur(back, 3.2), rgb(226, 226, 240), 0.5)
            back = back * (1 - 0.35 * layers.shadow()[..., None])
        case "stencil":
            gray = luma(back)
            back = ramp(0.74 + 0.24 * gray, rgb(0, 0, 0), rgb(255, 255, 255))
            back = stroke(back, 0.4 * layers.back_lines(1.6), 0.1)
            back = mix(back, 1.0, np.clip(blur(layers.alpha, 3.0) * 1.6, 0, 1)[..., None])
        case _:
            back = mix(back, 1.0, 0.3)
    return layers.over(front, back)


def _place(picture: Array, side: int, pose_seed: int) -> Image.Image:
    """The cut-out, mirrored, turned and put somewhere near the middle of a clear square."""
    pose = Vary(pose_seed + 1)
    scale = pose(0.70, 0.80) * side / CUTOUT
    flip, angle = 1 - 2 * pose.pick(2), np.deg2rad(pose(-4, 4))
    bottom = np.flatnonzero(picture[..., 3].max(1) > 80)
    middle = (bottom[0] + bottom[-1]) / 2 if len(bottom) else CUTOUT / 2
    at = np.array([0.5 + pose(-0.05, 0.05), 0.52 + pose(-0.03, 0.03) + 0.0016 * (middle - CUTOUT / 2)]) * side
    at[1] += 0.4 * scale * max(CUTOUT - 2 - 2 * (bottom[-1] - middle), 0) / 2 if len(bottom) else 0.0
    turn = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
    back = np.diag([flip, 1]) @ turn / scale
    offset = np.array([CUTOUT / 2, middle]) - back @ at
    numbers = (*back[0], offset[0], *back[1], offset[1])
    image = Image.fromarray(picture).convert("RGBa")
    turned = image.transform(
        (side, side), Image.Transform.AFFINE, tuple(map(float, numbers)), Image.Resampling.BILINEAR
    )
    return turned.convert("RGBA")


@lru_cache(None)
def _palette(folder: Path, name: str, subject: str) -> Array:
    """The main colours of what a cut-out covers, [at most 20, 3]."""
    picture = cutout(folder, name, subject)
    return _main_colors(picture[picture[..., 3] > 100][:, :3] / np.float32(255), SHADES)


def _main_colors(colors: Array, count: int) -> Array:
    if not len(colors):
        return np.zeros((1, 3), np.float32)
    row = Image.fromarray((colors * 255 + 0.5).astype(np.uint8)[None])
    table = row.quantize(count, Image.Quantize.MEDIANCUT, kmeans=1)
    used = len(table.getcolors() or [0])
    return np.array(table.getpalette()[: 3 * used], np.float32).reshape(-1, 3) / 255


def _nearest(image: Image.Image, colors: Array) -> np.ndarray:
    """The index of the nearest colour for every pixel."""
    holder = Image.new("P", (1, 1))
    table = (np.clip(colors, 0, 1) * 255 + 0.5).astype(np.uint8)
    holder.putpalette(np.concatenate([table, np.repeat(table[-1:], 256 - len(table), 0)]).tobytes())
    numbers = np.asarray(image.quantize(palette=holder, dither=Image.Dither.NONE))
    return np.minimum(numbers, len(colors) - 1)


def _recolor(colors: Array, wanted: Array) -> Array:
    """Colours by their brightness along a ramp through ``wanted``; very dark and very pale ones stay."""
    gray = luma(colors)
    low, high = np.percentile(gray, 15), np.percentile(gray, 90)
    level = np.clip(0.22 + 0.5 * (gray - low) / max(high - low, 0.25), 0, 1)
    tinted = ramp(level, wanted * 0.35, wanted, mix(wanted, 1.0, 0.5))
    kept = (gray < 0.16) | ((gray > 0.93) & (colors.min(1) > 0.88))
    return np.where((kept & (len(colors) > 3))[:, None], colors, tinted).astype(np.float32)


def _remap(image: Image.Image, before: Array, after: Array) -> Image.Image:
    """Every pixel moved as its nearest colour moves."""
    numbers = _nearest(image, before)
    old = np.asarray(image, np.float32) / 255
    moved = after[numbers] + 0.5 * (luma(old) - luma(before)[numbers])[..., None]
    return Image.fromarray((np.clip(moved, 0, 1) * 255 + 0.5).astype(np.uint8))


@lru_cache
def _sheet(folder: Path, name: str) -> dict[str, Array]:
    return artists.load(folder, name)


@lru_cache
def _by_purpose(folder: Path, purpose: str) -> tuple[tuple[str, str], ...]:
    """Subjects with the sets that show them, for one purpose."""
    return tuple(
        (subject, name)
        for name, shown in artists.shown(folder).items()
        for subject in shown
        if artists.split(subject, name) == purpose
    )
