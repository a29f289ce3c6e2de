"""What is said of made-up scores, and that all advice names options which exist."""

import re
from itertools import product

import pytest
import typer

from unziplora_cli.cli.app import app
from unziplora_cli.config import Words, resolve
from unziplora_cli.evaluation import metrics as names
from unziplora_cli.evaluation.diagnosis import RULES, SEPARATIONS, diagnose
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
SEEN = [name for name in GOOD if name != names.LOSS["full"]]


def said(changes=None, training=None, without=()):
    """The verdict and the advice on good scores with some changes."""
    values = {name: value for name, value in {**GOOD, **(changes or {})}.items() if name not in without}
    records = [ScoreRecord(name, *value, True, "", "share") for name, value in values.items()]
    return diagnose(records, training or TRAINING, WORDS, "my-fox")


def test_good_scores_need_no_advice():
    assert said() == ("Content and style came apart.", ())


@pytest.mark.parametrize(
    ("changes", "finding", "option"),
    [
        ({names.STYLE_LEAKED: (0.5, 0.0)}, "style leaks into content", "--steps 400"),
        ({names.SUBJECT_LEAKED: (0.5, 0.0)}, "the fox leaks into style", "--style-lr 0.00015"),
        ({names.CONTENT_KEPT: (0.5, 1.0)}, "loses the fox", "--content-lr 0.00015"),
        ({names.CONTENT_KEPT: (0.5, 0.5)}, "has not learned the fox", "--content-lr 0.0006"),
        ({names.STYLE_KEPT: (0.0, 0.0)}, "has not learned neon", "--steps 1200"),
        ({names.OTHER_SUBJECTS: (0.5, 1.0)}, "spoils other subjects", "--style-strength 0.7"),
        ({names.BOTH_COMBINED: (0.5, 0.0)}, "the two together", "--no-merge"),
        ({names.LOSS["full"]: (0.29, 0.3)}, "hardly learned", "--steps 1200"),
    ],
)
def test_a_bad_score_is_found_and_has_its_remedy(changes, finding, option):
    verdict, advice = said(changes)
    assert verdict.startswith("Content and style did not come apart: ")
    assert finding in verdict
    assert len(advice) == 1
    assert option in advice[0]


@pytest.mark.parametrize(
    ("changes", "finding"),
    [
        ({names.CONTEXT_FOLLOWED: (0.5, 1.0)}, "ignores where it is asked to be"),
        ({names.CONTENT_AS_PHOTO: (0.5, 1.0)}, "no plain photos"),
        ({names.IDENTITY: (0.5, 0.4)}, "this very fox is hardly recognised"),
        ({names.IDENTITY: (0.6, 0.4)}, "this very fox is recognised only in part"),
    ],
)
def test_a_minor_flaw_leaves_content_and_style_apart(changes, finding):
    verdict, advice = said(changes)
    assert verdict.startswith("Content and style came apart, but ")
    assert finding in verdict
    assert len(advice) == 1


def test_what_the_base_does_wrong_itself_is_no_fault_of_the_project():
    changes = {
        names.STYLE_LEAKED: (0.4, 0.3),
        names.CONTENT_AS_PHOTO: (0.5, 0.6),
        names.CONTEXT_FOLLOWED: (0.2, 0.2),
        names.OTHER_SUBJECTS: (0.4, 0.5),
        names.SUBJECT_LEAKED: (0.5, 0.5),
    }
    assert said(changes) == said()


def test_one_picture_of_four_is_not_held_against_a_project():
    assert said({names.OTHER_SUBJECTS: (0.75, 1.0), names.SUBJECT_LEAKED: (0.25, 0.0)}) == said()
    assert said({names.STYLE_KEPT: (0.75, 0.0), names.BOTH_COMBINED: (0.75, 0.0)}) == said()


def test_a_switched_off_separation_is_named_first():
    _, (advice,) = said({names.STYLE_LEAKED: (1.0, 0.0)}, {**TRAINING, "column_separation": False})
    assert advice.startswith("Style leaks into content: train without --no-column-separation; or try ")


