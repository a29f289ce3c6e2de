"""Whole trainings on the tiny base."""

import itertools
import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from accelerate.state import AcceleratorState
from PIL import Image

from tests.training.conftest import TrainingRun, assert_equal_results, run_training
from unziplora_cli.adapters.lora_file import read_lora
from unziplora_cli.adapters.merge_weights import read_merge
from unziplora_cli.cli._errors import hint
from unziplora_cli.config import Prompts
from unziplora_cli.errors import OutOfMemory, UsageError
from unziplora_cli.report.contact_sheet import Layout
from unziplora_cli.training import callbacks, inputs
from unziplora_cli.training.callbacks import read_history
from unziplora_cli.training.engine import train
from unziplora_cli.training.events import (
    ColumnsChosen,
    Destyled,
    Notice,
    Phase,
    Progress,
    Saved,
    StepDone,
    Validated,
)
from unziplora_cli.training.request import TrainRequest

Make = Callable[..., TrainRequest]
PROJECTION = "mid_block.attentions.0.transformer_blocks.0.attn1.to_q"


def read_image(path: Path) -> Image.Image:
    with Image.open(path) as file:
        return file.copy()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("run")


@pytest.fixture(scope="module")
def full_run(make_request: Make, folder: Path) -> TrainingRun:
    """A training of eight steps with validation images and saved LoRAs."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(callbacks, "VALIDATION_STEPS", 2)
        return run_training(make_request(folder, validate_every=6, validation_images=2, save_every=4))


def test_phases_come_in_order(full_run: TrainingRun) -> None:
    assert [phase.name for phase in full_run.only(Phase)] == [
        "read images",
        "encode prompts",
        "encode images",
        "load U-Net",
        "train",
        "finish",
    ]


def test_every_step_yields_an_event(full_run: TrainingRun) -> None:
    steps = full_run.only(StepDone)
    assert [step.step for step in steps] == list(range(1, 9))
    explore, separate = "explore", "separate"
    assert [step.phase for step in steps] == [*[explore] * 2, *[separate] * 3, explore, *[separate] * 2]
    assert all(step.total == 8 and math.isfinite(step.loss) and step.grad_norm > 0 for step in steps)
    assert steps[0].learning_rates == (1e-3, 2e-3, 5e-3)
    assert full_run.result.losses == tuple(step.loss for step in steps)


def test_overlap_counts_while_separated(full_run: TrainingRun) -> None:
    for step in full_run.only(StepDone):
        assert (step.overlap is not None) == (step.phase == "separate")
        if step.overlap is not None:
            assert step.loss == pytest.approx(step.reconstruction + 0.5 * step.overlap)


def test_result_holds_only_chosen_columns(full_run: TrainingRun) -> None:
    result = full_run.result
    first, last = full_run.only(ColumnsChosen)
    assert (first.step, last.step) == (2, 6)
    for lora, columns in ((result.content, last.content), (result.style, last.style)):
        assert sum(int((weights.up != 0).any(dim=1).sum()) for weights in lora.values()) == columns
        assert all(weights.up.any() for weights in lora.values())
    assert last.total == sum(weights.up.shape[0] for weights in result.content.values())
    merges = torch.cat([*result.content_merge.values(), *result.style_merge.values()])
    assert merges.min() >= 0
    assert merges.max() <= 1
    assert merges.min() < 0.99  # merge weights learn wherever both branches hold a column
    assert last.shared > 0


def test_history_has_every_step(full_run: TrainingRun, folder: Path) -> None:
    rows = read_history(folder / "history.csv")
    steps = full_run.only(StepDone)
    assert [row.step for row in rows] == list(range(1, 9))
    for row, step in zip(rows, steps, strict=True):
        assert (row.loss, row.overlap, row.grad_norm) == (step.loss, step.overlap, step.grad_norm)
    merge = torch.cat([*full_run.result.content_merge.values()]).mean().item()
    assert rows[-1].merge_content == pytest.approx(merge)
    assert rows[0].merge_content == 1.0


def test_saved_loras_equal_the_training_so_far(full_run: TrainingRun, folder: Path) -> None:
    saved = full_run.only(Saved)
    assert [(event.step, event.folder) for event in saved] == [
        (4, folder / "saved/step-000004"),
        (8, folder / "saved/step-000008"),
    ]
    result = full_run.result
    merge = read_merge(saved[1].folder / "merge.safetensors")
    for branch in ("content", "style"):
        lora, expected = read_lora(saved[1].folder / f"{branch}.safetensors").lora, getattr(result, branch)
        for name, weights in lora.items():
            torch.testing.assert_close(weights.up, expected[name].up, rtol=1e-3, atol=1e-4)
        written = getattr(merge, branch)
        assert all(torch.equal(written[n], m) for n, m in getattr(result, f"{branch}_merge").items())
    early = read_lora(saved[0].folder / "content.safetensors").lora
    columns = sum(int((weights.up != 0).any(dim=1).sum()) for weights in early.values())
    assert 0 < columns <= full_run.only(ColumnsChosen)[0].content


def test_validation_images_differ_between_prompts_and_seeds(full_run: TrainingRun, folder: Path) -> None:
    (validated,) = full_run.only(Validated)
    names = [f"{name}-{i}.png" for name in ("full", "content", "style") for i in range(2)]
    assert [path.name for path in validated.paths] == [*names, "strip.png"]
    assert all(path.parent == folder / "validation/step-000006" for path in validated.paths)
    images = [read_image(path) for path in validated.paths]
    assert all(image.size == (64, 64) for image in images[:-1])
    assert len({image.tobytes() for image in images[:-1]}) == 6
    sheet, cell = images[-1], Layout().cell
    assert sheet.width > 2 * cell
    assert sheet.height > 3 * cell


def test_column_maps_are_written_without_a_tracker(full_run: TrainingRun, folder: Path) -> None:
    assert sorted(p.name for p in (folder / "logs").iterdir()) == [
        "columns-step-000002.png",
        "columns-step-000006.png",
    ]


def test_validation_and_saving_do_not_change_the_result(
    full_run: TrainingRun, make_request: Make, tmp_path: Path
) -> None:
    validation = Prompts("a rose on a beach in oil style, wide angle", "a rose", "oil style")
    plain = run_training(make_request(tmp_path, request={"validation": validation})).result
    assert_equal_results(plain, full_run.result)
    assert not (tmp_path / "saved").exists()
    assert not (tmp_path / "validation").exists()


def test_gradient_checkpointing_does_not_change_numbers(
    full_run: TrainingRun, make_request: Make, tmp_path: Path
) -> None:
    result = run_training(make_request(tmp_path, gradient_checkpointing=True)).result
    assert result.losses == pytest.approx(full_run.result.losses, rel=1e-5)


def test_bf16_is_close_to_fp32_in_the_same_process(
    full_run: TrainingRun, make_request: Make, tmp_path: Path
) -> None:
    result = run_training(make_request(tmp_path, precision="bf16")).result
    assert result.precision == "bf16"
    assert result.content[PROJECTION].up.dtype is torch.float32
    assert result.losses == pytest.approx(full_run.result.losses, rel=0.02)


def test_accelerate_still_has_the_private_reset() -> None:
    assert callable(AcceleratorState._reset_state), "two precisions in one process need it"


def test_without_column_separation_two_plain_loras_are_learned(make_request: Make, tmp_path: Path) -> None:
    training = run_training(make_request(tmp_path, steps=2, recalibrations=1, column_separation=False))
    result = training.result
    assert not training.only(ColumnsChosen)
    assert {step.phase for step in training.only(StepDone)} == {"joint"}
    for lora, merge in ((result.content, result.content_merge), (result.style, result.style_merge)):
        assert all((weights.up != 0).all() for weights in lora.values())
        assert all((weights == 1).all() for weights in merge.values())


def test_prompt_separation_changes_the_loss(
    full_run: TrainingRun, make_request: Make, tmp_path: Path
) -> None:
    request = make_request(tmp_path, steps=3, recalibrations=1, prompt_separation=False)
    assert run_training(request).result.losses[0] != full_run.result.losses[0]


def test_missing_class_images_are_generated_once(make_request: Make, tmp_path: Path) -> None:
    folder = tmp_path / "class"
    settings = {
        "steps": 2,
        "recalibrations": 1,
        "column_separation": False,
        "prior_images": 1,
        "prior_content": str(folder),
        "prior_content_prompt": "a fox",
    }
    first = run_training(make_request(tmp_path / "first", **settings))
    (image,) = folder.iterdir()
    assert read_image(image).size == (64, 64)
    assert Phase("generate class images", "1 missing") in first.events
    step = first.only(StepDone)[0]
    assert step.loss > step.reconstruction

    (folder / "._hidden.png").write_bytes(b"a resource fork of macOS")
    second = run_training(make_request(tmp_path / "second", **settings))
    assert sorted(folder.iterdir()) == [folder / "._hidden.png", image]
    assert not any(phase.name == "generate class images" for phase in second.only(Phase))
    assert second.result.losses == first.result.losses


def test_class_images_need_a_prompt(make_request: Make, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="prior-style") as caught:
        run_training(make_request(tmp_path, prior_style=str(tmp_path)))
    assert "--prior-style-prompt" in hint(caught.value)


def test_cropping_is_reported(make_request: Make, tmp_path: Path) -> None:
    wide = tmp_path / "wide.png"
    Image.new("RGB", (900, 100)).save(wide)
    events = train(make_request(tmp_path, request={"images": (wide,)}, crop="center"))
    notice = [next(events) for _ in range(2)][1]
    events.close()
    assert notice == Notice("wide.png: 900 x 100 px: only the middle is used, 11% of the image.")


def test_tied_scores_are_reported(make_request: Make, tmp_path: Path) -> None:
    settings = {"importance_score": "count", "strict_top": True, "importance_loss_scale": 2.0**40}
    events = train(make_request(tmp_path, **settings))
    notice = next(event for event in events if isinstance(event, Notice))
    events.close()
    assert "scores tie" in notice.text
    assert "magnitude" in notice.text


def test_out_of_memory_suggests_settings(
    make_request: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def out_of_memory(*arguments: object, **options: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(inputs, "load_unet", out_of_memory)
    with pytest.raises(OutOfMemory) as caught:
        run_training(make_request(tmp_path, rank=8, batch_size=2))
    assert "--gradient-checkpointing" in hint(caught.value)


def destyling(make_request: Make, folder: Path, *seen: str) -> TrainingRun:
    """A training on two destyled images, in which a reader sees what is listed ("": the subject)."""
    answers = iter(seen)
    settings = {"destyle_images": 2, "destyle_strength": 0.2, "destyled_only": True, "steps": 6}
    request = make_request(folder, request={"other_subject": lambda image: next(answers)}, **settings)
    run = run_training(request)
    assert list(answers) == []
    return run


def test_a_destyled_image_of_another_subject_is_generated_again(make_request: Make, folder: Path) -> None:
    """The second attempt goes further into noise, in more of the 20 steps, and replaces the first one."""
    run = destyling(make_request, folder / "again", "snail", "", "")
    steps = [event.steps for event in run.only(Progress) if event.name == "destyle"]
    (destyled,) = run.only(Destyled)
    assert len(destyled.paths) == 2
    assert [steps for steps, _ in itertools.groupby(steps)] == [4, 8, 12]
    assert not [notice for notice in run.only(Notice) if "snail" in notice.text]


def test_without_a_destyled_image_of_the_subject_content_learns_the_image(
    make_request: Make, folder: Path
) -> None:
    run = destyling(make_request, folder / "none", *["snail"] * 3, *["owl"] * 3)
    (notice,) = [notice for notice in run.only(Notice) if "snail" in notice.text]
    assert "show a snail and an owl, none shows the fox" in notice.text
    assert {"destyle": "FOLDER"} in [remedy.settings for remedy in notice.remedies]
    assert run.only(Destyled) == []
    assert not (folder / "none/destyled").exists()
    plain = run_training(make_request(folder / "plain", steps=6))
    assert_equal_results(run.result, plain.result)
