"""Scores of made-up results, computed by hand."""

import pytest
import torch

from unziplora_cli.config import Words
from unziplora_cli.evaluation import metrics
from unziplora_cli.evaluation.denoising import DenoisingResult
from unziplora_cli.evaluation.prompts import evaluation_prompts
from unziplora_cli.evaluation.scorers import ImageScore


class FakeScorer:
    name = "fake"
    notes = ()

    def __init__(self, subject="fox", style="neon"):
        self.subject, self.style = subject, style

    def score(self, images, prompts):
        raise NotImplementedError


PROMPTS = evaluation_prompts(Words("fox", "neon"), "fox", ["fox"], 2, 0)


def image_scores(**by_purpose):
    """One score per prompt: the given ones of a purpose in turn, the rest perfect."""
    given = {purpose: list(scores) for purpose, scores in by_purpose.items()}
    style = {"content": "photo", "context": "photo", "style": "neon", "combine": "neon"}
    return [
        given[prompt.purpose].pop(0)
        if given.get(prompt.purpose)
        else ImageScore(prompt.subject, style[prompt.purpose], prompt.context, 1.0)
        for prompt in PROMPTS
    ]


def by_name(scores, base_scores, scorer=None):
    records = metrics.image_scores(PROMPTS, scores, base_scores, scorer or FakeScorer())
    return {record.name: record for record in records}


def test_perfect_images_have_the_best_scores():
    for record in by_name(image_scores(), image_scores()).values():
        assert record.value == float(record.higher_is_better), record.name


def test_each_fault_changes_its_own_score_alone():
    perfect = {name: record.value for name, record in by_name(image_scores(), image_scores()).items()}

    def changed(**faults):
        records = by_name(image_scores(**faults), image_scores())
        return {name: record.value for name, record in records.items() if record.value != perfect[name]}

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


def test_base_is_scored_by_the_same_criteria():
    base = image_scores(combine=[ImageScore("fox", "photo", "", 1.0)] * 2)
    record = by_name(image_scores(), base)[metrics.BOTH_COMBINED]
    assert (record.value, record.base) == (1.0, 0.0)


def test_photo_has_no_style_that_could_leak():
    records = by_name(image_scores(), image_scores(), FakeScorer(style="photo"))
    assert metrics.STYLE_LEAKED not in records
    assert metrics.CONTENT_AS_PHOTO not in records


def test_similarities_are_scored_only_if_measured():
    assert metrics.STYLE_SIMILARITY not in by_name(image_scores(), image_scores())
    measured = [
        ImageScore(score.subject, score.style, score.context, 1.0, 0.5, 0.25) for score in image_scores()
    ]
    records = by_name(measured, measured)
    assert records[metrics.STYLE_SIMILARITY].value == 0.5
    assert records[metrics.PROMPT_SIMILARITY].value == 0.25


def test_losses_are_means_compared_sample_by_sample():
    def result(loss, prediction=0.0, error=None):
        return DenoisingResult(torch.tensor(loss), torch.full((2, 1), prediction), error)

    results = {
        "full": result([0.1, 0.3], 4.0, 0.2),
        "full base": result([0.3, 0.5], 0.0, 0.8),
        "content": result([0.4, 0.4]),
        "content base": result([0.4, 0.4]),
        "style": result([0.6, 0.4]),
        "style base": result([0.5, 0.3]),
        "one file": result([0.1, 0.3], 3.0),
    }
    records = {record.name: record for record in metrics.denoising_scores(results)}
    full = records["loss, full prompt"]
    assert (full.value, full.base) == (pytest.approx(0.2), pytest.approx(0.4))
    assert "50% below the base's (± 0%), below it for 2 of 2 samples" in full.about
    assert "25% above the base's" in records["loss, style alone"].about
    assert records[metrics.RECONSTRUCTION_ERROR].value == 0.2
    assert records[metrics.RECONSTRUCTION_ERROR].base == 0.8
    assert records[metrics.ONE_FILE_GAP].value == pytest.approx(0.25)
