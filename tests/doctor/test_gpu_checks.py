"""The checks of torch and GPUs: every reason why torch does not use a GPU, and how to fix it."""

from dataclasses import replace

import pytest

from tests.doctor.machines import CPU_MACHINE, CUDA_TORCH, GB, GPU_MACHINE, H200, check, fixes
from unziplora_cli.doctor.checks import run_checks
from unziplora_cli.doctor.environment import Gpu, Library, Torch

CPU_BUILD = replace(GPU_MACHINE, torch=Torch("2.13.0+cpu"))
INDEX = "--index-url https://download.pytorch.org/whl/cu130"


@pytest.mark.parametrize(
    ("installer", "lines"),
    [
        (
            "pip",
            [
                "/opt/env/bin/python -m pip uninstall -y torch",
                f"/opt/env/bin/python -m pip install 'torch>=2.11.0' {INDEX}",
            ],
        ),
        (
            "pipx",
            [
                "pipx install unziplora --force "
                "--pip-args '--extra-index-url https://download.pytorch.org/whl/cu130'"
            ],
        ),
        ("uv tool", ["uv tool install unziplora --reinstall --torch-backend auto"]),
        (
            "uv",
            [
                "uv pip install 'torch>=2.11.0' --python /opt/env/bin/python "
                f"--reinstall-package torch {INDEX}"
            ],
        ),
    ],
)
def test_a_cpu_build_of_torch_on_a_machine_with_a_gpu_is_replaced(installer, lines):
    result = check("gpu", CPU_BUILD, installer=installer)
    assert result.level == "problem"
    assert "NVIDIA H200 is present, but torch 2.13.0+cpu was built for the CPU only" in result.message
    assert fixes(result) == lines


@pytest.mark.parametrize(
    ("driver", "cuda", "capability", "build"),
    [
        ("580.82.07", "13.0", "9.0", "cu130"),
        ("590.10", "13.2", "12.0", "cu130"),
        ("580.82.07", "13.0", "6.1", "cu126"),
        ("570.86.10", "12.8", "9.0", "cu126"),
        ("570.86.10", "12.8", "12.0", "cu128"),
        ("535.54.03", None, "8.6", "cu126"),
        ("581.0", None, "8.6", "cu130"),
    ],
)
def test_the_build_suits_driver_and_gpu(driver, cuda, capability, build):
    gpu = replace(H200, capability=capability)
    result = check("gpu", CPU_BUILD, gpus=(gpu,), nvidia_driver=driver, driver_cuda=cuda)
    assert fixes(result)[-1].endswith(f"/whl/{build}")


def test_a_gpu_without_a_driver_needs_one_first():
    result = check("gpu", CPU_BUILD, gpus=(Gpu("nvidia"),), nvidia_driver=None, driver_cuda=None)
    assert result.level == "problem"
    assert "an NVIDIA GPU is present" in result.message
    assert fixes(result)[0] == "Install NVIDIA's driver."
    result = check(
        "gpu", GPU_MACHINE, torch=Torch("2.13.0", cuda="13.0"), nvidia_driver=None, driver_cuda=None
    )
    assert any("--gpus all" in fix for fix in fixes(result))


def test_an_old_driver_is_named():
    old = {"nvidia_driver": "470.57", "driver_cuda": "11.4"}
    assert check("driver", CPU_BUILD, **old).level == "problem"
    assert fixes(check("gpu", CPU_BUILD, **old))[0] == "Update NVIDIA's driver to 580 or later."
    torch = Torch("2.13.0", cuda="13.0", warning="The NVIDIA driver is too old")
    result = check("gpu", GPU_MACHINE, torch=torch, nvidia_driver="550.54", driver_cuda="12.4")
    assert "driver 550.54 for CUDA 12.4, but this torch needs CUDA 13.0" in result.message
    assert fixes(result)[-1].endswith("/whl/cu126")


def test_hidden_gpus_are_named():
    torch = Torch("2.13.0", cuda="13.0")
    result = check("gpu", GPU_MACHINE, torch=torch, visible_gpus="")
    assert result.level == "problem"
    assert fixes(result) == ["Unset the variable CUDA_VISIBLE_DEVICES."]
    result = check("gpu", GPU_MACHINE, torch=replace(torch, warning="CUDA unknown error"), visible_gpus="0")
    assert "torch cannot use it: CUDA unknown error" in result.message


@pytest.mark.parametrize(
    ("problem", "fix"),
    [
        ("Tesla P40 (RuntimeError: CUDA error: no kernel image is available)", "/whl/cu126"),
        ("Tesla P40 (RuntimeError: CUDA error: device busy)", "restart the machine."),
    ],
)
def test_a_gpu_on_which_torch_cannot_compute(problem, fix):
    gpus = (replace(H200, name="Tesla P40", capability="6.1"),)
    result = check("gpu", GPU_MACHINE, gpus=gpus, torch=replace(CUDA_TORCH, gpu_problem=problem))
    assert (result.level, result.message) == ("problem", f"This torch cannot compute on {problem}.")
    assert fixes(result)[-1].endswith(fix)


