"""Everything about a machine that decides whether it can train, as one frozen record."""

from dataclasses import dataclass
from typing import Literal

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
    emulated: bool
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
