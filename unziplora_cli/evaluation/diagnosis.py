"""From scores to a diagnosis: what went wrong in a training, and which settings fix it.

Shares of images are compared with the base's own where a score has one, so that the LoRAs are not blamed for
a context or a subject that the base itself misses.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import ceil

from unziplora_cli.config import Words
from unziplora_cli.evaluation import metrics
from unziplora_cli.job import Scalar
from unziplora_cli.projects.manifest import ScoreRecord

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


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """A summary in one or two sentences, and one sentence of advice for each problem."""

    summary: str
    advice: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Evidence:
    """The scores of a project by name, its training settings and its words."""

    scores: Mapping[str, ScoreRecord]
    training: Mapping[str, Scalar]
    words: Words

    def above_base(self, name: str) -> float:
        """A score minus the base's."""
        score = self.scores[name]
        return score.value - (score.base or 0.0)

    def low(self, name: str) -> bool:
        """Whether too few images show what they should."""
        return name in self.scores and self.scores[name].value < MIN_KEPT

    def leaked(self, name: str) -> bool:
        """Whether more images than the base's show what they should not."""
        return name in self.scores and self.above_base(name) >= MAX_LEAK

    def worse(self, name: str) -> bool:
        """Whether fewer images than the base's follow the prompt."""
        return name in self.scores and self.above_base(name) <= -MAX_LOSS_TO_BASE

    @property
    def overfitted(self) -> bool:
        """Whether a branch has learned too much, so that more training would not help."""
        leaks = (metrics.STYLE_LEAKED, metrics.SUBJECT_LEAKED)
        spoiled = (
            metrics.CONTENT_AS_PHOTO,
            metrics.CONTENT_KEPT,
            metrics.CONTEXT_FOLLOWED,
            metrics.OTHER_SUBJECTS,
        )
        return any(map(self.leaked, leaks)) or any(map(self.worse, spoiled))

    @property
    def hardly_learned(self) -> bool:
        """Whether the loss with the full prompt is about the base's."""
        loss = self.scores[metrics.LOSS["full"]]
        return bool(loss.base) and loss.value >= (loss.base or 0.0) * (1.0 - MIN_LEARNED)

    @property
    def identity(self) -> float:
        """How far the similarity to the individual comes from the base's towards 1; 1 if not measured."""
        score = self.scores.get(metrics.IDENTITY)
        if score is None or score.base is None:
            return 1.0
        return self.above_base(metrics.IDENTITY) / max(1.0 - score.base, 1e-6)

    def number(self, setting: str, default: float = 0.0) -> float:
        """A training setting as a number."""
        value = self.training.get(setting, default)
        return float(value) if isinstance(value, int | float) else default


@dataclass(frozen=True, slots=True)
class Rule:
    """A problem, when it applies, and the advice; ``minor`` if content and style are separated anyway."""

    problem: Callable[[Evidence], str]
    applies: Callable[[Evidence], bool]
    advice: Callable[[Evidence], str]
    minor: bool = False


def diagnose(scores: Sequence[ScoreRecord], training: Mapping[str, Scalar], words: Words) -> Diagnosis:
    """Apply all rules to the scores."""
    evidence = Evidence({score.name: score for score in scores}, training, words)
    rules = [rule for rule in RULES if rule.applies(evidence)]
    problems = [rule.problem(evidence) for rule in rules]
    advice = tuple(
        f"{problem[0].upper()}{problem[1:].partition(' (')[0]}: {rule.advice(evidence)}."
        for problem, rule in zip(problems, rules, strict=True)
    )
    listed = "; ".join(problems)
    if metrics.CONTENT_KEPT not in evidence.scores:  # no images were scored
        loss = evidence.scores[metrics.LOSS["full"]]
        gain = 1.0 - loss.value / loss.base if loss.base else 0.0
        summary = listed or f"the image was learned (loss {gain:.0%} below the base's)"
        return Diagnosis(f"{summary[0].upper()}{summary[1:]}. No images were scored.", advice)
    if not problems:
        return Diagnosis("Content and style were separated.", ())
    if all(rule.minor for rule in rules):
        return Diagnosis(f"Content and style were separated, but {listed}.", advice)
    return Diagnosis(f"Content and style were not separated: {listed}.", advice)


def misreading(seen: str, subject: str) -> str:
    """What to know first where the scorer sees another subject in the training image; else empty."""
    if seen.lower() in subject.lower().split() or seen.lower() == " ".join(subject.lower().split()):
        return ""
    return (
        f"This base cannot read the image: it sees a {seen}, where the subject is {subject!r}. "
        "It learns little from such an image, and the scores below say little."
    )


def _retrain(*settings: str) -> str:
    return f"train again with {' or '.join(setting for setting in settings if setting)}"


def _longer(setting: str) -> Callable[[Evidence], str]:
    """Advice to learn more, unless a branch has learned too much, which has to be fixed first."""

    def advice(evidence: Evidence) -> str:
        if evidence.overfitted:
            return "fix the other problems first, then evaluate again"
        return _retrain(_steps(evidence, 2.0), _scaled(evidence, setting, 2.0))

    return advice


