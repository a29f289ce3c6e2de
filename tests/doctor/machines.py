"""Environments to check: machines without problems, with and without a GPU."""

from dataclasses import replace
from typing import Any

from unziplora_cli.cli._errors import remedy_text
from unziplora_cli.doctor.checks import Check, run_checks
from unziplora_cli.doctor.environment import Environment, Folder, Gpu, Library, Torch

GB = 10**9
H200 = Gpu("nvidia", "NVIDIA H200", 140 * GB, 139 * GB, "9.0")
CUDA_TORCH = Torch("2.13.0+cu130", cuda="13.0", gpus=("NVIDIA H200",), bf16=True)

CPU_MACHINE = Environment(
    tool_version="1.0",
    python="3.12.3",
    executable="/opt/env/bin/python",
    installer="pip",
    system="Linux",
    machine="x86_64",
    is_emulated=False,
    gpus=(),
    nvidia_driver=None,
    driver_cuda=None,
    visible_gpus=None,
    torch=Torch("2.13.0+cpu"),
    libraries=(
        Library("torch", "2.13.0+cpu", "2.11.0", "2.13.0"),
        Library("diffusers", "0.42.1", "0.37.0", "0.42.1"),
        Library("peft", "0.21.2", "0.18.0", "0.21.2"),
    ),
    memory_total=16 * GB,
    memory_free=8 * GB,
    home=Folder("/home/ann/unziplora", 90 * GB, True),
    cache=Folder("/home/ann/hub", 90 * GB, True),
    bases={"mini": "", "sdxl": ""},
)

GPU_MACHINE = replace(
    CPU_MACHINE, gpus=(H200,), nvidia_driver="580.82.07", driver_cuda="13.0", torch=CUDA_TORCH
)


def check(name: str, machine: Environment = CPU_MACHINE, **changes: Any) -> Check:
    """The check ``name`` of a machine with some changes."""
    return next(result for result in run_checks(replace(machine, **changes)) if result.name == name)


def fixes(result: Check) -> list[str]:
    """What to do, as text."""
    return [remedy_text(remedy) for remedy in result.remedies]
