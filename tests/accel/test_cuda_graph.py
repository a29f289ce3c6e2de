"""When a function is recorded and replayed. Nothing here needs a GPU: recordings are replaced."""

import warnings
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from unziplora_cli.accel import cuda_graph
from unziplora_cli.accel.cuda_graph import GraphedFunction
from unziplora_cli.accel.device import SlowPathWarning


def on_gpu(size: int, dtype: torch.dtype = torch.float32) -> Any:
    """What GraphedFunction needs to know of a tensor on a GPU."""
    return SimpleNamespace(shape=torch.Size([size]), dtype=dtype, device=torch.device("cuda"))


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A log of records and replays."""
    log: list[str] = []

    class FakeRecording:
        def __init__(self, function: object, inputs: object) -> None:
            log.append("record")

        def replay(self, inputs: object) -> torch.Tensor:
            log.append("replay")
            return torch.zeros(1)

    monkeypatch.setattr(cuda_graph, "Recording", FakeRecording)
    return log


def test_the_second_call_of_a_kind_records(calls: list[str]) -> None:
    graphed = GraphedFunction(lambda x: calls.append("call"))
    for x in [on_gpu(1), on_gpu(1), on_gpu(1), on_gpu(2), on_gpu(2), on_gpu(2, torch.float16), on_gpu(2)]:
        graphed(x)
    assert calls == ["call", "record", "replay", "replay", "call", "record", "replay", "call", "call"]


def test_nothing_is_recorded_on_a_cpu_or_when_disabled(calls: list[str]) -> None:
    for graphed, x in [
        (GraphedFunction(lambda x: calls.append("call")), torch.zeros(1)),
        (GraphedFunction(lambda x: calls.append("call"), enabled=False), on_gpu(1)),
    ]:
        for _ in range(3):
            graphed(x)
    assert calls == ["call"] * 6


def test_a_failed_recording_is_reported_once_with_its_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("operation not permitted when stream is capturing\nmore")

    monkeypatch.setattr(cuda_graph, "Recording", fail)
    graphed = GraphedFunction(lambda x: "called")
    assert graphed(on_gpu(1)) == "called"
    with pytest.warns(SlowPathWarning, match=r"\(operation not permitted when stream is capturing\)"):
        assert graphed(on_gpu(1)) == "called"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert graphed(on_gpu(1)) == "called"
