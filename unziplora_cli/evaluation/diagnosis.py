"""Scores into words: what went wrong, and which option mends it.

All thresholds stand here. Shares are of drawn pictures and are taken against the base's own where a score has
one, so that a base that misses a context or a subject by itself is not blamed on the LoRAs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import ceil
from typing import Any

from unziplora_cli.config import Words
from unziplora_cli.evaluation import metrics as names
from unziplora_cli.projects.manifest import ScoreRecord

KEPT = 0.7
"""Share of pictures that must show what a branch is there for."""
LEAKED = 0.3
"""Share of pictures, above the base's, from which a leak is one; a single picture of four is none."""
WORSE = 0.3
"""Share of pictures by which a LoRA may fall behind the base in what was asked for."""
IDENTITY = 0.4
"""How far of the way from the base's likeness to the perfect one the content LoRA must come.

With the built-in classifier two drawings of one individual come 0.8 of it, those of two of a kind 0."""
LEARNED = 0.1
"""Share by which the denoising loss under the full prompt must fall below the base's."""
ECHO_STEP = 0.15
"""How far the advised echo strength lies from the one that was used: nearer keeps the individual, farther
drops the style (benchmarks/README.md)."""
SEPARATIONS = ("prompt_separation", "column_separation", "block_separation", "avoid_overlap")


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is not as it should be, and what mends it; ``minor`` leaves content and style apart."""

    text: str
    advice: str
    minor: bool = False


@dataclass(frozen=True)
class Evidence:
    """What the verdict is about: the scores by name, and what the project was trained with."""

    scores: Mapping[str, ScoreRecord]
    training: Mapping[str, Any]
    words: Words
    project: str

    def above_base(self, name: str) -> float:
        """How far a score lies above the base's."""
        score = self.scores[name]
        return score.value - (score.base or 0.0)

    def low(self, name: str) -> bool:
        """Whether too few pictures show what they should."""
        return name in self.scores and self.scores[name].value < KEPT

    def leaked(self, name: str) -> bool:
        """Whether more pictures than the base's show what they should not."""
        return name in self.scores and self.above_base(name) >= LEAKED

    def worse(self, name: str) -> bool:
        """Whether fewer pictures than the base's show what was asked for."""
        return name in self.scores and self.above_base(name) <= -WORSE

    def overdone(self) -> bool:
        """Whether a branch has taken in more than its own, so that longer training would not help."""
        return any(map(self.leaked, (names.STYLE_LEAKED, names.SUBJECT_LEAKED))) or any(
            map(
                self.worse,
                (names.CONTENT_AS_PHOTO, names.CONTENT_KEPT, names.CONTEXT_FOLLOWED, names.OTHER_SUBJECTS),
            )
        )

    def longer(self, rate: str) -> str:
        """Advice to learn more, unless a branch has learned too much: that has to be mended first."""
        if self.overdone():
            return f"mend the rest first, then look again: unziplora eval {self.project}"
        return f"try {self.steps(2.0)} or {self.option(rate, 2.0)}."

    def steps(self, factor: float) -> str:
        """Other training steps as an option, in fifties."""
        fifties = int(self.training.get("steps", 600)) * factor / 50
        return f"--steps {50 * max(1, ceil(fifties) if factor > 1.0 else round(fifties))}"

    def option(self, name: str, factor: float, most: float = 1.0) -> str:
        """Another value of a training setting as an option."""
        value = min(most, float(self.training.get(name, 0.0) or 0.0) * factor)
        return f"--{name.replace('_', '-')} {value:.2g}"


def diagnose(
    scores: Sequence[ScoreRecord], training: Mapping[str, Any], words: Words, project: str
) -> tuple[str, tuple[str, ...]]:
    """The verdict in a sentence or two, and one piece of advice for each finding."""
    case = Evidence({score.name: score for score in scores}, training, words, project)
    findings = [finding for rule in RULES if (finding := rule(case)) is not None]
    advice = tuple(f"{each.text[0].upper()}{each.text[1:]}: {each.advice}" for each in findings)
    listed = "; ".join(each.text for each in findings)
    if names.CONTENT_KEPT not in case.scores:
        return _unseen(case, listed), advice
    if not findings:
        return "Content and style came apart.", ()
    if all(each.minor for each in findings):
        return f"Content and style came apart, but {listed}.", advice
    return f"Content and style did not come apart: {listed}.", advice


def _unseen(case: Evidence, listed: str) -> str:
    """The verdict when nobody looked at pictures."""
    if listed:
        return f"Not well: {listed}."
    loss = case.scores[names.LOSS["full"]]
    gain = 1.0 - loss.value / loss.base if loss.base else 0.0
    return f"The picture was learned (loss {gain:.0%} below the base's). Nobody looked at drawn pictures."


def _not_learned(case: Evidence) -> Problem | None:
    loss = case.scores[names.LOSS["full"]]
    if case.overdone() or not loss.base or loss.value < loss.base * (1.0 - LEARNED):
        return None
    return Problem(
        "the picture was hardly learned",
        f"train longer or faster: {case.steps(2.0)}, or "
        f"{case.option('content_lr', 2.0)} {case.option('style_lr', 2.0)}.",
    )


