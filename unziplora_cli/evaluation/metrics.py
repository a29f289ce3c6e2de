"""From what was measured and seen to the scores of a project, each beside the base's own."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from unziplora_cli.adapters.columns import LayerColumns, merge_cosine, shared_share
from unziplora_cli.evaluation.denoising import DenoisingResult, relative_gap
from unziplora_cli.evaluation.prompts import EvaluationPrompt, Purpose
from unziplora_cli.evaluation.scorers import PHOTO, ImageScore, Scorer
from unziplora_cli.method.lora import LoRA, LoRAWeights, MergeWeights
from unziplora_cli.projects.manifest import ScoreRecord, Unit

CONTENT_KEPT = "content kept"
STYLE_LEAKED = "style leaked into content"
CONTENT_AS_PHOTO = "content as a photo"
CONTEXT_FOLLOWED = "context obeyed"
IDENTITY = "identity"
STYLE_KEPT = "style kept"
SUBJECT_LEAKED = "subject leaked into style"
OTHER_SUBJECTS = "other subjects drawn"
BOTH_COMBINED = "both combined"
STYLE_LIKENESS = "style likeness"
PROMPT_LIKENESS = "prompt likeness"
LOSS = {"full": "loss, full prompt", "content": "loss, content alone", "style": "loss, style alone"}
RECONSTRUCTION_ERROR = "rebuilding error"
MERGE_OVERLAP = "merge weights' overlap"
SHARED_COLUMNS = "shared columns"
ONE_FILE_GAP = "one-file gap"


@dataclass(frozen=True, slots=True)
class _Question:
    """What is asked of every picture of some purposes; the score is the mean of the answers.

    An answer is True, False or a likeness; None where the scorer has no sense for it.
    """

    name: str
    purposes: tuple[Purpose, ...]
    about: str
    answer: Callable[[EvaluationPrompt, ImageScore], float | None]
    unit: Unit = "share"
    higher_is_better: bool = True


def score_records(
    prompts_to_score: Sequence[EvaluationPrompt],
    ours: Sequence[ImageScore],
    base: Sequence[ImageScore],
    scorer: Scorer,
) -> tuple[ScoreRecord, ...]:
    """What was seen in the branches' pictures, and in the base's of the same words and noise."""
    scores = []
    for question in _questions(scorer.subject, scorer.style):
        value, of_base = (
            [
                answer
                for shot, view in zip(prompts_to_score, image_scores, strict=True)
                if shot.purpose in question.purposes and (answer := question.answer(shot, view)) is not None
            ]
            for image_scores in (ours, base)
        )
        if value:
            scores.append(
                ScoreRecord(
                    question.name,
                    sum(value) / len(value),
                    sum(of_base) / len(of_base),
                    question.higher_is_better,
                    question.about,
                    question.unit,
                )
            )
    return tuple(scores)


def _questions(subject: str, style: str) -> list[_Question]:
    """All questions about a project of this subject and style; a photo has no style that could leak."""
    anywhere: tuple[Purpose, ...] = ("content", "context")
    leaks = [
        _Question(
            STYLE_LEAKED,
            anywhere,
            f"Pictures of the content LoRA that are {style}.",
            lambda shot, view: view.style == style,
            higher_is_better=False,
        ),
        _Question(
            CONTENT_AS_PHOTO,
            anywhere,
            "Pictures of the content LoRA that are plain photos.",
            lambda shot, view: view.style == PHOTO,
        ),
    ]
    return [
        _Question(
            CONTENT_KEPT,
            anywhere,
            f"Pictures of the content LoRA that show a {subject}.",
            lambda shot, view: view.subject == subject,
        ),
        *(leaks if style != PHOTO else ()),
        _Question(
            CONTEXT_FOLLOWED,
            ("context",),
            "Pictures of the content LoRA that are where they were asked to be.",
            lambda shot, view: view.context == shot.context,
        ),
        _Question(
            IDENTITY,
            ("content",),
            "Likeness of the content LoRA's subject to the one in the training picture.",
            lambda shot, view: view.identity,
            unit="likeness",
        ),
        _Question(
            STYLE_KEPT,
            ("style",),
            f"Pictures of the style LoRA that are {style}.",
            lambda shot, view: view.style == style,
        ),
        _Question(
            SUBJECT_LEAKED,
            ("style",),
            f"Pictures of the style LoRA that show a {subject}, which nobody asked for.",
            lambda shot, view: view.subject == subject,
            higher_is_better=False,
        ),
        _Question(
            OTHER_SUBJECTS,
            ("style",),
            "Pictures of the style LoRA that show the subject that was asked for.",
            lambda shot, view: view.subject == shot.subject,
        ),
        _Question(
            BOTH_COMBINED,
            ("combine",),
            f"Pictures of both together that show a {subject} and are {style}.",
            lambda shot, view: view.subject == subject and view.style == style,
        ),
        _Question(
            STYLE_LIKENESS,
            ("style",),
            "Likeness of the style LoRA's pictures to the training picture as a whole.",
            lambda shot, view: view.style_likeness,
            unit="likeness",
        ),
        _Question(
            PROMPT_LIKENESS,
            ("content", "context", "style", "combine"),
            "Likeness of every picture to the words that it was asked for.",
            lambda shot, view: view.prompt_likeness,
            unit="likeness",
        ),
    ]


def denoising_scores(found: Mapping[str, DenoisingResult]) -> tuple[ScoreRecord, ...]:
    """What the branches know of the training picture.

    ``found`` has the ways ``full``, ``content`` and ``style``, each with its ``... base``, and ``one file``:
    the two branches as other programs load them, where both read the full prompt.
    """
    told = {
        "full": "both branches and the full prompt",
        "content": "the content LoRA and its prompt",
        "style": "the style LoRA and its prompt",
    }
    scores = [
        ScoreRecord(
            LOSS[way],
            float(found[way].loss.mean()),
            float(found[f"{way} base"].loss.mean()),
            False,
            f"Error in finding the training picture in noise with {text}: {_paired(found, way)}.",
            "loss",
        )
        for way, text in told.items()
    ]
    full, base = found["full"], found["full base"]
    if full.rebuilt is not None:
        about = "How far the training picture is missed when it is drawn back from strong noise; 0 is exact."
        scores.append(
            ScoreRecord(RECONSTRUCTION_ERROR, full.rebuilt, base.rebuilt, False, about, "difference")
        )
    gap = relative_gap(found["one file"].prediction, full.prediction, base.prediction)
    about = "What changes in other programs, where both branches read one prompt, relative to their effect."
    return (*scores, ScoreRecord(ONE_FILE_GAP, gap, None, False, about, "difference"))


def weight_scores(layers: Mapping[str, LayerColumns]) -> tuple[ScoreRecord, ...]:
    """How far the branches keep apart, from their files alone."""
    cosine = "Cosine of the merge weights: 0 where the branches use different columns, 1 where the same."
    shared = "Columns that both branches use, of those that either uses."
    return (
        ScoreRecord(MERGE_OVERLAP, merge_cosine(layers), None, False, cosine, "likeness"),
        ScoreRecord(SHARED_COLUMNS, shared_share(layers), None, False, shared, "share"),
    )


def _paired(found: Mapping[str, DenoisingResult], way: str) -> str:
    """How the losses of a way compare with the base's, draw by draw; ± is one standard error."""
    ours, base = found[way].loss, found[f"{way} base"].loss
    better = int((ours < base).sum())
    change = float(1.0 - ours.mean() / base.mean())
    words = f"{abs(change):.0%} {'below' if change >= 0 else 'above'} the base's"
    if len(ours) > 1:
        words += f" (± {float((base - ours).std() / len(ours) ** 0.5 / base.mean()):.0%})"
    return f"{words}, below it on {better} of {len(ours)} draws"


