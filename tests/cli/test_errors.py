"""Exceptions that are no defects of the program end with words and a next command."""

import errno

import pytest

from unziplora_cli.cli._errors import UNEXPECTED, describe


@pytest.mark.parametrize(
    ("error", "message", "hint", "code"),
    [
        (
            ModuleNotFoundError("No module named 'torch'", name="torch"),
            "A library cannot be loaded: No module named 'torch'.",
            "unziplora doctor",
            1,
        ),
        (ImportError("libcudart.so.13: cannot open"), "A library cannot be loaded: libcudart", "doctor", 1),
        (ImportError("x", name="unziplora_cli.x"), "ImportError: x", UNEXPECTED, 1),
        (MemoryError(), "There is not enough memory", "lower rank", 5),
        (OSError(errno.EACCES, "Permission denied", "/a"), "Permission denied: /a.", "-v", 1),
        (KeyboardInterrupt(), "Interrupted.", "", 130),
        (ZeroDivisionError("by zero"), "ZeroDivisionError: by zero", UNEXPECTED, 1),
    ],
)
def test_every_exception_has_words_and_a_code(error, message, hint, code):
    told = describe(error)
    assert message in told[0]
    assert hint in told[1]
    assert told[2] == code


def test_a_command_that_needs_a_missing_torch_names_the_doctor(unziplora, photos, monkeypatch):
    from unziplora_cli.cli import train

    def fail(*_):
        raise ModuleNotFoundError("No module named 'torch'", name="torch")

    monkeypatch.setattr(train, "find_base", fail)
    completed = unziplora("train", photos / "fox.png", "--subject=fox", "--style=ink")
    assert completed.code == 1
    assert "unziplora doctor" in completed.message
    assert "defect" not in completed.message
