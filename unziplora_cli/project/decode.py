"""JSON values into frozen dataclasses, strictly: wrong types, missing keys and unknown keys are named."""

import types
from collections.abc import Mapping
from dataclasses import MISSING, fields, is_dataclass
from math import isfinite
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from unziplora_cli.fields import no_text

T = TypeVar("T")

_KINDS: dict[Any, str] = {str: "text", int: "a whole number", float: "a number", bool: "true or false"}


def decode(kind: type[T], value: object, where: str) -> T:
    """`value` as an instance of the dataclass `kind`; raises ValueError that names the key."""
    if not isinstance(value, Mapping):
        raise ValueError(f"{where} must be an object")
    hints = get_type_hints(kind)
    known = {each.name: each for each in fields(kind)}  # type: ignore[arg-type]
    for key in value:
        if key not in known:
            raise ValueError(f"{where} has an unknown key {key!r}")
    arguments = {}
    for name, each in known.items():
        if name in value:
            arguments[name] = _decode(hints[name], value[name], f"{where}.{name}")
        elif each.default is MISSING and each.default_factory is MISSING:
            raise ValueError(f"{where} lacks the key {name!r}")
    try:
        return kind(**arguments)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error


def _decode(hint: Any, value: Any, where: str) -> Any:
    origin, arms = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        return _decode_union(arms, value, where)
    if origin is Literal:
        if not (isinstance(value, str) and value in arms):
            raise ValueError(f"{where} must be one of {', '.join(arms)}")
        return value
    if origin is tuple:
        if not isinstance(value, list):
            raise ValueError(f"{where} must be a list")
        return tuple(_decode(arms[0], item, f"{where}[{index}]") for index, item in enumerate(value))
    if origin is dict:
        if not isinstance(value, Mapping):
            raise ValueError(f"{where} must be an object")
        return {str(key): _decode(arms[1], item, f"{where}.{key}") for key, item in value.items()}
    if is_dataclass(hint):
        return decode(hint, value, where)  # type: ignore[arg-type]
    return _decode_scalar(hint, value, where)


def _decode_union(arms: tuple[Any, ...], value: Any, where: str) -> Any:
    if value is None and type(None) in arms:
        return None
    arms = tuple(arm for arm in arms if arm is not type(None))
    for arm in arms:
        if type(value) is arm:
            return _decode_scalar(arm, value, where)
    if len(arms) == 1:
        return _decode(arms[0], value, where)
    raise ValueError(f"{where} must be {' or '.join(_KINDS[arm] for arm in arms)}")


def _decode_scalar(kind: Any, value: Any, where: str) -> Any:
    if kind is float and type(value) is int and abs(value) <= 2**53:
        value = float(value)
    if type(value) is not kind or (kind is float and not isfinite(value)):
        raise ValueError(f"{where} must be {_KINDS[kind]}")
    if kind is str and (found := no_text(value)):
        raise ValueError(f"{where} holds {found!a}, which is no text")
    return value
