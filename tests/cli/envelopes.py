"""Validate the envelopes of --json with the shipped schema."""

import json
from functools import cache
from typing import Any

from jsonschema import Draft202012Validator

from unziplora_cli.resources import template


@cache
def schema() -> dict[str, Any]:
    """The shipped schema; its $defs hold the schema of every command's result, by command name."""
    loaded: dict[str, Any] = json.loads(template("envelope.schema.json").read_text(encoding="utf-8"))
    Draft202012Validator.check_schema(loaded)
    return loaded


def check(envelope: dict[str, Any]) -> None:
    """Raise ValidationError unless the envelope and its result follow the schema."""
    whole = schema()
    Draft202012Validator(whole).validate(envelope)
    shape = whole["$defs"].get(envelope["command"])
    if envelope["ok"] and shape is not None:
        Draft202012Validator({"$defs": whole["$defs"], **shape}).validate(envelope["result"])
