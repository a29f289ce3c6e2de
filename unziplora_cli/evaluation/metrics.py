"""The scores of a project from its evaluation, each beside the base's own; and distances between LoRAs."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from unziplora_cli.adapters.columns import LayerColumns, merge_cosine, shared_share
from unziplora_cli.evaluation.denoising import DenoisingResult, relative_gap
from unziplora_cli.evaluation.prompts import PURPOSES, EvaluationPrompt, Purpose
from unziplora_cli.evaluation.scorers import ImageScore, Scorer
from unziplora_cli.method.lora import LoRA, MergeWeights
from unziplora_cli.projects.manifest import ScoreRecord, Unit
from unziplora_cli.prompts import PHOTO

CONTENT_KEPT = "content kept"
STYLE_LEAKED = "style leaked into content"
CONTENT_AS_PHOTO = "content as a photo"
CONTEXT_FOLLOWED = "context followed"
IDENTITY = "identity"
STYLE_KEPT = "style kept"
SUBJECT_LEAKED = "subject leaked into style"
OTHER_SUBJECTS = "other subjects in style"
BOTH_COMBINED = "both combined"
STYLE_SIMILARITY = "style similarity"
PROMPT_SIMILARITY = "prompt similarity"
LOSS = {"full": "loss, full prompt", "content": "loss, content alone", "style": "loss, style alone"}
RECONSTRUCTION_ERROR = "reconstruction error"
MERGE_OVERLAP = "merge weight overlap"
SHARED_COLUMNS = "shared columns"
ONE_FILE_GAP = "one-file gap"

Criterion = tuple[str, Sequence[Purpose], str, Callable[[EvaluationPrompt, ImageScore], float | None]]
"""A score of generated images: its name, the purposes of these images, what it says, and its value for one.

The value is whether an image passes, or a similarity; None where the scorer does not measure it.
"""

SIMILARITIES, LEAKS = (IDENTITY, STYLE_SIMILARITY, PROMPT_SIMILARITY), (STYLE_LEAKED, SUBJECT_LEAKED)


def image_scores(
    prompts: Sequence[EvaluationPrompt],
    scores: Sequence[ImageScore],
    base_scores: Sequence[ImageScore],
    scorer: Scorer,
) -> tuple[ScoreRecord, ...]:
    """The scores of the LoRAs' images, beside those of the base's images for the same prompts and noise."""

    def mean(criterion: Criterion, images: Sequence[ImageScore]) -> float | None:
        _, purposes, _, value = criterion
        pairs = zip(prompts, images, strict=True)
        values = [value(prompt, score) for prompt, score in pairs if prompt.purpose in purposes]
        measured = [number for number in values if number is not None]
        return sum(measured) / len(measured) if measured else None

    records = []
    for criterion in _criteria(scorer.subject, scorer.style):
        name, _, about, _ = criterion
        value, base = mean(criterion, scores), mean(criterion, base_scores)
        unit: Unit = "likeness" if name in SIMILARITIES else "share"
        if value is not None:
            records.append(ScoreRecord(name, value, base, name not in LEAKS, about, unit))
    return tuple(records)


def _criteria(subject: str, style: str) -> list[Criterion]:
    """All criteria for a project; those of a leaking style do not apply to photos."""
    content: tuple[Purpose, ...] = ("content", "context")

    def is_subject(prompt: EvaluationPrompt, score: ImageScore) -> bool:
        return score.subject == subject

    def is_style(prompt: EvaluationPrompt, score: ImageScore) -> bool:
        return score.style == style

    of_content, of_style = "Images of the content LoRA that", "Images of the style LoRA that"
    criteria: list[Criterion] = [
        (CONTENT_KEPT, content, f"{of_content} show a {subject}.", is_subject),
        (STYLE_LEAKED, content, f"{of_content} are {style}.", is_style),
        (CONTENT_AS_PHOTO, content, f"{of_content} are plain photos.", lambda _, score: score.style == PHOTO),
        (
            CONTEXT_FOLLOWED,
            ("context",),
            f"{of_content} show the place in the prompt.",
            lambda prompt, score: score.context == prompt.context,
        ),
        (
            IDENTITY,
            ("content",),
            "Similarity of the content LoRA's subject to that of the training image.",
            lambda _, score: score.identity,
        ),
        (STYLE_KEPT, ("style",), f"{of_style} are {style}.", is_style),
        (SUBJECT_LEAKED, ("style",), f"{of_style} show a {subject}, which is not in the prompt.", is_subject),
        (
            OTHER_SUBJECTS,
            ("style",),
            f"{of_style} show the subject in the prompt.",
            lambda prompt, score: score.subject == prompt.subject,
        ),
        (
            BOTH_COMBINED,
            ("combine",),
            f"Images of both LoRAs that show a {subject} and are {style}.",
            lambda prompt, score: is_subject(prompt, score) and is_style(prompt, score),
        ),
        (
            STYLE_SIMILARITY,
            ("style",),
            "Similarity of the style LoRA's images to the training image as a whole.",
            lambda _, score: score.style_similarity,
        ),
        (
            PROMPT_SIMILARITY,
            PURPOSES,
            "Similarity of all images to their prompts.",
            lambda _, score: score.prompt_similarity,
        ),
    ]
    inapplicable = (STYLE_LEAKED, CONTENT_AS_PHOTO) if style == PHOTO else ()
    return [criterion for criterion in criteria if criterion[0] not in inapplicable]


def denoising_scores(results: Mapping[str, DenoisingResult]) -> tuple[ScoreRecord, ...]:
    """How well the LoRAs know the training image.

    ``results`` has "full", "content" and "style", each of them also for the base alone ("full base", ...),
    and "one file": both branches as other programs load them, with the full prompt for each.
    """
    conditions = {
        "full": "both LoRAs and the full prompt",
        "content": "the content LoRA and its prompt",
        "style": "the style LoRA and its prompt",
    }
    records = [
        ScoreRecord(
            name=LOSS[name],
            value=float(results[name].loss.mean()),
            base=float(results[f"{name} base"].loss.mean()),
            higher_is_better=False,
            about=f"Denoising loss on the training image with {condition}: {_comparison(results, name)}.",
            unit="loss",
        )
        for name, condition in conditions.items()
    ]
    full, base = results["full"], results["full base"]
    if (error := full.reconstruction_error) is not None:
        about = "Error of the training image reconstructed from strong noise; 0 is exact."
        base_error = base.reconstruction_error
        records.append(ScoreRecord(RECONSTRUCTION_ERROR, error, base_error, False, about, "difference"))
    gap = relative_gap(results["one file"].prediction, full.prediction, base.prediction)
    about = "Change in other programs, which use one prompt for both LoRAs, relative to their effect."
    return (*records, ScoreRecord(ONE_FILE_GAP, gap, None, False, about, "difference"))


def weight_scores(layers: Mapping[str, LayerColumns]) -> tuple[ScoreRecord, ...]:
    """How well the branches are separated, from their weights alone."""
    cosine = "Cosine of the merge weights: 0 if the branches use different columns, 1 if they use the same."
    shared = "Columns that both branches use, of those that either uses."
    return (
        ScoreRecord(MERGE_OVERLAP, merge_cosine(layers), None, False, cosine, "likeness"),
        ScoreRecord(SHARED_COLUMNS, shared_share(layers), None, False, shared, "share"),
    )


def _comparison(results: Mapping[str, DenoisingResult], name: str) -> str:
    """How losses compare with the base's, sample by sample; ± is one standard error."""
    loss, base = results[name].loss, results[f"{name} base"].loss
    lower = int((loss < base).sum())
    change = float(1.0 - loss.mean() / base.mean())
    text = f"{abs(change):.0%} {'below' if change >= 0 else 'above'} the base's"
    if len(loss) > 1:
        text += f" (± {float((base - loss).std() / len(loss) ** 0.5 / base.mean()):.0%})"
    return f"{text}, below it for {lower} of {len(loss)} samples"


