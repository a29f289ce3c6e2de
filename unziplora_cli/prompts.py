"""The full, content and style prompt, from a few words and optionally a scene or a sentence.

A *scene* has no braces ("on a skateboard") and goes where templates/prompts.toml says. A *sentence* names
{subject}, {style} or both and is taken as it stands:

- {subject} becomes "a monadikos fox", in the style prompt "a fox";
- {style} becomes "in watercolor style", and vanishes from the content prompt together with the one comma
  that tied it to the rest; every other comma stays;
- a sentence without {style} gets the style appended;
- "a {subject}", "in {style}" and "in {style} style" mean the same as the bare names.
"""

import re
import tomllib
from collections.abc import Mapping
from dataclasses import replace

from unziplora_cli import resources
from unziplora_cli.config import Prompts, Words, check_text
from unziplora_cli.errors import Remedy, UsageError

_SUBJECT = re.compile(r"(?:\b(?:a|an|the)\s+)?\{subject\}", re.IGNORECASE)
_STYLE = re.compile(r"(?:\bin\s+)?(?:\b(?:a|an|the)\s+)?\{style\}(?:\s+style\b)?", re.IGNORECASE)
_NAMES = ("{subject}", "{style}")


def make_prompts(
    words: Words, prompt: str | None = None, overrides: Mapping[str, str | None] | None = None
) -> Prompts:
    """The full, content and style prompt; without `prompt` those of training.

    `overrides` maps "full", "content" and "style" to prompts that the user gave outright.
    Raises UsageError for an empty prompt and for braces around any other name.
    """
    templates = tomllib.loads(resources.template("prompts.toml").read_text(encoding="utf-8"))
    given = {branch: text for branch, text in (overrides or {}).items() if text is not None}
    for text in (*given.values(), *(() if prompt is None else (prompt,))):
        if not text.strip():
            raise UsageError("The prompt is empty.", Remedy("Describe what to generate, or omit the option."))
        check_text("prompt", text)
    if prompt is not None and any(name in prompt.lower() for name in _NAMES):
        prompts = _from_sentence(words, prompt, templates["phrases"])
    else:
        prompts = _from_scene(words, prompt or "", templates["prompts"])
    return replace(prompts, **given)


def _from_scene(words: Words, scene: str, patterns: Mapping[str, str]) -> Prompts:
    _refuse_braces(scene, scene)
    scene = scene.strip()
    gap = "" if scene.startswith((",", ".", ";")) else " "
    texts = {
        branch: _fill(pattern.replace(" {scene}", gap + "{scene}"), words, scene).strip()
        for branch, pattern in patterns.items()
    }
    return Prompts(**texts)


def _from_sentence(words: Words, sentence: str, phrases: Mapping[str, str]) -> Prompts:
    _refuse_braces(_STYLE.sub("", _SUBJECT.sub("", sentence)), sentence)
    named, plain, style = (_fill(phrases[key], words) for key in ("named", "plain", "style"))
    sentence = sentence.strip()
    if not _STYLE.search(sentence):
        sentence += " {style}"
    styled = _STYLE.sub(lambda match: style, sentence)
    return Prompts(
        full=_SUBJECT.sub(lambda match: named, styled),
        content=_SUBJECT.sub(lambda match: named, _without_style(sentence)),
        style=_SUBJECT.sub(lambda match: plain, styled),
    )


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


def _fill(pattern: str, words: Words, scene: str = "") -> str:
    return pattern.format(trigger=words.trigger, subject=words.subject, style=words.style, scene=scene)


def _refuse_braces(rest: str, prompt: str) -> None:
    if braces := re.search(r"\{[^{}]*\}|[{}]", rest):
        raise UsageError(
            f"The prompt {prompt!r} contains {braces.group()!r}.",
            Remedy("Only {subject} and {style} may be in braces."),
        )
