"""The page's templates escape every value and name no address."""

import re

import pytest
from jinja2 import UndefinedError

from unziplora_cli import resources
from unziplora_cli.report.html import render_page


def test_templates_never_disable_escaping_or_name_an_address():
    folder = resources.template("report")
    templates = [resources.template("report.html"), *sorted(folder.iterdir())]
    assert len(templates) == 4
    for template in templates:
        text = template.read_text(encoding="utf-8")
        assert not re.search(r"\|\s*(safe|forceescape)|autoescape|Markup", text), template
        assert not re.search(r"https?:|//|url\(|@import|javascript:", text), template
        assert not re.search(r"<script|\sstyle=|\son\w+=", text), template


def test_missing_value_is_an_error():
    with pytest.raises(UndefinedError):
        render_page({"name": "fox"})
