"""Where things live on this machine, as functions of the environment."""

import os
from pathlib import Path

HOME_VARIABLE = "UNZIPLORA_HOME"


def home(override: Path | None = None) -> Path:
    """The folder that holds all projects: `override`, else $UNZIPLORA_HOME, else the user's data folder."""
    if override is None:
        from_environment = os.environ.get(HOME_VARIABLE)
        if not from_environment:
            from platformdirs import user_data_path

            return user_data_path("unziplora", appauthor=False)
        override = Path(from_environment)
    return override.expanduser().absolute()


def projects_dir(home: Path) -> Path:
    """The folder of all projects below a home."""
    return home / "projects"


def hub_cache() -> Path:
    """Hugging Face's own cache: $HF_HUB_CACHE, else `hub` in $HF_HOME, else in ~/.cache/huggingface."""
    given = os.environ.get("HF_HUB_CACHE") or os.environ.get("HUGGINGFACE_HUB_CACHE")
    if given:
        return Path(given).expanduser()
    cache = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(os.environ.get("HF_HOME") or f"{cache}/huggingface").expanduser() / "hub"


def set_openmp_wait_policy() -> None:
    """Make OpenMP's waiting threads sleep instead of spin; call before torch is imported.

    Spinning threads hold the cores that the working ones wait for: on a busy two-core machine a training step
    took 13 s instead of 0.1. What the user has set in the environment stays.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    os.environ.setdefault("GOMP_SPINCOUNT", "0")
    os.environ.setdefault("KMP_BLOCKTIME", "0")
