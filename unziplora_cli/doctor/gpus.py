"""Find GPUs without torch: with NVIDIA's management library, Linux's device files, and the type of a Mac."""

import platform
import re
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

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
class FoundGpus:
    """All GPUs, NVIDIA's driver, and the newest CUDA version that the driver supports."""

    gpus: tuple[Gpu, ...] = ()
    driver: str | None = None
    cuda: str | None = None


def find_gpus() -> FoundGpus:
    """The GPUs of every vendor, also those without a driver."""
    nvidia, files = read_nvml(), read_device_files(Path("/"))
    others = tuple(gpu for gpu in files.gpus if not (nvidia.gpus and gpu.vendor == "nvidia"))
    apple = (Gpu("apple", "Apple GPU"),) if _is_apple_silicon() else ()
    return FoundGpus((*nvidia.gpus, *others, *apple), nvidia.driver or files.driver, nvidia.cuda)


def read_nvml() -> FoundGpus:
    """What NVIDIA's management library reports; nothing if the library or the driver is missing."""
    try:
        import pynvml

        pynvml.nvmlInit()
    except Exception:
        return FoundGpus()

    def ask(function: Callable[..., Any], *arguments: Any) -> Any:
        try:
            return function(*arguments)
        except pynvml.NVMLError:  # not supported by this GPU or driver
            return None

    try:
        version = ask(pynvml.nvmlSystemGetCudaDriverVersion_v2)
        devices = []
        for index in range(ask(pynvml.nvmlDeviceGetCount) or 0):
            handle = ask(pynvml.nvmlDeviceGetHandleByIndex, index)
            memory = ask(pynvml.nvmlDeviceGetMemoryInfo, handle)
            capability = ask(pynvml.nvmlDeviceGetCudaComputeCapability, handle)
            devices.append(
                Gpu(
                    "nvidia",
                    ask(pynvml.nvmlDeviceGetName, handle) or "",
                    int(memory.total) if memory else None,
                    int(memory.free) if memory else None,
                    "{}.{}".format(*capability) if capability else None,
                )
            )
        cuda = f"{version // 1000}.{version % 1000 // 10}" if version else None
        return FoundGpus(tuple(devices), ask(pynvml.nvmlSystemGetDriverVersion), cuda)
    finally:
        ask(pynvml.nvmlShutdown)


def read_device_files(root: Path) -> FoundGpus:
    """NVIDIA's driver and the GPUs according to Linux's /proc and /sys below ``root``."""
    version = re.search(r"Kernel Module.*?(\d+\.\d+(?:\.\d+)*)", _read(root / "proc/driver/nvidia/version"))
    nvidia = tuple(_nvidia_gpus(root / "proc/driver/nvidia/gpus"))
    amd = tuple(_amd_gpus(root / "sys/class/drm"))
    named = {gpu.vendor for gpu in (*nvidia, *amd)}
    rest = tuple(gpu for gpu in _pci_gpus(root / "sys/bus/pci/devices") if gpu.vendor not in named)
    return FoundGpus((*nvidia, *amd, *rest), version.group(1) if version else None)


def is_emulated() -> bool:
    """Whether this is a Python for Intel processors on an Apple chip, which cannot use its GPU."""
    if (platform.system(), platform.machine()) != ("Darwin", "x86_64"):
        return False
    command = ("/usr/sbin/sysctl", "-n", "hw.optional.arm64")
    try:
        process = subprocess.run(command, capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return False
    return process.stdout.strip() == "1"


def _is_apple_silicon() -> bool:
    return (platform.system(), platform.machine()) == ("Darwin", "arm64") or is_emulated()


def _nvidia_gpus(folder: Path) -> Iterator[Gpu]:
    for file in sorted(folder.glob("*/information")):
        model = re.search(r"Model:\s*(.+)", _read(file))
        yield Gpu("nvidia", model.group(1).strip() if model else "")


def _amd_gpus(folder: Path) -> Iterator[Gpu]:
    for card in sorted(folder.glob("card[0-9]*/device")):
        if _read(card / "vendor").strip() == "0x1002":
            total, used = (_read_number(card / f"mem_info_vram_{kind}") for kind in ("total", "used"))
            free = total - used if total is not None and used is not None else None
            yield Gpu("amd", _read(card / "product_name").strip(), total, free)


def _pci_gpus(folder: Path) -> Iterator[Gpu]:
    """Display controllers (PCI class 03) by their vendor."""
    for device in sorted(folder.glob("*")):
        vendor = _PCI_VENDORS.get(_read(device / "vendor").strip())
        if vendor and _read(device / "class").startswith("0x03"):
            yield Gpu(vendor)


def _read(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def _read_number(file: Path) -> int | None:
    text = _read(file).strip()
    return int(text) if text.isdecimal() else None
