"""Replays of the authors' reference implementation, within the tolerances that its recording states."""

import json
from pathlib import Path

import pytest
import torch

from benchmarks.parity import Table, parity, relative
from unziplora_cli.method.schedule import Action, Schedule

RECORDING = Path(__file__).parent / "golden_a"


@pytest.fixture(scope="module", params=[True, False], ids=["accelerated", "plain"])
def table(request: pytest.FixtureRequest) -> Table:
    return parity(RECORDING, accelerate=request.param)


def test_zero_that_is_expected_is_compared_absolutely() -> None:
    assert relative(torch.tensor(0.0), torch.tensor(0.0)) == 0.0
    assert relative(torch.tensor(0.25), torch.tensor(0.0)) == 0.25


def test_every_quantity_is_within_its_tolerance(table: Table) -> None:
    exceeded = [row for row in table.rows.values() if not row.passed]
    assert not exceeded


@pytest.mark.parametrize(
    "quantity",
    [
        "choice alone: mask columns differing",
        "loss, rel.",
        "prediction, abs.",
        "gradient norm, rel.",
        "overlap penalty, rel.",
        "mask columns differing",
        "merge update of the whole run, rel. L2",
        "finished layers, both branches, abs.",
        "finished layers, one branch, abs.",
        "imported, both branches, abs.",
        "imported, 4 steps of sampling, abs.",
        "imported, one branch, against diffusers, abs.",
        "loss, rel. (float64)",
        "mask columns differing (float64)",
        "final merge weights, abs. (float64)",
    ],
)
def test_the_replay_compared(table: Table, quantity: str) -> None:
    assert quantity in table.rows


ACTIONS = {
    "activate_False": Action.OPEN,
    "accumulate": Action.SCORE,
    "select": Action.SELECT,
    "zeroout": Action.GATE,
}
EXAMPLES = {
    key: value
    for key, value in json.loads((RECORDING / "meta.json").read_text())["schedule_examples"].items()
    if key.startswith("max=")
}


@pytest.mark.parametrize("case", EXAMPLES)
def test_schedule_takes_the_recorded_actions(case: str) -> None:
    steps, windows, importance_steps = (int(part.split("=")[1]) for part in case.split(","))
    schedule = Schedule(steps, windows, importance_steps)
    expected = [ACTIONS[names.split("+")[0]] for names in EXAMPLES[case]]
    assert [schedule.action(step) for step in range(steps)] == expected
