"""Which device and number format to compute with, CPU threads, and out-of-memory errors."""

from __future__ import annotations

import gc
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import nn

from unziplora_cli.errors import OutOfMemory, Remedy, UsageError

SMALL_NETWORK = 50_000_000
"""Number of parameters below which a second CPU thread slows a step down."""

_THREADS = torch.get_num_threads()

PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
PRECISION_NAMES = {dtype: name for name, dtype in PRECISIONS.items()}


class SlowPathWarning(UserWarning):
    """An acceleration cannot be used on this machine; the message says which one and why."""


def pick_device(name: str = "auto") -> torch.device:
    """``auto`` (the first NVIDIA or AMD GPU, else Apple's, else the CPU), ``cpu``, ``cuda``, ``cuda:1`` or
    ``mps``.

    Raises UsageError if this machine has no such device.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise UsageError(
            f"There is no device {name!r}.", Remedy("Use auto, cpu, cuda, cuda:N or mps.")
        ) from error
    mps = int(torch.backends.mps.is_available())
    count = {"cpu": 1, "cuda": torch.cuda.device_count(), "mps": mps}.get(device.type, 0)
    if (device.index or 0) >= count:
        raise UsageError(
            f"This machine has no device {name!r} that torch {torch.__version__} can use.",
            Remedy("Let the program choose", settings={"device": "auto"}),
            Remedy("See what this machine can do", command="doctor"),
        )
    return device


def pick_dtype(precision: str, device: torch.device) -> torch.dtype:
    """``fp32``, ``bf16``, ``fp16``, or ``auto``: bf16 on a GPU that supports it, else fp16 there; fp32 on
    other devices.

    Raises UsageError for fp16 on a CPU.
    """
    if precision == "auto":
        if device.type != "cuda":
            return torch.float32
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16
    if precision == "fp16" and device.type == "cpu":
        raise UsageError("fp16 needs a GPU.", Remedy("Use fp32 or bf16", settings={"precision": "fp32"}))
    return PRECISIONS[precision]


def reset_threads() -> None:
    """Use as many CPU threads as the program started with.

    Sums depend on the number of threads in the last bit: call this before work whose bits must be the same in
    every process, whatever the process did before.
    """
    torch.set_num_threads(_THREADS)


def limit_threads(network: nn.Module) -> None:
    """Compute a small network with one CPU thread, unless ``OMP_NUM_THREADS`` is set.

    Its operations are so short that synchronizing threads costs more than a second thread saves: on two
    cores, a step of the built-in base takes 0.09 s with one thread and 0.25 s with two.
    """
    small = sum(parameter.numel() for parameter in network.parameters()) < SMALL_NETWORK
    if small and "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(1)


def empty_cache(device: torch.device) -> None:
    """Return the memory of unreferenced tensors to ``device``."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


@contextmanager
def memory_guard(advice: str | Callable[[], Sequence[Remedy]]) -> Iterator[None]:
    """Raise OutOfMemory with ``advice`` if an allocation fails, on the GPU or in main memory."""
    try:
        yield
    except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
        where = "device" if isinstance(error, torch.OutOfMemoryError | MemoryError) else "machine"
        if where == "machine" and "can't allocate memory" not in str(error):
            raise
        remedies = (Remedy(advice),) if isinstance(advice, str) else advice()
        raise OutOfMemory(f"The {where} does not have enough memory for this.", *remedies) from error
