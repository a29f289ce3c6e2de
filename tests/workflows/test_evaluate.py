"""Evaluations of projects on the built-in base, scored by its classifier."""

import re
import shutil
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from PIL import Image

from unziplora_cli import resources
from unziplora_cli.config import ComputeConfig, GenerateConfig, Words, resolve
from unziplora_cli.errors import AdapterError, ProjectError
from unziplora_cli.evaluation import metrics as names
from unziplora_cli.evaluation.prompts import EvaluationConfig
from unziplora_cli.events import Event, Notice, Progress, run
from unziplora_cli.job import BaseRecord
from unziplora_cli.method.inject import adapted_projections
from unziplora_cli.method.lora import LoRAWeights
from unziplora_cli.projects import manifest
from unziplora_cli.projects.store import Project, ProjectStore
from unziplora_cli.prompts import make_prompts
from unziplora_cli.sdxl.base import resolve_base
from unziplora_cli.sdxl.load import load_unet
from unziplora_cli.training.checkpoint import write_adapters
from unziplora_cli.training.events import TrainResult
from unziplora_cli.workflows.evaluate import (
    SHEET,
    EvaluationRequest,
    EvaluationResult,
    evaluate,
    recorded_advice,
)

MINI = resolve_base("mini", offline=True)[0]


def request(project: Project) -> EvaluationRequest:
    generation, compute = GenerateConfig(steps=2, guidance=2.5), ComputeConfig(device="cpu", batch_size=4)
    return EvaluationRequest(
        project.name, MINI, EvaluationConfig(count=1, noise_samples=2), generation, compute
    )


def evaluate_now(
    request: EvaluationRequest, store: ProjectStore, on_event: Callable[[Event], object] = lambda event: None
) -> EvaluationResult:
    return run(evaluate(request, store), on_event)


@pytest.fixture
def store(isolated_home) -> ProjectStore:
    return ProjectStore(isolated_home)


@pytest.fixture
def fox(make_project: Callable[..., Project]) -> Callable[..., Project]:
    """Makes a project on the built-in base from the shipped fox, with the weights of every layer given."""

    def make(up: float, **changes: object) -> Project:
        words = Words("fox", "stained glass")
        project = make_project(
            "fox",
            words=words,
            prompts=make_prompts(words),
            base=BaseRecord("mini", "builtin", "mini", None, MINI.fingerprint),
            settings=resolve("mini", {}),
            **changes,
        )
        shutil.copyfile(resources.samples()["fox"].image, project.folder / "source.png")
        layers = adapted_projections(load_unet(MINI, device="cpu", dtype=torch.float32))
        generator = torch.Generator().manual_seed(0)
        lora, merge = {}, {}
        for name, linear in layers.items():
            down = torch.randn(2, linear.in_features, generator=generator)
            lora[name] = LoRAWeights(down, up * torch.randn(linear.out_features, 2, generator=generator))
            merge[name] = torch.ones(linear.out_features)
        same = {name: merge[name].clone() for name in merge}
        learned = TrainResult(lora, lora, merge, same, 0, (), 0.0, 0, "cpu", "fp32")
        write_adapters(project.folder, learned, {})
        return project

    return make


def test_zero_loras_score_as_the_base(fox, store):
    result = evaluate_now(request(fox(0.0, state="interrupted", steps_done=7)), store)
    assert "stopped after step 7 of" in result.evaluation.notes[0]
    scores = {score.name: score for score in result.evaluation.scores}
    for score in scores.values():
        if score.base is not None:
            assert score.value == score.base, score.name
    assert scores[names.ONE_FILE_GAP].value == 0.0
    assert scores[names.MERGE_OVERLAP].value == 0.0
    assert {(block.content, block.style) for block in result.evaluation.columns} == {(0, 0)}
    assert "hardly learned" in result.evaluation.diagnosis
    assert result.evaluation.images == 8
    assert result.evaluation.scorer == "the built-in classifier"


def test_destructive_loras_are_diagnosed_and_progress_is_reported(fox, store):
    project, events = fox(0.3), []
    result = evaluate_now(request(project), store, events.append)
    scores = {score.name: score for score in result.evaluation.scores}
    assert scores[names.LOSS["full"]].value > 2 * scores[names.LOSS["full"]].base
    assert scores[names.SHARED_COLUMNS].value == 1.0
    assert scores[names.MERGE_OVERLAP].value == pytest.approx(1.0)
    assert result.evaluation.diagnosis.startswith("Content and style were not separated")
    assert manifest.read(project.folder).evaluation == result.evaluation
    for advice in recorded_advice(result.project):
        assert [remedy.command for remedy in advice.remedies if remedy.command != "train"] == re.findall(
            "or generate with (content|style)-strength", advice.text
        )
    assert replace(manifest.read(project.folder), evaluation=None) == project.manifest
    with Image.open(project.folder / SHEET) as sheet:
        assert sheet.format == "PNG"
    assert list(dict.fromkeys(event.name for event in events)) == [
        "encode images",
        "load base",
        "measure loss",
        "generate",
        "score",
    ]
    progress = [event for event in events if isinstance(event, Progress)]
    assert all(0 <= event.done <= event.total for event in progress)


def test_same_seed_gives_the_same_evaluation(fox, store):
    project = fox(0.02)
    first, second = (evaluate_now(request(project), store).evaluation for _ in range(2))
    assert replace(first, created=second.created) == second


def test_project_in_use_is_refused(fox, store):
    project = fox(0.0)
    with store.lock("fox"), pytest.raises(ProjectError, match="in use"):
        evaluate_now(request(project), store)
    assert manifest.read(project.folder).evaluation is None


def test_project_without_training_image_is_refused(fox, store):
    project = fox(0.0, images=())
    with pytest.raises(ProjectError, match="no training image"):
        evaluate_now(request(project), store)


def test_damaged_weights_are_refused_and_nothing_is_written(fox, store):
    project = fox(float("inf"))
    with pytest.raises(AdapterError):
        evaluate_now(request(project), store)
    assert manifest.read(project.folder).evaluation is None
    assert not (project.folder / SHEET).exists()


def test_a_misread_image_is_said_before_anything_is_measured(fox, store):
    words = Words("cat", "stained glass")
    project, events = fox(0.0), []
    manifest.write(project.folder, replace(project.manifest, job=replace(project.job, words=words)))
    result = evaluate_now(request(project), store, events.append)
    assert isinstance(events[0], Notice)
    assert "it sees a fox" in events[0].text
    assert result.evaluation.diagnosis.startswith(events[0].text)
