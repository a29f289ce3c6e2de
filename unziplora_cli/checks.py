"""Documented settings: fields with a range and a help text, and the checks of their values."""

import re
import types
from collections.abc import Mapping, Sequence
from dataclasses import field, fields
from difflib import get_close_matches
from functools import cache
from typing import Any, Union, get_args, get_origin, get_type_hints

from unziplora_cli.errors import Remedy, UsageError

_LARGEST = 2**64
_CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff]")
BOOLEANS = dict.fromkeys(("true", "yes", "on", "1"), True) | dict.fromkeys(("false", "no", "off", "0"), False)
"""Truth values in lists and preferences, in lower case."""
_KINDS = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}


def option(default: Any, help: str, *, group: str = "Options", **limits: Any) -> Any:
    """A documented field; limits are `min`, `max`, `above` (exclusive), `multiple` and `choices`.

    `group` is the title of its help panel.
    """
    return field(default=default, metadata={"help": help, "group": group, **limits})


class Checked:
    """Checks the type and the range of every field of an instance; raises UsageError."""

    def __post_init__(self) -> None:
        kind: Any = type(self)
        for name, hint, default, limits in _checks(kind):
            value = getattr(self, name)
            if type(value) is not type(default) or value != default:
                object.__setattr__(self, name, check_value(name, value, hint, limits))


@cache
def _checks(config: Any) -> list[tuple[str, Any, Any, Mapping[str, Any]]]:
    """Name, type, default and limits of each field: a list of many projects checks them often."""
    hints = get_type_hints(config)
    return [(entry.name, hints[entry.name], entry.default, entry.metadata) for entry in fields(config)]


def check_settings(config: type, values: Mapping[str, Any]) -> None:
    """Check single values of a configuration before the others are known; raises UsageError."""
    for name, hint, _, limits in _checks(config):
        if values.get(name) is not None:
            check_value(name, values[name], hint, limits)


def field_names(config: type) -> tuple[str, ...]:
    """The names of the fields of a configuration."""
    return tuple(entry.name for entry in fields(config))


def check_value(name: str, value: Any, hint: Any, limits: Mapping[str, Any]) -> Any:
    """Convert a value to its type without loss; raises UsageError with the field and its range."""
    label = name.replace("_", "-")
    kind = plain_type(hint)
    if value is None and kind is not hint:
        return None
    if isinstance(value, int) and abs(value) > _LARGEST:
        raise UsageError(f"{label} is too large.")
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise UsageError(f"{label} must be {_KINDS[kind]}, not {_shown(value)}.")
    if kind is str:
        check_text(label, value)
    if "choices" in limits and value not in limits["choices"]:
        listed = ", ".join(limits["choices"])
        raise UsageError(
            f"{label} is {value!r}, but must be one of {listed}.{nearest(value, limits['choices'])}"
        )
    if kind in (int, float) and not _within(value, limits):
        raise UsageError(f"{label} is {value}, but must be {describe_range(limits)}.")
    return value


def check_text(label: str, text: str) -> str:
    """Return the text; raises UsageError if it contains a control character."""
    if character := control_character(text):
        raise UsageError(
            f"The {label} contains the control character {character!a}.", Remedy("Type it again.")
        )
    return text


def control_character(text: str) -> str | None:
    """The first control character or lone surrogate of a text, except tabs and line breaks.

    Escape sequences control the terminal that prints them. Surrogates stand for bytes that are not UTF-8 and
    cannot be written to a file.
    """
    match = _CONTROL.search(text)
    return match.group() if match else None


def plain_type(hint: Any) -> Any:
    """The type of a field without `| None`."""
    if get_origin(hint) in (Union, types.UnionType):
        (hint,) = (arm for arm in get_args(hint) if arm is not type(None))
    return hint


def describe_range(limits: Mapping[str, Any]) -> str:
    """A range as text: `from 1 to 1024`, `above 0, at most 10`."""
    if "above" in limits:
        text = f"above {limits['above']:g}, at most {limits['max']:g}"
    else:
        text = f"from {limits['min']} to {limits['max']}"
    return text + (f", a multiple of {limits['multiple']}" if "multiple" in limits else "")


def refuse_unknown(values: Mapping[str, Any], allowed: Sequence[str], where: str) -> None:
    """Raise UsageError for the first unknown key, and suggest the most similar one."""
    for key in values:
        if key not in allowed:
            listed = ", ".join(sorted(allowed))
            raise UsageError(
                f"Unknown key {key!r} in {where}.{nearest(key, allowed)}", Remedy(f"Use one of {listed}.")
            )


def nearest(word: str, candidates: Sequence[str]) -> str:
    """` Did you mean 'rank'?` if one of the candidates is similar, otherwise an empty text."""
    near = get_close_matches(word, candidates, n=1)
    return f" Did you mean {near[0]!r}?" if near else ""


def _shown(value: object) -> str:
    """A wrong value in a message; only its type if it is a list or table."""
    return repr(value) if isinstance(value, str | int | float) else f"a {type(value).__name__}"


def _within(value: float, limits: Mapping[str, Any]) -> bool:
    above_lowest = value > limits["above"] if "above" in limits else value >= limits["min"]
    on_grid = "multiple" not in limits or value % limits["multiple"] == 0
    return above_lowest and value <= limits["max"] and on_grid
