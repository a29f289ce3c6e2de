"""Where to compute, in which number format, and what to say when memory runs out."""

from __future__ import annotations

import gc
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import nn

from unziplora_cli.errors import OutOfMemory, Remedy, UsageError

SMALL_NETWORK = 50_000_000
"""Parameters below which a second thread slows a step down."""

_THREADS = torch.get_num_threads()

PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
PRECISION_NAMES = {dtype: name for name, dtype in PRECISIONS.items()}


def pick_device(name: str = "auto") -> torch.device:
    """``auto`` (the first GPU, else Apple's, else the CPU), ``cpu``, ``cuda``, ``cuda:1`` or ``mps``.

    Raises UsageError when this machine has no such device.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise UsageError(
            f"There is no device {name!r}.", hint="Use auto, cpu, cuda, cuda:N or mps."
        ) from error
    present = {
        "cpu": 1,
        "cuda": torch.cuda.device_count(),
        "mps": int(torch.backends.mps.is_available()),
    }.get(device.type, 0)
    if (device.index or 0) >= present:
        raise UsageError(
            f"This machine has no device {name!r} that torch {torch.__version__} can use.",
            hint="Use --device auto; `unziplora doctor` tells what this machine can do.",
        )
    return device


def pick_dtype(precision: str, device: torch.device) -> torch.dtype:
    """``fp32``, ``bf16``, ``fp16``, or ``auto``: bf16 on a GPU that has it, else fp16 there, fp32 elsewhere.

    Raises UsageError for fp16 away from a GPU.
    """
    if precision == "auto":
        if device.type != "cuda":
            return torch.float32
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16
    if precision == "fp16" and device.type == "cpu":
        raise UsageError("fp16 needs a GPU.", hint="Use --precision fp32 or bf16 on a CPU.")
    return PRECISIONS[precision]


def start_threads() -> None:
    """Compute with as many threads as the program began with.

    Sums depend on their number in the last bit: a work that is to give the same bits in every process begins
    with this, whatever the process did before.
    """
    torch.set_num_threads(_THREADS)


def settle_threads(network: nn.Module) -> None:
    """On a CPU, compute a small network with one thread, unless $OMP_NUM_THREADS says otherwise.

    Its operations are so short that waiting for a second thread costs more than that thread saves: on two
    cores a step of the built-in base takes 0.09 s with one thread, idle or busy, and 0.25 s with two.
    """
    small = sum(parameter.numel() for parameter in network.parameters()) < SMALL_NETWORK
    if small and "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(1)


def empty_cache(device: torch.device) -> None:
    """Collect garbage, then return the memory that torch caches but does not use to ``device``."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


@contextmanager
def memory_guard(advice: str | Callable[[], Sequence[Remedy]]) -> Iterator[None]:
    """Turn a failed allocation, on the GPU or in main memory, into OutOfMemory with ``advice``."""
    try:
        yield
    except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
        where = "device" if isinstance(error, torch.OutOfMemoryError | MemoryError) else "machine"
        if where == "machine" and "can't allocate memory" not in str(error):
            raise
        remedies = (Remedy(advice),) if isinstance(advice, str) else advice()
        raise OutOfMemory(f"The {where} has too little memory for this.", *remedies) from error
