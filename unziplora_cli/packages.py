"""Optional packages: which settings need one, whether it is here, and how this program was installed."""

import importlib.util
from functools import cache
from pathlib import Path
from typing import Literal

from unziplora_cli.config import TrainConfig
from unziplora_cli.errors import Remedy, UsageError

OPTIMIZERS = {"adamw8bit": ("bitsandbytes", "bnb"), "prodigy": ("prodigyopt", "prodigy")}
TRACKERS = {"tensorboard": ("tensorboard", "tensorboard"), "wandb": ("wandb", "wandb")}
"""The package and the extra of each choice that needs one."""

Installer = Literal["pipx", "uv tool", "uv", "pip"]
PYTORCH_INDEX = "https://download.pytorch.org/whl"
TORCH_BUILDS = {
    "NVIDIA, driver 580 or later": "cu130",
    "NVIDIA, older driver or a GPU before Turing": "cu126",
    "AMD, on Linux": "rocm7.2",
    "Apple": "",
    "none": "cpu",
}
"""The build of torch for each kind of GPU: a folder of PyTorch's index; empty: that of the package index."""


def install_with_torch(installer: Literal["pipx", "uv tool"], build: str) -> Remedy:
    """The command that installs this program with a build of torch, in place of what is installed.

    uv finds the build for a GPU by itself.
    """
    if installer == "uv tool":
        settings = {"reinstall": True, "torch_backend": "cpu" if build == "cpu" else "auto"}
        return Remedy("", "tool install", ("unziplora",), settings, program="uv")
    index = {"pip_args": {"extra_index_url": f"{PYTORCH_INDEX}/{build}"}} if build else {}
    return Remedy("", "install", ("unziplora",), {"force": True, **index}, program="pipx")


def check_packages(config: TrainConfig) -> None:
    """Raise UsageError with the remedy if the optimizer or the tracker needs a package that is missing."""
    for kind, name, needs in (
        ("optimizer", config.optimizer, OPTIMIZERS),
        ("tracker", config.tracker, TRACKERS),
    ):
        if name in needs:
            package, extra = needs[name]
            if importlib.util.find_spec(package) is None:
                raise UsageError(
                    f"The {kind} {name} needs the package {package}, which is not installed.",
                    Remedy(extra=extra),
                )


@cache
def installer(environment: Path) -> Installer:
    """What made the environment in this folder."""
    if (environment / "pipx_metadata.json").is_file():
        return "pipx"
    if (environment / "uv-receipt.toml").is_file():
        return "uv tool"
    try:
        made_by_uv = "\nuv = " in "\n" + (environment / "pyvenv.cfg").read_text(encoding="utf-8")
    except (OSError, ValueError):
        made_by_uv = False
    return "uv" if made_by_uv and importlib.util.find_spec("pip") is None else "pip"
