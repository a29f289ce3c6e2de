"""Facts about a machine: NVML and device files are faked, torch is broken in every way."""

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from unziplora_cli import resources
from unziplora_cli.doctor import environment
from unziplora_cli.doctor.environment import Gpu, Torch, parse_version, read_pins


def write(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


class NVMLError(Exception):
    """As in pynvml: raised for everything that goes wrong or is not supported."""


def fake_nvml(**functions):
    """NVML of a machine with an H200, and an old card of which it knows the name alone."""

    def unsupported(*_):
        raise NVMLError("Not Supported")

    names = {
        "nvmlInit": lambda: None,
        "nvmlShutdown": lambda: None,
        "nvmlSystemGetDriverVersion": lambda: "580.82.07",
        "nvmlSystemGetCudaDriverVersion_v2": lambda: 13020,
        "nvmlDeviceGetCount": lambda: 2,
        "nvmlDeviceGetHandleByIndex": lambda index: index,
        "nvmlDeviceGetName": lambda handle: ("NVIDIA H200", "Tesla K80")[handle],
        "nvmlDeviceGetMemoryInfo": lambda handle: (
            unsupported() if handle else SimpleNamespace(total=150_754_820_096, free=149_844_656_128)
        ),
        "nvmlDeviceGetCudaComputeCapability": lambda handle: unsupported() if handle else (9, 0),
    }
    return SimpleNamespace(NVMLError=NVMLError, **{**names, **functions})


NVIDIA = (Gpu("nvidia", "NVIDIA H200", 150_754_820_096, 149_844_656_128, "9.0"), Gpu("nvidia", "Tesla K80"))


def test_gpus_come_from_nvml_then_torch_then_the_list_of_devices(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "pynvml", fake_nvml())
    assert environment.read_nvml() == (NVIDIA, "580.82.07", "13.2")
    radeon = Gpu("amd", "Radeon", 24, 23)
    monkeypatch.setattr(environment, "run_probe", lambda: (Torch(), (radeon,), {}))
    monkeypatch.setattr(environment, "_other_gpus", lambda: (Gpu("nvidia"), Gpu("amd"), Gpu("intel")))

    def gpus():
        return environment.collect_environment(tmp_path, online=False).gpus

    assert gpus() == (*NVIDIA, Gpu("amd"), Gpu("intel"))
    monkeypatch.setitem(sys.modules, "pynvml", None)
    assert gpus() == (radeon, Gpu("nvidia"), Gpu("intel"))


@pytest.mark.parametrize("module", ["missing package", "missing library"])
def test_without_nvml_there_are_no_facts_from_it(module, monkeypatch):
    def fail():
        raise NVMLError("NVML Shared Library Not Found")

    fake = None if module == "missing package" else fake_nvml(nvmlInit=fail)
    monkeypatch.setitem(sys.modules, "pynvml", fake)
    assert environment.read_nvml() == ((), None, None)


def test_gpus_without_a_driver_are_found_by_vendor_and_class(tmp_path):
    write(
        tmp_path,
        {
            "01/vendor": "0x10de\n",
            "01/class": "0x030200\n",
            "02/vendor": "0x8086\n",
            "02/class": "0x030000\n",
            "03/vendor": "0x10de\n",
            "03/class": "0x040300\n",  # sound
            "04/vendor": "0x1002\n",
        },
    )
    assert environment.pci_gpus(tmp_path) == (Gpu("nvidia"), Gpu("intel"))
    assert environment.pci_gpus(tmp_path / "missing") == ()


BROKEN = {
    "raise ImportError('libtorch_cpu.so: cannot open shared object file')": "ImportError: libtorch_cpu.so",
    "raise OSError(1114, 'a DLL initialization routine failed')": "OSError: [Errno 1114]",
    "import os; os.abort()": "ended the process with code -6",
    "import sys; sys.exit('illegal instruction')": "ended the process with code 1: illegal instruction",
    "raise RuntimeError": "RuntimeError",
}


@pytest.mark.skipif(sys.platform == "win32", reason="signals")
@pytest.mark.parametrize("code", BROKEN)
def test_a_torch_that_cannot_be_imported_is_reported(code, tmp_path, monkeypatch):
    write(tmp_path, {"torch/__init__.py": code})
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    torch, _, errors = environment.run_probe()
    assert BROKEN[code] in torch.error
    assert errors == {}


def test_a_torch_that_hangs_times_out(monkeypatch):
    def hang(command, **options):
        raise subprocess.TimeoutExpired(command, options["timeout"])

    monkeypatch.setattr(subprocess, "run", hang)
    torch, _, errors = environment.run_probe()
    assert "more than 300 s" in torch.error
    assert errors == {}


FAKE_GPU = """
class version: cuda, hip = "13.0", None
class cuda:
    is_available = lambda: True
    device_count = lambda: 2
    get_device_name = lambda index: f"GPU {index}"
    mem_get_info = lambda index: (3, 4)
    is_bf16_supported = lambda: True
class backends:
    class mps: is_available = lambda: False
__version__ = "2.13.0"
def device(name): return name
def ones(count, device):
    if device == BROKEN: raise RuntimeError("no kernel image")
    return count
"""


@pytest.mark.parametrize("broken", ["none", "cuda:1"])
def test_the_probe_reports_why_torch_or_triton_cannot_compute(broken, tmp_path, monkeypatch):
    """torch and the fused modules are fakes: what is tested is that their answers arrive."""
    write(
        tmp_path, {"torch/__init__.py": FAKE_GPU, "diffusers.py": "UNet2DConditionModel = 1", "code.py": ""}
    )
    program = (
        "import json, sys, types; from unziplora_cli.doctor import environment; import torch;"
        f"torch.BROKEN = {broken!r};"
        "module = types.ModuleType('unziplora_cli.accel.fused_modules');"
        "module.kernel_problem = lambda device: f'No compiler on {device}.';"
        "sys.modules[module.__name__] = module;"
        "print(json.dumps(environment.probe()))"
    )
    package = str(Path(environment.__file__).parents[2])
    process = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        env={"PYTHONPATH": f"{tmp_path}:{package}"},
    )
    result = json.loads(process.stdout)
    first = {"vendor": "nvidia", "name": "GPU 0", "memory_free": 3, "memory_total": 4}
    assert result["gpus"][0] == first
    if broken == "none":
        assert result["torch"]["kernel_problem"] == "No compiler on cuda."
    else:
        assert result["torch"]["gpu_problem"] == "GPU 1 (RuntimeError: no kernel image)"
        assert result["gpus"][1] == {"vendor": "nvidia", "name": "GPU 1"}


