"""Classifier and reader: what they begin with, which styles they see, and when the reader says a word."""

import pytest
import torch

from recipes.mini.artists import HELD_OUT_LOOKS, LOOKS
from recipes.mini.classifier import READER_NAMES, grown, restyle, thresholds
from recipes.mini.pictures import NAMES
from recipes.mini.random_styles import FAMILIES
from recipes.mini.scene import GENERIC, HELD_OUT_STYLES
from unziplora_cli.evaluation.reader import UNKNOWN
from unziplora_cli.evaluation.scorers import Classifier


def test_no_held_out_look_is_a_style_and_the_reader_knows_no_held_out_style() -> None:
    for names in (NAMES["style"], READER_NAMES["style"]):
        assert set(LOOKS) <= set(names)
        assert not set(HELD_OUT_LOOKS) & set(names)
    assert not {GENERIC, *HELD_OUT_STYLES} & set(READER_NAMES["style"])


def test_a_grown_network_classifies_known_classes_as_before() -> None:
    torch.manual_seed(0)
    former = Classifier({"subject": ("fox", "cat"), "style": ("ink",)}, size=32, widths=(8, 8, 8, 8)).eval()
    network = grown(former, {"subject": ("owl", "cat", "fox"), "color": ("red",)}).eval()
    images = torch.rand(3, 3, 32, 32) * 2 - 1
    with torch.no_grad():
        (before, identity), (after, same) = former(images), network(images)
    assert torch.equal(after["subject"][:, [2, 1]], before["subject"])
    assert torch.equal(identity, same)
    assert set(after) == {"subject", "color"}


def test_the_threshold_is_the_lowest_at_which_words_are_right_often_enough() -> None:
    """Of eight images, the reader is right on the four that it is sure of, and wrong on the others."""
    logits = {name: torch.zeros(8, len(words)) for name, words in READER_NAMES.items()}
    labels = torch.zeros(8, len(READER_NAMES), dtype=torch.long)
    for name, values in logits.items():
        values[:, 0] = 40.0  # sure, and right
        if name == "subject":
            values[4:] = -100.0
            values[4:, 1:3] = torch.tensor([0.5, 0.0])  # 1 / (1 + e^-0.5) = .62 for a wrong word
    labels[:, list(READER_NAMES).index("color")] = -1
    labels[0, list(READER_NAMES).index("color")] = 0
    limits, report = thresholds(logits, labels)
    assert limits["subject"] == 0.65
    assert report["subject"] == [0.5, 0.5, 1.0]
    assert (limits["color"], report["color"]) == (0.3, [1.0, 1.0, 1.0])  # of the one image that says it
    assert limits["style"] == 0.8


def test_an_unknown_style_is_never_said() -> None:
    logits = {name: torch.zeros(2, len(words)) for name, words in READER_NAMES.items()}
    logits["style"][:, READER_NAMES["style"].index(UNKNOWN)] = 40.0
    labels = torch.zeros(2, len(READER_NAMES), dtype=torch.long)
    assert thresholds(logits, labels)[1]["style"][1] == 0.0


def test_a_restyled_image_keeps_its_place_and_its_range() -> None:
    torch.manual_seed(1)
    images = -torch.ones(2 * len(FAMILIES), 3, 128, 128)
    images[:, :, 40:90, 40:90] = 1.0
    made = restyle(images)
    assert made.shape == images.shape
    assert made.min() >= -1
    assert made.max() <= 1
    inside, outside = made[:, :, 50:80, 50:80].mean((1, 2, 3)), made[:, :, :30].mean((1, 2, 3))
    edges = made.diff(dim=3).abs().amax(1)[:, 50:80, 36:44].mean((1, 2))
    flat = made.diff(dim=3).abs().amax(1)[:, 50:80, 55:75].mean((1, 2))
    seen = (inside - outside).abs() + (edges - flat).abs()
    assert float((seen > 0.05).float().mean()) == pytest.approx(1.0, abs=0.15)
