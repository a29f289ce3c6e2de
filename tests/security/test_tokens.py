"""Access tokens are printable nowhere, and what strangers wrote does not act on the terminal."""

import json

import pytest

from unziplora_cli.cli import projects
from unziplora_cli.cli._output import printable, without_tokens
from unziplora_cli.errors import ModelError

TOKEN = "hf_" + "aB3" * 11
OWN = "a-token-of-another-form"


@pytest.fixture
def leaky(monkeypatch):
    """Makes `list` fail with an error of a library that quotes the headers which it sent."""

    def fail(ctx):
        try:
            raise ValueError(f"Illegal header value b'Bearer {OWN}\\n'")
        except ValueError as error:
            raise ModelError(
                f"Cannot fetch with {TOKEN}: {error}", hint=f"https://ann:{OWN}@host/x"
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
    assert OWN not in completed.out + completed.err


def test_no_token_is_in_what_a_training_writes(unziplora, photos, settings, isolated_home, monkeypatch):
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
def test_what_looks_like_a_token_is_left_out(text, clean):
    assert without_tokens(text) == clean


def test_a_token_of_any_form_is_left_out_when_the_environment_holds_it(monkeypatch):
    monkeypatch.setenv("HF_TOKEN", OWN)
    assert without_tokens(f"x{OWN}y") == "x***y"
    monkeypatch.setenv("HF_TOKEN", "")
    assert without_tokens("abc") == "abc"


def test_control_characters_do_not_reach_the_terminal():
    assert printable("a\x1b[2Jb\x9b1m\tc\nd") == "a\ufffd[2Jb\ufffd1m\tc\nd"


def test_a_file_with_escape_sequences_in_its_name_does_not_act(unziplora, tmp_path):
    completed = unziplora("train", tmp_path / "\x1b[2Jfox.png", "--subject=fox", "--style=ink", "--base=mini")
    assert completed.code == 2
    assert "\x1b[2J" not in completed.err
    assert "[2Jfox.png" in completed.err


@pytest.mark.parametrize("option", ["--subject", "--style", "--trigger", "--full-prompt"])
def test_words_that_could_act_are_refused(assert_fails, photos, option):
    words = {"--subject": "fox", "--style": "ink", option: "fo\x1b[31mx"}
    given = [f"{name}={value}" for name, value in words.items()]
    assert "which is no text" in assert_fails(2, "train", photos / "fox.png", *given, "--base=mini")


def test_a_manifest_with_escape_sequences_is_damaged(two_projects, unziplora):
    path = two_projects / "projects/fox/manifest.json"
    content = json.loads(path.read_text())
    content["device"] = "\x1b]0;owned\x07"
    path.write_text(json.dumps(content))
    completed = unziplora("show", "fox")
    assert completed.code == 3
    assert "\x1b]" not in completed.err
