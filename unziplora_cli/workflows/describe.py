"""Describe images: subject, style, distinguishing features and surroundings, proposed by a model."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from unziplora_cli import vocabulary
from unziplora_cli.config import Words
from unziplora_cli.errors import ModelError, Remedy
from unziplora_cli.events import Event, Notice, Phase, Progress
from unziplora_cli.hub import DESCRIBER
from unziplora_cli.job import Description
from unziplora_cli.prompts import UNNAMED_STYLE, with_article

if TYPE_CHECKING:
    from unziplora_cli.evaluation.describe import Describer
    from unziplora_cli.sdxl.base import BaseRef


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


def outside(images: Sequence[Path], base: BaseRef, words: Words) -> Notice | None:
    """What of a training the built-in base does not know: the word, or an image that it takes for another."""
    from unziplora_cli.evaluation.describe import has_reader
    from unziplora_cli.evaluation.reader import shipped
    from unziplora_cli.images import load_image

    if base.kind != "builtin" or not has_reader():
        return None
    known, reader = vocabulary.mini(), shipped()
    subject = known.subject(words.subject)
    fault = ""
    for path in images:
        image = load_image(path).image
        seen, _ = reader.read(image).get("subject", ("", 0.0))
        if subject is None:
            options = [seen, *known.similar(words.subject)]
            similar = " or ".join(dict.fromkeys(filter(None, options)))
            fault = f"does not know {words.subject!r}" + (f"; is it {similar}?" if similar else ".")
        elif other := reader.other_subject(image, subject):
            takes = f"takes {path.name} for {with_article(other)}, not for {with_article(subject)}"
            fault = f"{takes}." if seen else f"is not sure what {path.name} shows."
    remedies = (
        Remedy("See what it knows", "models show", ("mini",)),
        Remedy("For real images, train SDXL on a GPU", settings={"base": "sdxl"}),
    )
    return Notice(f"mini {fault} It may draw something else.", remedies) if fault else None


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
