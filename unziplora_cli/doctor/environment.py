"""Everything about a machine that decides whether it can train, collected into one frozen record."""

import importlib.metadata
import importlib.util
import json
import os
import platform
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import unziplora_cli
from unziplora_cli import paths, resources
from unziplora_cli.doctor import gpus
from unziplora_cli.doctor.gpus import Gpu, Vendor
from unziplora_cli.doctor.probe import reason
from unziplora_cli.packages import Installer, installer

PROBE_TIMEOUT = 300.0
"""Seconds for importing torch and the other libraries, which takes long from a cold disk."""


@dataclass(frozen=True, slots=True)
class Torch:
    """What importing torch in a separate process reported; ``error`` is why the import failed.

    ``cuda`` and ``hip`` are the versions that torch was built for, ``kernels`` the GPU architectures
    (``sm_90``). ``warning`` is what torch printed when it looked for a GPU; ``kernel_problem`` is why Triton
    cannot run the fused kernels on it.
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
    kernel_problem: str = ""


@dataclass(frozen=True, slots=True)
class Library:
    """A library that unziplora needs: the installed version, the lowest and the newest tested ones.

    ``error`` is why it cannot be imported.
    """

    name: str
    version: str | None
    lowest: str
    tested: str
    error: str = ""


@dataclass(frozen=True, slots=True)
class Folder:
    """A folder, whether it exists or not, and the free bytes of its disk."""

    path: str
    free: int
    writable: bool


@dataclass(frozen=True, slots=True)
class CachedBase:
    """A base model on this disk; ``problem`` is what is wrong with it."""

    spec: str
    problem: str = ""


@dataclass(frozen=True, slots=True)
class Hub:
    """The model hub's address, and why it did not answer."""

    url: str
    error: str = ""


@dataclass(frozen=True, slots=True)
class Environment:
    """One machine. ``hub`` is None when the network was not to be used."""

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
    home: Folder
    cache: Folder
    bases: tuple[CachedBase, ...]
    cache_error: str = ""
    unfinished_bytes: int = 0
    hub: Hub | None = None

    def gpus_of(self, vendor: Vendor) -> tuple[Gpu, ...]:
        return tuple(gpu for gpu in self.gpus if gpu.vendor == vendor)

    def library(self, name: str) -> Library | None:
        return next((library for library in self.libraries if library.name == name), None)


def parse_version(version: str) -> tuple[int, ...]:
    """The numbers of a version without trailing zeros, for comparing: ``2.13.0+cpu`` is (2, 13)."""
    numbers = re.match(r"\d+(\.\d+)*", version)
    parts = [int(part) for part in numbers.group().split(".")] if numbers else []
    while parts and parts[-1] == 0:
        parts.pop()
    return tuple(parts)


def read_pins(path: Path) -> dict[str, str]:
    """The versions in a constraints file by the library's name, with dashes."""
    pins = re.findall(r"^([\w.-]+)==([^\s;]+)", path.read_text(encoding="utf-8"), re.MULTILINE)
    return {name.replace("_", "-").lower(): version for name, version in pins}


def collect_environment(home: Path, *, online: bool) -> Environment:
    """The facts about this machine; sends one request to the model hub only when ``online``."""
    torch, import_errors = _run_probe()
    found_gpus = gpus.find_gpus()
    total, free = _main_memory()
    cache = paths.hub_cache()
    bases, cache_error = _cached_bases()
    return Environment(
        tool_version=unziplora_cli.__version__,
        python=platform.python_version(),
        executable=sys.executable,
        installer=installer(Path(sys.prefix)),
        system=platform.system(),
        machine=platform.machine(),
        is_emulated=gpus.is_emulated(),
        gpus=found_gpus.gpus,
        nvidia_driver=found_gpus.driver,
        driver_cuda=found_gpus.cuda,
        visible_gpus=os.environ.get("CUDA_VISIBLE_DEVICES"),
        torch=torch,
        libraries=_libraries(import_errors),
        memory_total=total,
        memory_free=free,
        home=_folder(home),
        cache=_folder(cache),
        bases=bases,
        cache_error=cache_error,
        unfinished_bytes=_unfinished_bytes(cache),
        hub=_ask_hub() if online else None,
    )


