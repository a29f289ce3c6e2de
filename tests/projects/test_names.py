import os
import re
import string
import unicodedata

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from unziplora_cli.cli._errors import hint
from unziplora_cli.errors import UsageError
from unziplora_cli.projects.names import check_name, slugify


@pytest.mark.parametrize(
    "name",
    [
        *("fox", "my-fox_2", "a.b", "0", "x" * 64, "console", "com10"),
        *("füchse", "狐の絵", "лиса", "αλεπού", "여우", "ثعلب", "लोमड़ी", "น้ำ", "٣"),
    ],
)
def test_slugs_are_names(name):
    assert check_name(name) == name


@pytest.mark.parametrize(
    "name",
    [
        "",
        ".",
        "..",
        "../fox",
        "a/b",
        "a\\b",
        "/etc",
        "Fox",
        "fox ",
        "-fox",
        ".fox",
        "fox.",
        "a..b",
        "x" * 65,
        "con",
        "nul.txt",
        "lpt1",
        "fox\n",
        "FÜCHSE",
        "fox🦊",
        "狐 絵",
        "狐" * 33,
        "fox\u3164",  # an invisible letter
        "fox\u200b",
        "fox\u202e",
        "\u0301fox",  # a mark without a letter
        "fox\udcff",
        "a:b",
        "~",
        "fox\x00",
    ],
)
def test_everything_else_is_refused_with_a_name_to_try(name):
    with pytest.raises(UsageError, match="not a valid project name") as caught:
        check_name(name)
    suggestion = hint(caught.value).split("'")[1]
    assert check_name(suggestion)


@pytest.mark.parametrize(
    ("text", "slug"),
    [
        ("My Fox (1)", "my-fox-1"),
        ("Füchse", "füchse"),
        ("Fu\u0308chse", "füchse"),
        ("CON", "picture-con"),
        ("nul.tar", "picture-nul.tar"),
        ("日本", "日本"),
        ("狐の絵 (2)", "狐の絵-2"),
        ("Лиса", "лиса"),
        ("ΟΔΟΣ", "οδος"),
        ("लोमड़ी", "लोमड़ी"),
        ("น้ำ", "น้ำ"),
        ("fox. ", "fox"),
        ("fox\u200b", "fox"),
    ],
)
def test_free_text_becomes_a_slug(text, slug):
    assert slugify(text) == unicodedata.normalize("NFC", slug)


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("🦊", "🐱"),
        ("fox🦊", "fox🐱"),
        ("fox", "fox🦊"),
        ("...", "!!!"),
        ("x" * 99, "x" * 98),
        ("狐" * 40, "狐" * 41),
    ],
)
def test_texts_that_a_name_cannot_hold_get_different_names(first, second):
    assert slugify(first) != slugify(second)
    assert slugify(first) == slugify(first)
    assert len(slugify(first).encode()) <= 96


def test_both_normal_forms_are_one_name():
    assert check_name("fu\u0308chse") == "f\u00fcchse"


def test_names_fit_the_encoding_of_file_names(monkeypatch):
    monkeypatch.setattr(os, "fsencode", lambda text: text.encode("latin-1"))
    assert slugify("Füchse") == "füchse"
    first, second = slugify("狐"), slugify("猫")
    assert first != second
    assert first.isascii()
    with pytest.raises(UsageError):
        check_name("狐")


@given(st.text(max_size=100) | st.text(alphabet=string.printable + "äß漢\u0130🦊\u0301\u3164", max_size=100))
def test_slugify_always_gives_a_name(text):
    slug = slugify(text)
    assert check_name(slug) == slug


@given(st.from_regex(r"[a-z0-9][a-z0-9._-]{0,63}", fullmatch=True))
def test_names_of_older_versions_stay_valid(name):
    reserved = re.fullmatch(r"(con|prn|aux|nul|com[0-9]|lpt[0-9])(\..*)?", name)
    assume(not (reserved or name.endswith(".") or ".." in name))
    assert check_name(name) == name
