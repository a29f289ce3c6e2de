"""From scores to a diagnosis: what went wrong in a training, and which settings fix it.

Shares of images are compared with the base's own where a score has one, so that the LoRAs are not blamed for
a context or a subject that the base itself misses.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from math import ceil

from unziplora_cli.config import DESTYLED_IMAGES, Words
from unziplora_cli.evaluation import metrics
from unziplora_cli.job import Scalar
from unziplora_cli.projects.manifest import ScoreRecord
from unziplora_cli.prompts import UNNAMED_STYLE

MIN_KEPT = 0.7
"""Smallest share of images that must show what a branch is for."""
MAX_LEAK = 0.3
"""Share of images above the base's that counts as a leak; a single image of four does not."""
MAX_LOSS_TO_BASE = 0.3
"""Share of images by which a LoRA may fall behind the base in following the prompt."""
MIN_IDENTITY = 0.4
"""How far the content LoRA must come from the base's similarity towards 1.

With the built-in classifier two images of one individual reach 0.8, images of two individuals of a kind 0."""
MIN_LEARNED = 0.1
"""Share by which the denoising loss with the full prompt must be below the base's."""
DESTYLE_STEP = 0.15
"""Change of the destyle strength to recommend: lower keeps the individual, higher removes more of the style
(benchmarks/README.md)."""
SEPARATIONS = ("prompt_separation", "column_separation", "block_separation", "avoid_overlap")


Settings = Mapping[str, Scalar]


@dataclass(frozen=True, slots=True)
class Problem:
    """What went wrong, and what helps; ``minor`` if content and style are separated anyway.

    Each of the ``trainings`` is settings of another training, ``generation`` those of generating without one.
    """

    text: str
    trainings: Sequence[Settings]
    generation: Settings = field(default_factory=dict)
    minor: bool = False

    @property
    def advice(self) -> str:
        """The problem, and all that helps, in one sentence."""
        again = " or ".join(filter(None, map(_listed, self.trainings)))
        helps = f"train again with {again}" if again else "fix the other problems first, then evaluate again"
        helps += f", or generate with {_listed(self.generation)}" if self.generation else ""
        return f"{self.text[0].upper()}{self.text[1:].partition(' (')[0]}: {helps}."


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """A summary in one or two sentences, and the problems."""

    summary: str
    problems: tuple[Problem, ...]


def diagnose(scores: Sequence[ScoreRecord], training: Settings, words: Words) -> Diagnosis:
    """Find all problems that the scores show, and the settings that fix them."""
    evidence = _Evidence({score.name: score for score in scores}, training, words)
    problems = tuple(_problems(evidence))
    listed = "; ".join(problem.text for problem in problems)
    if metrics.CONTENT_KEPT not in evidence.scores:  # no images were scored
        summary = listed or f"the image was learned (loss {evidence.gain:.0%} below the base's)"
        return Diagnosis(f"{summary[0].upper()}{summary[1:]}. No images were scored.", problems)
    if not problems:
        return Diagnosis("Content and style were separated.", ())
    if all(problem.minor for problem in problems):
        return Diagnosis(f"Content and style were separated, but {listed}.", problems)
    return Diagnosis(f"Content and style were not separated: {listed}.", problems)


def misreading(seen: str, subject: str) -> str:
    """What to know first where the scorer sees another subject in the training image; else empty."""
    if seen.lower() in subject.lower().split() or seen.lower() == " ".join(subject.lower().split()):
        return ""
    return (
        f"This base cannot read the image: it sees a {seen}, where the subject is {subject!r}. "
        "It learns little from such an image, and the scores below say little."
    )


