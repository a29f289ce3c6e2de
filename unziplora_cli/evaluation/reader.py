"""What an image shows, in the built-in base's words: subject, colours, marking, surroundings and style.

The reader is the classifier's network with other weights. It never saw a style that the base does not know,
so it can propose words for a user's image; the classifier knows these styles and only measures.
"""

from __future__ import annotations

import json
from functools import cache, lru_cache
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from unziplora_cli import resources
from unziplora_cli.evaluation.scorers import Classifier
from unziplora_cli.images import load_image
from unziplora_cli.sdxl.latents import crop_image

FIELDS = ("subject", "color", "second_color", "marking", "context", "style")
"""What is read. ``second_color`` is the marking's; both colours are the subject's own, not the style's."""
UNKNOWN, NONE = "unknown", "none"
"""Classes of a style that the base does not know, and of the colour of no marking."""
UNLIKELY, SURE = 0.1, 0.5
"""An image shows another subject than one of a lower probability; from the second one on, it is named."""


class Reader:
    """Reads images with ``network``; a word less probable than its field's threshold is not said."""

    def __init__(self, network: Classifier, thresholds: dict[str, float]) -> None:
        self.network, self.thresholds = network, thresholds

    def read(self, image: Image.Image) -> dict[str, tuple[str, float]]:
        """Each field that is certain enough: its word and probability.

        The context of a plain background is the empty word.
        """
        result = {}
        for field, values in probabilities(self.network, image).items():
            probability, index = values.max(0)
            word = self.network.names[field][int(index)]
            if float(probability) >= self.thresholds[field] and word not in (UNKNOWN, NONE):
                result[field] = (word, float(probability))
        return result

    def save(self, folder: Path) -> None:
        """Write ``reader.safetensors`` and ``reader.json``."""
        self.network.save(folder, "reader", thresholds=self.thresholds)

    @classmethod
    def load(cls, folder: Path) -> Reader:
        """Read what :meth:`save` wrote."""
        thresholds = json.loads((folder / "reader.json").read_text())["thresholds"]
        return cls(Classifier.load(folder, "reader"), thresholds)


@cache
def _shipped() -> Reader:
    return Reader.load(resources.reader())


@cache
def _subject_network() -> Classifier:
    """The classifier, which knows every subject of the base; the reader knows the drawn ones alone."""
    return Classifier.load(resources.classifier())


@torch.inference_mode()
def probabilities(network: Classifier, image: Image.Image) -> dict[str, Tensor]:
    """Of each field, those of its words, [words]."""
    pixels = crop_image(image.convert("RGB"), network.size, 1)
    logits, _ = network(pixels.to(network.identity.weight))
    return {field: values[0].softmax(0) for field, values in logits.items()}


def read_image(image: Image.Image) -> dict[str, tuple[str, float]]:
    """Field -> (word, probability) of an image; a field that the reader is not sure of is missing."""
    fields = _shipped().read(image)
    network = _subject_network()
    names, values = network.names["subject"], probabilities(network, image)["subject"]
    word, _ = fields.pop("subject", ("", 0.0))
    best, index = values.max(0)
    if float(best) < SURE and word in names and float(values[names.index(word)]) >= UNLIKELY:
        index = torch.tensor(names.index(word))
    elif float(best) < SURE:
        return fields
    return {**fields, "subject": (names[int(index)], float(values[index]))}


def is_sure(image: Image.Image, subject: str) -> bool:
    """Whether the network of subjects takes an image for ``subject``, rather than for all others together."""
    network = _subject_network()
    index = network.names["subject"].index(subject)
    return float(probabilities(network, image)["subject"][index]) >= SURE


@lru_cache(maxsize=16)
def other_subject_in(path: Path, subject: str) -> str:
    """:func:`other_subject` of an image file, which is read once: a photo takes much memory."""
    return other_subject(load_image(path).image, subject)


def other_subject(image: Image.Image, subject: str) -> str:
    """The subject that an image shows instead of ``subject``, or "" if it may show that.

    "" as well for a subject that is no class of the network.
    """
    network = _subject_network()
    names, values = network.names["subject"], probabilities(network, image)["subject"]
    if subject not in names or float(values[names.index(subject)]) >= UNLIKELY:
        return ""
    return names[int(values.argmax())]
