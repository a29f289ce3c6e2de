"""Describe images: subject, style, distinguishing features and surroundings, proposed by a model."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from unziplora_cli.config import Words
from unziplora_cli.errors import ModelError
from unziplora_cli.events import Event, Phase, Progress
from unziplora_cli.hub import DESCRIBER
from unziplora_cli.job import Description
from unziplora_cli.prompts import UNNAMED_STYLE

if TYPE_CHECKING:
    from unziplora_cli.evaluation.describe import Describer


def describe(
    images: Sequence[Path], *, builtin: bool, describer: str | None = None, device: str = "auto"
) -> Generator[Event, None, list[Description]]:
    """Describe images in the words that a base understands.

    ``builtin``: for the built-in base, by its own reader unless a ``describer`` is named: a Hugging Face id
    in the cache, or a folder. The model is freed at the end. Raises ModelError if it is not on this disk,
    UsageError for an image that cannot be read, and OutOfMemory.
    """
    from unziplora_cli.accel.device import memory_guard
    from unziplora_cli.evaluation.describe import has_reader
    from unziplora_cli.images import load_image

    descriptions = []
    with memory_guard("Use a smaller describer, or name subject and style yourself."):
        yield Phase("load describer", describer or ("of mini" if builtin and has_reader() else DESCRIBER))
        model = _load(builtin, describer, device)
        yield Phase("describe", f"{len(images)} image{'s' if len(images) > 1 else ''}")
        try:
            for number, path in enumerate(images):
                yield Progress("describe", number, len(images))
                descriptions.append(model.describe(load_image(path).image))
        finally:
            model.close()
    return descriptions


def can_describe(*, builtin: bool, describer: str | None = None) -> bool:
    """Whether :func:`describe` would find its model on this disk; raises ModelError for a named one."""
    from unziplora_cli.evaluation.describe import find_describer, has_reader

    if describer is not None:
        return find_describer(describer).is_dir()
    if builtin and has_reader():
        return True
    try:
        return find_describer(DESCRIBER).is_dir()
    except ModelError:
        return False


def compare(description: Description, words: Words, features: tuple[str, ...]) -> Description:
    """The description with the names of the fields that the user replaced."""
    style = words.style if words.style != UNNAMED_STYLE else description.style
    used = {"subject": words.subject, "style": style, "features": features}
    changed = tuple(name for name, value in used.items() if getattr(description, name) != value)
    return replace(description, changed=changed)


def _load(builtin: bool, describer: str | None, device: str) -> Describer:
    from unziplora_cli.accel.device import pick_device, pick_dtype
    from unziplora_cli.evaluation.describe import MiniDescriber, VisionLanguageDescriber, has_reader

    if describer is None and builtin and has_reader():
        return MiniDescriber()
    chosen = pick_device(device)
    return VisionLanguageDescriber.load(
        describer or DESCRIBER, device=chosen, dtype=pick_dtype("auto", chosen)
    )
