"""Classify generated images, and score a method by the classes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from benchmarks.separation.artists import LOOK, ArtSample, Looks
from benchmarks.separation.methods import ImageRequest
from benchmarks.separation.scenes import PHOTO, Sample
from unziplora_cli.evaluation.scorers import Classifier

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
    "nearest",
)
"""Columns of the table; ``mean`` is that of the four separation columns."""
RESAMPLES = 4000


@dataclass(frozen=True)
class Classified:
    """The classes of one generated image."""

    request: ImageRequest
    names: Mapping[str, str]
    rank: int | None
    """Rank of the correct individual among six; 0 is the most similar, None if it is not measured."""
    nearest: str = ""
    """The look whose true picture is the nearest, of an image of the style column."""


def classify(
    classifier: Classifier | Looks,
    requests: Sequence[ImageRequest],
    images: Tensor,
    references: Sequence[Tensor],
) -> list[Classified]:
    """Classify ``images``, uint8 [n, h, w, 3]; ``references`` holds embeddings [6, 64] by sample, if any."""
    labels, embeddings = classifier.predict(images)
    if isinstance(classifier, Looks):
        looks = [""] * len(requests)
        drawn = [request.purpose == "style" and request.wanted_style == LOOK for request in requests]
        styled = [n for n, is_drawn in enumerate(drawn) if is_drawn]
        if styled:
            nearest = classifier.nearest(images[styled], [requests[n].subject for n in styled])
            looks = [dict(zip(styled, nearest, strict=True)).get(n, "") for n in range(len(requests))]
        names = classifier.class_names(labels)
        return [Classified(*row) for row in zip(requests, names, [None] * len(names), looks, strict=True)]
    rows = torch.stack([references[request.sample] for request in requests])  # [n, 6, 64]
    similarity = (rows * embeddings[:, None]).sum(dim=-1)  # [n, 6]
    ranks = (similarity > similarity[:, :1]).sum(dim=1).tolist()
    return [Classified(*row) for row in zip(requests, classifier.class_names(labels), ranks, strict=True)]


def is_correct(image: Classified) -> bool:
    """Whether the image shows everything that was requested."""
    request = image.request
    return (
        image.names["subject"] == request.subject
        and (request.wanted_style is None or image.names["style"] == request.wanted_style)
        and (request.context is None or image.names["context"] == request.context)
    )


def scores(images: Sequence[Classified], samples: Sequence[Sample | ArtSample]) -> dict[str, np.ndarray]:
    """Every column by sample, [samples]; NaN where a sample has no such image."""
    columns = {column: np.full(len(samples), np.nan) for column in COLUMNS}

    def fill(column: str, purpose: str, test: object) -> None:
        hits: dict[int, list[float]] = {}
        for image in images:
            if image.request.purpose == purpose:
                hits.setdefault(image.request.sample, []).append(float(test(image)))  # type: ignore[operator]
        for sample, values in hits.items():
            columns[column][sample] = np.mean(values)

    for purpose in (*SEPARATION, "context", "scene"):
        fill(purpose, purpose, is_correct)
    if any(image.rank is not None for image in images):
        fill("identity", "content", lambda image: image.rank == 0)
        fill(
            "marking",
            "content",
            lambda image: image.names["marking"] == samples[image.request.sample].marking,
        )
    fill("subject", "content", lambda image: image.names["subject"] == image.request.subject)
    fill("photo", "content", lambda image: image.names["style"] == PHOTO)
    if any(image.nearest for image in images):
        fill("nearest", "style", lambda image: image.nearest == image.request.wanted_style)
    columns["mean"] = np.mean([columns[column] for column in SEPARATION], axis=0)
    return columns


def interval(values: np.ndarray, seed: int = 0) -> tuple[float, float, float]:
    """The mean over samples and its 95 % bootstrap interval."""
    values = values[~np.isnan(values)]
    if not len(values):
        return (float("nan"),) * 3
    rng = np.random.default_rng(seed)
    means = rng.choice(values, (RESAMPLES, len(values))).mean(axis=1)
    low, high = np.quantile(means, (0.025, 0.975))
    return float(values.mean()), float(low), float(high)
