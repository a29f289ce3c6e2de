"""The prompts whose images show whether content and style were separated."""

from __future__ import annotations

import random
from collections.abc import Collection
from dataclasses import dataclass, replace
from itertools import cycle, islice
from typing import Literal

from unziplora_cli.checks import Checked, option
from unziplora_cli.config import SEED_MAX, Prompts, Words
from unziplora_cli.prompts import make_prompts

Purpose = Literal["content", "context", "style", "combine"]
PURPOSES: tuple[Purpose, ...] = ("content", "context", "style", "combine")
BRANCHES: dict[Purpose, tuple[str, ...]] = {
    "content": ("content",),
    "context": ("content",),
    "style": ("style",),
    "combine": ("content", "style"),
}

CONTEXTS = ("on a beach", "in the snow", "in a forest", "in a city", "at night", "under water", "in space")
"""Places for the subject of the content LoRA."""

SUBJECTS = ("house", "cat", "car", "tree", "teapot", "boat", "owl", "rose", "robot", "fox")
"""Subjects for the style LoRA, except the project's own."""


@dataclass(frozen=True)
class EvaluationConfig(Checked):
    """How thorough an evaluation is."""

    count: int = option(
        4,
        "Images per purpose: content, content in other places, style, both. The base generates as many.",
        min=1,
        max=100,
    )
    noise_samples: int = option(24, "Noisy versions of the training image to denoise.", min=1, max=1000)
    seed: int = option(0, "Seed of all noise and images.", min=0, max=SEED_MAX - 1000)


@dataclass(frozen=True, slots=True)
class EvaluationPrompt:
    """One image to generate, and what it should show; ``context`` is empty for a plain image."""

    purpose: Purpose
    prompts: Prompts
    seed: int
    subject: str
    context: str = ""

    @property
    def text(self) -> str:
        """The one prompt that describes the image, also used for the base alone."""
        branches = BRANCHES[self.purpose]
        text: str = self.prompts.full if len(branches) > 1 else getattr(self.prompts, branches[0])
        return text


def evaluation_prompts(
    words: Words, subject: str, excluded: Collection[str], count: int, seed: int
) -> tuple[EvaluationPrompt, ...]:
    """``count`` prompts for each purpose, in the order of PURPOSES.

    Args:
        words: the project's words.
        subject: the scorer's name of the project's subject.
        excluded: words that the style LoRA's other subjects must not be.
        seed: decides which contexts and other subjects come first, and the noise of every image.
    """
    rng = random.Random(seed)
    contexts = rng.sample(CONTEXTS, len(CONTEXTS))
    others = [other for other in rng.sample(SUBJECTS, len(SUBJECTS)) if other not in excluded]
    prompts = []
    for number, context, other in zip(range(count), cycle(contexts), islice(cycle(others), count)):
        plain = make_prompts(words)
        prompts += [
            EvaluationPrompt("content", plain, seed + number, subject),
            EvaluationPrompt("context", make_prompts(words, context), seed + number, subject, context),
            EvaluationPrompt("style", make_prompts(replace(words, subject=other)), seed + number, other),
            EvaluationPrompt("combine", plain, seed + number, subject),
        ]
    return tuple(sorted(prompts, key=lambda prompt: PURPOSES.index(prompt.purpose)))
