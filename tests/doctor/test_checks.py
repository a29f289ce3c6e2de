"""What is said of a machine, for one faked machine of every kind."""

from dataclasses import replace

import pytest

from tests.doctor.machines import GB, SOUND, WITH_GPU, answer
from unziplora_cli.doctor.checks import QUESTIONS, run_checks
from unziplora_cli.doctor.environment import Base, Gpu, Hub, Library, Place


@pytest.mark.parametrize("machine", [SOUND, WITH_GPU], ids=["cpu", "gpu"])
def test_a_sound_machine_has_nothing_to_mend(machine):
    checks = run_checks(machine)
    assert [(check.name, check.fix) for check in checks if check.level != "ok"] == []
    assert len({check.name for check in checks}) == len(checks)


def test_every_question_is_asked():
    everything = replace(WITH_GPU, hub=Hub("https://huggingface.co"))
    assert len(run_checks(everything)) == len(QUESTIONS)


@pytest.mark.parametrize(
    ("version", "level"),
    [("3.10.14", "problem"), ("3.11.0", "ok"), ("3.12.9", "ok"), ("3.13.0", "note"), ("4.0.0", "note")],
)
def test_python(version, level):
    assert answer("python", python=version).level == level


def test_an_emulated_python_on_a_mac_is_a_problem():
    check = answer("python", system="Darwin", is_emulated=True)
    assert (check.level, "Rosetta" in check.message, "arm64" in check.fix) == ("problem", True, True)


@pytest.mark.parametrize(
    ("change", "level", "message"),
    [
        ({"version": None}, "problem", "peft is not installed"),
        ({"version": "0.17.9"}, "problem", "peft 0.17.9 is older than 0.18.0"),
        ({"version": "0.18.0"}, "ok", ""),
        ({"version": "0.22.0"}, "note", "peft 0.22.0 (tested: 0.21.2)"),
        ({"error": "ImportError: no"}, "problem", "peft 0.21.2 cannot be imported (ImportError: no)"),
    ],
)
def test_libraries(change, level, message):
    peft = replace(Library("peft", "0.21.2", "0.18.0", "0.21.2"), **change)
    check = answer("libraries", libraries=(*SOUND.libraries[:2], peft))
    assert check.level == level
    assert message in check.message
    assert ('"peft>=0.18.0"' in check.fix) == (level == "problem")


@pytest.mark.parametrize(
    ("place", "level", "message"),
    [
        (Place("/h", 90 * GB, True), "ok", "90.0 GB free"),
        (Place("/h", 2 * GB, True), "note", "takes up to 6.0 GB"),
        (Place("/h", GB // 100, True), "problem", "full"),
        (Place("/h", 90 * GB, False), "problem", "cannot be written"),
    ],
)
def test_the_home(place, level, message):
    check = answer("home", home=place)
    assert check.level == level
    assert message in check.message
    assert ("--home" in check.fix) == (level != "ok")


@pytest.mark.parametrize(
    ("change", "level", "message"),
    [
        ({"bases": (Base("mini"),)}, "ok", "unziplora models pull sdxl"),
        ({"bases": (Base("mini"),), "cache": Place("/c", GB, True)}, "note", "SDXL takes 7.0 GB"),
        ({"bases": (Base("mini"), Base("sdxl")), "cache": Place("/c", GB, True)}, "ok", "mini, sdxl"),
        ({"bases": (Base("mini"), Base("a/b", "The base lacks unet."))}, "note", "a/b: The base lacks unet."),
        ({"bases": (Base("mini", "It lacks vae."),)}, "problem", "built-in base is damaged: It lacks vae."),
        ({"bases": ()}, "problem", "built-in base is damaged"),
        ({"bases": (), "cache_error": "OSError: no"}, "note", "cannot be listed: OSError: no"),
        ({"unfinished_bytes": 3 * GB}, "note", "3.0 GB of downloads that broke off"),
    ],
)
def test_the_cache(change, level, message):
    check = answer("cache", **change)
    assert check.level == level
    assert message in check.message


def test_main_memory():
    assert answer("memory").message == "8.0 GB of 16.0 GB free"
    assert answer("memory", memory_free=GB // 2).level == "problem"
    assert "memory" not in [check.name for check in run_checks(replace(SOUND, memory_free=None))]


@pytest.mark.parametrize(
    ("total", "free", "level", "fix"),
    [
        (24, 20, "ok", ""),
        (24, 3, "note", "nvidia-smi"),
        (12, 11, "note", "--preset low-vram"),
        (8, 7, "note", "--plan"),
    ],
)
def test_memory_of_the_gpu(total, free, level, fix):
    gpu = Gpu("nvidia", "RTX", total * GB, free * GB, "8.9")
    check = answer("gpu memory", WITH_GPU, gpus=(gpu,))
    assert check.level == level
    assert fix in check.fix
    assert f"{free}.0 GB of {total}.0 GB" in check.message


def test_memory_is_not_judged_where_no_gpu_tells_it():
    names = [check.name for check in run_checks(replace(WITH_GPU, gpus=(Gpu("nvidia"),)))]
    assert "gpu memory" not in names


def test_the_hub_is_judged_only_when_it_was_asked():
    assert "hub" not in [check.name for check in run_checks(SOUND)]
    assert answer("hub", hub=Hub("https://hub")).level == "ok"
    check = answer("hub", hub=Hub("https://hub", "timed out"))
    assert (check.level, "timed out" in check.message) == ("note", True)
