import pytest

from unziplora_cli.cli._errors import hint
from unziplora_cli.config import Prompts, Words
from unziplora_cli.errors import UsageError
from unziplora_cli.prompts import (
    make_prompts,
    make_words,
    normalise_style,
    normalise_subject,
    prompt_notes,
    subject_of_file_name,
    with_article,
)

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


@pytest.mark.parametrize(
    ("answer", "subject"),
    [
        ("a fox", "fox"),
        ("The Fox", "fox"),
        ("my dog", "dog"),
        ("an owl", "owl"),
        ("a photo of a teapot.", "teapot"),
        ("“red fox”,", "red fox"),
        ("fox\n\twith dots", "fox with dots"),
        ("Mona Lisa", "Mona Lisa"),
        ("theatre", "theatre"),
        ("Cafe\u0301", "café"),
        ("\u202efox\u200b", "fox"),
        ("🦊", "🦊"),
        ("狐", "狐"),
    ],
)
def test_a_subject_is_read_as_people_say_it(answer, subject):
    assert normalise_subject(answer) == normalise_subject(subject) == subject


@pytest.mark.parametrize(
    ("answer", "style"),
    [
        ("watercolor style", "watercolor"),
        ("in watercolor style", "watercolor"),
        ("a watercolor style", "watercolor"),
        ("Flat vector style", "flat vector"),
        ("in the style of NASA", "NASA"),
        ("Style of Van Gogh", "Van Gogh"),
        ("in the style of a 1950s comic", "1950s comic"),
        ("style: pop art", "pop art"),
        ("watercolour-style", "watercolour"),
        ("freestyle", "freestyle"),
        ("ink", "ink"),
        ("水彩", "水彩"),
    ],
)
def test_a_style_is_read_as_people_say_it(answer, style):
    assert normalise_style(answer) == normalise_style(style) == style


def test_words_that_repeat_each_other_are_said_once():
    words = make_words("the monadikos fox in watercolor style", "in watercolor style")
    assert words == FOX
    assert make_prompts(words).full == "a monadikos fox in watercolor style"


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("fox", "ink", "Fox"), "The trigger 'Fox' is a word of the subject 'fox'"),
        (("fox", "pop art", "pop"), "The trigger 'pop' is a word of the style 'pop art'"),
        (("fox", "in style"), "The style is empty"),
        (("the", "ink"), "The subject is empty"),
        (("...", "ink"), "The subject is empty"),
        (("{style}", "ink"), "The subject '{style}' contains '{'"),
        (("fox", "{subject} }"), "The style '{subject} }' contains '{'"),
        (("fox " * 500, "ink"), "has 1999 characters, more than 100"),
        (("fox\x1b[2J", "ink"), "control character"),
    ],
)
def test_words_that_no_prompt_can_use_are_refused(words, says):
    with pytest.raises(UsageError) as caught:
        make_words(*words)
    assert says in caught.value.message


def test_part_of_a_word_is_not_the_trigger():
    assert make_words("foxglove", "ink", "fox").trigger == "fox"


@pytest.mark.parametrize(
    "noun",
    [
        *("an owl", "an hour", "an 8-bit hero", "an 18th century fox", "an NFT", "an X-ray", "an umbrella"),
        *("an onion", "an école", "a fox", "a unicorn", "a one-eyed cat", "a European bee", "a university"),
        *("an uninvited guest", "a NASA rocket", "a USB stick", "a 180 degree photo", "a bus", "a glass"),
        *("a cactus", "a canvas", "a fox with dots", "a pair of scissors", "foxes", "two owls on a branch"),
        *("women", "roses", "a 狐"),
    ],
)
def test_the_article_follows_the_sound_and_a_plural_has_none(noun):
    assert with_article(noun.removeprefix("an ").removeprefix("a ")) == noun


def test_every_generated_prompt_has_the_right_article():
    assert make_prompts(Words("owl", "ink")).style == "an owl in ink style"
    assert make_prompts(Words("fox", "ink", "ohwx"), "{subject} and {style}").content == "an ohwx fox and"
    assert make_prompts(Words("foxes", "ink")).full == "monadikos foxes in ink style"


@pytest.mark.parametrize(
    "scene",
    [
        "a monadikos fox on a beach",
        "A fox on a beach",
        "monadikos on a beach",
        "fox on a beach",
        "{subject} {style} on a beach",
        "a monadikos fox in watercolor style on a beach",
        "the monadikos fox in the style of watercolor on a beach",
        "on\na beach",
    ],
)
def test_a_scene_that_repeats_the_words_means_the_scene_alone(scene):
    assert make_prompts(FOX, scene) == make_prompts(FOX, "on a beach")


@pytest.mark.parametrize(
    "scene", ["the fox's den", "Fox\u2019s den", "a monadikos fox-shaped cake", "fox-red sky"]
)
def test_a_subject_that_owns_or_describes_a_thing_stays_before_it(scene):
    rest = scene[scene.lower().index("fox") + 3 :]
    prompts = make_prompts(FOX, scene)
    assert prompts.full == f"a monadikos fox{rest} in watercolor style"
    assert prompts.content == f"a monadikos fox{rest}"
    assert prompts.style == f"a fox{rest} in watercolor style"


def test_the_style_in_a_scene_stays_where_it_stands():
    prompts = make_prompts(FOX, "on a beach in watercolor style")
    assert prompts.full == "a monadikos fox on a beach in watercolor style"
    assert prompts.content == "a monadikos fox on a beach"


def test_the_trigger_in_the_middle_makes_a_sentence():
    prompts = make_prompts(FOX, "a statue of a monadikos fox")
    assert prompts.style == "a statue of a fox in watercolor style"


@pytest.mark.parametrize("prompt", ["{style}", "in {style} style", " {style}, ", "{style}."])
def test_a_style_alone_does_not_leave_the_content_prompt_empty(prompt):
    assert make_prompts(FOX, prompt).content == "a monadikos fox"
    assert make_prompts(FOX, prompt).full.startswith("a monadikos fox in watercolor style")


def test_in_the_style_of_style_is_the_style():
    assert make_prompts(FOX, "{subject} in the style of {style}") == make_prompts(FOX)


def test_weights_and_networks_of_other_programs_are_removed_and_said():
    text = "on a (sunny:1.2) beach <lora:add_detail:0.8>"
    assert make_prompts(FOX, text) == make_prompts(FOX, "on a sunny beach")
    first, second = prompt_notes(text, None)
    assert "<lora:add_detail:0.8> is removed" in first
    assert "(sunny:1.2) has no effect" in second
    assert prompt_notes("(at 8:30) on a beach") == ()
    with pytest.raises(UsageError, match="empty"):
        make_prompts(FOX, "<lora:x:1>")


def test_words_of_a_former_project_are_not_changed():
    words = Words("a fox", "watercolor style")
    assert make_prompts(words).full == "a monadikos a fox in watercolor style style"


@pytest.mark.parametrize(
    ("stem", "subject"),
    [
        *(("fox", "fox"), ("Red_Fox (2)", "red fox"), ("my-dog-final", "my dog"), ("狐狸", "狐狸")),
        *((stem, None) for stem in ("IMG_2034", "DSC01234", "PXL_20240101_1", "image", "Screenshot 12", "x")),
        *(
            (stem, None)
            for stem in ("P1010034", "9f8e7d", "scan", "photo-1", "a" * 40, "2024-05-01", "WhatsApp Image")
        ),
    ],
)
def test_a_subject_is_guessed_from_the_file_name_unless_a_camera_made_it(stem, subject):
    assert subject_of_file_name(stem) == subject
