"""What is said of torch and GPUs: every way in which the one does not reach the other, with its fix."""

from dataclasses import replace

import pytest

from tests.doctor.machines import CUDA_TORCH, H200, SOUND, WITH_GPU, answer
from unziplora_cli.doctor.environment import Gpu, Library, Torch

CPU_ON_GPU = replace(WITH_GPU, torch=Torch("2.13.0+cpu"))


@pytest.mark.parametrize(
    ("installer", "line"),
    [
        (
            "pip",
            "/opt/env/bin/python -m pip uninstall -y torch && /opt/env/bin/python -m pip install "
            '"torch>=2.11.0" --index-url https://download.pytorch.org/whl/cu130',
        ),
        (
            "pipx",
            "pipx runpip unziplora uninstall -y torch && pipx runpip unziplora install "
            '"torch>=2.11.0" --index-url https://download.pytorch.org/whl/cu130',
        ),
        (
            "uv",
            "uv pip install --python /opt/env/bin/python --reinstall-package torch "
            '"torch>=2.11.0" --index-url https://download.pytorch.org/whl/cu130',
        ),
    ],
)
def test_torch_for_the_cpu_on_a_machine_with_a_gpu_has_the_line_that_mends_it(installer, line):
    check = answer("gpu", CPU_ON_GPU, installer=installer)
    assert check.level == "problem"
    assert "NVIDIA H200 is here, but this torch (2.13.0+cpu) was built for the CPU alone" in check.message
    assert check.fix == line


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
def test_the_build_fits_driver_and_gpu(driver, cuda, capability, build):
    gpu = replace(H200, capability=capability)
    check = answer("gpu", CPU_ON_GPU, gpus=(gpu,), nvidia_driver=driver, driver_cuda=cuda)
    assert check.fix.endswith(f"/whl/{build}")


def test_a_gpu_that_only_the_bus_tells_of_needs_a_driver_first():
    check = answer("gpu", CPU_ON_GPU, gpus=(Gpu("nvidia"),), nvidia_driver=None, driver_cuda=None)
    assert check.level == "problem"
    assert "an NVIDIA GPU is here" in check.message
    assert check.fix.startswith("Install NVIDIA's driver, then: ")
    check = answer("gpu", WITH_GPU, torch=Torch("2.13.0", cuda="13.0"), nvidia_driver=None, driver_cuda=None)
    assert "--gpus all" in check.fix


def test_an_old_driver_is_named():
    old = {"nvidia_driver": "470.57", "driver_cuda": "11.4"}
    assert answer("driver", CPU_ON_GPU, **old).level == "problem"
    assert answer("gpu", CPU_ON_GPU, **old).fix.startswith("Update NVIDIA's driver to 580 or later, then: ")
    torch = Torch("2.13.0", cuda="13.0", warning="The NVIDIA driver is too old")
    check = answer("gpu", WITH_GPU, torch=torch, nvidia_driver="550.54", driver_cuda="12.4")
    assert "driver 550.54 for CUDA 12.4, but this torch needs CUDA 13.0" in check.message
    assert check.fix.endswith("/whl/cu126")


def test_hidden_gpus_are_told_of():
    torch = Torch("2.13.0", cuda="13.0")
    check = answer("gpu", WITH_GPU, torch=torch, visible_gpus="")
    assert (check.level, check.fix) == ("problem", "unset CUDA_VISIBLE_DEVICES")
    check = answer("gpu", WITH_GPU, torch=replace(torch, warning="CUDA unknown error"), visible_gpus="0")
    assert "torch cannot use it: CUDA unknown error" in check.message


@pytest.mark.parametrize(
    ("capability", "level"),
    [("9.0", "ok"), ("8.0", "ok"), ("8.9", "ok"), ("7.5", "problem"), ("12.0", "problem"), (None, "ok")],
)
def test_the_gpu_must_be_one_that_torch_was_compiled_for(capability, level):
    gpu = replace(H200, capability=capability)
    assert answer("gpu", WITH_GPU, gpus=(gpu,)).level == level
    to_be_compiled = replace(CUDA_TORCH, kernels=("sm_70", "compute_75"))
    later = answer("gpu", WITH_GPU, gpus=(replace(H200, capability="12.0"),), torch=to_be_compiled)
    assert later.level == "ok"


def test_a_gpu_without_bf16_is_named():
    check = answer("gpu", WITH_GPU, torch=replace(CUDA_TORCH, bf16=False))
    assert (check.level, "fp16" in check.message) == ("ok", True)


def test_amd():
    radeon = Gpu("amd", "Radeon RX 7900", 24 * 10**9, 23 * 10**9)
    check = answer("gpu", SOUND, gpus=(radeon,))
    assert (check.level, "not the build for ROCm" in check.message) == ("note", True)
    check = answer("gpu", SOUND, gpus=(radeon,), torch=Torch("2.13.0+rocm7.2", hip="7.2"))
    assert (check.level, "render" in check.fix) == ("problem", True)
    usable = Torch("2.13.0+rocm7.2", hip="7.2", gpus=("Radeon RX 7900",), bf16=True)
    assert answer("gpu", SOUND, gpus=(radeon,), torch=usable).level == "ok"
    assert "ROCm 7.2" in answer("torch", SOUND, torch=usable).message


def test_apple():
    mac = replace(SOUND, system="Darwin", machine="arm64", gpus=(Gpu("apple", "Apple GPU"),))
    assert answer("gpu", mac, torch=Torch("2.13.0", mps=True)).level == "ok"
    assert answer("gpu", mac).level == "note"


def test_no_gpu_that_torch_knows_is_fine():
    assert answer("gpu", SOUND).level == "ok"
    assert answer("gpu", SOUND, gpus=(Gpu("intel"),)).level == "ok"


def test_a_missing_torch_is_told_with_the_build_for_this_machine():
    missing = {
        "torch": Torch(error="ModuleNotFoundError: No module named 'torch'"),
        "libraries": (Library("torch", None, "2.11.0", "2.13.0"),),
    }
    check = answer("torch", SOUND, **missing)
    assert (check.level, check.message) == ("problem", "torch is not installed.")
    assert check.fix.endswith('install "torch>=2.11.0"')
    assert answer("torch", WITH_GPU, **missing).fix.endswith("/whl/cu130")
    assert answer("gpu", WITH_GPU, **missing).message == "NVIDIA H200; torch has to work first."


def test_a_broken_torch_is_told_with_its_reason():
    broken = Torch(error="OSError: libcudart.so.13: cannot open shared object file")
    check = answer("torch", SOUND, torch=broken)
    assert check.level == "problem"
    assert "torch 2.13.0+cpu is broken: OSError: libcudart.so.13" in check.message


@pytest.mark.parametrize(
    ("version", "level"),
    [("2.10.1", "problem"), ("2.11.0", "ok"), ("2.13.0+cu130", "ok"), ("2.14.0", "note")],
)
def test_the_version_of_torch(version, level):
    check = answer("torch", torch=Torch(version))
    assert check.level == level
    assert bool(check.fix) == (level == "problem")


def test_a_path_with_a_space_is_quoted():
    check = answer("gpu", CPU_ON_GPU, executable="/my env/python")
    assert check.fix.startswith('"/my env/python" -m pip uninstall')