# How far the results of two trainings are apart.


@dataclass(frozen=True, slots=True)
class LoRADistance:
    """``relative`` is |D' - D| / max(|D|, |D'|) over all updates D = up @ down, in the Frobenius norm.

    ``columns`` is the share of the output columns used by either LoRA that are used by both.
    """

    relative: float
    columns: float


def lora_distance(recorded: LoRA, new: LoRA) -> LoRADistance:
    """Compare two LoRAs; a layer that only one of them has is zero in the other.

    The updates are never formed: |[U, -U'] [D; D']|^2 is the sum over the elementwise product of two Gram
    matrices of size [2 rank, 2 rank].
    """
    difference, sizes, either, both = 0.0, [0.0, 0.0], 0, 0
    for layer in {**recorded, **new}:
        weights = [lora[layer] for lora in (recorded, new) if layer in lora]
        first, last = weights[0], weights[-1]
        if len(weights) == 1 or not (torch.equal(first.up, last.up) and torch.equal(first.down, last.down)):
            signed = zip((1.0, -1.0), weights, strict=False)
            up = torch.cat([sign * part.up.double() for sign, part in signed], dim=1)
            difference += _squared_norm(up, torch.cat([part.down.double() for part in weights]))
        for i, lora in enumerate((recorded, new)):
            if layer in lora:
                sizes[i] += _squared_norm(lora[layer].up.double(), lora[layer].down.double())
        used = [part.up.any(dim=1) for part in weights]  # [out] each
        either += int(torch.stack(used).any(dim=0).sum())
        both += int((used[0] & used[1]).sum()) if len(used) == 2 else 0
    relative = math.sqrt(difference / max(sizes)) if difference else 0.0
    return LoRADistance(relative, both / either if either else 1.0)


def merge_distance(recorded: MergeWeights, new: MergeWeights) -> float:
    """The largest absolute difference of merge weights; 1, the maximum, if the layers differ."""
    if recorded.keys() != new.keys():
        return 1.0
    differences = [(new[layer] - merge).abs().max() for layer, merge in recorded.items()]
    return float(torch.stack(differences).max()) if differences else 0.0


def _squared_norm(up: Tensor, down: Tensor) -> float:
    """|up @ down|^2 of ``up`` [out, r] and ``down`` [r, in], both float64."""
    return max(0.0, float(((up.T @ up) * (down @ down.T)).sum()))
