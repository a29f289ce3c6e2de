"""The shipped classifier as a scorer, on the shipped pictures."""

import pytest
from PIL import Image

from unziplora_cli import resources
from unziplora_cli.config import Words
from unziplora_cli.evaluation.scorers import ClassifierScorer


def make_scorer(image: Image.Image, subject: str, style: str) -> ClassifierScorer:
    return ClassifierScorer(resources.classifier(), [image], Words(subject, style))


@pytest.mark.parametrize("name", sorted(set(resources.samples()) - {"octopus"}))
def test_classifier_names_the_sample_images(name):
    sample = resources.samples()[name]
    with Image.open(sample.image) as image:
        scorer = make_scorer(image, sample.subject.title(), sample.style)
        (score,) = scorer.score([image], [""])
    assert (scorer.subject, scorer.style, scorer.notes) == (sample.subject, sample.style, ())
    assert scorer.seen == sample.subject
    assert (score.subject, score.style) == (sample.subject, sample.style)
    assert score.identity == pytest.approx(1.0, abs=1e-4)


def test_classifier_names_the_subject_of_the_sample_that_an_artist_drew():
    sample = resources.samples()["octopus"]
    with Image.open(sample.image) as image:
        scorer = make_scorer(image, sample.subject, sample.style)
    assert (scorer.subject, scorer.seen) == ("octopus", "octopus")
    assert 'no style "emoji"' in scorer.notes[0]


def test_unknown_words_are_replaced_by_predicted_classes_with_a_note():
    with Image.open(resources.samples()["fox"].image) as image:
        scorer = make_scorer(image, "red panda", "tiffany lamp")
    assert (scorer.subject, scorer.style) == ("fox", "stained glass")
    assert 'no subject "red panda"' in scorer.notes[0]
    assert '"stained glass"' in scorer.notes[1]


def test_word_that_differs_from_the_prediction_is_kept_with_a_note():
    with Image.open(resources.samples()["fox"].image) as image:
        scorer = make_scorer(image, "teapot", "stained glass")
    assert (scorer.subject, scorer.seen) == ("teapot", "fox")
    assert len(scorer.notes) == 1
    assert "may be wrong" in scorer.notes[0]


def test_another_individual_is_less_similar():
    samples = resources.samples()
    with Image.open(samples["fox"].image) as fox, Image.open(samples["lantern"].image) as lantern:
        scorer = make_scorer(fox, "fox", "stained glass")
        same, other = scorer.score([fox, lantern], ["", ""])
    assert same.identity > other.identity + 0.5
