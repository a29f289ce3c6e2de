"""Shell completion, called through the environment variables that a shell sets."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import typer

from tests.sdxl.cached import put_in_cache
from unziplora_cli.__main__ import run
from unziplora_cli.cli import app

HEAVY = ("torch", "diffusers", "transformers", "numpy", "PIL", "huggingface_hub", "rich")


def commands(node: Any, *path: str) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Every command of the program, with its path of words."""
    below = getattr(node, "commands", None)
    if below is None:
        yield path, node
        return
    for name, command in below.items():
        yield from commands(command, *path, name)


def project_positions() -> Iterator[Any]:
    """The words before every argument or option that names a project."""
    for path, command in commands(typer.main.get_command(app.app)):
        before: list[str] = []
        for parameter in command.params:
            takes_a_project = "PROJECT" in (parameter.metavar or "") or "project" in parameter.name
            takes_a_project &= parameter.opts != ["--resume"]  # completes unfinished trainings
            if parameter.param_type_name == "option":
                if takes_a_project:
                    yield pytest.param([*path, parameter.opts[0]], id=" ".join([*path, parameter.opts[0]]))
                continue
            if takes_a_project:
                yield pytest.param([*path, *before], id=" ".join([*path, *before, parameter.name]))
            before.append("fox")


@pytest.fixture
def complete_line(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Callable[..., list[str]]:
    """Completes the last word of a command line."""

    def complete(*words: str) -> list[str]:
        monkeypatch.setenv("_UNZIPLORA_COMPLETE", "complete_bash")
        monkeypatch.setenv("COMP_WORDS", " ".join(["unziplora", *words]))
        monkeypatch.setenv("COMP_CWORD", str(len(words)))
        with pytest.raises(SystemExit):
            run([])
        return capsys.readouterr().out.split()

    return complete


@pytest.mark.parametrize("before", list(project_positions()))
def test_every_project_argument_completes_projects(before, complete_line, make_project):
    for name in ("fox", "forest", "rose"):
        make_project(name)
    assert complete_line(*before, "fo") == ["forest", "fox"]
    assert complete_line(*before, "") == ["forest", "fox", "rose"]
    assert complete_line(*before, "x") == []


def test_unfinished_and_hidden_folders_are_not_completed(complete_line, make_project):
    folder = make_project("fox").folder
    (folder.parent / ".fox.0a1b2c3d.partial").mkdir()
    (folder.parent / "notes.txt").touch()
    (folder.parent / "empty").mkdir()
    for name in ("lost+found", "a b", "$(rm x)", "x\ny", "\x1b[2J", "`id`"):
        (folder.parent / name).mkdir()
        (folder.parent / name / "manifest.json").touch()
    assert complete_line("show", "") == ["fox"]


def test_resume_completes_unfinished_trainings(complete_line, make_project):
    folder = make_project("fox").folder
    (folder.parent / ".rose.unfinished").mkdir()
    (folder.parent / ".rose.unfinished" / "training.json").touch()
    (folder.parent / ".elk.unfinished").mkdir()
    assert complete_line("train", "--resume", "") == ["rose"]


def test_the_home_option_of_the_line_is_used(complete_line, tmp_path, make_project):
    make_project("fox")
    (tmp_path / "projects" / "rose").mkdir(parents=True)
    (tmp_path / "projects" / "rose" / "manifest.json").touch()
    assert complete_line("--home", str(tmp_path), "show", "") == ["rose"]
    assert complete_line("--home", str(tmp_path / "nowhere"), "show", "") == []


def test_models_are_completed(complete_line, tiny_base):
    put_in_cache(tiny_base, "owner/name", "ab" * 20)
    (put_in_cache(tiny_base, "owner/llm", "cd" * 20) / "model_index.json").unlink()
    assert complete_line("models", "remove", "") == ["mini", "sdxl", "owner/name"]
    assert complete_line("train", "fox.png", "--base", "ow") == ["owner/name"]
    assert complete_line("content", "fox", "--base", "m") == ["mini"]


def test_presets_and_preferences_are_completed(complete_line):
    assert complete_line("presets", "show", "p") == ["paper"]
    assert complete_line("train", "fox.png", "--preset", "lo") == ["low-vram"]
    assert complete_line("config", "set", "o") == ["output-folder", "open"]


@pytest.mark.parametrize("home", ["~no-such-user/x", "/dev/null/x"])
def test_a_home_that_cannot_be_used_completes_nothing(complete_line, monkeypatch, home):
    monkeypatch.setenv("UNZIPLORA_HOME", home)
    assert complete_line("show", "") == []


def test_choices_are_completed(complete_line):
    assert complete_line("content", "fox", "--scheduler", "d") == ["ddim", "ddpm", "dpm++"]


def test_completion_imports_no_heavy_library(make_project):
    make_project("fox")
    program = (
        "import sys\n"
        "from unziplora_cli.__main__ import run\n"
        "try:\n"
        "    run([])\n"
        "except SystemExit:\n"
        "    pass\n"
        f"print([name for name in {HEAVY} if name in sys.modules])"
    )
    line = {"_UNZIPLORA_COMPLETE": "complete_bash", "COMP_WORDS": "unziplora show ", "COMP_CWORD": "2"}
    completed = subprocess.run(
        [sys.executable, "-c", program], env=os.environ | line, capture_output=True, text=True, check=True
    )
    assert completed.stdout.split("\n")[:2] == ["fox", "[]"]
