"""Typer options made of a configuration's documented fields, so that each is described once."""

import inspect
from collections.abc import Callable, Sequence
from dataclasses import Field, fields
from functools import wraps
from typing import Annotated, Any, get_type_hints

import typer

from unziplora_cli.cli.completion import model_names
from unziplora_cli.fields import describe_range, plain_type


def config_options(
    config: type, into: str = "settings"
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give a command one option per field of `config`.

    The command receives those that the user gave, as a dict in its parameter `into`; the others keep their
    default or the value of the preset.
    """
    hints = get_type_hints(config)
    options = [_parameter(each, plain_type(hints[each.name])) for each in fields(config)]

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        signature = inspect.signature(command, eval_str=True)
        own = [each for each in signature.parameters.values() if each.name != into]

        @wraps(command)
        def with_settings(**arguments: Any) -> None:
            given = {each.name: arguments.pop(each.name) for each in options}
            arguments[into] = {name: value for name, value in given.items() if value is not None}
            command(**arguments)

        parameters = [each.replace(kind=inspect.Parameter.KEYWORD_ONLY) for each in own + options]
        with_settings.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
        with_settings.__annotations__ = {each.name: each.annotation for each in parameters}
        return with_settings

    return decorate


def _parameter(each: "Field[Any]", kind: type) -> inspect.Parameter:
    flag = "--" + each.name.replace("_", "-")
    limits = each.metadata
    notes = [_shown(each.default), describe_range(limits) if kind in (int, float) else ""]
    known = "; ".join(note for note in notes if note)
    option = typer.Option(
        f"{flag}/--no-{flag[2:]}" if kind is bool else flag,
        help=f"{limits['help']} ({known})" if known else limits["help"],
        metavar="|".join(limits["choices"]) if "choices" in limits else None,
        autocompletion=model_names if each.name == "base" else _among(limits.get("choices", ())),
        show_default=False,
        rich_help_panel=limits["group"],
    )
    return inspect.Parameter(
        each.name,
        inspect.Parameter.KEYWORD_ONLY,
        default=None,
        annotation=Annotated[kind | None, option],
    )


def _among(choices: Sequence[str]) -> Callable[[str], list[str]]:
    return lambda incomplete: [each for each in choices if each.startswith(incomplete)]


def _shown(default: object) -> str:
    if isinstance(default, bool):
        return "on" if default else "off"
    if default is None:
        return ""
    return f"{default:g}" if isinstance(default, float) else str(default)
