"""What a picture is made of, and the words that say so."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

SUBJECTS: tuple[str, ...] = (
    "fox", "cat", "owl", "bird", "fish", "butterfly", "turtle", "snail",
    "rose", "mushroom", "tree", "cactus",
    "house", "boat", "car", "rocket", "robot", "teapot", "mug", "guitar", "lantern", "balloon",
)  # fmt: skip

STYLES: tuple[str, ...] = (
    "photo", "watercolor", "pixel", "crayon", "sepia", "comic", "charcoal", "pastel", "mosaic", "clay",
    "oil", "ink", "marker", "duotone", "poster", "felt", "gold", "marble", "thermal",
)  # fmt: skip
"""Base styles; the first is the look of a caption that names no style."""

GENERIC = "generic"
"""A style that is drawn anew for every scene and captioned with a made-up word."""

HELD_OUT_STYLES: tuple[str, ...] = (
    "stained glass", "blueprint", "neon", "pop art", "woodcut", "chalkboard", "papercut", "porcelain",
)  # fmt: skip
"""Styles that the base's U-Net never sees."""

CONTEXTS: tuple[str, ...] = (
    "", "on a beach", "in a forest", "in the snow", "in a city", "in space", "on a table", "at night",
    "under water",
)  # fmt: skip
"""Where the subject is; the first is the plain studio, which captions do not name."""

MARKINGS: tuple[str, ...] = ("plain", "striped", "dotted", "checkered", "starred", "patched")

MARKS: dict[str, str] = {
    "striped": "stripes", "dotted": "dots", "checkered": "checks", "starred": "stars", "patched": "patches",
}  # fmt: skip
"""The noun of each marking but the plain one, as in *with white dots*."""

COLORS: dict[str, tuple[int, int, int]] = {
    "red": (217, 45, 44),
    "orange": (245, 130, 30),
    "yellow": (252, 206, 50),
    "green": (72, 166, 66),
    "teal": (28, 172, 172),
    "blue": (48, 94, 212),
    "purple": (132, 66, 182),
    "pink": (246, 132, 176),
    "brown": (134, 82, 46),
    "white": (244, 241, 234),
    "black": (52, 50, 60),
}

_SYLLABLES = tuple(consonant + vowel for consonant in "bdfgklmnprstvz" for vowel in "aeiou")
_PROMPT_WORDS = """
    a an the of and with without in on at by to from for under over near behind beside above below inside
    outside style picture photo photograph painting drawing sketch illustration image art print portrait
    scene view poster one two three four five many some big small large little tiny huge tall short long
    round old new young cute happy sad bright dark light soft warm cold colorful beautiful lovely pretty
    simple detailed clean vintage modern black white gray grey gold silver cream golden beige violet magenta
    cyan turquoise navy beach sea ocean water sand sun sunny sunset sunrise sky cloud clouds rain storm
    forest woods jungle grass flower flowers garden mountain mountains hill hills river lake desert snow
    snowy winter summer spring autumn ice night day morning evening moon star stars space planet city street
    town building buildings road bridge park room kitchen table chair window wall floor bed shelf wood
    wooden wooded paper stone metal glass background studio dog horse bear rabbit bunny mouse lion tiger
    elephant frog duck chicken cow pig sheep penguin whale dragon person man woman child girl boy face hat
    scarf shoe bag book cup bottle bowl plate lamp clock bicycle bike train plane ship castle tower
    skateboard ball toy box gift cake apple fruit bread leaf sitting standing running flying swimming
    sleeping walking jumping wearing holding riding playing eating looking front side back top left right
    close up my your his her its this that
"""


@dataclass(frozen=True, slots=True)
class Individual:
    """One particular fox: what stays the same in every style, context and pose."""

    subject: str
    color: str
    second_color: str
    marking: str
    shape_seed: int


@dataclass(frozen=True, slots=True)
class Scene:
    """One picture: an individual, how it is drawn, where it is, and how it stands there."""

    individual: Individual
    style: str
    context: str
    pose_seed: int


