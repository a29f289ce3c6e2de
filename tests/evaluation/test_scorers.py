"""The shipped classifier as a scorer, on the shipped pictures."""

import pytest
from PIL import Image

from unziplora_cli import resources
from unziplora_cli.config import Words
from unziplora_cli.evaluation.scorers import ClassifierScorer


def scorer(picture: Image.Image, subject: str, style: str) -> ClassifierScorer:
    return ClassifierScorer(resources.classifier(), [picture], Words(subject, style))


@pytest.mark.parametrize("name", sorted(resources.samples()))
def test_the_judge_agrees_with_the_words_of_the_sample_pictures(name):
    sample = resources.samples()[name]
    with Image.open(sample.image) as picture:
        found = scorer(picture, sample.subject.title(), sample.style)
        (view,) = found.look([picture], [""])
    assert (found.subject, found.style, found.notes) == (sample.subject, sample.style, ())
    assert (view.subject, view.style) == (sample.subject, sample.style)
    assert view.identity == pytest.approx(1.0, abs=1e-4)


def test_words_that_the_judge_lacks_give_way_to_what_it_sees_and_it_says_so():
    with Image.open(resources.samples()["fox"].image) as picture:
        found = scorer(picture, "red panda", "tiffany lamp")
    assert (found.subject, found.style) == ("fox", "stained glass")
    assert 'no subject "red panda"' in found.notes[0]
    assert '"stained glass"' in found.notes[1]


def test_a_word_against_what_the_judge_sees_is_taken_but_noted():
    with Image.open(resources.samples()["fox"].image) as picture:
        found = scorer(picture, "teapot", "stained glass")
    assert found.subject == "teapot"
    assert len(found.notes) == 1
    assert "with care" in found.notes[0]


def test_another_individual_is_less_alike():
    samples = resources.samples()
    with Image.open(samples["fox"].image) as fox, Image.open(samples["lantern"].image) as lantern:
        found = scorer(fox, "fox", "stained glass")
        same, other = found.look([fox, lantern], ["", ""])
    assert same.identity > other.identity + 0.5
