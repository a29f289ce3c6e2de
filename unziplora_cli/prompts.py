"""Words and prompts: what a user calls the subject and the style, and the three prompts made from them.

People answer as they speak: "a fox", "in the style of NASA". :func:`make_words` turns that into words that
fit every prompt. A prompt is a *scene* ("on a skateboard"), which follows the subject and its style, or a
*sentence* with {subject}, {style} or both, which is taken as it stands:

- {subject} becomes "a monadikos fox", in the style prompt "a fox";
- {style} becomes "in watercolor style", and vanishes from the content prompt together with the one comma
  that tied it to the rest; every other comma stays;
- a sentence without {style} gets the style appended;
- articles and "in … style" around the names are not doubled.

A scene may repeat the words: "a monadikos fox on a beach" means "on a beach".
"""

import re
import unicodedata
from collections.abc import Mapping
from dataclasses import replace

from unziplora_cli.checks import check_text
from unziplora_cli.config import Prompts, Words
from unziplora_cli.errors import Remedy, UsageError

LONGEST_WORDS = 100
"""Characters of a subject, a style or a trigger. The text encoders read 75 tokens of a whole prompt."""

TRIGGER = "monadikos"

PHOTO = "photo"
"""The style of an image without a style."""

UNNAMED_STYLE = "unnamed"
"""The style of an image whose subject a describer names, but not its style, where nobody can be asked."""

_ARTICLE = r"(?:\b(?:a|an|the)\s+)"
_SUBJECT = re.compile(rf"{_ARTICLE}?\{{subject\}}", re.IGNORECASE)
_STYLE = re.compile(
    rf"(?:\bin\s+)?{_ARTICLE}?(?:\bstyle\s+of\s+)?{_ARTICLE}?\{{style\}}(?:\s+style\b)?", re.IGNORECASE
)
_NAMES = ("{subject}", "{style}")

_EXTRA_NETWORK = re.compile(r"\s*<(?:lora|lyco|lycoris|hypernet)\s*:[^<>]*>", re.IGNORECASE)
_WEIGHT = re.compile(r"\(([^()]*?)\s*:\s*[-+]?(?:\d(?:\.\d*)?|\.\d+)\s*\)")

_SURROUNDINGS = " \"'`*_,.;:!?\u00ab\u00bb\u2018\u2019\u201a\u201c\u201d\u201e"
"""Quotes and punctuation that may stand around words."""

# What the user says of subject, style and trigger


def make_words(subject: str, style: str, trigger: str = TRIGGER) -> Words:
    """The words for an image, from what a user typed or a describer read; raises UsageError.

    The trigger stands for this one subject, so it must be a word of neither the subject nor the style.
    Both are removed from a subject that repeats them, as in "monadikos fox in watercolor style".
    """
    trigger, style = _tidy("trigger", trigger), normalise_style(style)
    subject = re.sub(
        rf"^{_ARTICLE}?{_whole(trigger)}\s+", "", normalise_subject(subject), flags=re.IGNORECASE
    )
    subject = re.sub(rf"(?<=\S),?\s+{_styled(style)}$", "", subject, flags=re.IGNORECASE)
    words = Words(subject, style, trigger)
    for name, text in (("subject", words.subject), ("style", words.style)):
        if re.search(_whole(trigger), text, re.IGNORECASE):
            raise UsageError(
                f"The trigger {trigger!r} is a word of the {name} {text!r}, but it must stand for this "
                "subject alone.",
                Remedy("Use a word that no text contains", settings={"trigger": TRIGGER}),
            )
    return words


def normalise_subject(text: str) -> str:
    """A subject without its article: "a photo of The Fox." becomes "fox"; raises UsageError if empty."""
    text = _tidy("subject", text)
    text = re.sub(
        rf"^{_ARTICLE}?(?:photo|photograph|picture|image|drawing|illustration|sketch)s?\s+of\s+",
        "",
        text,
        flags=re.I,
    )
    text = re.sub(r"^(?:a|an|the|my|our|this)(?:\s+|$)", "", text, flags=re.IGNORECASE)
    return _not_empty("subject", _without_capital(text, of_single_word=True))


def normalise_style(text: str) -> str:
    """A style without the words around it: "in the style of NASA" and "NASA style" become "NASA".

    Raises UsageError if nothing else is in it.
    """
    text = _tidy("style", text)
    text = re.sub(r"^style\s*:\s*", "", text, flags=re.IGNORECASE)
    text = re.sub(r"^in\s+(?=\S)", "", text, flags=re.IGNORECASE)
    text = re.sub(rf"^{_ARTICLE}?(?:styles?|manner)\s+of\s+", "", text, flags=re.IGNORECASE)
    text = re.sub(rf"^{_ARTICLE}(?=\S)", "", text, flags=re.IGNORECASE)
    text = re.sub(r"(?:^|[\s-]+)styles?$", "", text, flags=re.IGNORECASE)
    return _not_empty("style", _without_capital(text, of_single_word=False))


