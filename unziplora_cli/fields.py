"""Documented, range-checked fields for the frozen dataclasses of a configuration."""

import re
import types
from collections.abc import Mapping, Sequence
from dataclasses import field, fields
from difflib import get_close_matches
from typing import Any, Union, get_args, get_origin, get_type_hints

from unziplora_cli.errors import UsageError

_LARGEST = 2**64
_NO_TEXT = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff]")
_KINDS = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}


def option(default: Any, help: str, *, group: str = "Options", **limits: Any) -> Any:
    """A documented field; limits are `min`, `max`, `above` (exclusive), `multiple` and `choices`.

    `group` is the heading under which the command line shows it.
    """
    return field(default=default, metadata={"help": help, "group": group, **limits})


class Checked:
    """Checks every field's type and range when an instance is made; raises UsageError."""

    def __post_init__(self) -> None:
        hints = get_type_hints(type(self))
        for each in fields(self):  # type: ignore[arg-type]
            value = check_value(each.name, getattr(self, each.name), hints[each.name], each.metadata)
            object.__setattr__(self, each.name, value)


def check_given(config: type, given: Mapping[str, Any]) -> None:
    """Check some fields of a configuration alone, before what completes them is known; raises UsageError."""
    hints = get_type_hints(config)
    for each in fields(config):
        if given.get(each.name) is not None:
            check_value(each.name, given[each.name], hints[each.name], each.metadata)


def field_names(config: type) -> tuple[str, ...]:
    """The names of a configuration's fields."""
    return tuple(each.name for each in fields(config))


def check_value(name: str, value: Any, hint: Any, limits: Mapping[str, Any]) -> Any:
    """The value, converted to its type when that loses nothing; raises UsageError naming field and range."""
    label = name.replace("_", "-")
    kind = plain_type(hint)
    if value is None and kind is not hint:
        return None
    if isinstance(value, int) and abs(value) > _LARGEST:
        raise UsageError(f"{label} is far too large.")
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
    """The text itself; raises UsageError when :func:`no_text` finds something in it."""
    if found := no_text(text):
        raise UsageError(f"The {label} holds {found!a}, which is no text.", hint="Type it anew.")
    return text


def no_text(text: str) -> str | None:
    """The first control character or lone surrogate of a text; tabs and ends of lines are fine.

    Escape sequences could act on the terminal that shows the text, and surrogates, which stand for bytes that
    are no UTF-8, cannot be written to a file.
    """
    found = _NO_TEXT.search(text)
    return found.group() if found else None


def plain_type(hint: Any) -> Any:
    """The type of a field without its `| None`."""
    if get_origin(hint) in (Union, types.UnionType):
        (hint,) = (arm for arm in get_args(hint) if arm is not type(None))
    return hint


def describe_range(limits: Mapping[str, Any]) -> str:
    """A range in words: `from 1 to 1024`, `above 0, at most 10`."""
    if "above" in limits:
        text = f"above {limits['above']:g}, at most {limits['max']:g}"
    else:
        text = f"from {limits['min']} to {limits['max']}"
    return text + (f", a multiple of {limits['multiple']}" if "multiple" in limits else "")


def refuse_unknown(given: Mapping[str, Any], known: Sequence[str], where: str) -> None:
    """Raise UsageError for the first key that is not known, with the nearest one that is."""
    for key in given:
        if key not in known:
            listed = ", ".join(sorted(known))
            raise UsageError(
                f"Unknown key {key!r} in {where}.{nearest(key, known)}", hint=f"Known: {listed}."
            )


def nearest(word: str, known: Sequence[str]) -> str:
    """` Did you mean 'rank'?` when one of the known words is close, else nothing."""
    near = get_close_matches(word, known, n=1)
    return f" Did you mean {near[0]!r}?" if near else ""


def _shown(value: object) -> str:
    """A wrong value in a message; only its kind where a list or table could hold anything."""
    return repr(value) if isinstance(value, str | int | float) else f"a {type(value).__name__}"


def _within(value: float, limits: Mapping[str, Any]) -> bool:
    above_lowest = value > limits["above"] if "above" in limits else value >= limits["min"]
    on_grid = "multiple" not in limits or value % limits["multiple"] == 0
    return above_lowest and value <= limits["max"] and on_grid
