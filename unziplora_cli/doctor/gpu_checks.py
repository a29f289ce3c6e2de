"""What an environment means for torch and the GPUs; none of these functions looks at the machine."""

import re
from collections.abc import Iterable

from unziplora_cli.doctor.environment import GB, Check, Environment, Gpu, gigabytes, release
from unziplora_cli.doctor.reinstall import cuda_build, torch_line

SDXL_GPU_MEMORY = 13.5 * GB
"""What must be free for SDXL at 1024 px and rank 64 in bf16."""

LOW_VRAM_GPU_MEMORY = 7.3 * GB
"""The same with the preset low-vram."""


def torch(env: Environment) -> Check:
    """Can torch be imported, and is it one that was tested?"""
    library = env.library("torch")
    if env.torch.error and (library is None or library.version is None):
        return Check("torch", "problem", "torch is not installed.", torch_line(env, _build(env)))
    if env.torch.error:
        version = library.version if library else ""
        message = f"torch {version} is broken: {env.torch.error}."
        return Check("torch", "problem", message, torch_line(env, _build(env)))
    version = env.torch.version or ""
    built = f"torch {version}, built for {_built_for(env)}"
    if library and release(version) < release(library.lowest):
        message = f"{built}: older than {library.lowest}, the lowest that was tested."
        return Check("torch", "problem", message, torch_line(env, _build(env)))
    if library and library.tested and release(version) > release(library.tested):
        return Check("torch", "note", f"{built}: newer than {library.tested}, the newest that was tested.")
    return Check("torch", "ok", built)


def gpu(env: Environment) -> Check:
    """Is there a GPU, and can torch use it?"""
    if env.torch.gpus:
        unfit = [each for each in env.of("nvidia") if not _has_kernels(each, env.torch.kernels)]
        if unfit:
            message = (
                f"{_names(unfit)} (capability {unfit[0].capability}) is not among the GPUs of this torch."
            )
            return Check("gpu", "problem", message, torch_line(env, cuda_build(env)))
        bf16 = "" if env.torch.bf16 else "; it has no bf16, so fp16 is used"
        return Check("gpu", "ok", f"{', '.join(env.torch.gpus)}: torch can use it{bf16}")
    if env.torch.mps:
        return Check("gpu", "ok", "Apple GPU: torch can use it through MPS")
    if env.torch.error:
        found = f"{_names(env.gpus)}; torch has to work first." if env.gpus else "None found."
        return Check("gpu", "note", found)
    if env.of("nvidia"):
        return _unused_nvidia(env)
    if env.of("amd"):
        return _unused_amd(env)
    if env.of("apple"):
        message = "Apple GPU, but torch cannot use it: MPS needs macOS 14 or later."
        return Check("gpu", "note", message, "Update macOS, then: " + torch_line(env))
    return Check("gpu", "ok", "none: the built-in base trains on the CPU, SDXL needs a GPU")


def _unused_nvidia(env: Environment) -> Check:
    """Why torch sees no NVIDIA GPU although there is one; the first reason found is told."""
    name = _names(env.of("nvidia"))
    build = cuda_build(env)
    if env.torch.cuda is None:
        message = (
            f"{name} is here, but this torch ({env.torch.version}) was built for {_built_for(env)} alone."
        )
        if env.nvidia_driver is None:
            return Check(
                "gpu", "problem", message, "Install NVIDIA's driver, then: " + torch_line(env, "cu126")
            )
        if build is None:
            fix = "Update NVIDIA's driver to 580 or later, then: " + torch_line(env, "cu130")
            return Check("gpu", "problem", f"{message} Its driver {env.nvidia_driver} is too old, too.", fix)
        return Check("gpu", "problem", message, torch_line(env, build))
    if env.visible_gpus is not None and env.visible_gpus.strip() in ("", "-1", "NoDevFiles"):
        message = f"{name} is hidden: CUDA_VISIBLE_DEVICES is {env.visible_gpus!r}."
        return Check("gpu", "problem", message, "unset CUDA_VISIBLE_DEVICES")
    if env.nvidia_driver is None:
        message = (
            f"{name} is here, but NVIDIA's driver is not, or this container was started without the GPU."
        )
        return Check("gpu", "problem", message, "Install NVIDIA's driver; in Docker, start with: --gpus all")
    if env.driver_cuda and release(env.torch.cuda)[:1] > release(env.driver_cuda)[:1]:
        message = (
            f"{name} has the driver {env.nvidia_driver} for CUDA {env.driver_cuda}, "
            f"but this torch needs CUDA {env.torch.cuda}."
        )
        fix = torch_line(env, build) if build else "Update NVIDIA's driver to 580 or later."
        return Check("gpu", "problem", message, fix)
    why = f": {env.torch.warning}" if env.torch.warning else "."
    return Check(
        "gpu", "problem", f"{name} is here, but torch cannot use it{why}", torch_line(env, build or "cu126")
    )