def test_a_library_that_cannot_be_imported_is_reported(tmp_path, monkeypatch):
    write(tmp_path, {"peft/__init__.py": "raise ImportError('wrong torch')"})
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    torch, _, errors = environment.run_probe()
    assert torch.error == ""
    assert errors["peft"] == "ImportError: wrong torch"


def test_interrupted_downloads_are_counted(tmp_path):
    write(tmp_path, {"models--a--b/blobs/x.incomplete": "12345", "models--a--b/blobs/y": "1"})
    assert environment._cached_bases(tmp_path)[1:] == (5, "")


def test_the_hub_gets_no_token(monkeypatch):
    import urllib.request

    requests = []

    def refuse(request, timeout):
        requests.append(request)
        raise OSError("no route")

    monkeypatch.setenv("HF_ENDPOINT", "https://mirror.example/")
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    monkeypatch.setattr(urllib.request, "urlopen", refuse)
    assert environment.ask_hub() == ("https://mirror.example", "OSError: no route")
    assert requests[0].full_url.startswith("https://mirror.example/")
    assert "hf_secret" not in str(requests[0].headers)


@pytest.mark.parametrize(
    ("older", "newer"), [("2.9.1", "2.11.0"), ("2.13.0+cu130", "2.13.1"), ("0.9", "0.10.dev1"), ("", "0.1")]
)
def test_versions_are_ordered(older, newer):
    assert parse_version(older) < parse_version(newer)


def test_equal_versions():
    assert parse_version("2.13.0+cpu") == parse_version("2.13") == parse_version("2.13.0")


def test_the_tested_versions_ship_with_the_package():
    lowest, tested = (read_pins(resources.constraints(f"{name}.txt")) for name in ("lowest", "tested"))
    assert {"torch", "diffusers", "huggingface-hub"} <= lowest.keys() & tested.keys()
    for name in lowest.keys() & tested.keys():
        assert parse_version(lowest[name]) <= parse_version(tested[name])


def test_a_file_in_the_current_folder_is_not_imported_as_a_library(tmp_path, monkeypatch):
    proof, current = tmp_path / "proof", tmp_path / "current"
    write(current, {"json.py": f"open({str(proof)!r}, 'w')\nraise ImportError('not this one')"})
    write(tmp_path, {"path/torch/__init__.py": "raise ImportError('the one on the path')"})
    monkeypatch.chdir(current)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "path"))
    torch, _, _ = environment.run_probe()
    assert torch.error == "ImportError: the one on the path"
    assert not proof.exists()
