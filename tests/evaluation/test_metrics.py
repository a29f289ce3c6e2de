"""Scores of pictures that are made up, counted by hand."""

import pytest
import torch

from unziplora_cli.config import Words
from unziplora_cli.evaluation import metrics
from unziplora_cli.evaluation.denoising import DenoisingResult
from unziplora_cli.evaluation.prompts import evaluation_prompts
from unziplora_cli.evaluation.scorers import ImageScore


class Scorer:
    name = "somebody"
    notes = ()

    def __init__(self, subject="fox", style="neon"):
        self.subject, self.style = subject, style

    def look(self, pictures, texts):
        raise NotImplementedError


SHOTS = evaluation_prompts(Words("fox", "neon"), ("fox",), 2, 0)


def image_scores(**by_purpose):
    """One view per shot; a purpose's image_scores in turn, the rest perfect."""
    left = {purpose: list(given) for purpose, given in by_purpose.items()}
    style = {"content": "photo", "context": "photo", "style": "neon", "combine": "neon"}
    return [
        left[shot.purpose].pop(0)
        if left.get(shot.purpose)
        else ImageScore(shot.subject, style[shot.purpose], shot.context, 1.0)
        for shot in SHOTS
    ]


def by_name(ours, base, scorer=None):
    return {each.name: each for each in metrics.score_records(SHOTS, ours, base, scorer or Scorer())}


def test_pictures_that_are_all_right_have_the_best_scores():
    found = by_name(image_scores(), image_scores())
    for score in found.values():
        assert score.value == float(score.higher_is_better), score.name


def test_each_fault_moves_its_own_score_alone():
    perfect = {name: score.value for name, score in by_name(image_scores(), image_scores()).items()}

    def changed(**faults):
        after = {name: score.value for name, score in by_name(image_scores(**faults), image_scores()).items()}
        return {name: value for name, value in after.items() if value != perfect[name]}

    assert changed(content=[ImageScore("cat", "photo", "", 1.0)]) == {metrics.CONTENT_KEPT: 0.75}
    assert changed(content=[ImageScore("fox", "neon", "", 1.0)]) == {
        metrics.STYLE_LEAKED: 0.25,
        metrics.CONTENT_AS_PHOTO: 0.75,
    }
    assert changed(content=[ImageScore("fox", "clay", "", 1.0)]) == {metrics.CONTENT_AS_PHOTO: 0.75}
    assert changed(content=[ImageScore("fox", "photo", "", 0.5)]) == {metrics.IDENTITY: 0.75}
    assert changed(context=[ImageScore("fox", "photo", "nowhere", 1.0)]) == {metrics.CONTEXT_FOLLOWED: 0.5}
    assert changed(style=[ImageScore("fox", "neon", "", 1.0)]) == {
        metrics.SUBJECT_LEAKED: 0.5,
        metrics.OTHER_SUBJECTS: 0.5,
    }
    assert changed(style=[ImageScore("moon", "neon", "", 1.0)]) == {metrics.OTHER_SUBJECTS: 0.5}
    assert changed(combine=[ImageScore("fox", "photo", "", 1.0)]) == {metrics.BOTH_COMBINED: 0.5}


def test_the_base_is_scored_by_the_same_questions():
    found = by_name(image_scores(), image_scores(combine=[ImageScore("fox", "photo", "", 1.0)] * 2))
    assert (found[metrics.BOTH_COMBINED].value, found[metrics.BOTH_COMBINED].base) == (1.0, 0.0)


def test_a_photo_has_no_style_that_could_leak():
    found = by_name(image_scores(), image_scores(), Scorer(style="photo"))
    assert metrics.STYLE_LEAKED not in found
    assert metrics.CONTENT_AS_PHOTO not in found


def test_likenesses_stand_there_only_when_the_viewer_has_a_sense_for_them():
    assert metrics.STYLE_LIKENESS not in by_name(image_scores(), image_scores())
    with_sense = [
        ImageScore(each.subject, each.style, each.context, 1.0, 0.5, 0.25) for each in image_scores()
    ]
    found = by_name(with_sense, with_sense)
    assert (found[metrics.STYLE_LIKENESS].value, found[metrics.PROMPT_LIKENESS].value) == (0.5, 0.25)


def test_losses_are_means_and_compared_draw_by_draw():
    def told(loss, prediction=0.0, rebuilt=None):
        return DenoisingResult(torch.tensor(loss), torch.full((2, 1), prediction), rebuilt)

    found = {
        "full": told([0.1, 0.3], 4.0, 0.2),
        "full base": told([0.3, 0.5], 0.0, 0.8),
        "content": told([0.4, 0.4]),
        "content base": told([0.4, 0.4]),
        "style": told([0.6, 0.4]),
        "style base": told([0.5, 0.3]),
        "one file": told([0.1, 0.3], 3.0),
    }
    by = {score.name: score for score in metrics.denoising_scores(found)}
    full = by["loss, full prompt"]
    assert (full.value, full.base) == (pytest.approx(0.2), pytest.approx(0.4))
    assert "50% below the base's (± 0%), below it on 2 of 2 draws" in full.about
    assert "25% above the base's" in by["loss, style alone"].about
    assert (by[metrics.RECONSTRUCTION_ERROR].value, by[metrics.RECONSTRUCTION_ERROR].base) == (0.2, 0.8)
    assert by[metrics.ONE_FILE_GAP].value == pytest.approx(0.25)
