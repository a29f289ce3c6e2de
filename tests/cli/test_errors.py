"""Every exception that ends a command gets a message, an exit code and a next step."""

import errno
import shlex
from pathlib import Path

import pytest

from unziplora_cli.cli._errors import describe, hint, install_command, remedy_text
from unziplora_cli.errors import ProjectError, Remedy


@pytest.mark.parametrize(
    ("error", "message", "hint", "code"),
    [
        (
            ModuleNotFoundError("No module named 'torch'", name="torch"),
            "A library cannot be imported: No module named 'torch'.",
            "unziplora doctor",
            1,
        ),
        (
            ImportError("libcudart.so.13: cannot open"),
            "A library cannot be imported: libcudart",
            "unziplora doctor",
            1,
        ),
        (ImportError("x", name="unziplora_cli.x"), "ImportError: x", "This is a bug", 1),
        (MemoryError(), "Not enough memory", "lower rank", 5),
        (OSError(errno.ENOTDIR, "Not a directory", "/a"), "Not a directory: /a.", "--verbose", 1),
        (OSError(errno.EACCES, "Permission denied", "/a"), "Permission denied: /a.", "permissions", 1),
        (OSError(errno.ENOSPC, "No space left on device"), "No space left on device.", "Free space", 1),
        (OSError(errno.ENAMETOOLONG, "File name too long", 900 * "x"), "...xxx", "255 bytes", 2),
        (KeyboardInterrupt(), "Interrupted.", "", 130),
        (ZeroDivisionError("by zero"), "ZeroDivisionError: by zero", "This is a bug", 1),
    ],
)
def test_every_exception_has_a_message_a_hint_and_a_code(error, message, hint, code):
    described = describe(error)
    assert message in described[0]
    assert hint in described[1]
    assert described[2] == code


@pytest.mark.parametrize(
    ("remedy", "text"),
    [
        (Remedy("Copy the file again."), "Copy the file again."),
        (Remedy(command="list"), "unziplora list"),
        (Remedy("List all projects.", command="list"), "List all projects: unziplora list"),
        (Remedy(command="models pull", arguments=("sdxl",)), "unziplora models pull sdxl"),
        (Remedy(command="show", arguments=("it's mine",)), """unziplora show 'it'"'"'s mine'"""),
        (Remedy(settings={"content_lr": 1e-5}), "--content-lr 1e-5"),
        (Remedy(settings={"content_lr": 0.000123456}), "--content-lr 0.000123"),
        (Remedy(settings={"weight_decay": 2.0}), "--weight-decay 2"),
        (Remedy(settings={"steps": 1200}), "--steps 1200"),
        (Remedy("Or", settings={"force": True, "capture": False}), "Or: --force --no-capture"),
        (Remedy(settings={"style_lr": None}), "--style-lr"),
        (Remedy(settings={"subject": ["fox", "red rose"]}), "--subject fox --subject 'red rose'"),
        (Remedy(settings={"out": Path("a b/c.png")}), "--out 'a b/c.png'"),
        (
            Remedy(command="train", arguments=("fox.png",), settings={"preset": "fast"}),
            "unziplora train fox.png --preset fast",
        ),
        (Remedy(command="train", arguments=(Path("./--help.jpg"),)), "unziplora train ./--help.jpg"),
        (Remedy("Sign in", program="hf", command="auth login"), "Sign in: hf auth login"),
        (Remedy("Install it", extra="bnb"), f"Install it: {shlex.join(install_command('bnb'))}"),
    ],
)
def test_a_remedy_becomes_a_line_to_type(remedy, text):
    assert remedy_text(remedy) == text


def test_several_remedies_are_several_lines(unziplora, monkeypatch):
    error = ProjectError("The training is unfinished.", Remedy("Resume it."), Remedy(command="list"))
    assert hint(error) == "Resume it.\nunziplora list"

    def fail(session):
        raise error

    monkeypatch.setattr("unziplora_cli.cli.projects.Session.store", fail)
    lines = unziplora("list").err.splitlines()
    assert [line.strip() for line in lines] == [
        "Error: The training is unfinished.",
        "-> Resume it.",
        "-> unziplora list",
    ]


def test_a_missing_torch_suggests_the_doctor(unziplora, photos, monkeypatch):
    from unziplora_cli.cli import train

    def fail(*_):
        raise ModuleNotFoundError("No module named 'torch'", name="torch")

    monkeypatch.setattr(train, "find_base", fail)
    completed = unziplora("train", photos / "fox.png", "--subject=fox", "--style=ink")
    assert completed.code == 1
    assert "unziplora doctor" in completed.message
    assert "bug" not in completed.message
