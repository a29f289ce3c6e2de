from collections import Counter

from unziplora_cli import resources
from unziplora_cli.config import Words
from unziplora_cli.evaluation.classifier import Classifier
from unziplora_cli.evaluation.prompts import CONTEXTS, PURPOSES, SUBJECTS, evaluation_prompts

WORDS = Words("cat", "pop art")


def test_every_purpose_gets_its_pictures_and_every_picture_its_words():
    prompts_to_score = evaluation_prompts(WORDS, ("cat",), 5, 0)
    assert Counter(shot.purpose for shot in prompts_to_score) == dict.fromkeys(PURPOSES, 5)
    for shot in prompts_to_score:
        if shot.purpose in ("content", "context"):
            assert shot.text == f"a monadikos cat {shot.context}".strip()
        if shot.purpose == "style":
            assert shot.text == f"a {shot.subject} in pop art style"
        if shot.purpose == "combine":
            assert shot.text == "a monadikos cat in pop art style"


def test_the_style_is_asked_for_other_subjects_only():
    others = {
        shot.subject
        for shot in evaluation_prompts(WORDS, ("red fox", "cat"), 20, 0)
        if shot.purpose == "style"
    }
    assert others == set(SUBJECTS) - {"fox", "cat"}


def test_the_seed_decides_the_scenes_and_nothing_else_does():
    assert evaluation_prompts(WORDS, ("cat",), 4, 1) == evaluation_prompts(WORDS, ("cat",), 4, 1)
    first, second = evaluation_prompts(WORDS, ("cat",), 4, 1), evaluation_prompts(WORDS, ("cat",), 4, 2)
    assert {shot.context for shot in first} != {shot.context for shot in second}
    assert len({shot.seed for shot in first if shot.purpose == "content"}) == 4


def test_the_judge_knows_everything_that_is_asked_for():
    names = Classifier.load(resources.classifier()).names
    assert set(SUBJECTS) <= set(names["subject"])
    assert set(CONTEXTS) <= set(names["context"])