def _run_probe() -> tuple[Torch, dict[str, str]]:
    """What the probe reports of torch, and why other libraries cannot be imported."""
    command = [sys.executable, "-P", "-m", "unziplora_cli.doctor.probe"]
    package = str(Path(unziplora_cli.__file__).parents[1])
    search = os.pathsep.join(filter(None, (package, os.environ.get("PYTHONPATH"))))
    try:
        process = subprocess.run(
            command,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=PROBE_TIMEOUT,
            env={**os.environ, "PYTHONPATH": search},
        )
    except subprocess.TimeoutExpired:
        return Torch(error=f"importing it took more than {PROBE_TIMEOUT:.0f} s"), {}
    try:
        report = json.loads(process.stdout.strip().rpartition("\n")[2])
    except ValueError:
        last = (process.stderr.strip().splitlines() or ["no output"])[-1]
        return Torch(error=f"importing it ended the process with code {process.returncode}: {last}"), {}
    torch: dict[str, Any] = {
        key: tuple(value) if isinstance(value, list) else value for key, value in report["torch"].items()
    }
    return Torch(**torch), report["errors"]


def _libraries(import_errors: dict[str, str]) -> tuple[Library, ...]:
    """Every library that unziplora needs, and those of its extras that are installed."""
    lowest, tested = (read_pins(resources.constraints(f"{name}.txt")) for name in ("lowest", "tested"))
    names = {"PIL.Image": "pillow", "pynvml": "nvidia-ml-py"}
    errors = {names.get(name, name.replace("_", "-")): error for name, error in import_errors.items()}
    libraries = []
    for name, minimum in lowest.items():
        try:
            version = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            version = None
        if version is not None or name in tested:
            libraries.append(Library(name, version, minimum, tested.get(name, ""), errors.get(name, "")))
    return tuple(libraries)


def _main_memory() -> tuple[int | None, int | None]:
    """Bytes of main memory, all and available; None if unknown."""
    try:
        import psutil

        memory = psutil.virtual_memory()
        return int(memory.total), int(memory.available)
    except Exception:  # psutil may be missing or broken
        return None, None


def _folder(path: Path) -> Folder:
    """A folder, judged by its nearest parent that exists."""
    existing = next(parent for parent in (path, *path.absolute().parents) if os.path.lexists(parent))
    writable = existing.is_dir() and os.access(existing, os.W_OK | os.X_OK)
    try:
        free = shutil.disk_usage(existing).free
    except OSError:
        free, writable = 0, False
    return Folder(str(path), free, writable)


def _cached_bases() -> tuple[tuple[CachedBase, ...], str]:
    """The bases on this disk, and why they cannot be listed."""
    from unziplora_cli.model_cache import list_models

    try:
        return tuple(CachedBase(model.spec, model.problem) for model in list_models()), ""
    except Exception as error:  # huggingface_hub may be missing or broken, the cache unreadable
        return (), reason(error)


def _unfinished_bytes(cache: Path) -> int:
    """Bytes of interrupted downloads."""
    sizes = []
    for path in cache.glob("models--*/blobs/*.incomplete"):
        try:
            sizes.append(path.stat().st_size)
        except OSError:
            continue
    return sum(sizes)


def _ask_hub() -> Hub:
    """Whether the model hub answers; no token is sent."""
    import urllib.request

    url = os.environ.get("HF_ENDPOINT", "https://huggingface.co").rstrip("/")
    request = urllib.request.Request(f"{url}/api/models?limit=1", headers={"User-Agent": "unziplora"})
    try:
        with urllib.request.urlopen(request, timeout=15):
            return Hub(url)
    except (OSError, ValueError) as error:
        return Hub(url, reason(error))
