"""Everything about a machine that decides whether it can train, collected into one frozen record.

Run as a program, this module imports what training needs and prints the outcome as JSON on its last line: a
broken torch can end the whole process.
"""

import importlib
import importlib.metadata
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import urllib.request
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import unziplora_cli
from unziplora_cli import paths, resources
from unziplora_cli.errors import first_line
from unziplora_cli.packages import Installer, installer

PROBE_TIMEOUT = 300.0
"""Seconds for importing torch and the other libraries, which takes long from a cold disk."""

NEEDED = {
    "numpy": "ndarray",
    "PIL.Image": "open",
    "safetensors": "safe_open",
    "huggingface_hub": "HfApi",
    "accelerate": "Accelerator",
    "peft": "LoraConfig",
    "transformers": "CLIPTextModelWithProjection",
    "diffusers": "UNet2DConditionModel",
    "pynvml": "nvmlInit",
}
"""What training uses of each library; diffusers and transformers import a class when it is accessed."""

Vendor = Literal["nvidia", "amd", "intel", "apple"]
_PCI_VENDORS: dict[str, Vendor] = {"0x10de": "nvidia", "0x1002": "amd", "0x8086": "intel"}


@dataclass(frozen=True, slots=True)
class Gpu:
    """One GPU; memory in bytes, ``capability`` as NVIDIA's ``9.0``; None if unknown."""

    vendor: Vendor
    name: str = ""
    memory_total: int | None = None
    memory_free: int | None = None
    capability: str | None = None


@dataclass(frozen=True, slots=True)
class Torch:
    """What importing torch in a separate process reported; ``error`` is why the import failed.

    ``cuda`` and ``hip`` are the versions that torch was built for. ``warning`` is what torch printed when it
    looked for a GPU, ``gpu_problem`` why it cannot compute on one, ``kernel_problem`` why Triton cannot.
    """

    version: str = ""
    error: str = ""
    warning: str = ""
    cuda: str | None = None
    hip: str | None = None
    gpus: tuple[str, ...] = ()
    gpu_problem: str = ""
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

    @property
    def is_older(self) -> bool:
        """Whether it is older than every tested version."""
        return bool(self.version) and parse_version(self.version or "") < parse_version(self.lowest)

    @property
    def is_newer(self) -> bool:
        """Whether it is newer than every tested version."""
        return bool(self.tested) and parse_version(self.version or "") > parse_version(self.tested)


@dataclass(frozen=True, slots=True)
class Folder:
    """A folder, whether it exists or not, and the free bytes of its disk."""

    path: str
    free: int
    writable: bool


@dataclass(frozen=True, slots=True)
class Environment:
    """One machine. ``bases`` are those on this disk, each with what is wrong with it.

    ``hub`` is the address of the model hub, None when the network was not to be used.
    """

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
    bases: Mapping[str, str] = field(default_factory=dict)
    cache_error: str = ""
    unfinished_bytes: int = 0
    hub: str | None = None
    hub_error: str = ""

    def gpus_of(self, vendor: Vendor) -> tuple[Gpu, ...]:
        return tuple(gpu for gpu in self.gpus if gpu.vendor == vendor)


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
    torch, torch_gpus, import_errors = run_probe()
    nvidia, driver, driver_cuda = read_nvml()
    gpus = nvidia or torch_gpus
    vendors = {gpu.vendor for gpu in gpus}
    gpus += tuple(gpu for gpu in _other_gpus() if gpu.vendor not in vendors)
    total, free = _main_memory()
    cache = paths.hub_cache()
    bases, unfinished, cache_error = _cached_bases(cache)
    hub, hub_error = ask_hub() if online else (None, "")
    return Environment(
        tool_version=unziplora_cli.__version__,
        python=platform.python_version(),
        executable=sys.executable,
        installer=installer(Path(sys.prefix)),
        system=platform.system(),
        machine=platform.machine(),
        is_emulated=_is_emulated(),
        gpus=gpus,
        nvidia_driver=driver,
        driver_cuda=driver_cuda,
        visible_gpus=os.environ.get("CUDA_VISIBLE_DEVICES"),
        torch=torch,
        libraries=_libraries(import_errors),
        memory_total=total,
        memory_free=free,
        home=_folder(home),
        cache=_folder(cache),
        bases=bases,
        cache_error=cache_error,
        unfinished_bytes=unfinished,
        hub=hub,
        hub_error=hub_error,
    )


