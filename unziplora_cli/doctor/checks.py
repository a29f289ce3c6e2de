"""What a machine's environment means for training: one function per question, which looks at nothing else."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from unziplora_cli.doctor.environment import Environment, Gpu, Library, parse_version
from unziplora_cli.errors import Remedy
from unziplora_cli.packages import PYTORCH_INDEX, TORCH_BUILDS, install_with_torch

PYTHONS = ("3.11", "3.12")
"""The lowest and the newest Python that the tests run with."""

GB = 10**9
SDXL_GPU_MEMORY = 13.5 * GB
"""Free GPU memory for SDXL at 1024 px and rank 64 in bf16."""
LOW_VRAM_GPU_MEMORY = 7.3 * GB
"""The same with the preset ``low-vram``."""
SDXL_DOWNLOAD = 7 * GB
SDXL_PROJECT = 6 * GB
"""An SDXL project at rank 64 during training: checkpoints, LoRAs and images."""
MINI_MEMORY = 0.6 * GB
MINI_PROJECT = 0.1 * GB

UPDATE_DRIVER = Remedy("Update NVIDIA's driver to 580 or later.")
INSTALL_DRIVER = Remedy("Install NVIDIA's driver.")

FREE_OR_RESTART = Remedy("Close programs that use the GPU (nvidia-smi lists them), or restart the machine.")

NO_KERNELS = ("no kernel image", "invalid device function")
"""What torch says about a GPU that it was not built for."""

Level = Literal["ok", "note", "problem"]
"""``problem``: blocks training, or keeps it off the GPU."""


@dataclass(frozen=True, slots=True)
class Check:
    """The answer to one question, and what to do about it, in order."""

    name: str
    level: Level
    message: str
    remedies: tuple[Remedy, ...] = ()


def run_checks(env: Environment) -> tuple[Check, ...]:
    """All checks, in the order in which problems should be fixed."""
    results = (
        check_python(env),
        check_torch(env),
        check_gpu(env),
        check_driver(env),
        check_kernels(env),
        check_gpu_memory(env),
        check_memory(env),
        check_libraries(env),
        check_home(env),
        check_cache(env),
        check_hub(env),
    )
    return tuple(result for result in results if result is not None)


def check_python(env: Environment) -> Check:
    lowest, newest = PYTHONS
    name = f"Python {env.python} on {env.system} {env.machine}"
    version = parse_version(env.python)[:2]
    if version < parse_version(lowest):
        remedy = Remedy(f"Install Python {lowest} to {newest}.")
        return Check("python", "problem", f"{name} is too old.", (remedy,))
    if env.is_emulated:
        remedy = Remedy("Install Python for arm64, and unziplora with it.")
        return Check("python", "problem", f"{name} under Rosetta cannot use this Mac's GPU.", (remedy,))
    if version > parse_version(newest):
        return Check("python", "note", f"{name} is newer than the tested {lowest} to {newest}.")
    return Check("python", "ok", name)


def check_torch(env: Environment) -> Check:
    library = _torch_library(env)
    reinstall = install_torch(env, cuda_build(env) if env.gpus_of("nvidia") else None)
    if library is None or library.version is None:
        return Check("torch", "problem", "torch is not installed.", reinstall)
    if env.torch.error:
        message = f"torch {library.version} is broken: {env.torch.error}."
        return Check("torch", "problem", message, reinstall)
    name = f"torch {env.torch.version}, built for {_built_for(env)}"
    library = replace(library, version=env.torch.version)
    if library.is_older:
        message = f"{name}, is older than {library.lowest}, the lowest tested version."
        return Check("torch", "problem", message, reinstall)
    if library.is_newer:
        return Check("torch", "note", f"{name}, is newer than {library.tested}, the newest tested version.")
    return Check("torch", "ok", name)


def check_gpu(env: Environment) -> Check:
    """Whether torch can use the GPU, or why not."""
    if problem := env.torch.gpu_problem:
        unsupported = any(sign in problem for sign in NO_KERNELS)
        remedies = install_torch(env, cuda_build(env)) if unsupported else (FREE_OR_RESTART,)
        return Check("gpu", "problem", f"This torch cannot compute on {problem}.", remedies)
    if env.torch.gpus:
        bf16 = "" if env.torch.bf16 else "; it does not support bf16, so fp16 is used"
        return Check("gpu", "ok", f"{', '.join(env.torch.gpus)}: torch can use it{bf16}")
    if env.torch.mps:
        return Check("gpu", "ok", "Apple GPU: torch can use it through MPS")
    if env.torch.error:
        message = f"{_names(env.gpus)}; fix torch first." if env.gpus else "None found."
        return Check("gpu", "note", message)
    if env.gpus_of("nvidia"):
        return _check_unused_nvidia(env)
    if env.gpus_of("amd"):
        return _check_unused_amd(env)
    if env.gpus_of("apple"):
        message = "Apple GPU, but torch cannot use it: MPS needs macOS 14 or later."
        return Check("gpu", "note", message, (Remedy("Update macOS."), *install_torch(env)))
    return Check("gpu", "ok", "none: the built-in base trains on the CPU, SDXL needs a GPU")


def _check_unused_nvidia(env: Environment) -> Check:
    """The first reason why torch does not see an NVIDIA GPU."""
    name = _names(env.gpus_of("nvidia"))
    build = cuda_build(env)

    def problem(message: str, *remedies: Remedy) -> Check:
        return Check("gpu", "problem", message, remedies)

    if env.torch.cuda is None:
        message = f"{name} is present, but torch {env.torch.version} was built for {_built_for(env)} only."
        if env.nvidia_driver is None:
            return problem(message, INSTALL_DRIVER, *install_torch(env, "cu126"))
        if build is None:
            message += f" NVIDIA's driver {env.nvidia_driver} is too old, too."
            return problem(message, UPDATE_DRIVER, *install_torch(env, "cu130"))
        return problem(message, *install_torch(env, build))
    if env.visible_gpus is not None and env.visible_gpus.strip() in ("", "-1", "NoDevFiles"):
        message = f"{name} is hidden: CUDA_VISIBLE_DEVICES is {env.visible_gpus!r}."
        return problem(message, Remedy("Unset the variable CUDA_VISIBLE_DEVICES."))
    if env.nvidia_driver is None:
        docker = Remedy("In Docker, start the container with", settings={"gpus": "all"})
        message = f"{name} is present, but NVIDIA's driver is missing or not visible in this container."
        return problem(message, INSTALL_DRIVER, docker)
    if env.driver_cuda and parse_version(env.torch.cuda)[:1] > parse_version(env.driver_cuda)[:1]:
        message = (
            f"{name} has driver {env.nvidia_driver} for CUDA {env.driver_cuda}, "
            f"but this torch needs CUDA {env.torch.cuda}."
        )
        return problem(message, *(install_torch(env, build) if build else (UPDATE_DRIVER,)))
    warning = f": {env.torch.warning}" if env.torch.warning else "."
    message = f"{name} is present, but torch cannot use it{warning}"
    return problem(message, *install_torch(env, build or "cu126"))


def _check_unused_amd(env: Environment) -> Check:
    name = _names(env.gpus_of("amd"))
    if env.torch.hip is None:
        message = f"{name} is present, but torch {env.torch.version} is not the build for ROCm."
        advice = Remedy("If ROCm supports this GPU, install the build for ROCm.")
        return Check("gpu", "note", message, (advice, *install_torch(env, TORCH_BUILDS["AMD, on Linux"])))
    remedy = Remedy("Add your user to the groups render and video, then log in again.")
    message = f"{name} is present, but torch for ROCm {env.torch.hip} cannot use it."
    return Check("gpu", "problem", message, (remedy,))


def check_driver(env: Environment) -> Check | None:
    if not env.gpus_of("nvidia") or env.nvidia_driver is None:
        return None
    supports = f", for CUDA up to {env.driver_cuda}" if env.driver_cuda else ""
    message = f"NVIDIA {env.nvidia_driver}{supports}"
    if cuda_build(env) is None:
        return Check("driver", "problem", f"{message}: too old for every supported torch.", (UPDATE_DRIVER,))
    return Check("driver", "ok", message)


def check_kernels(env: Environment) -> Check | None:
    """Whether the fused kernels run: Triton compiles them with a C compiler."""
    if not env.torch.gpus:
        return None
    problem = env.torch.kernel_problem
    if not problem:
        return Check("fused kernels", "ok", "Triton can compile them")
    if "compiler" in problem:
        remedy = Remedy("Install gcc or clang, on Debian and Ubuntu with", "apt install gcc", program="sudo")
    else:
        package = "triton-windows" if env.system == "Windows" else "triton"
        remedy = _pip(env, "install", package, advice="Install Triton")
    return Check("fused kernels", "note", f"{problem} Training works, but is slower.", (remedy,))


def check_gpu_memory(env: Environment) -> Check | None:
    """Whether enough GPU memory is free for SDXL."""
    gpus = [gpu for gpu in env.gpus if gpu.memory_free is not None]
    if not gpus:
        return None
    best = max(gpus, key=lambda gpu: gpu.memory_free or 0)
    free, total = best.memory_free or 0, best.memory_total or 0
    message = f"{_gigabytes(free)} of {_gigabytes(total)} free on {best.name or best.vendor}"
    if free >= SDXL_GPU_MEMORY:
        return Check("gpu memory", "ok", message)
    message += f"; SDXL at 1024 px and rank 64 needs {_gigabytes(SDXL_GPU_MEMORY)}"
    if total >= SDXL_GPU_MEMORY:
        remedy = Remedy("Close programs that use it (nvidia-smi lists them).")
    elif free >= LOW_VRAM_GPU_MEMORY:
        remedy = Remedy("Train with", settings={"preset": "low-vram"})
    else:
        message += f", {_gigabytes(LOW_VRAM_GPU_MEMORY)} with the preset low-vram"
        remedy = Remedy("See which settings fit", "train", ("IMAGE",), {"plan": True})
    return Check("gpu memory", "note", f"{message}.", (remedy,))


def check_memory(env: Environment) -> Check | None:
    """Whether enough main memory is free for the built-in base."""
    if env.memory_free is None:
        return None
    message = f"{_gigabytes(env.memory_free)} of {_gigabytes(env.memory_total or 0)} free"
    if env.memory_free < MINI_MEMORY:
        message += f"; even the built-in base needs {_gigabytes(MINI_MEMORY)}."
        return Check("memory", "problem", message, (Remedy("Close other programs."),))
    return Check("memory", "ok", message)


def check_libraries(env: Environment) -> Check:
    """Whether all other libraries are installed, importable, and of tested versions."""
    libraries = [library for library in env.libraries if library.name != "torch"]
    outdated = {
        library: f"{library.name} {library.version} is older than {library.lowest}"
        if library.version
        else f"{library.name} is not installed"
        for library in libraries
        if library.version is None or library.is_older
    }
    broken = {
        library: f"{library.name} {library.version} cannot be imported ({library.error})"
        for library in libraries
        if library.error and library not in outdated
    }
    if outdated or broken:
        message = "; ".join([*outdated.values(), *broken.values()]) + "."
        remedy = install_libraries(env, [*(outdated or broken)])
        return Check("libraries", "problem", message, (remedy,))
    names = [f"{lib.name} {lib.version} (tested: {lib.tested})" for lib in libraries if lib.is_newer]
    if names:
        return Check("libraries", "note", f"newer than the tested versions: {', '.join(names)}")
    return Check("libraries", "ok", f"{len(libraries)} of tested versions")


def check_home(env: Environment) -> Check:
    """Whether projects can be written, and have enough space."""
    message = f"{_gigabytes(env.home.free)} free at {env.home.path}"
    remedies = (Remedy("Set UNZIPLORA_HOME to another folder, or use", settings={"home": "FOLDER"}),)
    if not env.home.writable:
        return Check("home", "problem", f"{env.home.path} is not writable.", remedies)
    if env.home.free < MINI_PROJECT:
        return Check("home", "problem", f"{message}: the disk is full.", remedies)
    if env.home.free < SDXL_PROJECT:
        message += f"; training with SDXL needs up to {_gigabytes(SDXL_PROJECT)}."
        return Check("home", "note", message, remedies)
    return Check("home", "ok", message)


def check_cache(env: Environment) -> Check:
    """Whether the bases are complete, and SDXL has enough space."""
    message = f"{_gigabytes(env.cache.free)} free at {env.cache.path}"
    if env.cache_error:
        return Check("cache", "note", f"{message}; its bases cannot be listed: {env.cache_error}.")
    if problem := env.bases.get("mini", "it is missing"):
        remedy = Remedy("Install unziplora again.")
        return Check("cache", "problem", f"The built-in base is damaged: {problem.rstrip('.')}.", (remedy,))
    for spec, problem in env.bases.items():
        if problem:
            remedies = (Remedy("", "models remove", (spec,)), Remedy("", "models pull", (spec,)))
            return Check("cache", "note", f"{spec}: {problem}", remedies)
    if env.unfinished_bytes:
        message += f"; {_gigabytes(env.unfinished_bytes)} of interrupted downloads, which can be resumed"
        return Check("cache", "note", message, (Remedy("List them", "models list"),))
    bases = f"{message}; bases: {', '.join(env.bases)}"
    if "sdxl" in env.bases:
        return Check("cache", "ok", bases)
    if not env.cache.writable or env.cache.free < SDXL_DOWNLOAD:
        remedy = Remedy("Free disk space, or set HF_HOME to a folder on another disk.")
        return Check("cache", "note", f"{message}; SDXL needs {_gigabytes(SDXL_DOWNLOAD)}.", (remedy,))
    return Check("cache", "ok", bases, (Remedy("Download SDXL", "models pull", ("sdxl",)),))


def check_hub(env: Environment) -> Check | None:
    if env.hub is None:
        return None
    if env.hub_error:
        remedy = Remedy("Check the connection; behind a proxy, set HTTPS_PROXY.")
        return Check("hub", "note", f"{env.hub} does not answer: {env.hub_error}.", (remedy,))
    return Check("hub", "ok", f"{env.hub} answers")


# Installing libraries


def install_torch(env: Environment, build: str | None = None) -> tuple[Remedy, ...]:
    """The commands that install torch; ``build`` is a folder of PyTorch's index, such as ``cu130``.

    pip keeps an installed torch of the right version even if it is another build, so it is uninstalled first.
    """
    if env.installer in ("pipx", "uv tool"):
        return (install_with_torch(env.installer, build or ""),)
    torch = _torch_library(env)
    wanted = f"torch>={torch.lowest}" if torch else "torch"
    index = {"index_url": f"{PYTORCH_INDEX}/{build}"} if build else {}
    if env.installer == "uv":
        return (_pip(env, "install", wanted, reinstall_package="torch", **index),)
    return (_pip(env, "uninstall", "-y", "torch"), _pip(env, "install", wanted, **index))


def install_libraries(env: Environment, libraries: Sequence[Library]) -> Remedy:
    """The command that upgrades missing and old libraries, or reinstalls broken ones."""
    wanted = [f"{library.name}>={library.lowest}" for library in libraries]
    if any(library.error for library in libraries):
        return _pip(env, "install", *wanted, force_reinstall=True, no_deps=True)
    return _pip(env, "install", *wanted, upgrade=True)


def _pip(env: Environment, action: str, *arguments: str, advice: str = "", **settings: Any) -> Remedy:
    """A command of the installer that unziplora was installed with."""
    match env.installer:
        case "pipx":
            return Remedy(advice, f"runpip unziplora {action}", arguments, settings, program="pipx")
        case "pip":
            return Remedy(advice, f"-m pip {action}", arguments, settings, program=env.executable)
        case "uv tool":
            settings = {"reinstall": True, "with": list(arguments)}
            return Remedy(advice, "tool install", ("unziplora",), settings, program="uv")
        case "uv":
            settings = {"python": env.executable, **settings}
            return Remedy(advice, f"pip {action}", arguments, settings, program="uv")


def cuda_build(env: Environment) -> str | None:
    """The build of torch for this machine's driver and GPUs; None when the driver is too old for any.

    CUDA 13 needs driver 580 and a GPU of capability 7.5 or more, CUDA 12 driver 525; GPUs of capability 10
    and more need CUDA 12.8.
    """
    if env.driver_cuda:
        supported = parse_version(env.driver_cuda)
    else:
        driver = parse_version(env.nvidia_driver or "525")
        supported = (13,) if driver >= (580,) else (12,) if driver >= (525,) else (11,)
    capabilities = [parse_version(gpu.capability) for gpu in env.gpus_of("nvidia") if gpu.capability]
    oldest, newest = min(capabilities, default=(8,)), max(capabilities, default=(8,))
    if supported >= (13,) and oldest >= (7, 5):
        return "cu130"
    if supported >= (12, 8) and newest >= (10,):
        return "cu128"
    return "cu126" if supported >= (12,) else None


def _torch_library(env: Environment) -> Library | None:
    return next((library for library in env.libraries if library.name == "torch"), None)


def _built_for(env: Environment) -> str:
    if env.torch.hip:
        return f"ROCm {env.torch.hip}"
    if env.torch.cuda:
        return f"CUDA {env.torch.cuda}"
    return "Apple's GPU and the CPU" if env.system == "Darwin" else "the CPU"


def _names(gpus: Iterable[Gpu]) -> str:
    titles = {"nvidia": "an NVIDIA GPU", "amd": "an AMD GPU", "intel": "an Intel GPU", "apple": "Apple GPU"}
    return ", ".join(dict.fromkeys(gpu.name or titles[gpu.vendor] for gpu in gpus))


def _gigabytes(number: float) -> str:
    return f"{number / GB:.1f} GB"
