"""The checks of a machine that do not concern its GPU."""

from dataclasses import replace

import pytest

from tests.doctor.machines import CPU_MACHINE, GB, GPU_MACHINE, check, fixes
from unziplora_cli.doctor.checks import run_checks
from unziplora_cli.doctor.environment import Folder, Library


@pytest.mark.parametrize("machine", [CPU_MACHINE, GPU_MACHINE], ids=["cpu", "gpu"])
def test_a_good_machine_needs_no_fixes(machine):
    results = run_checks(machine)
    assert [
        (result.name, result.level) for result in results if result.level != "ok" or result.remedies
    ] == []
    assert len({result.name for result in results}) == len(results)


@pytest.mark.parametrize(
    ("version", "level"),
    [("3.10.14", "problem"), ("3.11.0", "ok"), ("3.12.9", "ok"), ("3.13.0", "note"), ("4.0.0", "note")],
)
def test_python(version, level):
    assert check("python", python=version).level == level


def test_an_emulated_python_on_a_mac_is_a_problem():
    result = check("python", system="Darwin", is_emulated=True)
    assert result.level == "problem"
    assert "Rosetta" in result.message
    assert "arm64" in fixes(result)[0]


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
    result = check("libraries", libraries=(*CPU_MACHINE.libraries[:2], peft))
    assert result.level == level
    assert message in result.message
    action = "--force-reinstall --no-deps" if "error" in change else "--upgrade"
    install = f"/opt/env/bin/python -m pip install 'peft>=0.18.0' {action}"
    assert fixes(result) == ([install] if level == "problem" else [])


@pytest.mark.parametrize(
    ("folder", "level", "message"),
    [
        (Folder("/h", 90 * GB, True), "ok", "90.0 GB free"),
        (Folder("/h", 2 * GB, True), "note", "needs up to 6.0 GB"),
        (Folder("/h", GB // 100, True), "problem", "full"),
        (Folder("/h", 90 * GB, False), "problem", "not writable"),
    ],
)
def test_home(folder, level, message):
    result = check("home", home=folder)
    assert result.level == level
    assert message in result.message
    assert any("--home" in fix for fix in fixes(result)) == (level != "ok")


@pytest.mark.parametrize(
    ("change", "level", "text"),
    [
        ({"bases": {"mini": ""}}, "ok", "unziplora models pull sdxl"),
        ({"bases": {"mini": ""}, "cache": Folder("/c", GB, True)}, "note", "SDXL needs 7.0 GB"),
        ({"cache": Folder("/c", GB, True)}, "ok", "mini, sdxl"),
        (
            {"bases": {"mini": "", "a/b": "The base lacks unet."}},
            "note",
            "a/b: The base lacks unet.",
        ),
        ({"bases": {"mini": "", "a/b": "x"}}, "note", "unziplora models pull a/b"),
        ({"bases": {"mini": "It lacks vae."}}, "problem", "base is damaged: It lacks vae."),
        ({"bases": {}}, "problem", "built-in base is damaged"),
        ({"bases": {}, "cache_error": "OSError: no"}, "note", "cannot be listed: OSError: no"),
        ({"unfinished_bytes": 3 * GB}, "note", "3.0 GB of interrupted downloads"),
    ],
)
def test_cache(change, level, text):
    result = check("cache", **change)
    assert result.level == level
    assert text in "\n".join([result.message, *fixes(result)])


def test_main_memory():
    assert check("memory").message == "8.0 GB of 16.0 GB free"
    assert check("memory", memory_free=GB // 2).level == "problem"
    names = [result.name for result in run_checks(replace(CPU_MACHINE, memory_free=None))]
    assert "memory" not in names


def test_hub_is_checked_only_when_it_was_asked():
    assert "hub" not in [result.name for result in run_checks(CPU_MACHINE)]
    assert check("hub", hub="https://hub").level == "ok"
    result = check("hub", hub="https://hub", hub_error="timed out")
    assert result.level == "note"
    assert "timed out" in result.message
