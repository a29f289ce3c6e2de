"""What the user prefers in every command: a TOML file in the user's configuration folder.

A variable such as ``UNZIPLORA_BASE`` overrides the file, and an option overrides both.
"""

import json
import os
import re
import tomllib
from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path
from typing import Any

from unziplora_cli import files, paths
from unziplora_cli.checks import BOOLEANS, Checked, check_text, option, refuse_unknown
from unziplora_cli.errors import Remedy, UsageError


@dataclass(frozen=True)
class Preferences(Checked):
    """All preferences; their keys are written with dashes."""

    output_folder: str | None = option(
        None, "Folder of generated images, with a folder for each project; default: in the project."
    )
    base: str | None = option(None, "Base to train on; default: sdxl with a GPU or if downloaded, else mini.")
    describer: str | None = option(None, "Model that describes images: a Hugging Face id or a folder.")
    open: bool = option(False, "Open what a command has made.")


KEYS = tuple(entry.name.replace("_", "-") for entry in fields(Preferences))


def load() -> Preferences:
    """The preferences of this user; raises UsageError for a file or a variable that cannot be used."""
    return _parsed(chosen())


def chosen() -> dict[str, Any]:
    """The values that the user has chosen, by key; raises as :func:`load` does."""
    values = {
        key: parse(key, value) if isinstance(value, str) else value for key, value in read_file().items()
    }
    for key, name in variables().items():
        try:
            values[key] = parse(key, os.environ[name])
        except UsageError as error:
            text = f"{error.message} It is the variable {name}."
            raise UsageError(text, *error.remedies, Remedy("Unset it, or correct it.")) from error
    return values


def variables() -> dict[str, str]:
    """The environment variables that are set, by the key that they override."""
    names = {key: f"UNZIPLORA_{key.replace('-', '_').upper()}" for key in KEYS}
    return {key: name for key, name in names.items() if os.environ.get(name, "").strip()}


def read_file() -> dict[str, Any]:
    """The values in the file, by key; raises UsageError for a wrong one."""
    path = paths.config_file()
    remedy = Remedy(f"Edit or delete {path}.")
    try:
        values = tomllib.loads(files.read_text(path))
        refuse_unknown(values, KEYS, str(path))
        _parsed(values)
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise UsageError(f"Cannot read {path}: {error.strerror}.", remedy) from error
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{path} is not valid TOML: {error}.", remedy) from error
    except UsageError as error:
        raise UsageError(f"{error.message} It stands in {path}.", *error.remedies, remedy) from error
    return values


def _parsed(values: dict[str, Any]) -> Preferences:
    parsed: dict[str, Any] = {
        key.replace("-", "_"): parse(key, value) if isinstance(value, str) else value
        for key, value in values.items()
    }
    return Preferences(**parsed)


def parse(key: str, text: str) -> str | bool:
    """The value of a key from its text; raises UsageError."""
    refuse_unknown({key: text}, KEYS, "the preferences")
    text = check_text(key, text.strip())
    if key == "open":
        if text.lower() not in BOOLEANS:
            raise UsageError(f"{key} is {text!r}, but must be true or false.")
        return BOOLEANS[text.lower()]
    if not text:
        raise UsageError(f"{key} is empty.", Remedy("Remove it", "config unset", (key,)))
    if key == "output-folder" or (key != "base" and text.startswith("~")):
        folder = paths.expand_user(text)
        if str(folder).startswith("~"):
            raise UsageError(f"{key} is {text!r}, but {folder.parts[0]!r} is not the folder of a user.")
        return str(folder.absolute())
    return text


def store(key: str, value: str | bool | None) -> Path:
    """Write the value of a key to the file, or remove it; other lines and comments stay. Returns the file.

    Raises UsageError for an unknown key, and ProjectError if the file cannot be written.
    """
    refuse_unknown({key: value}, KEYS, "the preferences")
    path, values = paths.config_file(), read_file()
    values.pop(key, None)
    line = ""
    if value is not None:
        values[key] = value
        line = _line(key, value)
    text = files.read_text(path) if path.exists() else ""
    kept = re.sub(rf"^[ \t]*{key}[ \t]*=.*\n?", "", text, flags=re.MULTILINE)
    text = kept + ("\n" if kept and not kept.endswith("\n") else "") + line
    try:
        changed = tomllib.loads(text)
    except tomllib.TOMLDecodeError:
        changed = {}
    if changed != values:  # a value of several lines
        text = "".join(_line(name, item) for name, item in values.items())
    with files.translated(partial(files.disk_error, folder=path)):
        path.parent.mkdir(parents=True, exist_ok=True)
        files.write_bytes(path, text.encode())
    return path


def _line(key: str, value: str | bool) -> str:
    """A TOML line; JSON writes these values the same way."""
    return f"{key} = {json.dumps(value, ensure_ascii=False)}\n"
