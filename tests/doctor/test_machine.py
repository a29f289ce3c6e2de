"""Looking at a machine: its tools and files are faked, torch is broken in every way."""

import subprocess
import sys
from pathlib import Path

import pytest

from unziplora_cli import resources
from unziplora_cli.doctor import gpus, inspect
from unziplora_cli.doctor.environment import read_pins, release

SMI = "NVIDIA H200, 143771, 142903, 9.0, 580.82.07\nTesla K80, [N/A], [N/A], [Not Supported], 580.82.07\n"


def write(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


def test_what_nvidias_tool_says_is_read():
    driver, found = gpus.read_smi(SMI)
    assert driver == "580.82.07"
    assert [gpu.name for gpu in found] == ["NVIDIA H200", "Tesla K80"]
    assert (found[0].memory_total, found[0].memory_free) == (143771 * 2**20, 142903 * 2**20)
    assert (found[0].capability, found[1].capability, found[1].memory_free) == ("9.0", None, None)
    assert gpus.read_smi("NVIDIA-SMI has failed because it couldn't communicate\n") == (None, ())
    assert gpus.read_cuda("| NVIDIA-SMI 580.82  Driver Version: 580.82  CUDA Version: 13.0 |") == "13.0"


@pytest.mark.skipif(sys.platform == "win32", reason="the tool is a shell script")
def test_nvidias_tool_is_asked(tmp_path, monkeypatch):
    tool = tmp_path / "nvidia-smi"
    tool.write_text(f'#!/bin/sh\nif [ $# = 0 ]; then echo "CUDA Version: 13.0"; else printf "{SMI}"; fi\n')
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    driver, cuda, found = gpus.find()
    assert (driver, cuda, len([gpu for gpu in found if gpu.vendor == "nvidia"])) == ("580.82.07", "13.0", 2)
    tool.write_text("#!/bin/sh\nexit 9\n")
    assert [gpu for gpu in gpus.find()[2] if gpu.name] == []


def test_the_kernels_files_tell_of_gpus(tmp_path):
    proc = {
        "proc/driver/nvidia/version": "NVRM version: NVIDIA UNIX x86_64 Kernel Module  570.86.10  Thu Jan\n",
        "proc/driver/nvidia/gpus/0000:01:00.0/information": "Model: \t\t NVIDIA L4\nIRQ: 12\n",
    }
    pci = {
        "sys/bus/pci/devices/0000:01:00.0/vendor": "0x10de\n",
        "sys/bus/pci/devices/0000:01:00.0/class": "0x030200\n",
        "sys/bus/pci/devices/0000:02:00.0/vendor": "0x8086\n",
        "sys/bus/pci/devices/0000:02:00.0/class": "0x030000\n",
        "sys/bus/pci/devices/0000:03:00.0/vendor": "0x10de\n",
        "sys/bus/pci/devices/0000:03:00.0/class": "0x040300\n",  # sound
    }
    card = {
        "sys/class/drm/card1/device/vendor": "0x1002\n",
        "sys/class/drm/card1/device/product_name": "Radeon\n",
        "sys/class/drm/card1/device/mem_info_vram_total": "24000000000\n",
        "sys/class/drm/card1/device/mem_info_vram_used": "1000000000\n",
    }
    driver, found = gpus.read_kernel_files(write(tmp_path / "a", proc | pci | card))
    assert driver == "570.86.10"
    assert [(gpu.vendor, gpu.name) for gpu in found] == [
        ("nvidia", "NVIDIA L4"),
        ("amd", "Radeon"),
        ("intel", ""),
    ]
    assert found[1].memory_free == 23_000_000_000
    driver, found = gpus.read_kernel_files(write(tmp_path / "b", pci))
    assert (driver, [gpu.vendor for gpu in found]) == (None, ["nvidia", "intel"])
    assert gpus.read_kernel_files(tmp_path / "empty") == (None, ())


BROKEN = {
    "raise ImportError('libtorch_cpu.so: cannot open shared object file')": "ImportError: libtorch_cpu.so",
    "raise OSError(1114, 'a DLL initialization routine failed')": "OSError: [Errno 1114]",
    "import os; os.abort()": "ended with -6",
    "import sys; sys.exit('illegal instruction')": "ended with 1: illegal instruction",
    "raise RuntimeError": "RuntimeError",
}


@pytest.mark.skipif(sys.platform == "win32", reason="signals")
@pytest.mark.parametrize("code", BROKEN)
def test_a_torch_that_cannot_be_imported_is_told(code, tmp_path, monkeypatch):
    write(tmp_path, {"torch/__init__.py": code})
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    torch, errors = inspect._imported()
    assert BROKEN[code] in torch.error
    assert errors == {}


def test_a_torch_that_hangs_is_given_up(monkeypatch):
    def hang(command, **options):
        raise subprocess.TimeoutExpired(command, options["timeout"])

    monkeypatch.setattr(subprocess, "run", hang)
    torch, errors = inspect._imported()
    assert "more than 300 s" in torch.error
    assert errors == {}


def test_a_library_that_cannot_be_imported_is_told(tmp_path, monkeypatch):
    write(tmp_path, {"peft/__init__.py": "raise ImportError('wrong torch')"})
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    torch, errors = inspect._imported()
    assert torch.error == ""
    assert errors["peft"] == "ImportError: wrong torch"


def test_downloads_that_broke_off_are_counted(tmp_path):
    write(tmp_path, {"models--a--b/blobs/x.incomplete": "12345", "models--a--b/blobs/y": "1"})
    assert inspect._unfinished(tmp_path) == 5


def test_the_hub_is_asked_at_its_address_without_a_token(monkeypatch):
    import urllib.request

    asked = []

    def refuse(request, timeout):
        asked.append(request)
        raise OSError("no route")

    monkeypatch.setenv("HF_ENDPOINT", "https://mirror.example/")
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    monkeypatch.setattr(urllib.request, "urlopen", refuse)
    hub = inspect._hub()
    assert (hub.url, hub.error) == ("https://mirror.example", "OSError: no route")
    assert asked[0].full_url.startswith("https://mirror.example/")
    assert "hf_secret" not in str(asked[0].headers)


@pytest.mark.parametrize(
    ("older", "newer"), [("2.9.1", "2.11.0"), ("2.13.0+cu130", "2.13.1"), ("0.9", "0.10.dev1"), ("", "0.1")]
)
def test_versions_are_ordered(older, newer):
    assert release(older) < release(newer)


def test_equal_versions():
    assert release("2.13.0+cpu") == release("2.13") == release("2.13.0")


def test_the_tested_versions_ship_with_the_package():
    lowest, tested = (read_pins(resources.constraints(f"{name}.txt")) for name in ("lowest", "tested"))
    assert {"torch", "diffusers", "huggingface-hub"} <= lowest.keys() & tested.keys()
    for name in lowest.keys() & tested.keys():
        assert release(lowest[name]) <= release(tested[name])


def test_a_file_of_a_librarys_name_in_the_current_folder_is_not_run(tmp_path, monkeypatch):
    proof, here = tmp_path / "proof", tmp_path / "here"
    write(here, {"json.py": f"open({str(proof)!r}, 'w')\nraise ImportError('not this one')"})
    write(tmp_path, {"path/torch/__init__.py": "raise ImportError('the one on the path')"})
    monkeypatch.chdir(here)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "path"))
    torch, _ = inspect._imported()
    assert torch.error == "ImportError: the one on the path"
    assert not proof.exists()
