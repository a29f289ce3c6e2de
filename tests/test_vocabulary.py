"""What the built-in base knows, and whose pictures it learned from."""

import json
from pathlib import Path

import pytest

from recipes.mini.artists import SETS, TRAINED
from recipes.mini.fetch import PACKAGES, SAMPLE
from recipes.mini.sources import notice
from recipes.mini.sources import sources as recipe_sources
from recipes.mini.vocabulary import vocabulary as recipe
from unziplora_cli import resources
from unziplora_cli.vocabulary import Vocabulary, mini, mini_sources

WORDS = Vocabulary(
    {"fox": (), "wolf": (), "mug": ("cup",), "ice cream": (), "fire": (), "strawberry": (), "bus": ()},
    *[()] * 4,
)


@pytest.mark.parametrize(
    ("text", "subject"),
    [
        ("fox", "fox"),
        ("Red Fox", "fox"),
        ("two foxes on a hill", "fox"),
        ("wolves", "wolf"),
        ("blue cup", "mug"),
        ("vanilla ice cream", "ice cream"),
        ("strawberries", "strawberry"),
        ("bus", "bus"),
        ("fire engine", None),  # the last word says what it is
        ("foxglove", None),
        ("", None),
    ],
)
def test_the_last_words_name_the_subject(text: str, subject: str | None) -> None:
    assert WORDS.subject(text) == subject


def test_similar_spelling_is_proposed() -> None:
    assert WORDS.similar("strawbery") == ["strawberry"]
    assert WORDS.similar("zeppelin") == []


def test_the_shipped_vocabulary_is_what_the_recipe_trained() -> None:
    """Every sample image and every word of an evaluation is in it."""
    from unziplora_cli.evaluation.prompts import CONTEXTS, SUBJECTS

    assert json.loads((resources.mini() / "vocabulary.json").read_text()) == json.loads(json.dumps(recipe()))
    subjects = {sample.subject for sample in resources.samples().values()} | set(SUBJECTS)
    assert subjects <= set(mini().subjects)
    assert set(CONTEXTS) <= set(mini().contexts)


def test_sources_are_the_first_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resources, "mini", lambda: tmp_path)
    assert mini_sources() == []
    (tmp_path / "SOURCES.md").write_text(
        "# Sources\n\nText | with a line.\n\n| package | licence |\n|---|---|\n| noto | Apache-2.0 |\n"
        "| [flat](https://example.org) | MIT |\n\nAnd\n\n| other |\n|---|\n| table |\n"
    )
    assert mini_sources() == [
        {"package": "noto", "licence": "Apache-2.0"},
        {"package": "[flat](https://example.org)", "licence": "MIT"},
    ]


def test_every_package_that_was_trained_on_is_credited_as_the_recipe_says() -> None:
    root = Path(__file__).parents[1]
    assert (resources.mini() / "SOURCES.md").read_text(encoding="utf-8") == recipe_sources()
    assert (root / "NOTICE").read_text(encoding="utf-8") == notice()
    used = {source["package"]: source["used for"] for source in mini_sources()}
    for package in PACKAGES:
        is_trained = used[package.name].startswith("training")
        assert is_trained == (package.name in {SETS[name].package for name in TRAINED})
        is_shown = package.name == SETS[SAMPLE[0]].package  # a sample picture of it ships
        assert (package.name in notice()) == (is_trained or is_shown)
        assert not ((is_trained or is_shown) and "SA" in package.license), (
            "nothing of a share-alike licence ships"
        )
