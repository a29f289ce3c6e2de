import os
from pathlib import Path

import pytest

from unziplora_cli import paths


def test_the_option_precedes_the_variable_and_the_variable_the_default(monkeypatch, tmp_path):
    monkeypatch.setenv("UNZIPLORA_HOME", str(tmp_path / "variable"))
    assert paths.home(tmp_path / "option") == tmp_path / "option"
    assert paths.home() == tmp_path / "variable"
    monkeypatch.setenv("UNZIPLORA_HOME", " ")
    assert paths.home().name == "unziplora"
    monkeypatch.delenv("UNZIPLORA_HOME")
    assert paths.home().name == "unziplora"


def test_a_home_is_absolute_and_expands_the_tilde(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    assert paths.home(Path("~/x")) == tmp_path / "x"
    assert paths.home(Path("y")) == tmp_path / "y"


def test_the_hub_cache_is_that_of_huggingface_hub(monkeypatch):
    import subprocess
    import sys

    program = "import huggingface_hub.constants as c; print(c.HF_HUB_CACHE)"
    for variables in ({}, {"HF_HOME": "/a/b"}, {"HF_HUB_CACHE": "/c"}, {"XDG_CACHE_HOME": "/d"}):
        for name in ("HF_HOME", "HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "XDG_CACHE_HOME"):
            monkeypatch.delenv(name, raising=False)
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        expected = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
        assert str(paths.hub_cache()) == expected.stdout.strip()


@pytest.mark.parametrize("name", ["USE_TF", "USE_TORCH", "USE_FLAX", "ACCELERATE_DYNAMO_BACKEND"])
def test_variables_that_would_make_a_library_do_without_torch_are_dropped(monkeypatch, name):
    monkeypatch.setenv(name, "1")
    paths.drop_useless_variables()
    assert name not in os.environ
