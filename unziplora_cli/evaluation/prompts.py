"""Which pictures are drawn to see whether content and style came apart."""

from __future__ import annotations

import random
from dataclasses import dataclass, replace
from itertools import cycle, islice
from typing import Literal

from unziplora_cli.config import Prompts, Words
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
"""Where the content LoRA's subject is asked to be."""

SUBJECTS = ("house", "cat", "car", "tree", "teapot", "boat", "owl", "rose", "robot", "fox")
"""What the style LoRA is asked to draw; the project's own subject is left out."""


@dataclass(frozen=True, slots=True)
class EvaluationPrompt:
    """One picture to draw, and what should be in it; a plain one has no ``context``."""

    purpose: Purpose
    prompts: Prompts
    seed: int
    subject: str
    context: str = ""

    @property
    def text(self) -> str:
        """What the picture was asked for, in one prompt; also what the base alone is told."""
        branches = BRANCHES[self.purpose]
        text: str = self.prompts.full if len(branches) > 1 else getattr(self.prompts, branches[0])
        return text


def evaluation_prompts(
    words: Words, own: tuple[str, ...], count: int, seed: int
) -> tuple[EvaluationPrompt, ...]:
    """``count`` pictures for each purpose; ``own`` are the names of the project's subject.

    The seed decides which contexts and which other subjects come first, and the noise of every picture.
    """
    chance = random.Random(seed)
    contexts = chance.sample(CONTEXTS, len(CONTEXTS))
    taken = " ".join(own).split()
    subjects = [each for each in chance.sample(SUBJECTS, len(SUBJECTS)) if each not in taken]
    prompts_to_score = []
    for number, context, other in zip(range(count), cycle(contexts), islice(cycle(subjects), count)):
        plain, placed = make_prompts(words), make_prompts(words, context)
        prompts_to_score += [
            EvaluationPrompt("content", plain, seed + number, own[0]),
            EvaluationPrompt("context", placed, seed + number, own[0], context),
            EvaluationPrompt("style", make_prompts(replace(words, subject=other)), seed + number, other),
            EvaluationPrompt("combine", plain, seed + number, own[0]),
        ]
    return tuple(sorted(prompts_to_score, key=lambda shot: PURPOSES.index(shot.purpose)))