def subject_of_file_name(stem: str) -> str | None:
    """The subject that a file name suggests, such as "red fox" for "Red_Fox (2)"; None for "IMG_2034"."""
    words = re.sub(r"[\W_]+", " ", unicodedata.normalize("NFC", stem)).strip()
    words = re.sub(r"(?:\s+(?:\d+|copy|final|edit|edited))+$", "", words, flags=re.IGNORECASE)
    is_camera = re.match(
        r"(?:img|imgp|dsc\w?|dscn|dscf|pxl|mvimg|gopr|pic|photo|picture|image|screen ?shot|scan|untitled|"
        r"download|unnamed|whatsapp|signal|p\d|pict)(?:[\s\d]|$)",
        f"{words} ",
        re.IGNORECASE,
    )
    if is_camera or len(words) > 30 or re.search(r"\d", words) or not re.search(r"[^\W\d]{2}", words):
        return None
    return words.lower() if words.isupper() or words.istitle() else words


def with_article(noun: str) -> str:
    """The noun with "a" or "an", or without an article if it is a plural."""
    if _is_plural(noun):
        return noun
    return f"{'an' if _starts_with_vowel_sound(noun) else 'a'} {noun}"


def style_phrase(words: Words) -> str:
    """The style as it stands in prompts: "in watercolor style"."""
    return f"in {words.style} style"


def _tidy(name: str, text: str) -> str:
    """One line without quotes and punctuation around it; raises UsageError for what no prompt can hold."""
    text = unicodedata.normalize("NFC", check_text(name, text))
    text = re.sub("[\u200b\u200e\u200f\u202a-\u202e\u2060\u2066-\u2069\ufeff]", "", text)  # invisible marks
    text = " ".join(text.split())
    if brace := re.search(r"[{}]", text):
        raise UsageError(
            f"The {name} {_shortened(text)!r} contains {brace.group()!r}.",
            Remedy("Use plain words", settings={name: None}),
        )
    text = text.strip(_SURROUNDINGS)
    if len(text) > LONGEST_WORDS:
        raise UsageError(
            f"The {name} {_shortened(text)!r} has {len(text)} characters, more than {LONGEST_WORDS}.",
            Remedy("Use one or two words", settings={name: None}),
        )
    return _not_empty(name, text)


def _not_empty(name: str, text: str) -> str:
    if not text:
        raise UsageError(f"The {name} is empty.", Remedy("Use one or two words", settings={name: "WORD"}))
    return text


def _without_capital(text: str, *, of_single_word: bool) -> str:
    """ "Flat vector" in lowercase, since it only begins a sentence; "Van Gogh" and "NASA" stay."""
    first, *others = text.split(" ")
    is_sentence = bool(others) and all(word == word.lower() for word in others)
    plain = first.isalpha() and first == first.capitalize()
    return text.lower() if plain and (is_sentence or (of_single_word and not others)) else text


def _is_plural(noun: str) -> bool:
    """Whether an English noun phrase looks like a plural: "foxes", "two owls on a branch"."""
    head = re.split(r"\s+(?:in|on|with|of|and|at|by)\s+|,", noun.lower())[0].split(" ")[-1]
    if head in _SINGULARS:
        return False
    return head in _PLURALS or re.fullmatch(r"[a-z-]{2,}(?<![suia'])s|[a-z-]{3,}as", head) is not None


_SINGULARS = {"atlas", "canvas", "christmas", "lens", "mars", "news", "series", "species"}
_PLURALS = {"children", "feet", "geese", "men", "mice", "people", "teeth", "women"}


def _starts_with_vowel_sound(text: str) -> bool:
    """English, by sound: "an owl", "an hour", "an 8-bit hero", "an NFT"; but "a unicorn"."""
    word = re.match(r"[^\W_]*", text.lstrip(_SURROUNDINGS + "("))
    first = word.group() if word else ""
    if len(first) > 1 and first.isupper() and not re.search("[AEIOUY]", first[1:]):
        return first[0] in "AEFHILMNORSX"  # spelled letter by letter
    if first[:1].isdigit():
        return re.match(r"8|1[18](?!\d)", first) is not None
    first = first.lower()
    if re.match(r"hour|honest|hono|heir|x$|xray", first):
        return True
    if re.match(r"eu|ewe|one|once|uni(?![dmn])|us[aeu]|ut[eo]|ufo|uk[ru]|uran|u$", first):
        return False
    return unicodedata.normalize("NFD", first)[:1] in tuple("aeiou")


def _whole(word: str) -> str:
    """A pattern of a whole word, which may begin or end with any character."""
    return rf"(?<!\w){re.escape(word)}(?!\w)"


def _styled(style: str) -> str:
    """A pattern of a style as a phrase: "in watercolor style", "in the style of NASA"."""
    name = _whole(style)
    return rf"\bin\s+{_ARTICLE}?(?:{name}\s+style\b|style\s+of\s+{_ARTICLE}?{name})"


def _shortened(text: str) -> str:
    return text if len(text) <= 40 else text[:39] + "…"


# The three prompts


