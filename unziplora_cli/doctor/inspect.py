"""Looking at the machine: everything that the checks judge, gathered without importing torch here."""

import importlib.metadata
import importlib.util
import json
import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import unziplora_cli
from unziplora_cli import paths, resources
from unziplora_cli.doctor import gpus
from unziplora_cli.doctor.environment import (
    Base,
    Environment,
    Hub,
    Installer,
    Library,
    Place,
    Torch,
    read_pins,
)
from unziplora_cli.doctor.probe import reason

PATIENCE = 300.0
"""Seconds for importing torch and the others; a cold disk takes long."""


def collect_environment(home: Path, *, online: bool) -> Environment:
    """What this machine has; asks the model hub for a sign of life only when `online`."""
    torch, errors = _imported()
    driver, driver_cuda, found = gpus.find()
    total, free = _memory()
    cache = paths.hub_cache()
    bases, cache_error = _bases()
    return Environment(
        tool_version=unziplora_cli.__version__,
        python=platform.python_version(),
        executable=sys.executable,
        installer=_installer(),
        system=platform.system(),
        machine=platform.machine(),
        is_emulated=gpus.is_emulated(),
        gpus=found,
        nvidia_driver=driver,
        driver_cuda=driver_cuda,
        visible_gpus=os.environ.get("CUDA_VISIBLE_DEVICES"),
        torch=torch,
        libraries=_libraries(errors),
        memory_total=total,
        memory_free=free,
        home=_place(home),
        cache=_place(cache),
        bases=bases,
        cache_error=cache_error,
        unfinished_bytes=_unfinished(cache),
        hub=_hub() if online else None,
    )


def _imported() -> tuple[Torch, dict[str, str]]:
    """What a process that imports torch and the libraries tells, and why any of these failed."""
    command = [sys.executable, "-P", "-m", "unziplora_cli.doctor.probe"]
    here = str(Path(unziplora_cli.__file__).parents[1])
    search = os.pathsep.join(filter(None, (here, os.environ.get("PYTHONPATH"))))
    try:
        ended = subprocess.run(
            command,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=PATIENCE,
            env={**os.environ, "PYTHONPATH": search},
        )
    except subprocess.TimeoutExpired:
        return Torch(error=f"importing it took more than {PATIENCE:.0f} s"), {}
    try:
        told = json.loads(ended.stdout.strip().rpartition("\n")[2])
    except ValueError:
        last = (ended.stderr.strip().splitlines() or ["it said nothing"])[-1]
        return Torch(error=f"the process that imports it ended with {ended.returncode}: {last}"), {}
    torch: dict[str, Any] = {
        key: tuple(value) if isinstance(value, list) else value for key, value in told["torch"].items()
    }
    return Torch(**torch), told["errors"]


def _installer() -> Installer:
    prefix = Path(sys.prefix)
    if prefix.parent.name == "venvs" and "pipx" in str(prefix.parent.parent).lower():
        return "pipx"
    return "pip" if importlib.util.find_spec("pip") else "uv"


def _libraries(errors: dict[str, str]) -> tuple[Library, ...]:
    """Every library that unziplora needs, and those of its extras that are here."""
    lowest, tested = (read_pins(resources.constraints(f"{name}.txt")) for name in ("lowest", "tested"))
    by_distribution = {
        {"PIL.Image": "pillow"}.get(name, name.replace("_", "-")): why for name, why in errors.items()
    }
    libraries = []
    for name, least in lowest.items():
        version = _version(name)
        if version is not None or name in tested:
            error = by_distribution.get(name, "")
            libraries.append(Library(name, version, least, tested.get(name, ""), error))
    return tuple(libraries)


def _version(distribution: str) -> str | None:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def _memory() -> tuple[int | None, int | None]:
    """Main memory in bytes, all and available; None where the system does not say."""
    try:
        import psutil  # type: ignore[import-untyped]

        memory = psutil.virtual_memory()
        return int(memory.total), int(memory.available)
    except Exception:  # it comes with accelerate, which may be missing or broken
        return None, None


def _place(folder: Path) -> Place:
    """A folder's disk, asked at its nearest parent that exists."""
    existing = next(each for each in (folder, *folder.absolute().parents) if os.path.lexists(each))
    writable = existing.is_dir() and os.access(existing, os.W_OK | os.X_OK)
    try:
        free = shutil.disk_usage(existing).free
    except OSError:
        free, writable = 0, False
    return Place(str(folder), free, writable)


def _bases() -> tuple[tuple[Base, ...], str]:
    """The bases on this disk, and why they cannot be listed."""
    from unziplora_cli import model_cache

    try:
        return tuple(Base(each.spec, each.problem) for each in model_cache.list_models()), ""
    except Exception as error:  # the hub's library may be missing or broken, the cache unreadable
        return (), reason(error)


def _unfinished(cache: Path) -> int:
    """Bytes of downloads that broke off."""
    sizes = []
    for path in cache.glob("models--*/blobs/*.incomplete"):
        try:
            sizes.append(path.stat().st_size)
        except OSError:
            continue
    return sum(sizes)


def _hub() -> Hub:
    """Ask the model hub for a sign of life; no token is sent."""
    import urllib.request

    url = os.environ.get("HF_ENDPOINT", "https://huggingface.co").rstrip("/")
    request = urllib.request.Request(f"{url}/api/models?limit=1", headers={"User-Agent": "unziplora"})
    try:
        with urllib.request.urlopen(request, timeout=15):
            return Hub(url)
    except (OSError, ValueError) as error:
        return Hub(url, reason(error))
