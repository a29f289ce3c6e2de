"""The prompts of an evaluation."""

from collections import Counter

from unziplora_cli import resources
from unziplora_cli.config import Words
from unziplora_cli.evaluation.prompts import CONTEXTS, PURPOSES, SUBJECTS, evaluation_prompts
from unziplora_cli.evaluation.scorers import Classifier
from unziplora_cli.prompts import with_article

WORDS = Words("cat", "pop art")


def test_every_purpose_has_its_prompts():
    prompts = evaluation_prompts(WORDS, "cat", ["cat"], 5, 0)
    assert Counter(prompt.purpose for prompt in prompts) == dict.fromkeys(PURPOSES, 5)
    for prompt in prompts:
        if prompt.purpose in ("content", "context"):
            assert prompt.text == f"a monadikos cat {prompt.context}".strip()
        if prompt.purpose == "style":
            assert prompt.text == f"{with_article(prompt.subject)} in pop art style"
        if prompt.purpose == "combine":
            assert prompt.text == "a monadikos cat in pop art style"


def test_style_prompts_exclude_the_projects_subject():
    others = {
        prompt.subject
        for prompt in evaluation_prompts(WORDS, "red fox", ["red", "fox", "cat"], 20, 0)
        if prompt.purpose == "style"
    }
    assert others == set(SUBJECTS) - {"fox", "cat"}


def test_seed_alone_decides_the_prompts():
    assert evaluation_prompts(WORDS, "cat", ["cat"], 4, 1) == evaluation_prompts(WORDS, "cat", ["cat"], 4, 1)
    first, second = (
        evaluation_prompts(WORDS, "cat", ["cat"], 4, 1),
        evaluation_prompts(WORDS, "cat", ["cat"], 4, 2),
    )
    assert {prompt.context for prompt in first} != {prompt.context for prompt in second}
    assert len({prompt.seed for prompt in first if prompt.purpose == "content"}) == 4


def test_classifier_knows_every_subject_and_context():
    names = Classifier.load(resources.classifier()).names
    assert set(SUBJECTS) <= set(names["subject"])
    assert set(CONTEXTS) <= set(names["context"])
