"""Version numbers, and the range of each library that was tested."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

PYTHONS = ("3.11", "3.12")
"""The lowest and the newest Python that the tests run with."""


def release(version: str) -> tuple[int, ...]:
    """The numbers of a version, for comparing: `2.13.0+cpu` is (2, 13), as `2.13` is."""
    numbers = re.match(r"\d+(\.\d+)*", version)
    parts = [int(part) for part in numbers.group().split(".")] if numbers else []
    while parts and parts[-1] == 0:
        parts.pop()
    return tuple(parts)


def read_pins(path: Path) -> dict[str, str]:
    """The versions of a constraints file by the library's name, with dashes."""
    pins = re.findall(r"^([\w.-]+)==([^\s;]+)", path.read_text(encoding="utf-8"), re.MULTILINE)
    return {name.replace("_", "-").lower(): version for name, version in pins}


# The answer to one question about a machine.


Level = Literal["ok", "note", "problem"]
"""Fine; worth knowing; blocks training or keeps it off the GPU."""

GB = 10**9


@dataclass(frozen=True, slots=True)
class Check:
    """The answer to one question, and the line to type that mends what is wrong."""

    name: str
    level: Level
    message: str
    fix: str = ""


def gigabytes(number: float) -> str:
    """Bytes as `6.9 GB`."""
    return f"{number / GB:.1f} GB"


# Everything about a machine that decides whether it can train, as one frozen record.


Vendor = Literal["nvidia", "amd", "intel", "apple"]
Installer = Literal["pipx", "pip", "uv"]


@dataclass(frozen=True, slots=True)
class Gpu:
    """One GPU, found without torch; memory in bytes, `capability` as NVIDIA's `9.0`; None: unknown."""

    vendor: Vendor
    name: str = ""
    memory_total: int | None = None
    memory_free: int | None = None
    capability: str | None = None


@dataclass(frozen=True, slots=True)
class Torch:
    """What importing torch in a process of its own told; `error` is why it could not be imported.

    `cuda` and `hip` are the versions that it was built for, `kernels` the GPU generations (`sm_90`);
    `warning` is what it said when it looked for a GPU.
    """

    version: str | None = None
    error: str = ""
    warning: str = ""
    cuda: str | None = None
    hip: str | None = None
    gpus: tuple[str, ...] = ()
    kernels: tuple[str, ...] = ()
    bf16: bool = False
    mps: bool = False


@dataclass(frozen=True, slots=True)
class Library:
    """A library that unziplora needs: the one here, the lowest and the newest that were tested.

    `error` is why it could not be imported.
    """

    name: str
    version: str | None
    lowest: str
    tested: str
    error: str = ""


@dataclass(frozen=True, slots=True)
class Place:
    """A folder, made or not, and the free bytes of its disk."""

    path: str
    free: int
    writable: bool


@dataclass(frozen=True, slots=True)
class Base:
    """A base model on this disk; `problem` is what it lacks."""

    spec: str
    problem: str = ""


@dataclass(frozen=True, slots=True)
class Hub:
    """Whether the model hub answered, and why it did not."""

    url: str
    error: str = ""


@dataclass(frozen=True, slots=True)
class Environment:
    """One machine. `hub` is None when the network was not asked for."""

    tool_version: str
    python: str
    executable: str
    installer: Installer
    system: str
    machine: str
    is_emulated: bool
    gpus: tuple[Gpu, ...]
    nvidia_driver: str | None
    driver_cuda: str | None
    visible_gpus: str | None
    torch: Torch
    libraries: tuple[Library, ...]
    memory_total: int | None
    memory_free: int | None
    home: Place
    cache: Place
    bases: tuple[Base, ...]
    cache_error: str = ""
    unfinished_bytes: int = 0
    hub: Hub | None = None

    def of(self, vendor: Vendor) -> tuple[Gpu, ...]:
        """The GPUs of one vendor."""
        return tuple(gpu for gpu in self.gpus if gpu.vendor == vendor)

    def library(self, name: str) -> Library | None:
        """A library by its name."""
        return next((each for each in self.libraries if each.name == name), None)
