"""Interrupted, resumed and diverged trainings on the tiny base, and the signals that stop them."""

import math
import os
import signal
from collections.abc import Callable, Generator
from pathlib import Path

import pytest

from tests.training.conftest import TrainingRun, assert_equal_results, run_training
from unziplora_cli.cli._errors import hint
from unziplora_cli.errors import Interrupted
from unziplora_cli.events import run
from unziplora_cli.training import batches
from unziplora_cli.training import step as step_module
from unziplora_cli.training.callbacks import read_history
from unziplora_cli.training.checkpoint import OtherTraining, TrainingState
from unziplora_cli.training.engine import train
from unziplora_cli.training.events import ColumnsChosen, Event, Notice, StepDone, TrainResult
from unziplora_cli.training.request import TrainRequest
from unziplora_cli.training.trainer import (
    STOP_SIGNALS,
    Diverged,
    stop_signals,
)

Make = Callable[..., TrainRequest]
Training = Generator[Event, None, TrainResult]


@pytest.fixture(scope="module")
def whole(make_request: Make, tmp_path_factory: pytest.TempPathFactory) -> TrainingRun:
    """A training of eight steps that nothing interrupts."""
    return run_training(make_request(tmp_path_factory.mktemp("whole")))


def press_ctrl_c(training: Training, after: int) -> TrainingRun:
    """Send SIGINT at the event of step ``after``."""
    events: list[Event] = []

    def on_event(event: Event) -> None:
        events.append(event)
        if isinstance(event, StepDone) and event.step == after:
            os.kill(os.getpid(), signal.SIGINT)

    return TrainingRun(events, run(training, on_event))


def kill(training: Training, after: int) -> list[StepDone]:
    """Abandon the training at the event of step ``after``, as if its process were killed."""
    steps = []
    for event in training:
        if isinstance(event, StepDone):
            steps.append(event)
            if event.step == after:
                break
    training.close()
    return steps


def checkpoints(folder: Path) -> list[str]:
    return sorted(path.stem for path in (folder / "checkpoints").glob("*.safetensors"))


@pytest.mark.parametrize("after", [1, 3, 5])
def test_resume_after_ctrl_c_gives_the_same_bits(
    after: int, whole: TrainingRun, make_request: Make, tmp_path: Path
) -> None:
    handler = signal.getsignal(signal.SIGINT)
    stopped = press_ctrl_c(train(make_request(tmp_path)), after)
    assert signal.getsignal(signal.SIGINT) is handler
    assert stopped.result.steps == after
    assert stopped.result.losses == whole.result.losses[:after]
    assert checkpoints(tmp_path) == [f"step-{after:06d}"]
    for chosen in stopped.only(ColumnsChosen):
        columns = sum(int((w.up != 0).any(dim=1).sum()) for w in stopped.result.content.values())
        assert columns <= chosen.content

    resumed = run_training(make_request(tmp_path, request={"resume": True}))
    assert Notice(f"Resuming after step {after}.") in resumed.events
    assert resumed.only(StepDone)[0].step == after + 1
    assert_equal_results(resumed.result, whole.result)
    assert [row.step for row in read_history(tmp_path / "history.csv")] == list(range(1, 9))


def press_ctrl_c_twice_in(
    function: str, after: int, monkeypatch: pytest.MonkeyPatch
) -> Callable[[Event], None]:
    """After step ``after``, send two signals in the next call of ``function`` of the training step."""
    original = getattr(step_module, function)

    def interrupted(*arguments: object) -> None:
        for _ in range(2):
            os.kill(os.getpid(), signal.SIGINT)
        original(*arguments)

    def on_event(event: Event) -> None:
        if isinstance(event, StepDone) and event.step == after:
            monkeypatch.setattr(step_module, function, interrupted)

    return on_event