def test_a_gpu_without_bf16_is_named():
    result = check("gpu", GPU_MACHINE, torch=replace(CUDA_TORCH, bf16=False))
    assert result.level == "ok"
    assert "fp16" in result.message


@pytest.mark.parametrize(
    ("problem", "system", "fix"),
    [
        ("Triton needs a C compiler (gcc or clang), and none was found.", "Linux", "sudo apt install gcc"),
        ("Triton is not installed.", "Linux", "pip install triton"),
        ("Triton is not installed.", "Windows", "pip install triton-windows"),
        ("Triton cannot run a kernel (CompilationError: x).", "Linux", "pip install triton"),
    ],
)
def test_missing_triton_or_compiler_slows_training_down(problem, system, fix):
    torch = replace(CUDA_TORCH, kernel_problem=problem)
    result = check("fused kernels", GPU_MACHINE, torch=torch, system=system)
    assert (result.level, result.message) == ("note", f"{problem} Training works, but is slower.")
    assert fixes(result)[0].endswith(fix)
    assert check("fused kernels", GPU_MACHINE).level == "ok"
    assert "fused kernels" not in [result.name for result in run_checks(CPU_MACHINE)]


@pytest.mark.parametrize(
    ("total", "free", "level", "fix"),
    [
        (24, 20, "ok", ""),
        (24, 3, "note", "nvidia-smi"),
        (12, 11, "note", "--preset low-vram"),
        (8, 7, "note", "unziplora train IMAGE --plan"),
    ],
)
def test_gpu_memory(total, free, level, fix):
    gpu = Gpu("nvidia", "RTX", total * GB, free * GB, "8.9")
    result = check("gpu memory", GPU_MACHINE, gpus=(gpu,))
    assert result.level == level
    assert fix in "".join(fixes(result))
    assert f"{free}.0 GB of {total}.0 GB" in result.message


def test_unknown_gpu_memory_is_not_checked():
    names = [result.name for result in run_checks(replace(GPU_MACHINE, gpus=(Gpu("nvidia"),)))]
    assert "gpu memory" not in names


def test_amd():
    radeon = Gpu("amd", "Radeon RX 7900", 24 * GB, 23 * GB)
    result = check("gpu", gpus=(radeon,))
    assert result.level == "note"
    assert "not the build for ROCm" in result.message
    result = check("gpu", gpus=(radeon,), torch=Torch("2.13.0+rocm7.2", hip="7.2"))
    assert result.level == "problem"
    assert "render" in fixes(result)[0]
    usable = Torch("2.13.0+rocm7.2", hip="7.2", gpus=("Radeon RX 7900",), bf16=True)
    assert check("gpu", gpus=(radeon,), torch=usable).level == "ok"
    assert "ROCm 7.2" in check("torch", torch=usable).message


def test_apple():
    mac = replace(CPU_MACHINE, system="Darwin", machine="arm64", gpus=(Gpu("apple", "Apple GPU"),))
    assert check("gpu", mac, torch=Torch("2.13.0", mps=True)).level == "ok"
    result = check("gpu", mac)
    assert result.level == "note"
    assert fixes(result)[0] == "Update macOS."


def test_no_usable_gpu_is_fine():
    assert check("gpu").level == "ok"
    assert check("gpu", gpus=(Gpu("intel"),)).level == "ok"


def test_a_missing_torch_is_installed_with_the_build_for_this_machine():
    missing = {
        "torch": Torch(error="ModuleNotFoundError: No module named 'torch'"),
        "libraries": (Library("torch", None, "2.11.0", "2.13.0"),),
    }
    result = check("torch", **missing)
    assert (result.level, result.message) == ("problem", "torch is not installed.")
    assert fixes(result)[-1].endswith("install 'torch>=2.11.0'")
    assert fixes(check("torch", GPU_MACHINE, **missing))[-1].endswith("/whl/cu130")
    assert check("gpu", GPU_MACHINE, **missing).message == "NVIDIA H200; fix torch first."


def test_a_broken_torch_is_reported_with_its_error():
    broken = Torch(error="OSError: libcudart.so.13: cannot open shared object file")
    result = check("torch", torch=broken)
    assert result.level == "problem"
    assert "torch 2.13.0+cpu is broken: OSError: libcudart.so.13" in result.message


@pytest.mark.parametrize(
    ("version", "level"),
    [("2.10.1", "problem"), ("2.11.0", "ok"), ("2.13.0+cu130", "ok"), ("2.14.0", "note")],
)
def test_torch_version(version, level):
    result = check("torch", torch=Torch(version))
    assert result.level == level
    assert bool(result.remedies) == (level == "problem")


def test_a_path_with_a_space_is_quoted():
    result = check("gpu", CPU_BUILD, executable="/my env/python")
    assert fixes(result)[0].startswith("'/my env/python' -m pip uninstall")
