"""The GPUs of this machine, found without torch: NVIDIA's tool, the kernel's files, Apple's chips."""

import platform
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

from unziplora_cli.doctor.environment import Gpu, Vendor

_VENDORS: dict[str, Vendor] = {"0x10de": "nvidia", "0x1002": "amd", "0x8086": "intel"}
_QUERY = "name,memory.total,memory.free,compute_cap,driver_version"
_MIB = 1024 * 1024


def find() -> tuple[str | None, str | None, tuple[Gpu, ...]]:
    """NVIDIA's driver, the CUDA version that it supports, and all GPUs."""
    tool = shutil.which("nvidia-smi") or "/usr/lib/wsl/lib/nvidia-smi"
    driver, nvidia = read_smi(_output(tool, f"--query-gpu={_QUERY}", "--format=csv,noheader,nounits"))
    cuda = read_cuda(_output(tool)) if nvidia else None
    kernel_driver, others = read_kernel_files(Path("/"))
    if nvidia:
        others = tuple(gpu for gpu in others if gpu.vendor != "nvidia")
    apple = (Gpu("apple", "Apple GPU"),) if _apple_silicon() else ()
    return driver or kernel_driver, cuda, (*nvidia, *others, *apple)


def read_smi(text: str) -> tuple[str | None, tuple[Gpu, ...]]:
    """The driver and the GPUs of one line per GPU in the order of the query."""
    driver, found = None, []
    for line in text.splitlines():
        cells = [cell.strip() for cell in line.split(",")]
        if len(cells) == len(_QUERY.split(",")):
            name, total, free, capability, driver = cells
            known = re.fullmatch(r"\d+\.\d+", capability)
            found.append(
                Gpu("nvidia", name, _mebibytes(total), _mebibytes(free), capability if known else None)
            )
    return driver, tuple(found)


def read_cuda(text: str) -> str | None:
    """The CUDA version in the head of nvidia-smi's table."""
    version = re.search(r"CUDA Version:\s*(\d+\.\d+)", text)
    return version.group(1) if version else None


def read_kernel_files(root: Path) -> tuple[str | None, tuple[Gpu, ...]]:
    """NVIDIA's driver and the GPUs that Linux's /proc and /sys tell of, below `root`."""
    version = re.search(r"Kernel Module.*?(\d+\.\d+(?:\.\d+)*)", _text(root / "proc/driver/nvidia/version"))
    nvidia = tuple(_proc_gpus(root / "proc/driver/nvidia/gpus"))
    amd = tuple(_amd_gpus(root / "sys/class/drm"))
    named = {gpu.vendor for gpu in (*nvidia, *amd)}
    rest = tuple(gpu for gpu in _pci_gpus(root / "sys/bus/pci/devices") if gpu.vendor not in named)
    return version.group(1) if version else None, (*nvidia, *amd, *rest)


def is_emulated() -> bool:
    """Whether this is a Python for Intel on an Apple chip, which cannot use its GPU."""
    if (platform.system(), platform.machine()) != ("Darwin", "x86_64"):
        return False
    return _output("/usr/sbin/sysctl", "-n", "hw.optional.arm64").strip() == "1"


def _apple_silicon() -> bool:
    return (platform.system(), platform.machine()) == ("Darwin", "arm64") or is_emulated()


def _proc_gpus(folder: Path) -> Iterator[Gpu]:
    for file in sorted(folder.glob("*/information")):
        model = re.search(r"Model:\s*(.+)", _text(file))
        yield Gpu("nvidia", model.group(1).strip() if model else "")


def _amd_gpus(folder: Path) -> Iterator[Gpu]:
    for card in sorted(folder.glob("card[0-9]*/device")):
        if _text(card / "vendor").strip() == "0x1002":
            total, used = (_number(card / f"mem_info_vram_{kind}") for kind in ("total", "used"))
            free = total - used if total is not None and used is not None else None
            yield Gpu("amd", _text(card / "product_name").strip(), total, free)


def _pci_gpus(folder: Path) -> Iterator[Gpu]:
    """Display controllers (PCI class 03) by their vendor."""
    for device in sorted(folder.glob("*")):
        vendor = _VENDORS.get(_text(device / "vendor").strip())
        if vendor and _text(device / "class").startswith("0x03"):
            yield Gpu(vendor)


def _output(*command: str) -> str:
    """What a program prints; nothing where it is missing, fails or hangs."""
    try:
        ended = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return ended.stdout if ended.returncode == 0 else ""


def _text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def _number(file: Path) -> int | None:
    text = _text(file).strip()
    return int(text) if text.isdecimal() else None


def _mebibytes(cell: str) -> int | None:
    return int(cell) * _MIB if cell.isdecimal() else None