def _style_leaks(case: Evidence) -> Problem | None:
    if not case.leaked(names.STYLE_LEAKED):
        return None
    return Problem(
        "style leaks into content",
        f"{_separate(case)}try {case.steps(2 / 3)} or {case.option('content_lr', 0.5)}"
        f"{_echoes(case, ECHO_STEP)}; "
        f"or draw with: unziplora content {case.project} --content-strength 0.7",
    )


def _subject_leaks(case: Evidence) -> Problem | None:
    if not case.leaked(names.SUBJECT_LEAKED):
        return None
    return Problem(
        f"the {case.words.subject} leaks into style",
        f"{_separate(case)}try {case.steps(2 / 3)} or {case.option('style_lr', 0.5)}; "
        f"or draw with: unziplora style {case.project} --style-strength 0.7",
    )


def _content_lost(case: Evidence) -> Problem | None:
    if not case.low(names.CONTENT_KEPT):
        return None
    if case.worse(names.CONTENT_KEPT):  # the base alone draws it: the LoRA spoils that
        return Problem(
            f"the content LoRA loses the {case.words.subject}",
            f"try {case.option('content_lr', 0.5)} or {case.steps(2 / 3)}.",
        )
    return Problem(f"the content LoRA has not learned the {case.words.subject}", case.longer("content_lr"))


def _style_lost(case: Evidence) -> Problem | None:
    if not case.low(names.STYLE_KEPT):
        return None
    return Problem(f"the style LoRA has not learned {case.words.style}", case.longer("style_lr"))


def _others_lost(case: Evidence) -> Problem | None:
    if not case.worse(names.OTHER_SUBJECTS) or case.leaked(names.SUBJECT_LEAKED):
        return None
    return Problem(
        "the style LoRA spoils other subjects",
        f"try {case.option('style_lr', 0.5)} or {case.steps(2 / 3)}; "
        f"or draw with: unziplora style {case.project} --style-strength 0.7",
    )


def _not_combined(case: Evidence) -> Problem | None:
    if not case.low(names.BOTH_COMBINED) or case.low(names.CONTENT_KEPT) or case.low(names.STYLE_KEPT):
        return None  # what a branch alone lacks is said of that branch
    return Problem(
        "the two together lose subject or style",
        f"try {case.option('overlap_weight', 0.5, 1000.0)}; "
        f"or draw with: unziplora combine {case.project} --no-merge",
    )


def _context_lost(case: Evidence) -> Problem | None:
    if not case.worse(names.CONTEXT_FOLLOWED):
        return None
    return Problem(
        "the content LoRA ignores where it is asked to be",
        f"try {case.steps(2 / 3)}; or draw with: unziplora content {case.project} --content-strength 0.7",
        minor=True,
    )


def _no_photo(case: Evidence) -> Problem | None:
    if not case.worse(names.CONTENT_AS_PHOTO) or case.leaked(names.STYLE_LEAKED):
        return None
    return Problem(
        "the content LoRA's pictures are no plain photos any more",
        f"try {case.steps(2 / 3)} or {case.option('content_lr', 0.5)}; "
        f"or draw with: unziplora content {case.project} --content-strength 0.7",
        minor=True,
    )


def _stranger(case: Evidence) -> Problem | None:
    score = case.scores.get(names.IDENTITY)
    if score is None or score.base is None:
        return None
    if case.low(names.CONTENT_KEPT) or case.overdone():
        return None  # what mends that comes first, and is the contrary
    way = case.above_base(names.IDENTITY) / max(1.0 - score.base, 1e-6)
    if way >= IDENTITY:
        return None
    degree = "hardly recognised" if way < IDENTITY / 2 else "recognised only in part"
    return Problem(
        f"this very {case.words.subject} is {degree}",
        f"try {case.option('content_lr', 2.0)}{_echoes(case, -ECHO_STEP)} "
        f"or {case.option('column_ratio', 2.0)}.",
        minor=True,
    )


def _echoes(case: Evidence, step: float) -> str:
    """Advice to let content learn the picture as the base would draw it, or to change how far from it."""
    if not case.training.get("destyle_images"):
        return " or --destyle-images 8 --destyled-only"
    strength = case.training.get("destyle_strength")
    if not isinstance(strength, float):
        return ""
    changed = min(1.0, max(ECHO_STEP, strength + step))
    return f" or --destyle-strength {changed:.2g}" if changed != strength else ""


def _separate(case: Evidence) -> str:
    """Advice to switch on again what was switched off."""
    off = [f"--no-{name.replace('_', '-')}" for name in SEPARATIONS if case.training.get(name) is False]
    return f"train without {' '.join(off)}; or " if off else ""


RULES: tuple[Callable[[Evidence], Problem | None], ...] = (
    _not_learned,
    _style_leaks,
    _subject_leaks,
    _content_lost,
    _style_lost,
    _others_lost,
    _not_combined,
    _no_photo,
    _context_lost,
    _stranger,
)
