"""The reader of images: which words it says, and its files."""

import copy

import pytest
import torch
from PIL import Image

from unziplora_cli import resources
from unziplora_cli.evaluation import reader as module
from unziplora_cli.evaluation.reader import NONE, UNKNOWN, Reader, other_subject, read_image
from unziplora_cli.evaluation.scorers import Classifier

NAMES = {"subject": ("fox", "cat"), "second_color": (NONE, "white"), "style": ("photo", UNKNOWN)}


@pytest.fixture
def reader():
    torch.manual_seed(0)
    network = Classifier(NAMES, size=32, widths=(8, 8, 8, 8)).eval()
    for head in network.heads.values():
        torch.nn.init.zeros_(head.weight)
        torch.nn.init.zeros_(head.bias)
    return Reader(network, dict.fromkeys(NAMES, 0.7))


def say(reader, field, logit):
    """Let the reader prefer the second class of a field by ``logit``, whatever the image."""
    with torch.no_grad():
        reader.network.heads[field].bias[1] = logit


def test_a_word_is_said_with_its_probability_from_its_threshold_on(reader):
    say(reader, "subject", 1.0)
    image = Image.new("RGB", (48, 32), "orange")
    assert reader.read(image) == {"subject": ("cat", pytest.approx(0.73105857, abs=1e-6))}  # 1 / (1 + 1 / e)
    reader.thresholds["subject"] = 0.74
    assert reader.read(image) == {}


def test_an_unknown_style_and_the_colour_of_no_marking_are_never_words(reader):
    say(reader, "style", 9.0)
    say(reader, "second_color", -9.0)
    assert reader.read(Image.new("RGB", (32, 32))) == {}


def test_another_subject_is_one_that_makes_the_expected_unlikely(reader, monkeypatch):
    monkeypatch.setattr(module, "_subject_network", lambda: reader.network)
    image = Image.new("RGB", (48, 32), "orange")
    say(reader, "subject", 2.19)  # the fox has a probability of 1 / (1 + e^2.19) = 0.1007
    assert other_subject(image, "fox") == ""
    say(reader, "subject", 2.21)  # 0.0989
    assert other_subject(image, "fox") == "cat"
    assert other_subject(image, "cat") == ""
    assert other_subject(image, "dragon") == ""  # no class of this network


@pytest.mark.parametrize(
    ("network_logit", "reader_logit", "subject"),
    [
        (0.6, 9.0, "cat"),  # the network is sure, whatever the reader says
        (-0.1, -9.0, "fox"),  # it prefers the fox with .525, too
        (-2.3, 9.0, "fox"),  # sure of the fox, so the reader's cat is not said
    ],
)
def test_the_subject_is_what_the_network_of_all_subjects_is_sure_of(
    reader, monkeypatch, network_logit, reader_logit, subject
):
    network = copy.deepcopy(reader)
    say(network, "subject", network_logit)
    say(reader, "subject", reader_logit)
    monkeypatch.setattr(module, "_subject_network", lambda: network.network)
    monkeypatch.setattr(module, "_shipped", lambda: reader)
    assert read_image(Image.new("RGB", (32, 32)))["subject"][0] == subject


def test_a_reader_is_believed_where_the_network_is_unsure_but_does_not_object(reader, monkeypatch):
    """Of three subjects the network gives none a half; it allows the cat (.33), not a fourth word."""
    torch.manual_seed(0)
    network = Classifier({"subject": ("owl", "fox", "cat")}, size=32, widths=(8, 8, 8, 8)).eval()
    torch.nn.init.zeros_(network.heads["subject"].weight)
    torch.nn.init.zeros_(network.heads["subject"].bias)
    monkeypatch.setattr(module, "_subject_network", lambda: network)
    monkeypatch.setattr(module, "_shipped", lambda: reader)
    assert "subject" not in read_image(Image.new("RGB", (32, 32)))  # neither of them is sure
    say(reader, "subject", 9.0)
    assert read_image(Image.new("RGB", (32, 32)))["subject"] == ("cat", pytest.approx(1 / 3, abs=1e-6))
    network.heads["subject"].bias.data[2] = -3.0
    assert "subject" not in read_image(Image.new("RGB", (32, 32)))


def test_saved_reader_reads_the_same(reader, tmp_path):
    torch.nn.init.normal_(reader.network.heads["subject"].weight, std=3.0)
    reader.thresholds["subject"] = 0.0
    image = Image.effect_noise((40, 40), 90).convert("L")
    reader.save(tmp_path)
    loaded = Reader.load(tmp_path)
    assert loaded.thresholds == reader.thresholds
    assert loaded.network.widths == (8, 8, 8, 8)
    (word, probability), (other, similar) = (r.read(image)["subject"] for r in (reader, loaded))
    assert word == other
    assert similar == pytest.approx(probability, abs=0.02)  # float16 weights


@pytest.mark.parametrize(
    ("name", "color", "marking"),
    [
        ("fox", "orange", "dotted"),
        ("cat", "purple", "striped"),
        ("lantern", "red", "striped"),
        ("house", "pink", "dotted"),
    ],
)
def test_shipped_reader_names_the_individuals_of_the_sample_images(name, color, marking):
    sample = resources.samples()[name]
    with Image.open(sample.image) as image:
        fields = read_image(image)
    assert {field: fields[field][0] for field in ("subject", "color", "marking")} == {
        "subject": sample.subject,
        "color": color,
        "marking": marking,
    }
    assert "style" not in fields  # all four are unknown to the base, and so to the reader