def random_individual(rng: np.random.Generator) -> Individual:
    """Draw an individual; its two colours lie far enough apart to tell a marking from the body."""
    color = _choose(rng, tuple(COLORS))
    apart = [name for name, rgb in COLORS.items() if _distance(rgb, COLORS[color]) > 105]
    return Individual(
        subject=_choose(rng, SUBJECTS),
        color=color,
        second_color=_choose(rng, apart),
        marking=_choose(rng, MARKINGS),
        shape_seed=int(rng.integers(2**31)),
    )


def random_scene(rng: np.random.Generator, *, styles: Sequence[str] = (*STYLES, GENERIC)) -> Scene:
    """Draw a scene; the photo style is three times as likely as another, the plain context has a third."""
    individual = random_individual(rng)
    weights = np.array([3.0 if style == STYLES[0] else 1.4 if style == GENERIC else 1.0 for style in styles])
    style = styles[int(rng.choice(len(styles), p=weights / weights.sum()))]
    context = CONTEXTS[0] if rng.random() < 0.34 else _choose(rng, CONTEXTS[1:])
    return Scene(individual, style, context, int(rng.integers(2**31)))


def caption(scene: Scene, rng: np.random.Generator) -> str:
    """Describe a scene truthfully, leaving out what a caption may leave out.

    Only photos omit the style (about half of them), and only the plain studio omits the context;
    colour and marking are said in most captions, a made-up word stands before the noun in some.
    """
    who = scene.individual
    words = [_choose(rng, ("a", "a", "a", "the"))]
    if rng.random() < 0.15:
        words.append(made_up_word(rng))
    if rng.random() < 0.85:
        words.append(who.color)
    marks = MARKS.get(who.marking)
    mark_after_noun = marks is not None and rng.random() < 0.35
    if not mark_after_noun and rng.random() < (0.9 if marks else 0.4):
        words.append(who.marking)
    words.append(who.subject)
    if marks and mark_after_noun:
        words += ["with", who.second_color, marks]
    if scene.style == GENERIC:
        words += ["in", made_up_word(rng), "style"]
    elif scene.style != STYLES[0] or rng.random() < 0.5:
        words += ["in", scene.style, "style"]
    if scene.context:
        words.append(scene.context)
    if rng.random() < 0.06:
        words = ["a", "picture", "of", *words]
    return " ".join(words)


def made_up_word(rng: np.random.Generator) -> str:
    """Two to four random syllables, such as *zobari*, that are no word of the vocabulary."""
    while True:
        word = "".join(_choose(rng, _SYLLABLES) for _ in range(int(rng.integers(2, 5))))
        word += _choose(rng, ("", "", "", "s", "n", "r"))
        if word not in VOCABULARY:
            return word


def _choose(rng: np.random.Generator, options: Sequence[str]) -> str:
    return options[int(rng.integers(len(options)))]


def _distance(a: tuple[int, int, int], b: tuple[int, int, int]) -> float:
    return float(np.linalg.norm(np.subtract(a, b)))


def _vocabulary() -> tuple[str, ...]:
    held_out = {word for style in HELD_OUT_STYLES for word in style.split()}
    grammar = [*SUBJECTS, *STYLES, *MARKINGS, *MARKS.values(), *COLORS]
    grammar += [word for context in CONTEXTS for word in context.split()]
    return tuple(word for word in dict.fromkeys([*grammar, *_PROMPT_WORDS.split()]) if word not in held_out)


VOCABULARY: tuple[str, ...] = _vocabulary()
"""Words that the tokenizer keeps whole: the grammar's own and what people commonly type."""


def sample_scenes() -> dict[str, Scene]:
    """The scenes of the sample pictures that ship with the base, by file stem; all in held-out styles."""
    return {
        "fox": Scene(Individual("fox", "orange", "white", "dotted", 5), "stained glass", "", 5),
        "lantern": Scene(Individual("lantern", "red", "yellow", "striped", 3), "neon", "at night", 3),
        "cat": Scene(Individual("cat", "purple", "yellow", "striped", 3), "pop art", "", 2),
        "house": Scene(Individual("house", "pink", "teal", "dotted", 4), "papercut", "at night", 4),
    }
