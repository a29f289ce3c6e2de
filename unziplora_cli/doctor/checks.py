"""What an environment means for training: a function per question, none of which looks at the machine."""

from collections.abc import Callable

from unziplora_cli.doctor.environment import (
    GB,
    PYTHONS,
    Check,
    Environment,
    Library,
    Place,
    gigabytes,
    release,
)
from unziplora_cli.doctor.gpu_checks import driver, gpu, gpu_memory, torch
from unziplora_cli.doctor.reinstall import libraries_line

SDXL_DOWNLOAD = 7 * GB
SDXL_PROJECT = 6 * GB
"""An SDXL project at rank 64 while it is trained: two checkpoints, the LoRAs and pictures."""
MINI_MEMORY = 0.6 * GB
MINI_PROJECT = 0.1 * GB


def run_checks(env: Environment) -> tuple[Check, ...]:
    """All checks, in the order in which a person would fix things."""
    answers = (question(env) for question in QUESTIONS)
    return tuple(answer for answer in answers if answer is not None)


def python(env: Environment) -> Check:
    """Is Python one that was tested?"""
    lowest, newest = PYTHONS
    name = f"Python {env.python} on {env.system} {env.machine}"
    version = release(env.python)[:2]
    if version < release(lowest):
        return Check("python", "problem", f"{name}: too old.", f"Install Python {lowest} to {newest}.")
    if env.is_emulated:
        fix = "Install a Python for arm64, and unziplora with it."
        return Check("python", "problem", f"{name} under Rosetta: it cannot use this Mac's GPU.", fix)
    if version > release(newest):
        return Check("python", "note", f"{name}: newer than the tested {lowest} to {newest}.")
    return Check("python", "ok", name)


def memory(env: Environment) -> Check | None:
    """Is enough main memory free for the built-in base?"""
    if env.memory_free is None:
        return None
    message = f"{gigabytes(env.memory_free)} of {gigabytes(env.memory_total or 0)} free"
    if env.memory_free < MINI_MEMORY:
        need = f"even the built-in base takes {gigabytes(MINI_MEMORY)}"
        return Check("memory", "problem", f"{message}; {need}.", "Close other programs.")
    return Check("memory", "ok", message)


def libraries(env: Environment) -> Check:
    """Are the other libraries there, importable, and of tested versions?"""
    others = [each for each in env.libraries if each.name != "torch"]
    missing = [each for each in others if each.version is None]
    old = [each for each in others if each.version and release(each.version) < release(each.lowest)]
    broken = [each for each in others if each.version and each.error and each not in old]
    if missing or old or broken:
        reasons = [f"{each.name} is not installed" for each in missing]
        reasons += [f"{each.name} {each.version} is older than {each.lowest}" for each in old]
        reasons += [f"{each.name} {each.version} cannot be imported ({each.error})" for each in broken]
        return Check(
            "libraries", "problem", "; ".join(reasons) + ".", libraries_line(env, missing + old or broken)
        )
    newer = [each for each in others if _newer(each)]
    if newer:
        listed = ", ".join(f"{each.name} {each.version} (tested: {each.tested})" for each in newer)
        return Check("libraries", "note", f"newer than what was tested: {listed}")
    return Check("libraries", "ok", f"{len(others)} of tested versions")


def home(env: Environment) -> Check:
    """Can projects be written, and is there room for them?"""
    message = f"{gigabytes(env.home.free)} free at {env.home.path}"
    elsewhere = "Choose another folder: --home FOLDER or the variable UNZIPLORA_HOME."
    if not env.home.writable:
        return Check("home", "problem", f"{env.home.path} cannot be written.", elsewhere)
    if env.home.free < MINI_PROJECT:
        return Check("home", "problem", f"{message}: full.", elsewhere)
    if env.home.free < SDXL_PROJECT:
        need = f"training with SDXL takes up to {gigabytes(SDXL_PROJECT)}"
        return Check("home", "note", f"{message}; {need}.", elsewhere)
    return Check("home", "ok", message)


def cache(env: Environment) -> Check:
    """Is there room for SDXL, and are the bases whole?"""
    message = f"{gigabytes(env.cache.free)} free at {env.cache.path}"
    if env.cache_error:
        return Check("cache", "note", f"{message}; the bases in it cannot be listed: {env.cache_error}.")
    built_in = next((each for each in env.bases if each.spec == "mini"), None)
    if built_in is None or built_in.problem:
        lack = built_in.problem if built_in else "it is missing"
        fix = "Install unziplora again."
        return Check("cache", "problem", f"The built-in base is damaged: {lack.rstrip('.')}.", fix)
    damaged = [each for each in env.bases if each.problem]
    if damaged:
        return Check("cache", "note", f"{damaged[0].spec}: {damaged[0].problem}", _fetch(damaged[0].spec))
    if env.unfinished_bytes:
        message += (
            f"; {gigabytes(env.unfinished_bytes)} of downloads that broke off (a pull goes on from there)"
        )
        return Check("cache", "note", message, "unziplora models list")
    names = ", ".join(each.spec for each in env.bases)
    if "sdxl" in names.split(", "):
        return Check("cache", "ok", f"{message}; bases: {names}")
    if not _enough(env.cache):
        fix = "Make room, or point HF_HOME at another disk."
        return Check("cache", "note", f"{message}; SDXL takes {gigabytes(SDXL_DOWNLOAD)}.", fix)
    return Check("cache", "ok", f"{message}; bases: {names} (SDXL: unziplora models pull sdxl)")


def hub(env: Environment) -> Check | None:
    """Does the model hub answer? Asked only with --online."""
    if env.hub is None:
        return None
    if env.hub.error:
        message = f"{env.hub.url} does not answer: {env.hub.error}."
        return Check("hub", "note", message, "Check the connection; behind a proxy, set HTTPS_PROXY.")
    return Check("hub", "ok", f"{env.hub.url} answers")


QUESTIONS: tuple[Callable[[Environment], Check | None], ...] = (
    python,
    torch,
    gpu,
    driver,
    gpu_memory,
    memory,
    libraries,
    home,
    cache,
    hub,
)


def _newer(library: Library) -> bool:
    tested = library.tested
    return bool(tested and library.version and release(library.version) > release(tested))


def _enough(place: Place) -> bool:
    return place.writable and place.free >= SDXL_DOWNLOAD


def _fetch(spec: str) -> str:
    return f"unziplora models remove {spec}, then: unziplora models pull {spec}"
