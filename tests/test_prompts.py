import pytest

from unziplora_cli.cli._errors import hint
from unziplora_cli.config import Prompts, Words
from unziplora_cli.errors import UsageError
from unziplora_cli.prompts import make_prompts

FOX = Words("fox", "watercolor")


def test_training_prompts_follow_the_paper():
    assert make_prompts(FOX) == Prompts(
        full="a monadikos fox in watercolor style",
        content="a monadikos fox",
        style="a fox in watercolor style",
    )


def test_a_scene_joins_all_three_prompts():
    assert make_prompts(FOX, "on a skateboard") == Prompts(
        full="a monadikos fox in watercolor style on a skateboard",
        content="a monadikos fox on a skateboard",
        style="a fox in watercolor style on a skateboard",
    )


def test_a_scene_that_starts_with_a_comma_keeps_it():
    prompts = make_prompts(FOX, ", at night, in Paris, France")
    assert prompts.content == "a monadikos fox, at night, in Paris, France"
    assert prompts.full == "a monadikos fox in watercolor style, at night, in Paris, France"


def test_a_sentence_is_taken_as_it_stands():
    assert make_prompts(FOX, "{subject} riding a bike, {style}") == Prompts(
        full="a monadikos fox riding a bike, in watercolor style",
        content="a monadikos fox riding a bike",
        style="a fox riding a bike, in watercolor style",
    )


@pytest.mark.parametrize(
    ("sentence", "content"),
    [
        ("{subject}, {style}, at night", "a monadikos fox, at night"),
        ("{style}, {subject}", "a monadikos fox"),
        ("{subject} {style}, sunny, warm", "a monadikos fox, sunny, warm"),
        ("red, green, {subject} {style}", "red, green, a monadikos fox"),
        ("{subject} on a mat, {style}.", "a monadikos fox on a mat."),
        ("{subject} {style} and {style}", "a monadikos fox and"),
        (
            "a photo , odd ,, commas of {subject} {style} here",
            "a photo , odd ,, commas of a monadikos fox here",
        ),
    ],
)
def test_the_style_leaves_the_content_prompt_without_a_trace(sentence, content):
    assert make_prompts(FOX, sentence).content == content


@pytest.mark.parametrize(
    "sentence",
    [
        "a {subject} in {style} style",
        "the {subject} in the {style} style",
        "{Subject} {STYLE}",
        "a {subject} in {style}",
    ],
)
def test_articles_around_the_names_are_not_doubled(sentence):
    assert make_prompts(FOX, sentence) == make_prompts(FOX)


def test_a_sentence_without_style_gets_it_at_the_end():
    prompts = make_prompts(FOX, "{subject} on the moon")
    assert prompts.full == "a monadikos fox on the moon in watercolor style"
    assert prompts.content == "a monadikos fox on the moon"


def test_a_sentence_of_style_alone_has_no_subject():
    assert make_prompts(FOX, "a castle {style}").style == "a castle in watercolor style"
    assert make_prompts(FOX, "a castle {style}").content == "a castle"


def test_prompts_given_outright_win_untouched():
    prompts = make_prompts(FOX, "on a mat", {"style": "a {weird}, thing ,", "content": None})
    assert prompts.style == "a {weird}, thing ,"
    assert prompts.content == "a monadikos fox on a mat"


@pytest.mark.parametrize(
    "prompt", ["a {dog}", "{subject} and {", "a } b", "{subject.__class__}", "{}", "{{subject}}"]
)
def test_other_braces_are_refused(prompt):
    with pytest.raises(UsageError, match="contains") as caught:
        make_prompts(FOX, prompt)
    assert "{subject}" in hint(caught.value)


@pytest.mark.parametrize("prompt", ["", "  \t"])
def test_an_empty_prompt_is_refused(prompt):
    with pytest.raises(UsageError, match="empty"):
        make_prompts(FOX, prompt)
    with pytest.raises(UsageError, match="empty"):
        make_prompts(FOX, None, {"full": prompt})


def test_words_with_braces_or_backslashes_are_plain_text():
    words = Words(r"{style} \1", "ink")
    assert make_prompts(words).content == r"a monadikos {style} \1"
    assert make_prompts(words, "{subject} {style}").style == r"a {style} \1 in ink style"


def test_words_are_tidied_and_never_empty():
    assert Words("  red \n fox ", "ink").subject == "red fox"
    with pytest.raises(UsageError, match="style is empty"):
        Words("fox", " ")