def _problems(evidence: _Evidence) -> Iterator[Problem]:
    """The problems in the order in which they are reported."""
    low, worse, leaked = evidence.low, evidence.worse, evidence.leaked
    subject, style = evidence.words.subject, evidence.words.style
    style = "its style" if style == UNNAMED_STYLE else style
    overfitted = (
        any(map(leaked, (metrics.STYLE_LEAKED, metrics.SUBJECT_LEAKED)))
        or any(map(worse, (metrics.CONTENT_AS_PHOTO, metrics.CONTENT_KEPT)))
        or any(map(worse, (metrics.CONTEXT_FOLLOWED, metrics.OTHER_SUBJECTS)))
    )
    hardly_learned, identity = evidence.gain <= MIN_LEARNED, evidence.scores.get(metrics.IDENTITY)
    recognized = 1.0  # how far the similarity to the individual comes from the base's towards 1
    if identity is not None and identity.base is not None:
        recognized = (identity.value - identity.base) / max(1.0 - identity.base, 1e-6)
    separations = {name: True for name in SEPARATIONS if evidence.training.get(name) is False}
    longer, shorter, scaled = evidence.steps(2.0), evidence.steps(2 / 3), evidence.scaled
    content_again, style_again = (
        () if overfitted else (longer, scaled(setting, 2.0)) for setting in ("content_lr", "style_lr")
    )
    less_content, less_style = scaled("content_lr", 0.5), scaled("style_lr", 0.5)
    weaker_content, weaker_style = {"content_strength": 0.7}, {"style_strength": 0.7}

    if hardly_learned and not overfitted:
        both = scaled("content_lr", 2.0) | scaled("style_lr", 2.0)
        yield Problem("the image was hardly learned", (longer, both))
    if leaked(metrics.STYLE_LEAKED):
        yield Problem(
            f"style leaks into content (the {subject} alone still looks like {style})",
            (separations, shorter, less_content, evidence.destyling(DESTYLE_STEP)),
            weaker_content,
        )
    if leaked(metrics.SUBJECT_LEAKED):
        yield Problem(
            f"the {subject} leaks into style (other subjects turn into it)",
            (separations, shorter, less_style),
            weaker_style,
        )
    if low(metrics.CONTENT_KEPT) and worse(metrics.CONTENT_KEPT):
        yield Problem(f"the content LoRA loses the {subject}", (less_content, shorter))
    if low(metrics.CONTENT_KEPT) and not worse(metrics.CONTENT_KEPT):
        yield Problem(f"the content LoRA has not learned the {subject}", content_again)
    if low(metrics.STYLE_KEPT):
        yield Problem(f"the style LoRA has not learned {style}", style_again)
    if worse(metrics.OTHER_SUBJECTS) and not leaked(metrics.SUBJECT_LEAKED):
        yield Problem("the style LoRA loses other subjects", (shorter, less_style), weaker_style)
    if low(metrics.BOTH_COMBINED) and not low(metrics.CONTENT_KEPT) and not low(metrics.STYLE_KEPT):
        overlap = scaled("overlap_weight", 0.5, 1000.0)
        yield Problem("both LoRAs together lose the subject or the style", (overlap,), {"no_merge": True})
    if worse(metrics.CONTENT_AS_PHOTO) and not leaked(metrics.STYLE_LEAKED):
        text = "the content LoRA's images are no longer plain photos"
        yield Problem(text, (shorter, less_content), weaker_content, minor=True)
    if worse(metrics.CONTEXT_FOLLOWED):
        text = "the content LoRA ignores the place in the prompt"
        yield Problem(text, (shorter,), weaker_content, minor=True)
    if recognized < MIN_IDENTITY and not low(metrics.CONTENT_KEPT) and not overfitted:
        degree = "hardly" if recognized < MIN_IDENTITY / 2 else "only partly"
        destyling, wider = evidence.destyling(-DESTYLE_STEP), scaled("column_ratio", 2.0)
        yield Problem(
            f"this individual {subject} is {degree} recognized",
            (scaled("content_lr", 2.0), destyling, wider),
            minor=True,
        )


def _listed(settings: Settings) -> str:
    names = {name.replace("_", "-"): value for name, value in settings.items()}
    return " and ".join(name if value is True else f"{name} {value}" for name, value in names.items())


@dataclass(frozen=True, slots=True)
class _Evidence:
    """The scores of a project by name, its training settings and its words."""

    scores: Mapping[str, ScoreRecord]
    training: Mapping[str, Scalar]
    words: Words

    @property
    def gain(self) -> float:
        """Share by which the denoising loss with the full prompt is below the base's; 1 if not measured."""
        loss = self.scores.get(metrics.LOSS["full"])
        return 1.0 - loss.value / loss.base if loss and loss.base else 1.0

    def change(self, name: str) -> float:
        """A score minus the base's; 0 if it was not measured."""
        score = self.scores.get(name)
        return 0.0 if score is None else score.value - (score.base or 0.0)

    def low(self, name: str) -> bool:
        """Whether too few images show what they should."""
        return name in self.scores and self.scores[name].value < MIN_KEPT

    def leaked(self, name: str) -> bool:
        """Whether more images than the base's show what they should not."""
        return self.change(name) >= MAX_LEAK

    def worse(self, name: str) -> bool:
        """Whether fewer images than the base's follow the prompt."""
        return self.change(name) <= -MAX_LOSS_TO_BASE

    def number(self, setting: str, default: float = 0.0) -> float:
        """A training setting as a number."""
        value = self.training.get(setting, default)
        return float(value) if isinstance(value, int | float) else default

    def steps(self, factor: float) -> dict[str, Scalar]:
        """Another number of training steps, a multiple of 50."""
        fifties = self.number("steps", 600) * factor / 50
        return {"steps": 50 * max(1, ceil(fifties) if factor > 1.0 else round(fifties))}

    def scaled(self, setting: str, factor: float, most: float = 1.0) -> dict[str, Scalar]:
        """Another value of a training setting."""
        return {setting: float(f"{min(most, self.number(setting) * factor):.2g}")}

    def destyling(self, step: float) -> dict[str, Scalar]:
        """Destyled images, or another strength of the inversion that made them, if it has one in range."""
        if not self.training.get("destyle_images"):
            return {"destyle_images": DESTYLED_IMAGES, "destyled_only": True}
        strength = self.training.get("destyle_strength")
        if self.training.get("destyle") not in (None, "inversion") or not isinstance(strength, float):
            return {}
        changed = float(f"{min(1.0, max(DESTYLE_STEP, strength + step)):.2g}")
        return {"destyle_strength": changed} if changed != strength else {}