def _unused_amd(env: Environment) -> Check:
    name = _names(env.of("amd"))
    if env.torch.hip is None:
        message = f"{name} is here, but this torch ({env.torch.version}) is not the build for ROCm."
        fix = (
            "If ROCm supports this GPU, take the index address of the ROCm build from "
            f"https://pytorch.org/get-started/locally/ and: {torch_line(env)} --index-url ADDRESS"
        )
        return Check("gpu", "note", message, fix)
    message = f"{name} is here, but torch for ROCm {env.torch.hip} cannot use it."
    return Check("gpu", "problem", message, "sudo usermod -aG render,video $USER, then log in again")


def driver(env: Environment) -> Check | None:
    """Which driver NVIDIA's GPUs have."""
    if not env.of("nvidia") or env.nvidia_driver is None:
        return None
    supports = f", for CUDA up to {env.driver_cuda}" if env.driver_cuda else ""
    message = f"NVIDIA {env.nvidia_driver}{supports}"
    if cuda_build(env) is None:
        fix = "Update NVIDIA's driver to 580 or later."
        return Check("driver", "problem", f"{message}: too old for every torch that works here.", fix)
    return Check("driver", "ok", message)


def gpu_memory(env: Environment) -> Check | None:
    """Is enough memory of the GPU free for SDXL?"""
    known = [each for each in env.gpus if each.memory_free is not None]
    if not known:
        return None
    best = max(known, key=lambda each: each.memory_free or 0)
    free, total = best.memory_free or 0, best.memory_total or 0
    message = f"{gigabytes(free)} of {gigabytes(total)} free on {best.name or best.vendor}"
    if free >= SDXL_GPU_MEMORY:
        return Check("gpu memory", "ok", message)
    need = f"SDXL at 1024 px and rank 64 takes {gigabytes(SDXL_GPU_MEMORY)}"
    if total >= SDXL_GPU_MEMORY:
        return Check(
            "gpu memory", "note", f"{message}; {need}.", "Close what uses it: nvidia-smi shows that."
        )
    if free >= LOW_VRAM_GPU_MEMORY:
        return Check("gpu memory", "note", f"{message}; {need}.", "unziplora train ... --preset low-vram")
    least = f"{need}, {gigabytes(LOW_VRAM_GPU_MEMORY)} with --preset low-vram"
    return Check(
        "gpu memory", "note", f"{message}; {least}.", "What would fit: unziplora train PICTURE --plan"
    )


def _build(env: Environment) -> str | None:
    """The build of torch to ask for: CUDA's where there is an NVIDIA GPU, else the usual one."""
    return cuda_build(env) if env.of("nvidia") else None


def _built_for(env: Environment) -> str:
    if env.torch.hip:
        return f"ROCm {env.torch.hip}"
    if env.torch.cuda:
        return f"CUDA {env.torch.cuda}"
    return "Apple's GPU and the CPU" if env.system == "Darwin" else "the CPU"


def _has_kernels(gpu: Gpu, kernels: tuple[str, ...]) -> bool:
    """Whether compiled kernels run on a GPU: of its generation and no later, or as code to be compiled."""
    if gpu.capability is None or not kernels:
        return True
    own = tuple(int(part) for part in gpu.capability.split("."))
    for kernel in kernels:
        found = re.fullmatch(r"(sm|compute)_(\d+)(\d)[a-z]?", kernel)
        if found:
            built = (int(found[2]), int(found[3]))
            if built <= own and (found[1] == "compute" or built[0] == own[0]):
                return True
    return False


def _names(gpus: Iterable[Gpu]) -> str:
    titles = {"nvidia": "an NVIDIA GPU", "amd": "an AMD GPU", "intel": "an Intel GPU", "apple": "Apple GPU"}
    return ", ".join(dict.fromkeys(each.name or titles[each.vendor] for each in gpus))
