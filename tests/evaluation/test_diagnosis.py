"""Diagnoses of made-up scores; all advice names settings that exist."""

import re
from itertools import product

import pytest

from unziplora_cli.config import Words, resolve, resolve_generate
from unziplora_cli.evaluation import metrics as names
from unziplora_cli.evaluation.diagnosis import SEPARATIONS, diagnose, misreading
from unziplora_cli.projects.manifest import ScoreRecord

WORDS = Words("fox", "neon")
TRAINING = {
    "steps": 600,
    "content_lr": 3e-4,
    "style_lr": 3e-4,
    "column_ratio": 0.1,
    "overlap_weight": 0.5,
    **dict.fromkeys(SEPARATIONS, True),
}
GOOD = {
    names.CONTENT_KEPT: (1.0, 1.0),
    names.STYLE_LEAKED: (0.0, 0.0),
    names.CONTENT_AS_PHOTO: (1.0, 1.0),
    names.CONTEXT_FOLLOWED: (1.0, 1.0),
    names.IDENTITY: (0.8, 0.4),
    names.STYLE_KEPT: (1.0, 0.0),
    names.SUBJECT_LEAKED: (0.0, 0.0),
    names.OTHER_SUBJECTS: (1.0, 1.0),
    names.BOTH_COMBINED: (1.0, 0.0),
    names.LOSS["full"]: (0.1, 0.3),
}
IMAGE_SCORES = [name for name in GOOD if name != names.LOSS["full"]]


def diagnosis(changes=None, training=None, without=()):
    """Summary and advice for good scores with some changes."""
    values = {name: value for name, value in {**GOOD, **(changes or {})}.items() if name not in without}
    records = [ScoreRecord(name, *value, True, "", "share") for name, value in values.items()]
    result = diagnose(records, training or TRAINING, WORDS)
    return result.summary, tuple(problem.advice for problem in result.problems)


def test_good_scores_need_no_advice():
    assert diagnosis() == ("Content and style were separated.", ())


@pytest.mark.parametrize(
    ("changes", "problem", "setting"),
    [
        ({names.STYLE_LEAKED: (0.5, 0.0)}, "style leaks into content", "steps 400"),
        ({names.SUBJECT_LEAKED: (0.5, 0.0)}, "the fox leaks into style", "style-lr 0.00015"),
        ({names.CONTENT_KEPT: (0.5, 1.0)}, "loses the fox", "content-lr 0.00015"),
        ({names.CONTENT_KEPT: (0.5, 0.5)}, "has not learned the fox", "content-lr 0.0006"),
        ({names.STYLE_KEPT: (0.0, 0.0)}, "has not learned neon", "steps 1200"),
        ({names.OTHER_SUBJECTS: (0.5, 1.0)}, "loses other subjects", "style-strength 0.7"),
        ({names.BOTH_COMBINED: (0.5, 0.0)}, "both LoRAs together", "no-merge"),
        ({names.LOSS["full"]: (0.29, 0.3)}, "hardly learned", "steps 1200"),
    ],
)
def test_bad_score_is_diagnosed_with_advice(changes, problem, setting):
    summary, advice = diagnosis(changes)
    assert summary.startswith("Content and style were not separated: ")
    assert problem in summary
    assert len(advice) == 1
    assert setting in advice[0]


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({names.CONTEXT_FOLLOWED: (0.5, 1.0)}, "ignores the place in the prompt"),
        ({names.CONTENT_AS_PHOTO: (0.5, 1.0)}, "no longer plain photos"),
        ({names.IDENTITY: (0.5, 0.4)}, "this individual fox is hardly recognized"),
        ({names.IDENTITY: (0.6, 0.4)}, "this individual fox is only partly recognized"),
    ],
)
def test_minor_problem_leaves_content_and_style_separated(changes, problem):
    summary, advice = diagnosis(changes)
    assert summary.startswith("Content and style were separated, but ")
    assert problem in summary
    assert len(advice) == 1


def test_failures_of_the_base_are_not_blamed_on_the_loras():
    changes = {
        names.STYLE_LEAKED: (0.4, 0.3),
        names.CONTENT_AS_PHOTO: (0.5, 0.6),
        names.CONTEXT_FOLLOWED: (0.2, 0.2),
        names.OTHER_SUBJECTS: (0.4, 0.5),
        names.SUBJECT_LEAKED: (0.5, 0.5),
    }
    assert diagnosis(changes) == diagnosis()


def test_one_image_of_four_is_no_problem():
    assert diagnosis({names.OTHER_SUBJECTS: (0.75, 1.0), names.SUBJECT_LEAKED: (0.25, 0.0)}) == diagnosis()
    assert diagnosis({names.STYLE_KEPT: (0.75, 0.0), names.BOTH_COMBINED: (0.75, 0.0)}) == diagnosis()


def test_disabled_separation_is_named_first():
    _, (advice,) = diagnosis({names.STYLE_LEAKED: (1.0, 0.0)}, {**TRAINING, "column_separation": False})
    assert advice.startswith("Style leaks into content: train again with column-separation or steps 400 or ")


