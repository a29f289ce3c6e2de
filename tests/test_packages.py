"""Optional packages and the command that installs them."""

import importlib.util
import shlex
import sys

import pytest

from unziplora_cli.cli._errors import hint, install_command
from unziplora_cli.config import TrainConfig
from unziplora_cli.errors import UsageError
from unziplora_cli.packages import check_packages, installer


@pytest.mark.parametrize(
    ("settings", "package", "extra"),
    [
        ({"optimizer": "adamw8bit"}, "bitsandbytes", "bnb"),
        ({"optimizer": "prodigy"}, "prodigyopt", "prodigy"),
        ({"tracker": "tensorboard"}, "tensorboard", "tensorboard"),
        ({"tracker": "wandb"}, "wandb", "wandb"),
    ],
)
def test_a_missing_package_names_the_extra_to_install(settings, package, extra, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    check_packages(TrainConfig())
    with pytest.raises(UsageError, match=package) as caught:
        check_packages(TrainConfig(**settings))
    assert hint(caught.value) == shlex.join(install_command(extra))
    assert hint(caught.value).endswith(f"'unziplora[{extra}]'")


@pytest.mark.parametrize(
    ("file", "text", "name", "starts"),
    [
        ("pipx_metadata.json", "{}", "pipx", ["pipx", "runpip", "unziplora", "install"]),
        ("uv-receipt.toml", "", "uv tool", ["uv", "tool", "install"]),
        ("pyvenv.cfg", "home = /usr\nuv = 0.9.1\n", "uv", ["uv", "pip", "install", "--python"]),
        ("pyvenv.cfg", "home = /usr\n", "pip", ["pip", "install"]),
    ],
)
def test_the_command_is_that_of_the_installer_in_use(file, text, name, starts, tmp_path, monkeypatch):
    (tmp_path / file).write_text(text)
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    monkeypatch.setattr(sys, "prefix", str(tmp_path))
    assert installer(tmp_path) == name
    command = install_command("bnb")
    assert command[: len(starts)] == starts
    assert command[-1] == "unziplora[bnb]"