def test_without_pictures_the_verdict_says_that_nobody_looked():
    verdict, advice = said(without=SEEN)
    assert verdict == (
        "The picture was learned (loss 67% below the base's). Nobody looked at drawn pictures."
    )
    assert advice == ()
    verdict, advice = said({names.LOSS["full"]: (0.3, 0.3)}, without=SEEN)
    assert verdict == "Not well: the picture was hardly learned."
    assert len(advice) == 1


def test_a_short_training_is_advised_to_be_longer_and_none_to_be_nothing():
    assert "--steps 100 " in said({names.STYLE_KEPT: (0.0, 0.0)}, {**TRAINING, "steps": 30})[1][0]
    assert "--steps 50 " in said({names.STYLE_LEAKED: (1.0, 0.0)}, {**TRAINING, "steps": 10})[1][0]


def test_echoes_are_advised_where_there_are_none():
    for wrong in ({names.STYLE_LEAKED: (1.0, 0.0)}, {names.IDENTITY: (0.5, 0.4)}):
        assert "--destyle-images 8 --destyled-only" in said(wrong)[1][0]
        assert "destyle" not in said(wrong, {**TRAINING, "destyle_images": 8})[1][0]


def test_a_manifest_without_settings_still_gets_a_verdict():
    assert said({names.STYLE_LEAKED: (1.0, 0.0)}, {"steps": 10})[1]


def test_no_two_pieces_of_advice_contradict_each_other():
    """Never a setting that is to go up for one reason and down for another, whatever is wrong together."""
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
    now = {"--steps": 600, "--content-lr": 3e-4, "--style-lr": 3e-4}
    for wrong in product((False, True), repeat=len(bad)):
        changes = {
            name: values for (name, values), is_wrong in zip(bad.items(), wrong, strict=True) if is_wrong
        }
        for option, value in now.items():
            asked = re.findall(rf"{option} ([\d.]*\d)", " ".join(said(changes)[1]))
            assert len({float(each) > value for each in asked}) <= 1, changes


def test_all_advice_names_options_that_exist_and_values_that_are_allowed():
    commands = typer.main.get_command(app).commands

    def options(command):
        return {name for each in commands[command].params for name in (*each.opts, *each.secondary_opts)}

    joint = {**TRAINING, **dict.fromkeys(SEPARATIONS, False), "column_ratio": 0.9}
    advice = []
    for name in SEEN:
        for value in ((0.0, 1.0), (1.0, 0.0), (0.0, 0.0), (0.3, 0.3)):
            for training in (TRAINING, joint):
                advice += said({name: value}, training)[1]
                advice += said({name: value, names.LOSS["full"]: (1.0, 1.0)}, training)[1]
    assert len({each.split(":")[0] for each in advice}) >= len(RULES)
    for sentence in advice:
        training, *drawing = re.split(r"unziplora (?=\w+ my-fox)", sentence)
        found = re.findall(r"(--[\w-]+)(?: ([\d.]*\d))?", training)
        assert {option for option, _ in found} <= options("train")
        resolve("paper", {option[2:].replace("-", "_"): float(value) if "." in value else int(value)
                          for option, value in found if value})  # fmt: skip
        for line in drawing:
            assert set(re.findall(r"--[\w-]+", line)) <= options(line.split()[0]) - {"--home"}


@pytest.mark.parametrize(("used", "advised"), [(0.8, 0.65), (0.2, 0.15), (0.15, None)])
def test_whom_the_echoes_lost_is_looked_for_nearer_to_the_picture(used: float, advised: float | None) -> None:
    training = {**TRAINING, "destyle_images": 8, "destyle_strength": used}
    verdict, advice = said({names.IDENTITY: (0.4, 0.35)}, training)
    assert "very fox" in verdict
    assert ("--destyle-strength" in advice[0]) == (advised is not None)
    assert advised is None or f"--destyle-strength {advised}" in advice[0]
