"""What the classifier sees in the pictures, and what that makes of a method."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from benchmarks.separation.methods import Drawing
from benchmarks.separation.scenes import PHOTO, Sample
from unziplora_cli.evaluation.classifier import Classifier

SEPARATION = ("content", "style", "combine", "cross")
COLUMNS = (
    *SEPARATION,
    "mean",
    "context",
    "scene",
    "identity",
    "marking",
    "subject",
    "photo",
    "rebuilt",
)
"""Columns of the table; ``mean`` is that of the four separation columns."""
RESAMPLES = 4000


@dataclass(frozen=True)
class Seen:
    """What the classifier says of one drawing."""

    drawing: Drawing
    names: Mapping[str, str]
    rank: int
    """Place of the right individual among six, 0 is first."""


def look(
    classifier: Classifier, drawings: Sequence[Drawing], pictures: Tensor, galleries: Sequence[Tensor]
) -> list[Seen]:
    """The classifier's verdict on ``pictures`` uint8 [n, h, w, 3]; ``galleries`` [6, 64] by sample."""
    found, embeddings = classifier.predict(pictures)
    rows = torch.stack([galleries[each.sample] for each in drawings])  # [n, 6, 64]
    likeness = (rows * embeddings[:, None]).sum(dim=-1)  # [n, 6]
    ranks = (likeness > likeness[:, :1]).sum(dim=1).tolist()
    return [Seen(*each) for each in zip(drawings, classifier.class_names(found), ranks, strict=True)]


def right(seen: Seen) -> bool:
    """Whether everything that was wanted of a drawing is there."""
    wanted = seen.drawing
    return (
        seen.names["subject"] == wanted.subject
        and (wanted.wanted_style is None or seen.names["style"] == wanted.wanted_style)
        and (wanted.context is None or seen.names["context"] == wanted.context)
    )


def scores(seen: Sequence[Seen], samples: Sequence[Sample]) -> dict[str, np.ndarray]:
    """Every column by sample, [samples], nan where a sample has no such drawing."""
    found = {column: np.full(len(samples), np.nan) for column in COLUMNS}

    def fill(column: str, purpose: str, hit: object) -> None:
        hits: dict[int, list[float]] = {}
        for each in seen:
            if each.drawing.purpose == purpose:
                hits.setdefault(each.drawing.sample, []).append(float(hit(each)))  # type: ignore[operator]
        for sample, values in hits.items():
            found[column][sample] = np.mean(values)

    for purpose in (*SEPARATION, "context", "scene"):
        fill(purpose, purpose, right)
    fill("identity", "content", lambda each: each.rank == 0)
    fill(
        "marking",
        "content",
        lambda e: e.names["marking"] == samples[e.drawing.sample].scene.individual.marking,
    )
    fill("subject", "content", lambda each: each.names["subject"] == each.drawing.subject)
    fill("photo", "content", lambda each: each.names["style"] == PHOTO)
    found["mean"] = np.mean([found[column] for column in SEPARATION], axis=0)
    return found


def interval(values: np.ndarray, seed: int = 0) -> tuple[float, float, float]:
    """Mean over samples and the 95 % bootstrap interval of it."""
    values = values[~np.isnan(values)]
    if not len(values):
        return (float("nan"),) * 3
    rng = np.random.default_rng(seed)
    means = rng.choice(values, (RESAMPLES, len(values))).mean(axis=1)
    low, high = np.quantile(means, (0.025, 0.975))
    return float(values.mean()), float(low), float(high)