def test_summary_without_images():
    summary, advice = diagnosis(without=IMAGE_SCORES)
    assert summary == ("The image was learned (loss 67% below the base's). No images were scored.")
    assert advice == ()
    summary, advice = diagnosis({names.LOSS["full"]: (0.3, 0.3)}, without=IMAGE_SCORES)
    assert summary == "The image was hardly learned. No images were scored."
    assert len(advice) == 1


def test_advised_steps_are_at_least_50():
    assert "steps 100 " in diagnosis({names.STYLE_KEPT: (0.0, 0.0)}, {**TRAINING, "steps": 30})[1][0]
    assert "steps 50 " in diagnosis({names.STYLE_LEAKED: (1.0, 0.0)}, {**TRAINING, "steps": 10})[1][0]


def test_destyling_is_advised_if_it_was_off():
    for wrong in ({names.STYLE_LEAKED: (1.0, 0.0)}, {names.IDENTITY: (0.5, 0.4)}):
        assert "destyle-images 8 and destyled-only" in diagnosis(wrong)[1][0]
        assert "destyle" not in diagnosis(wrong, {**TRAINING, "destyle_images": 8})[1][0]


def test_manifest_without_settings_has_a_diagnosis():
    assert diagnosis({names.STYLE_LEAKED: (1.0, 0.0)}, {"steps": 10})[1]


def test_advice_never_contradicts_itself():
    """No setting is to be raised for one problem and lowered for another, whatever the combination."""
    bad = {
        names.CONTENT_KEPT: (0.5, 0.5),
        names.STYLE_LEAKED: (0.5, 0.0),
        names.CONTENT_AS_PHOTO: (0.5, 1.0),
        names.CONTEXT_FOLLOWED: (0.5, 1.0),
        names.IDENTITY: (0.4, 0.4),
        names.STYLE_KEPT: (0.0, 0.0),
        names.SUBJECT_LEAKED: (0.5, 0.0),
        names.OTHER_SUBJECTS: (0.5, 1.0),
        names.BOTH_COMBINED: (0.5, 0.0),
        names.LOSS["full"]: (0.3, 0.3),
    }
    now = {"steps": 600, "content-lr": 3e-4, "style-lr": 3e-4}
    for wrong in product((False, True), repeat=len(bad)):
        changes = {
            name: values for (name, values), is_wrong in zip(bad.items(), wrong, strict=True) if is_wrong
        }
        for setting, value in now.items():
            advised = re.findall(rf"\b{setting} ([\d.]*\d)", " ".join(diagnosis(changes)[1]))
            assert len({float(number) > value for number in advised}) <= 1, changes


def test_all_advice_names_settings_and_values_that_are_allowed():
    separated = {**TRAINING, **dict.fromkeys(SEPARATIONS, False), "column_ratio": 0.9}
    advice = []
    for name in IMAGE_SCORES:
        for value in ((0.0, 1.0), (1.0, 0.0), (0.0, 0.0), (0.3, 0.3)):
            for training in (TRAINING, separated):
                advice += diagnosis({name: value}, training)[1]
                advice += diagnosis({name: value, names.LOSS["full"]: (1.0, 1.0)}, training)[1]
    assert len({sentence.split(":")[0] for sentence in advice}) >= 11  # all problems occurred

    def settings(text):
        return [
            (name.replace("-", "_"), (float(value) if "." in value else int(value)) if value else True)
            for name, value in re.findall(r"(?:with|or|and) ([a-z-]+)(?: ([\d.]*\d))?", text)
        ]

    for sentence in advice:
        training, _, generation = sentence.partition(": ")[2].partition(", or generate ")
        if "evaluate again" in training:
            continue
        assert training.startswith("train again with ")
        for name, value in settings(training):
            resolve("paper", {name: value})
        for name, value in settings(generation):
            assert name == "no_merge" or resolve_generate("paper", {name: value})


@pytest.mark.parametrize(("used", "advised"), [(0.8, 0.65), (0.2, 0.15), (0.15, None)])
def test_lower_destyle_strength_is_advised_for_a_lost_individual(used: float, advised: float | None) -> None:
    training = {**TRAINING, "destyle_images": 8, "destyle_strength": used}
    summary, advice = diagnosis({names.IDENTITY: (0.4, 0.35)}, training)
    assert "individual fox" in summary
    assert ("destyle-strength" in advice[0]) == (advised is not None)
    assert advised is None or f"destyle-strength {advised}" in advice[0]
    by_a_model = diagnosis({names.IDENTITY: (0.4, 0.35)}, {**training, "destyle": "model"})[1]
    assert "destyle" not in by_a_model[0]  # it has no strength


@pytest.mark.parametrize(
    ("seen", "subject", "says"),
    [
        ("rocket", "cat", "it sees a rocket"),
        ("cat", "Cat", ""),
        ("cat", "tabby cat", ""),
        ("cat", "caterpillar", "it sees a cat"),
        ("fire engine", "fire  engine", ""),
    ],
)
def test_an_image_that_the_base_cannot_read_is_said(seen, subject, says):
    assert (says in misreading(seen, subject)) if says else misreading(seen, subject) == ""
