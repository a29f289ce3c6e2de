"""config, presets, help and open: preferences of the user, and what the platform opens."""

import os
import stat
import sys
import tomllib
from pathlib import Path

import pytest

from unziplora_cli import preferences, resources
from unziplora_cli.config import load_preset
from unziplora_cli.errors import UsageError


@pytest.fixture(autouse=True)
def config_file(monkeypatch, tmp_path) -> Path:
    """The file of the preferences, which does not exist yet."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    return tmp_path / "config" / "unziplora" / "config.toml"


def test_a_preference_is_kept_and_removed(unziplora, config_file):
    assert unziplora("config", "path").out.strip() == str(config_file)
    assert not config_file.exists()
    assert unziplora("config", "set", "base", "mini").code == 0
    assert unziplora("config", "set", "open", "yes").code == 0
    assert tomllib.loads(config_file.read_text()) == {"base": "mini", "open": True}
    result = unziplora("config", "list", "--json").envelope["result"]
    assert result["preferences"] == {
        "output-folder": None,
        "base": "mini",
        "describer": None,
        "open": True,
    }
    assert unziplora("config", "unset", "base").code == 0
    assert tomllib.loads(config_file.read_text()) == {"open": True}


def test_comments_stay_and_text_is_never_a_pattern(config_file):
    config_file.parent.mkdir(parents=True)
    config_file.write_text('# mine\nbase = "a"  # why\ndescriber = """\nx"""\n')
    value = 'C:\\1 \\g<0> "quoted" größe'
    preferences.store("base", value)
    assert tomllib.loads(config_file.read_text()) == {"base": value, "describer": "x"}
    assert config_file.read_text().startswith("# mine\n")
    preferences.store("describer", "y")  # of several lines: the file is written anew
    assert tomllib.loads(config_file.read_text()) == {"base": value, "describer": "y"}


def test_the_environment_overrides_the_file(unziplora, monkeypatch):
    preferences.store("base", "mini")
    monkeypatch.setenv("UNZIPLORA_BASE", "sdxl")
    monkeypatch.setenv("UNZIPLORA_OPEN", "off")
    assert preferences.load().base == "sdxl"
    assert unziplora("config", "list", "--json").envelope["result"]["sources"]["base"] == "UNZIPLORA_BASE"
    assert "UNZIPLORA_BASE overrides" in unziplora("config", "set", "base", "a/b").message
    monkeypatch.setenv("UNZIPLORA_OPEN", " ")
    assert unziplora("config", "list").code == 0
    monkeypatch.setenv("UNZIPLORA_OPEN", "perhaps")
    assert "It is the variable UNZIPLORA_OPEN. -> Unset it" in unziplora("config", "list").message
    assert unziplora("config", "list").code == 2


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("set bsae mini", "Unknown key 'bsae' in the preferences. Did you mean 'base'?"),
        ("unset bsae", "Unknown key"),
        ("set open maybe", "open is 'maybe'"),
        ("set base mimi", "There is no base 'mimi'"),
        ("set base  ", "Missing argument"),
    ],
)
def test_a_wrong_preference_is_refused(unziplora, config_file, line, says):
    completed = unziplora("config", *line.split())
    assert completed.code == (4 if "base mimi" in line else 2)
    assert says in completed.message
    assert not config_file.exists()


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("bases = 'x'", "Unknown key 'bases'"),
        ("open = 1", "open must be true or false"),
        ("base", "not valid TOML"),
        ("base = '\\u001b'", "not valid TOML"),
        ('base = "\\u001b"', "control character"),
    ],
)
def test_a_wrong_file_is_named(config_file, unziplora, text, says):
    config_file.parent.mkdir(parents=True)
    config_file.write_text(text.replace("'\\u001b'", "'\x1b'"))
    with pytest.raises(UsageError) as caught:
        preferences.load()
    assert says in caught.value.message
    assert str(config_file) in caught.value.message
    assert unziplora("config", "path").code == 0
    assert unziplora("list").code == 0


@pytest.mark.parametrize(
    ("folder", "place"), [("~/art", "{home}/art"), ("art", "{work}/art"), ("~nobody-here/art", "")]
)
def test_a_folder_written_by_hand_means_what_the_command_would_store(
    config_file, monkeypatch, tmp_path, folder, place
):
    monkeypatch.setenv("HOME", str(tmp_path / "me"))
    monkeypatch.chdir(tmp_path)
    config_file.parent.mkdir(parents=True)
    config_file.write_text(f"output-folder = '{folder}'\nopen = true\n")
    if place:
        place = place.format(home=tmp_path / "me", work=tmp_path)
        assert preferences.load() == preferences.Preferences(output_folder=place, open=True)
    else:
        with pytest.raises(UsageError, match="'~nobody-here' is not the folder of a user"):
            preferences.load()


def test_the_default_base_is_used(unziplora, photos, tiny_base):
    preferences.store("base", str(tiny_base))
    words = ("--subject=fox", "--style=ink", "--preset=mini", "--device=cpu", "--plan", "--json")
    plan = unziplora("train", photos / "fox.png", *words).envelope["result"]["plan"]
    assert plan["base"] == str(tiny_base)


def test_images_go_to_the_output_folder(two_projects, unziplora, tmp_path):
    preferences.store("output-folder", str(tmp_path / "pictures"))
    size = ("--steps=1", "--device=cpu", "--json")
    (image,) = unziplora("content", "fox", *size).envelope["result"]["images"]
    assert Path(image).parent == tmp_path / "pictures" / "fox"
    out = tmp_path / "elsewhere"
    (image,) = unziplora("content", "fox", *size, f"--out={out}").envelope["result"]["images"]
    assert Path(image).parent == out


def test_every_preset_is_shown(unziplora):
    listed = unziplora("presets", "list", "--json").envelope["result"]["presets"]
    assert [preset["name"] for preset in listed] == resources.preset_names()
    for name in resources.preset_names():
        shown = unziplora("presets", "show", name, "--json").envelope["result"]
        assert {**shown["train"], **load_preset(name).train} == shown["train"]
    assert "Did you mean 'paper'" in unziplora("presets", "show", "papre").message


@pytest.mark.parametrize("line", ["train", "models pull", "config set", ""])
def test_help_is_a_command(unziplora, line):
    assert unziplora("help", *line.split()).out == unziplora(*line.split(), "--help").out


def test_help_of_an_unknown_command(unziplora):
    completed = unziplora("help", "trian")
    assert completed.code == 2
    assert "Did you mean 'train'" in completed.message


def test_the_short_option_shows_the_version(unziplora):
    assert unziplora("-V").out == unziplora("--version").out


@pytest.fixture
def opener(monkeypatch, tmp_path):
    """An opener that ends with a code; returns a function that reads what it was given."""
    if not sys.platform.startswith("linux"):
        pytest.skip("xdg-open")
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder))

    def install(code=0):
        program = folder / "xdg-open"
        program.write_text(f'#!/bin/sh\necho "$1" >> {folder}/opened\nexit {code}\n')
        program.chmod(program.stat().st_mode | stat.S_IXUSR)
        return lambda: (folder / "opened").read_text().splitlines() if (folder / "opened").exists() else []

    return install


def test_open_prefers_the_sheet(unziplora, make_project, opener):
    opened, folder = opener(), make_project("fox").folder
    assert unziplora("open", "fox").out.strip() == str(folder)
    (folder / "images").mkdir()
    (folder / "sheet.png").touch()
    unziplora("open", "fox")
    unziplora("open", "fox", "--what", "images")
    assert opened() == [str(folder), str(folder / "sheet.png"), str(folder / "images")]
    completed = unziplora("open", "fox", "--what=report")
    assert completed.code == 3
    assert "unziplora report fox --open" in completed.message


@pytest.mark.parametrize("code", [None, 3])
def test_without_an_opener_the_path_is_named(unziplora, make_project, opener, code):
    folder = make_project("fox").folder
    if code is not None:
        opener(code)
    elif os.environ["PATH"]:
        os.environ["PATH"] = ""
    completed = unziplora("open", "fox")
    assert completed.code == 2
    assert f"no program to open {folder}" in completed.message


def test_what_a_command_made_is_opened(two_projects, unziplora, opener, tmp_path):
    opened = opener()
    export = ("export", "fox", "--out", tmp_path / "loras", "--force")
    (tmp_path / "loras").mkdir()
    unziplora(*export)
    assert opened() == []
    unziplora(*export, "--open", "--json")
    assert opened() == [str(tmp_path / "loras")]
    preferences.store("open", True)
    unziplora(*export)  # no terminal: nobody looks
    assert len(opened()) == 1


def test_several_projects_are_removed_or_none(unziplora, make_project):
    folders = [make_project(name).folder for name in ("fox", "rose")]
    completed = unziplora("remove", "fox", "rsoe", "--yes")
    assert completed.code == 3
    assert all(folder.exists() for folder in folders)
    assert unziplora("remove", "fox", "rose", "fox", "--yes").out.strip() == "Removed fox, rose."
    assert not any(folder.exists() for folder in folders)


@pytest.mark.parametrize(
    ("preference", "option", "opens"),
    [
        (None, [], True),
        (False, [], False),
        (False, ["--open"], True),
        (True, [], True),
        (True, ["--no-open"], False),
    ],
)
def test_the_page_is_opened_unless_the_user_prefers_otherwise(
    unziplora, monkeypatch, preference, option, opens
):
    from unziplora_cli.ui import server

    given = {}
    monkeypatch.setattr(server, "serve", lambda *arguments, **options: given.update(options))
    preferences.store("open", preference)
    assert unziplora("ui", *option).code == 0
    assert given["open_page"] is opens