def split_features(text: str) -> tuple[str, ...]:
    """The features in a list with commas, as "orange, white dots", or "none"; raises UsageError."""
    features = (" ".join(feature.split()) for feature in check_text("features", text).split(","))
    return tuple(dict.fromkeys(feature for feature in features if feature and feature != "none"))


def make_prompts(
    words: Words, prompt: str | None = None, overrides: Mapping[str, str | None] | None = None
) -> Prompts:
    """The full, content and style prompt; without `prompt` those of training.

    `overrides` maps "full", "content" and "style" to prompts that the user gave outright.
    Raises UsageError for an empty prompt and for braces around any other name.
    """
    sentence = _as_sentence(words, "" if prompt is None else _not_blank(prompt))
    _refuse_braces(_STYLE.sub("", _SUBJECT.sub("", sentence)), prompt or "")
    named, plain = with_article(f"{words.trigger} {words.subject}"), with_article(words.subject)
    content = _without_style(sentence)
    if not re.search(r"\w", content):
        sentence, content = f"{{subject}} {sentence.lstrip(' ,.;')}", "{subject}"
    styled = _STYLE.sub(lambda match: style_phrase(words), sentence)
    prompts = Prompts(
        full=_SUBJECT.sub(lambda match: named, styled),
        content=_SUBJECT.sub(lambda match: named, content),
        style=_SUBJECT.sub(lambda match: plain, styled),
    )
    return replace(prompts, **given_prompts(overrides or {}))


def given_prompts(overrides: Mapping[str, str | None]) -> dict[str, str]:
    """The prompts that the user gave outright, by branch; raises UsageError for an empty one."""
    return {branch: _not_blank(text) for branch, text in overrides.items() if text is not None}


def plain_prompt(prompt: str) -> str:
    """A prompt on one line, without the weights and networks of other programs."""
    return " ".join(_WEIGHT.sub(r"\1", _EXTRA_NETWORK.sub("", check_text("prompt", prompt))).split())


def prompt_notes(*prompts: str | None) -> tuple[str, ...]:
    """What of these prompts is written for other programs and has no effect here."""
    text = "\n".join(prompt for prompt in prompts if prompt)
    notes = []
    if networks := [match.strip() for match in _EXTRA_NETWORK.findall(text)]:
        notes.append(
            f"{', '.join(dict.fromkeys(networks))} is removed from the prompt: it loads nothing here."
        )
    if weights := [match.group() for match in _WEIGHT.finditer(text)]:
        notes.append(
            f"The weight of {', '.join(dict.fromkeys(weights))} has no effect: prompts have no weights here."
        )
    return tuple(notes)


def _not_blank(prompt: str) -> str:
    text = plain_prompt(prompt)
    if not text:
        raise UsageError("The prompt is empty.", Remedy("Describe what to generate, or omit the option."))
    return text


def _as_sentence(words: Words, prompt: str) -> str:
    """A prompt as a sentence with the names {subject} and {style}.

    Plain words are recognised where they can only mean the project's: the trigger anywhere, the subject at
    the start, and the style as a phrase ("in watercolor style").
    """
    subject, trigger = _whole(words.subject), _whole(words.trigger)
    has_names = any(name in prompt.lower() for name in _NAMES)
    prompt = re.sub(rf"{_ARTICLE}?{trigger}(?:\s+{subject})?", "{subject}", prompt, flags=re.IGNORECASE)
    prompt = re.sub(_styled(words.style), "{style}", prompt, flags=re.IGNORECASE)
    if not has_names:
        prompt = re.sub(
            rf"^{_ARTICLE}?{subject}(?=['\u2019]s\b|-\w)", "{subject}", prompt, flags=re.IGNORECASE
        )
        opening = rf"^(?:{_SUBJECT.pattern}|{_ARTICLE}?{subject})(?!['\u2019-])\s*"
        scene = re.sub(opening, "", prompt, flags=re.IGNORECASE)
        if scene != prompt or "{subject}" not in prompt:
            start = "{subject}" if "{style}" in scene else "{subject} {style}"
            return f"{start}{'' if scene.startswith((',', '.', ';')) else ' '}{scene}".strip()
    return prompt if _STYLE.search(prompt) else f"{prompt} {{style}}"


def _without_style(sentence: str) -> str:
    """The sentence without its style phrases, with the gap of each one closed."""
    first, *others = _STYLE.split(sentence)
    for other in others:
        first = _join(first, other)
    return first


def _join(left: str, right: str) -> str:
    """Close the gap between two pieces: one of two meeting commas goes, and one at either end."""
    left, right = left.rstrip(), right.lstrip()
    if not left:
        return right.removeprefix(",").lstrip()
    if not right or right[0] in ",.;:!?":
        return left.removesuffix(",").rstrip() + right
    return f"{left} {right}"


def _refuse_braces(rest: str, prompt: str) -> None:
    if braces := re.search(r"\{[^{}]*\}|[{}]", rest):
        raise UsageError(
            f"The prompt {_shortened(prompt)!r} contains {braces.group()!r}.",
            Remedy("Only {subject} and {style} may be in braces."),
        )
