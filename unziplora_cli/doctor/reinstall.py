"""The exact shell lines that fix the environment that unziplora runs in."""

from collections.abc import Sequence

from unziplora_cli.doctor.environment import Environment, Library, release

INDEX = "https://download.pytorch.org/whl"


def torch_line(env: Environment, build: str | None = None) -> str:
    """The line for torch; `build` is a folder of PyTorch's index, as `cu130`.

    pip keeps a build that is of the right version, so the one that is there goes first.
    """
    torch = env.library("torch")
    wanted = f'"torch>={torch.lowest}"' if torch else "torch"
    index = f" --index-url {INDEX}/{build}" if build else ""
    install = f"{_install(env)} {wanted}{index}"
    match env.installer:
        case "pipx":
            return f"pipx runpip unziplora uninstall -y torch && {install}"
        case "pip":
            return f"{_python(env)} -m pip uninstall -y torch && {install}"
        case "uv":
            return f"{_install(env)} --reinstall-package torch {wanted}{index}"


def libraries_line(env: Environment, libraries: Sequence[Library]) -> str:
    """The line for other libraries: missing and old ones upgraded, broken ones installed anew."""
    wanted = " ".join(f'"{each.name}>={each.lowest}"' for each in libraries)
    broken = any(each.error for each in libraries)
    return f"{_install(env)} {'--force-reinstall --no-deps' if broken else '--upgrade'} {wanted}"


def _install(env: Environment) -> str:
    match env.installer:
        case "pipx":
            return "pipx runpip unziplora install"
        case "pip":
            return f"{_python(env)} -m pip install"
        case "uv":
            return f"uv pip install --python {_python(env)}"


def _python(env: Environment) -> str:
    return f'"{env.executable}"' if " " in env.executable else env.executable


def cuda_build(env: Environment) -> str | None:
    """The build that this machine's driver and GPUs can run; None when the driver is too old for any.

    CUDA 13 needs a driver of 580 or later and a GPU of capability 7.5 or more, CUDA 12 a driver of 525; GPUs
    of capability 10 and more need CUDA 12.8.
    """
    supported = release(env.driver_cuda) if env.driver_cuda else _by_driver(env.nvidia_driver)
    capabilities = [release(gpu.capability) for gpu in env.of("nvidia") if gpu.capability]
    oldest, newest = min(capabilities, default=(8,)), max(capabilities, default=(8,))
    if supported >= (13,) and oldest >= (7, 5):
        return "cu130"
    if supported >= (12, 8) and newest >= (10,):
        return "cu128"
    return "cu126" if supported >= (12,) else None


def _by_driver(driver: str | None) -> tuple[int, ...]:
    """The CUDA version of a driver; CUDA 12 when none is known."""
    number = release(driver) if driver else (525,)
    return (13,) if number >= (580,) else (12,) if number >= (525,) else (11,)
