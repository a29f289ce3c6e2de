"""The template escapes by construction: there is no way around it in it."""

import re

import pytest
from jinja2 import UndefinedError

from unziplora_cli import resources
from unziplora_cli.report.html import render


def test_no_template_of_the_page_switches_escaping_off_or_names_an_address():
    folder = resources.template("report")
    templates = [resources.template("report.html"), *sorted(folder.iterdir())]
    assert len(templates) == 4
    for template in templates:
        text = template.read_text(encoding="utf-8")
        assert not re.search(r"\|\s*(safe|forceescape)|autoescape|Markup", text), template
        assert not re.search(r"https?:|//|url\(|@import|javascript:", text), template
        assert not re.search(r"<script|\sstyle=|\son\w+=", text), template


def test_a_value_that_the_page_lacks_is_no_blank():
    with pytest.raises(UndefinedError):
        render({"name": "fox"})
