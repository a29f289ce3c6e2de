import os
import subprocess
import sys
import warnings

import pytest

import unziplora_cli
from unziplora_cli.cli import app, projects
from unziplora_cli.errors import AdapterError, Interrupted, OutOfMemory, Remedy, UsageError

HEAVY = ("torch", "diffusers", "transformers", "peft", "accelerate", "numpy", "PIL", "huggingface_hub")


def every_command() -> list[list[str]]:
    commands = [[]]
    for group, prefix in (
        (app.app, []),
        *((entry.typer_instance, [entry.name]) for entry in app.app.registered_groups),
    ):
        commands += [[*prefix, command.name] for command in group.registered_commands]
    return commands + [[group.name] for group in app.app.registered_groups]


def test_help_imports_no_heavy_library():
    program = (
        "import contextlib, io, sys\n"
        "from unziplora_cli.__main__ import run\n"
        "for line in sys.argv[1:]:\n"
        "    with contextlib.redirect_stdout(io.StringIO()) as out:\n"
        "        assert run([*line.split(), '--help']) == 0, line\n"
        "    assert 'Usage' in out.getvalue(), line\n"
        f"print([name for name in {HEAVY} if name in sys.modules])"
    )
    lines = [" ".join(command) for command in every_command()]
    assert len(lines) > 10
    result = subprocess.run(
        [sys.executable, "-c", program, *lines], capture_output=True, text=True, check=True
    )
    assert result.stdout == "[]\n"


def test_the_overview_does_not_import_pydantic():
    """Typer itself imports it for the help of a single command."""
    program = (
        "import sys\n"
        "from unziplora_cli.__main__ import run\n"
        "assert run(['--help']) == 0\n"
        "assert 'pydantic' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", program], capture_output=True, check=True)


def test_the_module_runs_like_the_console_script():
    result = subprocess.run(
        [sys.executable, "-m", "unziplora_cli", "--version"], capture_output=True, text=True
    )
    assert (result.returncode, result.stdout) == (0, f"unziplora {unziplora_cli.__version__}\n")


def test_no_arguments_show_the_help(unziplora):
    completed = unziplora()
    assert completed.code == 0
    assert "Usage" in completed.out


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("lst", "No such command 'lst'. Did you mean 'list'"),
        ("list --colour", "No such option"),
        ("show", "Missing argument"),
        ("show ../fox", "is not a valid project name"),
    ],
)
def test_a_usage_error_exits_with_2_and_one_message(unziplora, line, says):
    completed = unziplora(*line.split())
    assert (completed.code, completed.out) == (2, "")
    assert says in completed.message
    assert "->" in completed.err
    assert "Traceback" not in completed.err


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("style fox --subject", "Option '--subject' requires an argument. -> unziplora style --help"),
        ("train a.png --rank x", "'--rank' must be a valid integer. -> unziplora train --help"),
        ("ui --port 99999", "'--port' must be less than or equal to 65535. -> unziplora ui --help"),
    ],
)
def test_a_wrong_value_is_said_with_the_help_of_its_command(unziplora, line, says):
    assert says in unziplora(*line.split()).message


@pytest.mark.parametrize("line", ["--json lst", "list --json --colour", "--json show", "show nobody --json"])
def test_with_json_a_failure_is_one_envelope(unziplora, line):
    completed = unziplora(*line.split())
    assert completed.envelope["ok"] is False
    assert completed.envelope["error"]["exit_code"] == completed.code
    assert completed.err == ""


def test_global_options_may_follow_the_command(unziplora, tmp_path, make_project):
    make_project("fox")
    assert [project["name"] for project in unziplora("list", "--json").envelope["result"]["projects"]] == [
        "fox"
    ]
    for line in (["list", "--json", "--home", tmp_path], [f"--home={tmp_path}", "list", "--json"]):
        assert unziplora(*line).envelope["result"]["projects"] == []


@pytest.mark.parametrize(
    ("error", "code", "says"),
    [
        (UsageError("Not like this.", Remedy("Like that.")), 2, "Error: Not like this. -> Like that."),
        (OutOfMemory("Too big."), 5, "Too big."),
        (AdapterError("No LoRA."), 6, "No LoRA."),
        (MemoryError(), 5, "Not enough memory"),
        (Interrupted("Stopped after 20 steps."), 130, "Stopped after 20 steps."),
        (KeyboardInterrupt(), 130, "Interrupted."),
        (EOFError(), 130, "Interrupted."),
        (OSError(28, "No space left on device", "/disk/x"), 1, "No space left on device: /disk/x."),
        (ZeroDivisionError("by zero"), 1, "ZeroDivisionError: by zero -> This is a bug"),
    ],
)
def test_every_failure_has_an_exit_code_and_no_traceback(unziplora, monkeypatch, error, code, says):
    def fail(session):
        raise error

    monkeypatch.setattr(projects.Session, "store", fail)
    completed = unziplora("list")
    assert completed.code == code
    assert says in completed.message
    assert "Traceback" not in completed.err


def test_out_of_memory_on_a_device_exits_with_5(unziplora, monkeypatch):
    import torch

    def fail(session):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 MiB")

    monkeypatch.setattr(projects.Session, "store", fail)
    assert unziplora("list").code == 5


@pytest.mark.parametrize("json", [False, True])
def test_a_slow_path_is_reported_as_a_note(unziplora, monkeypatch, json):
    from unziplora_cli.accel.device import SlowPathWarning

    def warn(session):
        with warnings.catch_warnings():
            warnings.simplefilter("always")
            warnings.warn("Triton is missing.", SlowPathWarning, stacklevel=1)
        raise UsageError("Enough.")

    monkeypatch.setattr(projects.Session, "store", warn)
    completed = unziplora("list", *["--json"] * json)
    if json:
        assert completed.envelope["warnings"] == ["Triton is missing."]
    else:
        assert "Note: Triton is missing." in completed.err


def test_verbose_shows_the_traceback(unziplora):
    completed = unziplora("show", "nobody", "-v")
    assert "Traceback" in completed.err
    assert completed.code == 3


@pytest.mark.parametrize("variable", ["", "1"])
def test_trackers_send_nothing_while_offline(unziplora, monkeypatch, variable):
    monkeypatch.setenv("WANDB_MODE", "online")
    monkeypatch.setenv("HF_HUB_OFFLINE", variable or "0")
    assert unziplora(*([] if variable else ["--offline"]), "list").code == 0
    assert os.environ["WANDB_MODE"] == "offline"


def test_the_hub_stays_offline_unless_pulling(unziplora, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    unziplora("list")
    assert os.environ["HF_HUB_OFFLINE"] == "1"


def test_no_color_is_respected(unziplora, monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.delenv("NO_COLOR", raising=False)
    assert "\x1b[" in unziplora("show", "nobody").err
    monkeypatch.setenv("NO_COLOR", "1")
    assert "\x1b[3" not in unziplora("show", "nobody").err
