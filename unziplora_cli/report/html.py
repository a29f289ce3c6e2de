"""Fill the templates: the report, one self-contained HTML page, and the model card for the hub."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Mapping
from functools import cache

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from unziplora_cli import resources


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(resources.templates_dir()),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["python"] = repr
    return environment


def render(template: str, values: Mapping[str, object]) -> str:
    """Fill an HTML template; every value is escaped."""
    return _environment().get_template(template).render(values)


def render_page(values: Mapping[str, object]) -> str:
    """Fill ``templates/report.html``.

    The page's content security policy allows data URIs and, by its hash, this one style sheet, and nothing
    else: markup that a value might smuggle in can neither run nor fetch anything.
    """
    style = render("report/style.css", {})
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode("ascii")
    return render("report.html", {**values, "style_hash": digest})


def render_card(card: Mapping[str, object]) -> str:
    """Fill ``templates/model_card.md``: Markdown, after YAML metadata for the hub."""
    environment = Environment(undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters |= {"md": _markdown, "data": _data}
    template = environment.from_string(resources.template("model_card.md").read_text(encoding="utf-8"))
    return template.render(card=card)


def _data(value: object) -> str:
    """A value as JSON, which is YAML and, for text, a Python literal as well."""
    text = json.dumps(value, ensure_ascii=False)
    return re.sub(r"[\x7f-\x9f\u2028\u2029\ufeff]", lambda match: f"\\u{ord(match[0]):04x}", text)


def _markdown(text: str) -> str:
    """A user's text on one line, escaped for Markdown; addresses do not become links."""
    line = " ".join(text.split()).replace("&", "&amp;")
    return re.sub(r"([\\`*_~\[\]<>|#!$@{}]|:(?=//)|(?<=www)\.)", r"\\\1", line)
