import pytest
import torch

from unziplora_cli.accel.device import memory_guard, pick_device, pick_dtype
from unziplora_cli.cli._errors import hint
from unziplora_cli.errors import OutOfMemory, UsageError


@pytest.fixture
def gpus(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> int:
    """A machine with this many CUDA devices and no Apple GPU."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: request.param > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: request.param)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    return int(request.param)


@pytest.mark.parametrize(
    ("gpus", "name", "expected"),
    [(0, "auto", "cpu"), (2, "auto", "cuda"), (2, "cpu", "cpu"), (2, "cuda:1", "cuda:1")],
    indirect=["gpus"],
)
def test_pick_device(gpus: int, name: str, expected: str) -> None:
    assert pick_device(name) == torch.device(expected)


@pytest.mark.parametrize(
    ("gpus", "name"),
    [(0, "cuda"), (2, "cuda:2"), (0, "mps"), (0, "gpu"), (0, "xpu"), (0, "")],
    indirect=["gpus"],
)
def test_a_missing_device_is_explained(gpus: int, name: str) -> None:
    with pytest.raises(UsageError) as error:
        pick_device(name)
    assert "auto" in hint(error.value)


@pytest.mark.parametrize(
    ("precision", "device", "bf16", "dtype"),
    [
        ("auto", "cpu", True, torch.float32),
        ("auto", "mps", True, torch.float32),
        ("auto", "cuda", True, torch.bfloat16),
        ("auto", "cuda", False, torch.float16),
        ("fp16", "cuda", True, torch.float16),
        ("bf16", "cpu", True, torch.bfloat16),
    ],
)
def test_pick_dtype(
    monkeypatch: pytest.MonkeyPatch, precision: str, device: str, bf16: bool, dtype: torch.dtype
) -> None:
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: bf16)
    assert pick_dtype(precision, torch.device(device)) == dtype


def test_fp16_on_a_cpu_raises() -> None:
    with pytest.raises(UsageError, match="GPU"):
        pick_dtype("fp16", torch.device("cpu"))


@pytest.mark.parametrize("size", [2**60, 2**50])
def test_a_failed_allocation_raises_out_of_memory(size: int) -> None:
    with pytest.raises(OutOfMemory) as error, memory_guard("Generate less."):
        torch.empty(size, dtype=torch.uint8)
    assert hint(error.value) == "Generate less."


def test_other_errors_pass_through() -> None:
    with pytest.raises(RuntimeError, match="shapes"), memory_guard("Generate less."):
        raise RuntimeError("shapes do not fit")
