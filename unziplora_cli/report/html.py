"""One self-contained page of HTML: every value is escaped, and the page itself forbids fetching anything."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from unziplora_cli import resources

PAGE, STYLE = "report.html", "report/style.css"


def render(values: Mapping[str, object]) -> str:
    """The page of templates/report.html.

    Its content security policy lets a browser use pictures inside the page and this one style sheet, by its
    hash; nothing else, whatever the values say.
    """
    environment = Environment(
        loader=FileSystemLoader(resources.templates_dir()),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["python"] = repr
    style = environment.get_template(STYLE).render()
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode("ascii")
    return environment.get_template(PAGE).render(values, style_hash=digest)