def test_second_ctrl_c_between_optimizer_and_clamp_keeps_no_half_updated_weights(
    whole: TrainingRun, make_request: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    on_event = press_ctrl_c_twice_in("clamp_merge_weights", 3, monkeypatch)
    with pytest.raises(Interrupted, match=r"in the middle of step 4.*resume after step 2"):
        run(train(make_request(tmp_path, checkpoint_every=2)), on_event)
    assert checkpoints(tmp_path) == ["step-000002"]

    monkeypatch.undo()
    resumed = run_training(make_request(tmp_path, request={"resume": True}))
    assert Notice("Resuming after step 2.") in resumed.events
    assert_equal_results(resumed.result, whole.result)


def test_second_ctrl_c_before_the_update_keeps_the_finished_steps(
    whole: TrainingRun, make_request: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    on_event = press_ctrl_c_twice_in("set_mode", 3, monkeypatch)
    result = run(train(make_request(tmp_path)), on_event)
    assert result.losses == whole.result.losses[:3]
    assert checkpoints(tmp_path) == ["step-000003"]

    monkeypatch.undo()
    assert_equal_results(run_training(make_request(tmp_path, request={"resume": True})).result, whole.result)


def test_resume_skips_a_damaged_checkpoint(whole: TrainingRun, make_request: Make, tmp_path: Path) -> None:
    kill(train(make_request(tmp_path, checkpoint_every=2)), 7)
    assert checkpoints(tmp_path) == ["step-000004", "step-000006"]
    last = tmp_path / "checkpoints/step-000006.safetensors"
    damaged = bytearray(last.read_bytes())
    damaged[len(damaged) // 2] ^= 1
    last.write_bytes(damaged)
    resumed = run_training(make_request(tmp_path, request={"resume": True}))
    (note,) = (notice.text for notice in resumed.only(Notice) if "damaged" in notice.text)
    assert "step-000006.safetensors is damaged and skipped: its SHA-256 differs" in note
    assert Notice("Resuming after step 4.") in resumed.events
    assert_equal_results(resumed.result, whole.result)


@pytest.mark.parametrize(
    "settings",
    [
        {"destyle_images": 2, "destyle_strength": 0.1, "destyle_prompt": "a photo of {content}"},
        {
            "lr_scheduler": "cosine",
            "grad_accumulation": 2,
            "importance_steps": 2,
            "accumulate_importance": True,
        },
        {"snr_gamma": 5.0, "batch_size": 2, "column_separation": False, "gradient_checkpointing": True},
    ],
)
def test_resume_gives_the_same_bits_with_other_settings(
    settings: dict[str, object], make_request: Make, tmp_path: Path
) -> None:
    expected = run_training(make_request(tmp_path / "whole", **settings)).result
    press_ctrl_c(train(make_request(tmp_path / "cut", **settings)), 6)
    resumed = run_training(make_request(tmp_path / "cut", request={"resume": True}, **settings))
    assert_equal_results(resumed.result, expected)


def test_full_disk_skips_a_checkpoint_and_continues(
    whole: TrainingRun, make_request: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(self: TrainingState, path: Path, step: int, identity: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(TrainingState, "save", full)
    training = run_training(make_request(tmp_path, checkpoint_every=4))
    (note,) = (notice.text for notice in training.only(Notice) if "checkpoint" in notice.text)
    assert "after step 4 cannot be written: [Errno 28] No space left" in note
    assert_equal_results(training.result, whole.result)


@pytest.mark.parametrize(
    ("request_changes", "settings", "difference"),
    [
        ({}, {"rank": 8}, "rank is 8, was 4"),
        ({"tool_version": "0.2"}, {}, "version of unziplora is 0.2, was 0.1"),
    ],
)
def test_resume_refuses_a_checkpoint_of_another_training(
    make_request: Make,
    tmp_path: Path,
    request_changes: dict[str, str],
    settings: dict[str, int],
    difference: str,
) -> None:
    kill(train(make_request(tmp_path, checkpoint_every=2)), 3)
    request = make_request(tmp_path, request={"resume": True, **request_changes}, **settings)
    with pytest.raises(OtherTraining, match=difference):
        run_training(request)


def test_resume_accepts_lower_learning_rates(make_request: Make, tmp_path: Path) -> None:
    settings = {"lr_scheduler": "linear", "checkpoint_every": 4}
    steps = kill(train(make_request(tmp_path, **settings)), 6)
    before = {step.step: step.learning_rates for step in steps}
    request = make_request(tmp_path, request={"resume": True}, **settings, content_lr=1e-4)
    after = {step.step: step.learning_rates for step in run_training(request).only(StepDone)}
    assert after[5] == pytest.approx((before[5][0] / 10, *before[5][1:]))
    assert after[6] == pytest.approx((before[6][0] / 10, *before[6][1:]))


def test_nan_loss_stops_the_training(
    make_request: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    add_noise = batches.add_noise
    calls = iter(range(100))
    monkeypatch.setattr(
        batches, "add_noise", lambda *a: add_noise(*a) * (math.nan if next(calls) == 4 else 1.0)
    )
    with pytest.raises(Diverged, match="NaN or infinite at step 5") as caught:
        run_training(make_request(tmp_path, save_every=4, checkpoint_every=3, request={"name": "fox"}))
    advice = "Resume after step 3 with lower learning rates: unziplora train --resume fox --content-lr 0.0003"
    assert hint(caught.value).startswith(advice)
    assert str(tmp_path / "saved/step-000004") in hint(caught.value)
    assert (tmp_path / "saved/step-000004/content.safetensors").exists()
    assert [row.step for row in read_history(tmp_path / "history.csv")] == [1, 2, 3, 4]

    monkeypatch.setattr(batches, "add_noise", add_noise)
    request = make_request(tmp_path, content_lr=3e-4, style_lr=7e-4, request={"resume": True})
    assert run_training(request).result.steps == 8


@pytest.fixture
def default_signals() -> Generator[None, None, None]:
    """Every signal that stops a training has its default handler, whatever the parent process ignores."""
    before = {number: signal.signal(number, signal.SIG_DFL) for number in STOP_SIGNALS}
    signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("number", STOP_SIGNALS)
def test_first_signal_is_recorded_and_the_second_raises(number: int, default_signals: None) -> None:
    before = signal.getsignal(number)
    with stop_signals() as received:
        os.kill(os.getpid(), number)
        assert received == [number]
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    assert signal.getsignal(number) is before


@pytest.mark.skipif(not hasattr(signal, "SIGHUP"), reason="the system has no terminals that hang up")
def test_an_ignored_signal_stays_ignored() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup does
    try:
        with stop_signals() as received:
            os.kill(os.getpid(), signal.SIGHUP)
            assert not received
    finally:
        signal.signal(signal.SIGHUP, before)
