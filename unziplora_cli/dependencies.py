"""Which setting needs which other one: the table behind "has no effect".

Settings that contradict each other are refused where they are declared, in :mod:`unziplora_cli.config`. What
is here is harmless, but a user who gave such a setting expects something from it.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Any


@dataclass(frozen=True, slots=True)
class Dependency:
    """``settings`` act only if ``has_effect`` is true of the whole configuration; ``reason`` says why not.

    ``reason`` may name fields of the configuration in braces.
    """

    settings: tuple[str, ...]
    has_effect: Callable[[Any], bool]
    reason: str


def _every(name: str) -> Dependency:
    return Dependency(
        (name,),
        lambda config: getattr(config, name) in (None, *range(config.steps + 1)),
        "the training has only {steps} steps",
    )


TRAINING = (
    Dependency(("lr_warmup_steps",), lambda c: c.lr_scheduler != "constant", "lr-scheduler is constant"),
    Dependency(
        (
            *("merge_lr", "recalibrations", "column_ratio", "overlap_weight", "block_separation"),
            *("avoid_overlap", "finetune_mask", "strict_top", "importance_score", "importance_threshold"),
            *("importance_loss_scale", "importance_steps", "accumulate_importance"),
        ),
        lambda c: c.column_separation,
        "column-separation is off",
    ),
    Dependency(
        ("importance_threshold", "importance_loss_scale"),
        lambda c: c.importance_score == "count",
        "importance-score is {importance_score}",
    ),
    Dependency(
        ("accumulate_importance",), lambda c: c.importance_steps > 1, "importance-steps is {importance_steps}"
    ),
    Dependency(("crops",), lambda c: c.crop == "random", "crop is {crop}"),
    Dependency(
        ("prior_weight_content",),
        lambda c: c.prior_content or c.destyle_images,
        "there are neither class images of the content (prior-content) nor destyled images (destyle-images)",
    ),
    Dependency(
        ("prior_weight_style",),
        lambda c: c.prior_style,
        "there are no class images of the style (prior-style)",
    ),
    Dependency(
        ("prior_images",),
        lambda c: c.prior_content or c.prior_style,
        "there is no folder of class images (prior-content, prior-style)",
    ),
    Dependency(
        (
            *("destyle_strength", "destyle_fresh_noise", "destyle_min_timestep", "destyled_only"),
            *("destyle_contrast", "destyle_guidance", "destyle_prompt"),
        ),
        lambda c: c.destyle_images,
        "there are no destyled images (destyle-images)",
    ),
    Dependency(
        (
            *("destyle_strength", "destyle_fresh_noise", "destyle_contrast", "destyle_guidance"),
            "destyle_prompt",
        ),
        lambda c: c.destyle in (None, "inversion"),
        "destyle is {destyle}, not inversion",
    ),
    Dependency(
        ("destyle_images",), lambda c: c.destyle != "folder", "all images of the destyle folder are learned"
    ),
    Dependency(("destyler",), lambda c: c.destyle == "edit", "destyle is not edit"),
    Dependency(
        ("validation_images",), lambda c: c.validate_every, "there are no validation images (validate-every)"
    ),
    *map(_every, ("validate_every", "save_every", "checkpoint_every")),
)

GENERATION = (
    Dependency(
        ("negative_prompt",), lambda c: c.guidance > 1, "guidance is {guidance:g}, which turns it off"
    ),
)


def without_effect(
    config: Any, given: Mapping[str, Any], table: tuple[Dependency, ...] = TRAINING
) -> tuple[str, ...]:
    """A sentence for each setting in ``given`` that has no effect in ``config``.

    A setting that is given as the "off" that it has by default asks for nothing.
    """
    defaults = {entry.name: entry.default for entry in fields(config)}
    wanted = {name for name, value in given.items() if value is not None and (value or defaults[name])}
    sentences: dict[str, str] = {}
    for rule in table:
        reason = rule.reason.format_map(vars(config))
        for name in rule.settings:
            if name in wanted and not rule.has_effect(config):
                sentences.setdefault(name, f"{name.replace('_', '-')} has no effect: {reason}.")
    return tuple(sentences.values())