def _libraries(import_errors: Mapping[str, str]) -> tuple[Library, ...]:
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
        return Folder(str(path), shutil.disk_usage(existing).free, writable)
    except OSError:
        return Folder(str(path), 0, False)


def _cached_bases(cache: Path) -> tuple[dict[str, str], int, str]:
    """The bases on this disk, bytes of interrupted downloads, and why they cannot be listed."""
    from unziplora_cli.model_cache import list_models

    try:
        unfinished = sum(file.stat().st_size for file in cache.glob("models--*/blobs/*.incomplete"))
        return {model.spec: model.problem for model in list_models()}, unfinished, ""
    except Exception as error:  # huggingface_hub may be missing or broken, the cache unreadable
        return {}, 0, reason(error)


def ask_hub() -> tuple[str, str]:
    """The address of the model hub, and why it does not answer; no token is sent."""
    url = os.environ.get("HF_ENDPOINT", paths.HUB_ENDPOINT).rstrip("/")
    request = urllib.request.Request(f"{url}/api/models?limit=1", headers={"User-Agent": "unziplora"})
    try:
        with urllib.request.urlopen(request, timeout=15):
            return url, ""
    except (OSError, ValueError) as error:
        return url, reason(error)


def reason(error: BaseException) -> str:
    """An error in one line, with its type."""
    return ": ".join(dict.fromkeys((type(error).__name__, first_line(error))))


# GPUs that torch may not see


def read_nvml() -> tuple[tuple[Gpu, ...], str | None, str | None]:
    """NVIDIA's GPUs, its driver and the newest CUDA version that the driver supports, as far as known."""
    try:
        import pynvml

        pynvml.nvmlInit()
    except Exception:  # the library or the driver is missing
        return (), None, None

    def ask(function: Callable[..., Any], *arguments: Any) -> Any:
        try:
            return function(*arguments)
        except pynvml.NVMLError:  # not supported by this GPU or driver
            return None

    gpus = []
    for index in range(ask(pynvml.nvmlDeviceGetCount) or 0):
        handle = ask(pynvml.nvmlDeviceGetHandleByIndex, index)
        memory = ask(pynvml.nvmlDeviceGetMemoryInfo, handle)
        total, free = (int(memory.total), int(memory.free)) if memory else (None, None)
        capability = ask(pynvml.nvmlDeviceGetCudaComputeCapability, handle)
        name = ask(pynvml.nvmlDeviceGetName, handle) or ""
        gpus.append(Gpu("nvidia", name, total, free, "{}.{}".format(*capability) if capability else None))
    version = ask(pynvml.nvmlSystemGetCudaDriverVersion_v2)
    cuda = f"{version // 1000}.{version % 1000 // 10}" if version else None
    driver = ask(pynvml.nvmlSystemGetDriverVersion)
    ask(pynvml.nvmlShutdown)
    return tuple(gpus), driver, cuda


def _other_gpus() -> tuple[Gpu, ...]:
    """GPUs of any vendor, with a driver or not: the chip of a Mac, and Linux's list of PCI devices."""
    is_apple = (platform.system(), platform.machine()) == ("Darwin", "arm64") or _is_emulated()
    apple = (Gpu("apple", "Apple GPU"),) if is_apple else ()
    return (*apple, *pci_gpus(Path("/sys/bus/pci/devices")))


