"""Access tokens are never printed, and untrusted text does not control the terminal."""

import json

import pytest

from unziplora_cli.cli import projects
from unziplora_cli.cli._output import printable, without_tokens
from unziplora_cli.errors import ModelError, Remedy

TOKEN = "hf_" + "aB3" * 11
OTHER_TOKEN = "a-token-of-another-form"


@pytest.fixture
def leaky(monkeypatch):
    """Makes `list` fail with a library error that quotes the request headers."""

    def fail(ctx):
        try:
            raise ValueError(f"Illegal header value b'Bearer {OTHER_TOKEN}\\n'")
        except ValueError as error:
            raise ModelError(
                f"Cannot fetch with {TOKEN}: {error}", Remedy(f"https://ann:{OTHER_TOKEN}@host/x")
            ) from error

    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setattr(projects.Session, "store", lambda self: fail(self))


@pytest.mark.parametrize("options", [(), ("-v",), ("--json",), ("--json", "-v")])
@pytest.mark.usefixtures("leaky")
def test_no_token_is_in_an_error(unziplora, options):
    completed = unziplora("list", *options)
    assert completed.code == 4
    assert "***" in completed.out + completed.err
    assert TOKEN not in completed.out + completed.err
    assert OTHER_TOKEN not in completed.out + completed.err


def test_no_token_is_in_the_files_of_a_training(unziplora, photos, settings, isolated_home, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    completed = unziplora("train", photos / "fox.png", "--subject=fox", "--style=ink", *settings, "-v")
    assert completed.code == 0, completed.err
    assert unziplora("doctor", "--json").code == 0
    files = [path for path in isolated_home.rglob("*") if path.is_file()]
    assert len(files) > 4
    assert not [path for path in files if TOKEN.encode() in path.read_bytes()]
    assert TOKEN not in completed.out + completed.err


@pytest.mark.parametrize(
    ("text", "clean"),
    [
        (f"token {TOKEN}.", "token ***."),
        ("Authorization: Bearer abc.def", "Authorization: Bearer ***"),
        ("https://ann:pass@host/x", "https://***@host/x"),
        ("hf_hub_download and hf_xet", "hf_hub_download and hf_xet"),
        ("ann@host", "ann@host"),
    ],
)
def test_text_that_looks_like_a_token_is_masked(text, clean):
    assert without_tokens(text) == clean


def test_tokens_of_the_environment_are_masked(monkeypatch):
    monkeypatch.setenv("HF_TOKEN", OTHER_TOKEN)
    assert without_tokens(f"x{OTHER_TOKEN}y") == "x***y"
    monkeypatch.setenv("HF_TOKEN", "")
    assert without_tokens("abc") == "abc"


def test_control_characters_do_not_reach_the_terminal():
    assert printable("a\x1b[2Jb\x9b1m\tc\nd") == "a\ufffd[2Jb\ufffd1m\tc\nd"


def test_escape_sequences_in_a_file_name_are_replaced(unziplora, tmp_path):
    completed = unziplora("train", tmp_path / "\x1b[2Jfox.png", "--subject=fox", "--style=ink", "--base=mini")
    assert completed.code == 2
    assert "\x1b[2J" not in completed.err
    assert "[2Jfox.png" in completed.err


@pytest.mark.parametrize("option", ["--subject", "--style", "--trigger", "--full-prompt"])
def test_words_with_escape_sequences_are_rejected(assert_fails, photos, option):
    words = {"--subject": "fox", "--style": "ink", option: "fo\x1b[31mx"}
    given = [f"{name}={value}" for name, value in words.items()]
    assert "contains the control character" in assert_fails(
        2, "train", photos / "fox.png", *given, "--base=mini"
    )


def test_a_manifest_with_escape_sequences_is_damaged(two_projects, unziplora):
    path = two_projects / "projects/fox/manifest.json"
    content = json.loads(path.read_text())
    content["device"] = "\x1b]0;owned\x07"
    path.write_text(json.dumps(content))
    completed = unziplora("show", "fox")
    assert completed.code == 3
    assert "\x1b]" not in completed.err