def _shorter(setting: str, remedy: str, *, separate: bool = False) -> Callable[[Evidence], str]:
    """Advice to learn less, or to generate with another setting."""

    def advice(evidence: Evidence) -> str:
        options = [_steps(evidence, 2 / 3), _scaled(evidence, setting, 0.5) if setting else ""]
        if separate:
            options.insert(0, _disabled_separations(evidence))
            if setting == "content_lr":
                options.append(_destyling(evidence, DESTYLE_STEP))
        return f"{_retrain(*options)}, or generate with {remedy}"

    return advice


def _steps(evidence: Evidence, factor: float) -> str:
    """Another number of training steps, a multiple of 50."""
    fifties = evidence.number("steps", 600) * factor / 50
    return f"steps {50 * max(1, ceil(fifties) if factor > 1.0 else round(fifties))}"


def _scaled(evidence: Evidence, setting: str, factor: float, most: float = 1.0) -> str:
    """Another value of a training setting."""
    return f"{setting.replace('_', '-')} {min(most, evidence.number(setting) * factor):.2g}"


def _disabled_separations(evidence: Evidence) -> str:
    """The separations that were off."""
    return " and ".join(
        name.replace("_", "-") for name in SEPARATIONS if evidence.training.get(name) is False
    )


def _destyling(evidence: Evidence, step: float) -> str:
    """Destyled images, or another strength if the training had some; empty at the end of the range."""
    if not evidence.training.get("destyle_images"):
        return "destyle-images 8 and destyled-only"
    strength = evidence.training.get("destyle_strength")
    if not isinstance(strength, float):
        return ""
    changed = min(1.0, max(DESTYLE_STEP, strength + step))
    return f"destyle-strength {changed:.2g}" if changed != strength else ""


RULES = (
    Rule(
        lambda evidence: "the image was hardly learned",
        lambda evidence: evidence.hardly_learned and not evidence.overfitted,
        lambda evidence: _retrain(
            _steps(evidence, 2.0),
            f"{_scaled(evidence, 'content_lr', 2.0)} and {_scaled(evidence, 'style_lr', 2.0)}",
        ),
    ),
    Rule(
        lambda evidence: (
            f"style leaks into content (the {evidence.words.subject} alone still looks like "
            f"{evidence.words.style})"
        ),
        lambda evidence: evidence.leaked(metrics.STYLE_LEAKED),
        _shorter("content_lr", "content-strength 0.7", separate=True),
    ),
    Rule(
        lambda evidence: f"the {evidence.words.subject} leaks into style (other subjects turn into it)",
        lambda evidence: evidence.leaked(metrics.SUBJECT_LEAKED),
        _shorter("style_lr", "style-strength 0.7", separate=True),
    ),
    Rule(
        lambda evidence: f"the content LoRA loses the {evidence.words.subject}",
        lambda evidence: evidence.low(metrics.CONTENT_KEPT) and evidence.worse(metrics.CONTENT_KEPT),
        lambda evidence: _retrain(_scaled(evidence, "content_lr", 0.5), _steps(evidence, 2 / 3)),
    ),
    Rule(
        lambda evidence: f"the content LoRA has not learned the {evidence.words.subject}",
        lambda evidence: evidence.low(metrics.CONTENT_KEPT) and not evidence.worse(metrics.CONTENT_KEPT),
        _longer("content_lr"),
    ),
    Rule(
        lambda evidence: f"the style LoRA has not learned {evidence.words.style}",
        lambda evidence: evidence.low(metrics.STYLE_KEPT),
        _longer("style_lr"),
    ),
    Rule(
        lambda evidence: "the style LoRA loses other subjects",
        lambda evidence: (
            evidence.worse(metrics.OTHER_SUBJECTS) and not evidence.leaked(metrics.SUBJECT_LEAKED)
        ),
        _shorter("style_lr", "style-strength 0.7"),
    ),
    Rule(
        lambda evidence: "both LoRAs together lose the subject or the style",
        lambda evidence: (
            evidence.low(metrics.BOTH_COMBINED)
            and not evidence.low(metrics.CONTENT_KEPT)
            and not evidence.low(metrics.STYLE_KEPT)
        ),
        lambda evidence: (
            f"{_retrain(_scaled(evidence, 'overlap_weight', 0.5, 1000.0))}, or generate with no-merge"
        ),
    ),
    Rule(
        lambda evidence: "the content LoRA's images are no longer plain photos",
        lambda evidence: (
            evidence.worse(metrics.CONTENT_AS_PHOTO) and not evidence.leaked(metrics.STYLE_LEAKED)
        ),
        _shorter("content_lr", "content-strength 0.7"),
        minor=True,
    ),
    Rule(
        lambda evidence: "the content LoRA ignores the place in the prompt",
        lambda evidence: evidence.worse(metrics.CONTEXT_FOLLOWED),
        _shorter("", "content-strength 0.7"),
        minor=True,
    ),
    Rule(
        lambda evidence: (
            f"this individual {evidence.words.subject} is "
            f"{'hardly recognized' if evidence.identity < MIN_IDENTITY / 2 else 'only partly recognized'}"
        ),
        lambda evidence: (
            evidence.identity < MIN_IDENTITY
            and not evidence.low(metrics.CONTENT_KEPT)
            and not evidence.overfitted
        ),
        lambda evidence: _retrain(
            _scaled(evidence, "content_lr", 2.0),
            _destyling(evidence, -DESTYLE_STEP),
            _scaled(evidence, "column_ratio", 2.0),
        ),
        minor=True,
    ),
)
