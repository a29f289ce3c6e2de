"""The help of every command: examples that can be typed, whole option names, the usual options first."""

import os
import re
import shlex
from collections.abc import Iterator
from dataclasses import fields
from typing import Any

import pytest
import typer

from unziplora_cli.cli import _help
from unziplora_cli.cli._help import EXAMPLES, USUAL, path_of_url
from unziplora_cli.cli.app import GLOBAL_OPTIONS, app
from unziplora_cli.config import GenerateConfig, TrainConfig


def commands(group: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Every command with its path, such as "models list"."""
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from commands(command, f"{path}{name} ")
        else:
            yield f"{path}{name}", command


COMMANDS = dict(commands(typer.main.get_command(app)))


def option_names(command: Any) -> set[str]:
    return {name for param in command.params for name in (*param.opts, *param.secondary_opts)}


@pytest.mark.parametrize("path", COMMANDS)
def test_every_command_has_examples_of_options_that_exist(path, unziplora, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    shown = unziplora(*path.split(), "--help").out
    assert EXAMPLES[path]
    for example in EXAMPLES[path]:
        assert f"\n  unziplora {example}\n" in shown
        words = shlex.split(example.removeprefix(path))
        assert example.startswith(path)
        assert {word for word in words if word.startswith("-")} <= {
            *option_names(COMMANDS[path]),
            *GLOBAL_OPTIONS,
        }


def test_no_example_is_left_of_a_former_command():
    assert set(EXAMPLES) == {*COMMANDS, "unziplora"}


def test_the_program_alone_ends_with_commands_to_begin_with(unziplora):
    ending = unziplora().out.split("Examples:")[1]
    assert ending.split() == [word for line in EXAMPLES["unziplora"] for word in ("unziplora", *line.split())]
    for example in EXAMPLES["unziplora"]:
        assert example.split()[0] in COMMANDS


@pytest.mark.parametrize("path", ["", *COMMANDS, "models", "presets", "config"])
def test_help_has_one_form_and_no_types_of_python(path, unziplora, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    usage, shown = unziplora(*path.split(), "--help").out.split("\n", 1)
    assert usage.startswith(f"Usage: unziplora {path}")
    assert not re.search(r"[{}]|\]\.\.\.", usage.replace("COMMAND [ARGS]...", ""))
    assert not re.search("range>|<path>|<bool>|\u256d|<=x|x>=", shown)


def test_help_breaks_no_word(unziplora, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    assert "[default: sd-scripts]" in " ".join(unziplora("export", "--help").out.split())


@pytest.mark.parametrize(("command", "other"), [("content", "style"), ("style", "content")])
def test_a_strength_without_effect_is_no_usual_option(command, other, unziplora):
    shown = unziplora(command, "--help").out
    assert f"--{command}-strength" in shown
    assert f"--{other}-strength" not in shown


def test_an_image_in_place_of_a_command_is_answered_with_train(unziplora):
    result = unziplora("My Photos/owl.JPG")
    assert result.code == 2
    assert "unziplora train 'My Photos/owl.JPG'" in result.err


def test_a_dragged_file_url_is_a_path(unziplora):
    result = unziplora("train", "file:///tmp/no%20such%20owl.png")
    assert "There is no file /tmp/no such owl.png." in result.err


def test_what_no_shell_expands_behind_an_option_is_expanded(unziplora, make_project, monkeypatch, tmp_path):
    """`--out=~/x` makes no folder `~` in the working folder."""
    make_project("fox")
    monkeypatch.setenv("HOME", str(tmp_path / "me"))
    monkeypatch.chdir(tmp_path)
    for place in ("~/plan", f"file://{tmp_path}/a%20plan"):
        assert unziplora("push", "fox", "me/fox", "--plan", f"--out={place}").code == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a plan", "me"]
    assert (tmp_path / "me/plan/README.md").is_file()


@pytest.mark.parametrize("path", COMMANDS)
@pytest.mark.parametrize("option", ["--help", "--help-all"])
def test_help_fits_into_80_columns(path, option, unziplora, monkeypatch):
    if option not in (*option_names(COMMANDS[path]), "--help"):
        return
    monkeypatch.setenv("COLUMNS", "80")
    shown = unziplora(*path.split(), option).out
    assert max(map(len, shown.splitlines())) <= 80
    assert "…" not in shown


def test_the_help_of_train_shows_the_fifteen_usual_options(unziplora):
    shown = set(
        re.findall(r"--[a-z-]+", unziplora("train", "--help").out.split("Options:")[1].split("Defaults")[0])
    )
    usual = {param.opts[0] for param in COMMANDS["train"].params if param.name in USUAL["train"]}
    assert len(usual) == 15
    assert usual <= shown
    assert shown - usual <= {"--no-sheet", "--no-open", "--estimate", "--help", "--help-all"}


@pytest.mark.parametrize(("path", "config"), [("train", TrainConfig), ("combine", GenerateConfig)])
def test_help_all_shows_every_setting_under_its_group(path, config, unziplora):
    shown = unziplora(path, "--help-all").out
    for setting in fields(config):
        assert re.search(rf"--{setting.name.replace('_', '-')}[ \n]", shown)
        assert f"\n{setting.metadata['group']}:\n" in shown


def test_the_defaults_are_those_of_the_preset_that_would_be_used(unziplora, tmp_path, monkeypatch):
    monkeypatch.setattr(_help, "GPU", tmp_path / "none")

    def default_rank(*arguments: str) -> str:
        shown = " ".join(unziplora("train", *arguments, "--help").out.split())
        return re.search(r"--rank N Rank of both LoRAs \(default: (\d+)", shown)[1]

    assert default_rank() == default_rank("--base=mini") == "16"
    assert default_rank("--preset", "paper") == "64"
    assert "preset paper, for the base mini" in unziplora("train", "--preset=paper", "--help").out
    assert unziplora("train", "--preset=nothing", "--help").code == 0
    monkeypatch.setattr(_help, "GPU", tmp_path)
    assert default_rank() == "64"


def test_models_show_says_what_mini_is_and_is_not(unziplora):
    shown = " ".join(unziplora("models", "show", "mini").out.split())
    for text in (
        "trial model",
        "128 px",
        "ComfyUI",
        "minutes",
        "train SDXL on a GPU",
        "teapot",
        "on a beach",
    ):
        assert text in shown


def test_a_file_url_keeps_the_bytes_of_a_name_that_is_not_utf_8() -> None:
    assert path_of_url("file://localhost/a%20b%FF.png") == os.fsdecode(b"/a b\xff.png")
