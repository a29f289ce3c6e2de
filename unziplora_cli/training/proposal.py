"""Which settings would fit where a training does not, as the line to type."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields
from typing import Any

from unziplora_cli.config import TrainConfig, resolve
from unziplora_cli.errors import UsageError
from unziplora_cli.training.plan import Base, Target, needed, predict_memory

PRESETS = ("fast", "low-vram")
"""Tried in this order: the first only learns less, the second is slower, too."""

Changes = Mapping[str, Any]
"""Settings by name, and ``preset``."""


def propose(
    base: Base, config: TrainConfig, target: Target, free: int, given: Mapping[str, Any] | None = None
) -> Changes | None:
    """What to add so that training takes less than ``config`` does and no more than ``free`` bytes, or None.

    The settings that the user has ``given`` stay (left out: all that are not the defaults). When no preset is
    enough, batch, resolution and rank go down, in this order.
    """
    before = predict_memory(base, config, target).peak
    for changes in _candidates(config, _given(config, given)):
        preset, settings = changes["preset"], {k: v for k, v in changes.items() if k != "preset"}
        try:
            changed = resolve(preset, {**_given(config, given), **settings})
        except UsageError:  # the user's own settings and this preset's exclude each other
            continue
        memory = predict_memory(base, changed, target)
        if memory.peak < before and needed(memory, target) <= free:
            return changes
    return None


def options(changes: Changes) -> list[str]:
    """``changes`` as the words of a command line."""
    return [word for name, value in changes.items() for word in ("--" + name.replace("_", "-"), str(value))]


def line(typed: Sequence[str], changes: Changes, *more: str) -> str:
    """The command that was ``typed``, with ``changes`` in place of what it said of them, and ``more``."""
    flags = {"--" + name.replace("_", "-") for name in changes} | set(more)
    kept, skip = [], False
    for word in typed:
        if not skip and word.split("=")[0] not in flags:
            kept.append(word)
        skip = not skip and word in flags and word not in more
    return shlex.join(["unziplora", *kept, *options(changes), *more])


def lower(config: TrainConfig, precision: str) -> list[Changes]:
    """Single changes that each take less memory, beside a preset."""
    ways: list[Changes] = []
    if not (config.gradient_checkpointing and config.quantize == "int8"):
        ways.append({"preset": "low-vram"})
    if precision == "fp32":
        ways.append({"precision": "bf16"})
    if config.batch_size > 1:
        ways.append({"batch_size": 1})
    return [
        *ways,
        {"resolution": config.resolution // 2 // 8 * 8},
        *([{"rank": config.rank // 2}] if config.rank > 1 else []),
    ]


def _candidates(config: TrainConfig, given: Mapping[str, Any]) -> Iterator[Changes]:
    for preset in PRESETS:
        yield {"preset": preset}
    batch = {"batch_size": 1} if config.batch_size > 1 else {}
    if batch:
        yield {"preset": PRESETS[-1], **batch}
    for share in (0.75, 0.5):
        resolution = {"resolution": _smaller(config.resolution, share)}
        yield {"preset": PRESETS[-1], **batch, **resolution}
        for rank in (config.rank // 2, config.rank // 4, config.rank // 8):
            if rank:
                yield {"preset": PRESETS[-1], **batch, **resolution, "rank": rank}


def _smaller(resolution: int, share: float) -> int:
    """A share of ``resolution``, in whole 64 where there are any."""
    pixels = int(resolution * share)
    return pixels // 64 * 64 or max(32, pixels // 8 * 8)


def _given(config: TrainConfig, given: Mapping[str, Any] | None) -> Mapping[str, Any]:
    if given is not None:
        return given
    values = {each.name: getattr(config, each.name) for each in fields(config)}
    return {each.name: values[each.name] for each in fields(config) if values[each.name] != each.default}
