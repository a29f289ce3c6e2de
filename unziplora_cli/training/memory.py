"""How much memory a training has taken."""

from __future__ import annotations

import sys

import torch


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
