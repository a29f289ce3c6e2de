"""Whole trainings on the tiny base."""

import math
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from PIL import Image

from unziplora_cli.adapters.lora_file import read_lora
from unziplora_cli.adapters.merge_weights import read_merge
from unziplora_cli.cli._errors import hint
from unziplora_cli.errors import Interrupted, OutOfMemory, UsageError
from unziplora_cli.training import batches, callbacks, inputs
from unziplora_cli.training.checkpoint import OtherTraining, TrainingState
from unziplora_cli.training.engine import train
from unziplora_cli.training.events import (
    ColumnsChosen,
    Event,
    Finished,
    Notice,
    Phase,
    Saved,
    StepDone,
    Stopped,
    TrainResult,
    Validated,
)
from unziplora_cli.training.request import TrainRequest
from unziplora_cli.training.trainer import Diverged

Make = Callable[..., TrainRequest]


def finished(events: list[Event]) -> TrainResult:
    assert isinstance(events[-1], Finished)
    return events[-1].result


def opened(path: Path) -> Image.Image:
    with Image.open(path) as file:
        return file.copy()


def only(kind: type, events: list[Event]) -> list:
    return [event for event in events if isinstance(event, kind)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("run")


@pytest.fixture(scope="module")
def run(make_request: Make, folder: Path) -> list[Event]:
    """The events of eight steps with everything on."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(callbacks, "VALIDATION_STEPS", 2)
        request = make_request(folder, validate_every=6, validation_images=2, save_every=4)
        return list(train(request))


def test_phases_come_in_order(run: list[Event]) -> None:
    assert [phase.name for phase in only(Phase, run)] == [
        "read images",
        "encode prompts",
        "encode images",
        "load U-Net",
        "train",
        "finish",
    ]


def test_every_step_is_told(run: list[Event]) -> None:
    steps = only(StepDone, run)
    assert [step.step for step in steps] == list(range(1, 9))
    assert [step.phase for step in steps] == ["explore"] * 2 + ["separate"] * 3 + ["explore"] + [
        "separate"
    ] * 2
    assert all(step.total == 8 and math.isfinite(step.loss) and step.grad_norm > 0 for step in steps)
    assert steps[0].learning_rates == (1e-3, 2e-3, 5e-3)
    assert finished(run).losses == tuple(step.loss for step in steps)


def test_the_overlap_counts_while_separated(run: list[Event]) -> None:
    for step in only(StepDone, run):
        assert (step.overlap is not None) == (step.phase == "separate")
        if step.overlap is not None:
            assert step.loss == pytest.approx(step.reconstruction + 0.5 * step.overlap)


def test_result_holds_the_chosen_columns_alone(run: list[Event]) -> None:
    result = finished(run)
    first, last = only(ColumnsChosen, run)
    assert (first.step, last.step) == (2, 6)
    for lora, columns in ((result.content, last.content), (result.style, last.style)):
        assert sum(int((weights.up != 0).any(dim=1).sum()) for weights in lora.values()) == columns
        assert all(weights.up.any() for weights in lora.values())
    assert last.total == sum(weights.up.shape[0] for weights in result.content.values())
    merges = torch.cat([*result.content_merge.values(), *result.style_merge.values()])
    assert merges.min() >= 0
    assert merges.max() <= 1
    assert merges.min() < 0.99  # they learn wherever both branches hold a column
    assert last.shared > 0


def test_the_history_has_every_step(run: list[Event], folder: Path) -> None:
    rows = callbacks.read_history(folder / "history.csv")
    steps = only(StepDone, run)
    assert [row.step for row in rows] == list(range(1, 9))
    for row, step in zip(rows, steps, strict=True):
        assert (row.loss, row.overlap, row.grad_norm) == (step.loss, step.overlap, step.grad_norm)
    result = finished(run)
    merge = torch.cat([*result.content_merge.values()]).mean().item()
    assert rows[-1].merge_content == pytest.approx(merge)
    assert rows[0].merge_content == 1.0


def test_saved_models_are_the_training_so_far(run: list[Event], folder: Path) -> None:
    saved = only(Saved, run)
    assert [(s.step, s.folder) for s in saved] == [
        (4, folder / "saved/step-000004"),
        (8, folder / "saved/step-000008"),
    ]
    result = finished(run)
    merge = read_merge(saved[1].folder / "merge.safetensors")
    for branch in ("content", "style"):
        lora, expected = read_lora(saved[1].folder / f"{branch}.safetensors").lora, getattr(result, branch)
        for name, weights in lora.items():
            torch.testing.assert_close(weights.up, expected[name].up, rtol=1e-3, atol=1e-4)
        written = getattr(merge, branch)
        assert all(torch.equal(written[n], m) for n, m in getattr(result, f"{branch}_merge").items())
    early = read_lora(saved[0].folder / "content.safetensors").lora
    assert (
        0
        < sum(int((w.up != 0).any(dim=1).sum()) for w in early.values())
        <= only(ColumnsChosen, run)[0].content
    )


def test_validation_pictures_differ_between_prompts_and_seeds(run: list[Event], folder: Path) -> None:
    (validated,) = only(Validated, run)
    names = [f"{name}-{i}.png" for name in ("full", "content", "style") for i in range(2)]
    assert [path.name for path in validated.paths] == [*names, "strip.png"]
    assert all(path.parent == folder / "validation/step-000006" for path in validated.paths)
    pictures = [opened(path) for path in validated.paths]
    assert all(picture.size == (64, 64) for picture in pictures[:-1])
    assert len({picture.tobytes() for picture in pictures[:-1]}) == 6
    assert pictures[-1].size == (2 * 64 + 4, 3 * 64 + 8)


def test_column_maps_are_drawn_without_a_tracker(run: list[Event], folder: Path) -> None:
    assert sorted(p.name for p in (folder / "logs").iterdir()) == [
        "columns-step-000002.png",
        "columns-step-000006.png",
    ]


def test_validation_and_saving_change_nothing(run: list[Event], make_request: Make, tmp_path: Path) -> None:
    plain = finished(list(train(make_request(tmp_path))))
    assert plain.losses == finished(run).losses
    assert not (tmp_path / "saved").exists()
    assert not (tmp_path / "validation").exists()


def interrupted(events: Iterator[Event], after: int) -> tuple[list[Event], Interrupted]:
    """Press Ctrl-C once step ``after`` is told."""
    seen: list[Event] = []
    with pytest.raises(Interrupted) as caught:
        for event in events:
            seen.append(event)
            if isinstance(event, StepDone) and event.step == after:
                os.kill(os.getpid(), signal.SIGINT)
    return seen, caught.value


def assert_same(result: TrainResult, expected: TrainResult) -> None:
    """Two results are equal to the last bit."""
    assert result.losses == expected.losses
    for branch in ("content", "style"):
        for name, weights in getattr(expected, branch).items():
            assert torch.equal(weights.up, getattr(result, branch)[name].up)
            assert torch.equal(weights.down, getattr(result, branch)[name].down)
        for name, merge in getattr(expected, f"{branch}_merge").items():
            assert torch.equal(merge, getattr(result, f"{branch}_merge")[name])


def checkpoints(folder: Path) -> list[str]:
    return sorted(path.stem for path in (folder / "checkpoints").glob("*.safetensors"))


@pytest.mark.parametrize("after", [1, 3, 5])
def test_after_ctrl_c_a_training_goes_on_as_if_nothing_had_been(
    after: int, run: list[Event], make_request: Make, tmp_path: Path
) -> None:
    handler = signal.getsignal(signal.SIGINT)
    events, error = interrupted(train(make_request(tmp_path)), after)
    assert error.exit_code == 130
    assert signal.getsignal(signal.SIGINT) is handler
    stopped = events[-1]
    assert isinstance(stopped, Stopped)
    assert stopped.result.steps == after
    assert stopped.result.losses == finished(run).losses[:after]
    assert checkpoints(tmp_path) == [f"step-{after:06d}"]
    for chosen in only(ColumnsChosen, events):
        columns = sum(int((w.up != 0).any(dim=1).sum()) for w in stopped.result.content.values())
        assert columns <= chosen.content

    again = list(train(make_request(tmp_path, request={"resume": True})))
    assert Notice(f"Going on after step {after}.") in again
    assert only(StepDone, again)[0].step == after + 1
    assert_same(finished(again), finished(run))
    assert [row.step for row in callbacks.read_history(tmp_path / "history.csv")] == list(range(1, 9))


def test_a_training_goes_on_from_every_checkpoint(
    run: list[Event], make_request: Make, tmp_path: Path
) -> None:
    events = train(make_request(tmp_path, checkpoint_every=2))
    for event in events:
        if isinstance(event, StepDone) and event.step == 7:
            break  # the process was killed here
    events.close()
    assert checkpoints(tmp_path) == ["step-000004", "step-000006"]
    last = tmp_path / "checkpoints/step-000006.safetensors"
    damaged = bytearray(last.read_bytes())
    damaged[len(damaged) // 2] ^= 1
    last.write_bytes(damaged)
    again = list(train(make_request(tmp_path, request={"resume": True})))
    (note,) = (n.text for n in only(Notice, again) if "damaged" in n.text)
    assert "step-000006.safetensors is damaged and left out: its SHA-256 differs" in note
    assert Notice("Going on after step 4.") in again
    assert_same(finished(again), finished(run))


@pytest.mark.parametrize(
    "settings",
    [
        {"destyle_images": 2, "destyle_prompt": "a photo of {content}"},
        {
            "lr_scheduler": "cosine",
            "grad_accumulation": 2,
            "importance_steps": 2,
            "accumulate_importance": True,
        },
        {"snr_gamma": 5.0, "batch_size": 2, "column_separation": False, "gradient_checkpointing": True},
    ],
)
def test_every_kind_of_training_goes_on_to_the_same_bits(
    settings: dict[str, object], make_request: Make, tmp_path: Path
) -> None:
    whole = finished(list(train(make_request(tmp_path / "whole", **settings))))
    interrupted(train(make_request(tmp_path / "cut", **settings)), 6)
    again = train(make_request(tmp_path / "cut", request={"resume": True}, **settings))
    assert_same(finished(list(again)), whole)


def test_a_full_disk_costs_a_checkpoint_and_not_the_training(
    run: list[Event], make_request: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(self: TrainingState, path: Path, step: int, identity: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(TrainingState, "save", full)
    events = list(train(make_request(tmp_path, checkpoint_every=4)))
    (note,) = (n.text for n in only(Notice, events) if "checkpoint" in n.text)
    assert "after step 4 cannot be written: [Errno 28] No space left" in note
    assert_same(finished(events), finished(run))


@pytest.mark.parametrize(
    ("request_changes", "settings", "difference"),
    [
        ({}, {"rank": 8}, "rank is 8, was 4"),
        ({"tool_version": "0.2"}, {}, "version of unziplora is 0.2, was 0.1"),
    ],
)
def test_a_checkpoint_of_another_training_is_refused(
    make_request: Make,
    tmp_path: Path,
    request_changes: dict[str, str],
    settings: dict[str, int],
    difference: str,
) -> None:
    events = train(make_request(tmp_path, checkpoint_every=2))
    for event in events:
        if isinstance(event, StepDone) and event.step == 3:
            break
    events.close()
    request = make_request(tmp_path, request={"resume": True, **request_changes}, **settings)
    with pytest.raises(OtherTraining, match=difference):
        list(train(request))


def test_a_training_goes_on_with_lower_learning_rates(make_request: Make, tmp_path: Path) -> None:
    settings = {"lr_scheduler": "linear", "checkpoint_every": 4}
    events = train(make_request(tmp_path, **settings))
    before = {}
    for event in events:
        if isinstance(event, StepDone):
            before[event.step] = event.learning_rates
            if event.step == 6:
                break
    events.close()
    request = make_request(tmp_path, request={"resume": True}, **settings, content_lr=1e-4)
    after = {step.step: step.learning_rates for step in only(StepDone, list(train(request)))}
    assert after[5] == pytest.approx((before[5][0] / 10, *before[5][1:]))
    assert after[6] == pytest.approx((before[6][0] / 10, *before[6][1:]))


def test_a_loss_that_is_no_number_stops_the_training(
    make_request: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    add_noise = batches.add_noise
    calls = iter(range(100))
    monkeypatch.setattr(
        batches, "add_noise", lambda *a: add_noise(*a) * (math.nan if next(calls) == 4 else 1.0)
    )
    with pytest.raises(Diverged, match="no longer a number at step 5") as caught:
        list(train(make_request(tmp_path, save_every=4, checkpoint_every=3, request={"name": "fox"})))
    advice = "Go on after step 3 with lower learning rates: unziplora train --resume fox --content-lr 0.0003"
    assert hint(caught.value).startswith(advice)
    assert str(tmp_path / "saved/step-000004") in hint(caught.value)
    assert (tmp_path / "saved/step-000004/content.safetensors").exists()
    rows = callbacks.read_history(tmp_path / "history.csv")
    assert [row.step for row in rows] == [1, 2, 3, 4]

    monkeypatch.setattr(batches, "add_noise", add_noise)
    request = make_request(tmp_path, content_lr=3e-4, style_lr=7e-4, request={"resume": True})
    assert finished(list(train(request))).steps == 8


def test_gradient_checkpointing_changes_no_number(
    run: list[Event], make_request: Make, tmp_path: Path
) -> None:
    result = finished(list(train(make_request(tmp_path, gradient_checkpointing=True))))
    assert result.losses == pytest.approx(finished(run).losses, rel=1e-5)


def test_bf16_is_close_to_fp32(run: list[Event], make_request: Make, tmp_path: Path) -> None:
    result = finished(list(train(make_request(tmp_path, precision="bf16"))))
    assert result.precision == "bf16"
    assert result.content["mid_block.attentions.0.transformer_blocks.0.attn1.to_q"].up.dtype is torch.float32
    assert result.losses == pytest.approx(finished(run).losses, rel=0.02)


def test_without_column_separation_two_plain_loras_come_out(make_request: Make, tmp_path: Path) -> None:
    events = list(train(make_request(tmp_path, steps=2, recalibrations=1, column_separation=False)))
    result = finished(events)
    assert not only(ColumnsChosen, events)
    assert {step.phase for step in only(StepDone, events)} == {"joint"}
    for lora, merge in ((result.content, result.content_merge), (result.style, result.style_merge)):
        assert all((weights.up != 0).all() for weights in lora.values())
        assert all((weights == 1).all() for weights in merge.values())


def test_prompt_separation_matters(run: list[Event], make_request: Make, tmp_path: Path) -> None:
    joined = finished(list(train(make_request(tmp_path, prompt_separation=False))))
    assert joined.losses[0] != finished(run).losses[0]


def test_missing_class_pictures_are_drawn_once(make_request: Make, tmp_path: Path) -> None:
    folder = tmp_path / "class"
    settings = {
        "steps": 2,
        "recalibrations": 1,
        "column_separation": False,
        "prior_images": 1,
        "prior_content": str(folder),
        "prior_content_prompt": "a fox",
    }
    events = list(train(make_request(tmp_path / "first", **settings)))
    (drawn,) = folder.iterdir()
    assert opened(drawn).size == (64, 64)
    assert Phase("generate class images", "1 of 1") in events
    step = only(StepDone, events)[0]
    assert step.loss > step.reconstruction

    again = list(train(make_request(tmp_path / "second", **settings)))
    assert [*folder.iterdir()] == [drawn]
    assert not any(phase.name == "generate class images" for phase in only(Phase, again))
    assert finished(again).losses == finished(events).losses


def test_class_pictures_need_a_prompt(make_request: Make, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="--prior-style") as caught:
        list(train(make_request(tmp_path, prior_style=str(tmp_path))))
    assert "--prior-style-prompt" in hint(caught.value)


def test_the_user_learns_what_was_done_to_the_input(make_request: Make, tmp_path: Path) -> None:
    wide = tmp_path / "wide.png"
    Image.new("RGB", (900, 100)).save(wide)
    request = make_request(tmp_path, request={"images": (wide,)}, crop="center")
    events = train(request)
    seen = [next(events) for _ in range(2)]
    events.close()
    assert seen[1] == Notice("wide.png: 900 x 100 px: only the middle is used, 11% of the picture.")


def test_scores_that_tie_everywhere_are_told(make_request: Make, tmp_path: Path) -> None:
    settings = {"importance_score": "count", "strict_top": True, "importance_loss_scale": 2.0**40}
    events = train(make_request(tmp_path, **settings))
    notice = next(event for event in events if isinstance(event, Notice))
    events.close()
    assert "scores tie" in notice.text
    assert "--importance-score magnitude" in notice.text


def test_running_out_of_memory_says_what_to_change(
    make_request: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*arguments: object, **options: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(inputs, "load_unet", full)
    with pytest.raises(OutOfMemory) as caught:
        list(train(make_request(tmp_path, rank=8, batch_size=2)))
    assert hint(caught.value) == (
        "Try --preset low-vram, then --precision bf16, then --batch-size 1, then --resolution 32, "
        "then --rank 4."
    )