# How far two trainings of the same thing came out apart: their LoRAs and their merge weights.


@dataclass(frozen=True, slots=True)
class LoRADistance:
    """``relative`` is |D' - D| / max(|D|, |D'|) over all updates D = up @ down, in the Frobenius norm.

    ``columns`` is the share of the output columns open in either LoRA that are open in both.
    """

    relative: float
    columns: float


def lora_distance(recorded: LoRA, new: LoRA) -> LoRADistance:
    """Compare two LoRAs; a layer that only one of them has is zero in the other.

    No update is built: |[U, -U'] [D; D']|^2 is the sum of a product of two Gram matrices of the rank's size.
    """
    apart, sizes, either, both = 0.0, [0.0, 0.0], 0, 0
    for layer in {**recorded, **new}:
        pairs = [lora[layer] for lora in (recorded, new) if layer in lora]
        if not _equal(pairs):
            up = torch.cat([s * p.up.double() for s, p in zip((1.0, -1.0), pairs, strict=False)], dim=1)
            apart += _squared_norm(up, torch.cat([p.down.double() for p in pairs]))
        for i, lora in enumerate((recorded, new)):
            if layer in lora:
                sizes[i] += _squared_norm(lora[layer].up.double(), lora[layer].down.double())
        opened = [p.up.any(dim=1) for p in pairs]  # [out] each
        either += int(torch.stack(opened).any(dim=0).sum())
        both += int((opened[0] & opened[1]).sum()) if len(opened) == 2 else 0
    relative = math.sqrt(apart / max(sizes)) if apart else 0.0
    return LoRADistance(relative, both / either if either else 1.0)


def merge_distance(recorded: MergeWeights, new: MergeWeights) -> float:
    """The largest difference of any merge weight; 1, the most there can be, when the layers differ."""
    if recorded.keys() != new.keys():
        return 1.0
    differences = [(new[layer] - merge).abs().max() for layer, merge in recorded.items()]
    return float(torch.stack(differences).max()) if differences else 0.0


def _equal(pairs: list[LoRAWeights]) -> bool:
    first, last = pairs[0], pairs[-1]
    return len(pairs) == 2 and torch.equal(first.up, last.up) and torch.equal(first.down, last.down)


def _squared_norm(up: Tensor, down: Tensor) -> float:
    """|up @ down|^2 of ``up`` [out, r] and ``down`` [r, in], both float64."""
    return max(0.0, float(((up.T @ up) * (down @ down.T)).sum()))
