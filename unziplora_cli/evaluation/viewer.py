"""Who looks at the drawn pictures: what a viewer tells of each, and the built-in base's judge as one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from unziplora_cli.config import Words
from unziplora_cli.evaluation.judge import Judge

PHOTO = "photo"
"""The style of a picture that has none."""


@dataclass(frozen=True, slots=True)
class View:
    """What a viewer sees in one picture.

    ``identity`` is its likeness to the training picture in who or what is shown, ``style_likeness`` in how it
    is drawn, ``prompt_likeness`` its likeness to the words it was asked for; cosines, None where a viewer has
    no sense for it.
    """

    subject: str
    style: str
    context: str
    identity: float
    style_likeness: float | None = None
    prompt_likeness: float | None = None


class Viewer(Protocol):
    """Names what pictures show.

    ``subject`` and ``style`` are what it calls the training picture's; ``notes`` say what else a person
    should know about that.
    """

    name: str
    subject: str
    style: str
    notes: tuple[str, ...]

    def look(self, pictures: Sequence[Image.Image], texts: Sequence[str]) -> list[View]:
        """A view of each picture; ``texts`` are the prompts it was drawn from."""
        ...


class JudgeViewer:
    """The judge of the built-in base: it names every picture from the classes it was trained on."""

    name = "the built-in judge"

    def __init__(self, folder: Path, training: Sequence[Image.Image], words: Words) -> None:
        self._judge = Judge.load(folder)
        found, self._identity = self._judge.look(_pixels(training))  # [pictures, 64]
        seen = self._judge.words(found)[0]
        self.subject, subject_notes = self._call("subject", words.subject, seen)
        self.style, style_notes = self._call("style", words.style, seen)
        self.notes = (*subject_notes, *style_notes)

    def look(self, pictures: Sequence[Image.Image], texts: Sequence[str]) -> list[View]:
        """A view of each picture; the judge does not read texts."""
        pixels = _pixels(pictures)
        found, identity = self._judge.look(pixels)
        likeness = (identity @ self._identity.T).mean(dim=1).tolist()
        return [
            View(each["subject"], each["style"], each["context"], identity)
            for each, identity in zip(self._judge.words(found), likeness, strict=True)
        ]

    def _call(self, label: str, word: str, seen: dict[str, str]) -> tuple[str, tuple[str, ...]]:
        """The judge's word for the training picture: the user's where it knows it, else what it sees."""
        sees = seen[label]
        plain = " ".join(word.lower().split())
        if plain not in self._judge.names[label]:
            return sees, (
                f'The judge has no {label} "{word}"; it sees "{sees}" in the training picture, '
                "and looks for that.",
            )
        if plain != sees:
            return plain, (
                f'The judge sees "{sees}" in the training picture, not the {label} "{word}": '
                "take its numbers on that with care.",
            )
        return plain, ()


def _pixels(pictures: Sequence[Image.Image]) -> Tensor:
    """Pictures of one size as uint8 [n, height, width, 3]."""
    return torch.from_numpy(np.stack([np.asarray(picture.convert("RGB")) for picture in pictures]))
