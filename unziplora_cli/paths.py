"""Folders on this machine, and everything else that is read from environment variables."""

import os
from pathlib import Path

HOME_VARIABLE = "UNZIPLORA_HOME"


def home(override: Path | None = None) -> Path:
    """The home folder: `override`, otherwise $UNZIPLORA_HOME, otherwise the user's data folder."""
    if override is None:
        variable = os.environ.get(HOME_VARIABLE)
        if not variable:
            from platformdirs import user_data_path

            return user_data_path("unziplora", appauthor=False)
        override = Path(variable)
    return override.expanduser().absolute()


def projects_dir(home: Path) -> Path:
    """The folder of all projects in a home."""
    return home / "projects"


def hub_cache() -> Path:
    """The Hugging Face cache: $HF_HUB_CACHE, otherwise `hub` in $HF_HOME or ~/.cache/huggingface."""
    cache = os.environ.get("HF_HUB_CACHE") or os.environ.get("HUGGINGFACE_HUB_CACHE")
    if cache:
        return Path(cache).expanduser()
    user_cache = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(os.environ.get("HF_HOME") or f"{user_cache}/huggingface").expanduser() / "hub"


def hub_is_offline() -> bool:
    """Whether $HF_HUB_OFFLINE forbids the network, by huggingface_hub's rules."""
    return os.environ.get("HF_HUB_OFFLINE", "0").upper() in ("1", "ON", "YES", "TRUE")


def set_openmp_wait_policy() -> None:
    """Let waiting OpenMP threads sleep instead of spin; call before torch is imported.

    Spinning threads occupy the cores that working threads need: on a busy two-core machine a training step
    took 13 s instead of 0.1 s. Variables that the user has set are kept.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    os.environ.setdefault("GOMP_SPINCOUNT", "0")
    os.environ.setdefault("KMP_BLOCKTIME", "0")


def process_count() -> int:
    """How many processes train together, as ``torchrun`` or ``accelerate launch`` started them."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def process_rank() -> int:
    """The number of this process among them; the first one, 0, writes the files."""
    return int(os.environ.get("RANK", "0"))


def leave_process_group() -> tuple[int, int, int]:
    """Make this process train by itself; returns its rank, the number of processes and its local rank."""
    rank, count, local = (int(os.environ.pop(name)) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"))
    return rank, count, local