def pci_gpus(folder: Path) -> tuple[Gpu, ...]:
    """Display controllers (PCI class 03) by their vendor."""
    gpus = []
    for device in sorted(folder.glob("*")):
        try:
            vendor, kind = ((device / name).read_text().strip() for name in ("vendor", "class"))
        except OSError:
            continue
        if vendor in _PCI_VENDORS and kind.startswith("0x03"):
            gpus.append(Gpu(_PCI_VENDORS[vendor]))
    return tuple(gpus)


def _is_emulated() -> bool:
    """Whether this is a Python for Intel processors on an Apple chip, which cannot use its GPU."""
    return (platform.system(), platform.machine()) == ("Darwin", "x86_64") and "ARM64" in platform.version()


# The probe


def run_probe() -> tuple[Torch, tuple[Gpu, ...], dict[str, str]]:
    """What importing torch and the other libraries in a process of its own reports."""
    package = str(Path(unziplora_cli.__file__).parents[1])
    search = os.pathsep.join(filter(None, (package, os.environ.get("PYTHONPATH"))))
    try:
        process = subprocess.run(
            [sys.executable, "-P", "-m", __name__],
            capture_output=True,
            text=True,
            errors="replace",
            timeout=PROBE_TIMEOUT,
            env={**os.environ, "PYTHONPATH": search},
        )
    except subprocess.TimeoutExpired:
        return Torch(error=f"importing it took more than {PROBE_TIMEOUT:.0f} s"), (), {}
    try:
        report = json.loads(process.stdout.strip().rpartition("\n")[2])
    except ValueError:
        last = (process.stderr.strip().splitlines() or ["no output"])[-1]
        return Torch(error=f"importing it ended the process with code {process.returncode}: {last}"), (), {}
    torch = Torch(**{**report["torch"], "gpus": tuple(gpu["name"] for gpu in report["gpus"])})
    return torch, tuple(Gpu(**gpu) for gpu in report["gpus"]), report["errors"]


def probe() -> dict[str, Any]:
    """Facts about torch and its GPUs, and the reason for each library that cannot be imported."""
    try:
        import torch
    except Exception as error:
        return {"torch": {"error": reason(error)}, "gpus": [], "errors": {}}
    errors = {}
    for name, attribute in NEEDED.items():
        try:
            getattr(importlib.import_module(name), attribute)
        except Exception as error:
            errors[name] = reason(error)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    facts: dict[str, Any] = {
        "version": str(torch.__version__),
        "warning": " ".join(" ".join(str(warning.message).split()) for warning in caught),
        "cuda": torch.version.cuda,
        "hip": torch.version.hip,
        "mps": torch.backends.mps.is_available(),
    }
    gpus = []
    for index in range(count):
        vendor = "amd" if torch.version.hip else "nvidia"
        gpu: dict[str, Any] = {"vendor": vendor, "name": torch.cuda.get_device_name(index)}
        gpus.append(gpu)
        try:
            float(torch.ones(1, device=f"cuda:{index}") + 1)
            gpu["memory_free"], gpu["memory_total"] = torch.cuda.mem_get_info(index)
        except Exception as error:
            facts.setdefault("gpu_problem", f"{gpu['name']} ({reason(error)})")
    if gpus:
        facts["bf16"] = torch.cuda.is_bf16_supported()
        if "gpu_problem" not in facts and "diffusers" not in errors:
            facts["kernel_problem"] = _kernel_problem()
    return {"torch": facts, "gpus": gpus, "errors": errors}


def _kernel_problem() -> str:
    """Why the fused kernels cannot run: Triton, the C compiler that it calls, or the driver."""
    try:
        import torch

        from unziplora_cli.accel.fused_modules import kernel_problem

        return kernel_problem(torch.device("cuda")) or ""
    except Exception as error:
        return reason(error)


if __name__ == "__main__":
    outcome = json.dumps(probe())
    sys.stdout.write(f"\n{outcome}\n")
