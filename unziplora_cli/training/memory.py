"""How much memory a training has taken, and how much it could take."""

from __future__ import annotations

import sys

import torch

from unziplora_cli.training.plan import CONTEXT


def peak_memory(device: torch.device) -> int:
    """The most bytes in use so far: torch's on a GPU, the whole process's on the CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if device.type == "mps":
        return torch.mps.driver_allocated_memory()
    if sys.platform == "win32":
        import psutil

        return int(psutil.Process().memory_info().peak_wset)
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # kilobytes; bytes on macOS
    return peak if sys.platform == "darwin" else peak * 1024


def free_memory(device: torch.device) -> int:
    """The bytes that a training could take of ``device``: what nobody else holds."""
    import psutil

    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return free + torch.cuda.memory_reserved(device) + int(CONTEXT)
    own = psutil.Process().memory_info().rss if device.type == "cpu" else 0
    return int(psutil.virtual_memory().available) + own


def total_memory(device: torch.device) -> int:
    """All bytes of ``device``."""
    import psutil

    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[1])
    return int(psutil.virtual_memory().total)
