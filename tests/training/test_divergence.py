"""When a training is given up."""

import math

import pytest

from unziplora_cli.training.callbacks import DivergenceMonitor


def seen(watch: DivergenceMonitor, losses: list[float], grad_norm: float = 1.0) -> list[str | None]:
    return [watch.see(i, loss, loss, grad_norm) for i, loss in enumerate(losses, start=1)]


def test_a_training_that_learns_is_left_alone() -> None:
    noisy = [0.02, 0.9, 0.1, 1.8, 0.05] * 40  # one step's loss depends on how noisy its picture was
    assert not any(seen(DivergenceMonitor(), noisy))


def test_a_base_that_knows_nothing_may_be_trained() -> None:
    assert not any(seen(DivergenceMonitor(), [1.3, 1.1, 1.2] * 40))


def test_losing_what_the_base_knew_is_an_explosion() -> None:
    told = seen(DivergenceMonitor(), [0.2] * 50 + [1.5] * 50)
    first = next(i for i, sentence in enumerate(told, start=1) if sentence)
    assert 50 < first <= 70
    assert "exploded" in str(told[first - 1])
    assert f"up to step {first}" in str(told[first - 1])


@pytest.mark.parametrize(("loss", "norm"), [(math.nan, 1.0), (math.inf, 1.0), (0.1, math.nan)])
def test_no_number_ends_the_training_at_once(loss: float, norm: float) -> None:
    watch = DivergenceMonitor()
    assert not any(seen(watch, [0.1] * 4))
    assert watch.see(5, loss, loss, norm) == "The loss is no longer a number at step 5."


def test_an_overflow_in_fp16_is_left_to_the_scaler_unless_it_does_not_end() -> None:
    watch = DivergenceMonitor(scaled=True)
    assert not any(seen(watch, [0.1] * 3, grad_norm=math.inf))
    assert not any(seen(watch, [math.nan] * 19 + [0.1]))
    assert seen(watch, [math.nan] * 20)[-1] == "For 20 steps up to step 20 the loss was no number."
