import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from unziplora_cli.cli._errors import hint
from unziplora_cli.errors import UsageError
from unziplora_cli.projects.names import check_name, slugify


@pytest.mark.parametrize("name", ["fox", "my-fox_2", "a.b", "0", "x" * 64, "console", "com10"])
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
        "fuchs\u00e4",
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
        ("Füchse", "fuchse"),
        ("CON", "picture-con"),
        ("日本", "picture"),
        ("..", "picture"),
    ],
)
def test_free_text_becomes_a_slug(text, slug):
    assert slugify(text) == slug


@given(st.text(alphabet=string.printable + "äß漢\u0130", max_size=100))
def test_slugify_always_gives_a_name(text):
    assert check_name(slugify(text))
