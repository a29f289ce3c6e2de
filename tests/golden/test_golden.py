"""Replays of the authors' reference implementation, within the tolerances stated by its recording."""

import json
from pathlib import Path

import pytest
import torch

from benchmarks.parity import Recording, Table, parity, recorded_batches, relative
from unziplora_cli.method.schedule import Action, Schedule

RECORDING = Path(__file__).parent / "golden_a"


@pytest.fixture(scope="module")
def table() -> Table:
    return parity(RECORDING)


def test_every_quantity_is_within_its_tolerance(table: Table) -> None:
    assert not [row for row in table.rows.values() if not row.passed]


def test_parity_without_acceleration() -> None:
    plain = parity(RECORDING, fuse=False)
    assert not [row for row in plain.rows.values() if not row.passed]


@pytest.mark.gpu
@pytest.mark.parametrize("capture", [False, True])
@pytest.mark.parametrize("fuse", [False, True])
def test_parity_on_a_gpu(fuse: bool, capture: bool) -> None:
    on_gpu = parity(RECORDING, "cuda", fuse=fuse, capture=capture)
    assert not [row for row in on_gpu.rows.values() if not row.passed]


def test_a_recorded_zero_is_compared_by_its_absolute_difference() -> None:
    """The recorded overlap penalty can be exactly 0."""
    assert relative(torch.tensor(0.0), torch.tensor(0.0)) == 0.0
    assert relative(torch.tensor(0.1), torch.tensor(0.0)) == pytest.approx(0.1)
    assert relative(torch.tensor(3.0), torch.tensor(4.0)) == 0.25


class TwoImagesPerBatch(Recording):
    """The recording with every batch doubled."""

    @property
    def inputs(self) -> dict[str, torch.Tensor]:
        inputs = self.tensors("inputs")
        for name in ("noisy_latents", "noise", "timesteps"):
            inputs[name] = torch.cat([inputs[name]] * 2, dim=1)
        return inputs


def test_all_steps_share_the_tensors_of_their_texts() -> None:
    """A CUDA graph reads texts where they were recorded, and must not meet texts that are new to it."""
    first, *others = recorded_batches(TwoImagesPerBatch(RECORDING), torch.float32)
    assert first.noisy.shape[0] == first.conditioning.full.shape[0] == 2
    assert all(batch.conditioning is first.conditioning for batch in others)


@pytest.mark.parametrize(
    "quantity",
    [
        "selection alone: mask columns differing",
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
        "imported, fused for generation, abs.",
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
