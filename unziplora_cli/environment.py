"""Keep OpenMP's threads from fighting over a busy machine."""

import os


def tame_openmp() -> None:
    """Make OpenMP's waiting threads sleep instead of spin; call before torch is imported.

    Spinning threads hold the cores that the working ones wait for: on a busy two-core machine a training step
    took 13 s instead of 0.1. What the user has set in the environment stays.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    os.environ.setdefault("GOMP_SPINCOUNT", "0")
    os.environ.setdefault("KMP_BLOCKTIME", "0")
