"""Describe images: subject, style, distinguishing features and surroundings, proposed by a model."""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from unziplora_cli import resources, vocabulary
from unziplora_cli.config import Words
from unziplora_cli.errors import ModelError, OutOfMemory, Remedy, UsageError
from unziplora_cli.events import Event, Notice, Phase, Progress
from unziplora_cli.hub import DESCRIBER
from unziplora_cli.job import Description
from unziplora_cli.prompts import TRIGGER, UNNAMED_STYLE, make_words, split_features, with_article

if TYPE_CHECKING:
    from unziplora_cli.evaluation.describe import Describer
    from unziplora_cli.sdxl.base import BaseRef

PULL = Remedy("Or let a model name it: first download it", "models pull", ("describer",))


@dataclass(frozen=True)
class SettledWords:
    """The words and features of one image, and the description from which they were proposed."""

    words: Words
    features: tuple[str, ...]
    description: Description | None


def describe(
    images: Sequence[Path], *, builtin: bool, describer: str | None = None, device: str = "auto"
) -> Generator[Event, None, list[Description]]:
    """Describe images in the words that a base understands.

    ``builtin``: for the built-in base, by its own reader unless a ``describer`` is named: a Hugging Face id
    in the cache, or a folder. The model is freed at the end. Raises ModelError if it is not on this disk,
    UsageError for an image that cannot be read, and OutOfMemory.
    """
    from unziplora_cli.accel.device import memory_guard
    from unziplora_cli.evaluation.describe import MiniDescriber
    from unziplora_cli.images import load_image
    from unziplora_cli.sdxl.latents import crop_image
    from unziplora_cli.training.destyler import MiniDestyler

    descriptions = []
    with memory_guard("Use a smaller describer, or name subject and style yourself."):
        default = "of mini" if builtin and resources.has_reader() else DESCRIBER
        yield Phase("load describer", describer or default)
        model = _load(builtin, describer, device)
        checks_features = isinstance(model, MiniDescriber) and resources.has_destyler()
        destyler = MiniDestyler.load(resources.destyler()) if checks_features else None
        yield Phase("describe", f"{len(images)} image{'s' if len(images) > 1 else ''}")
        try:
            for number, path in enumerate(images):
                yield Progress("describe", number, len(images))
                image = load_image(path).image
                description = model.describe(image)
                # Of a subject that has none of the destyler's colours, mini's reader makes features up.
                if destyler is not None and not destyler.body_color(crop_image(image, destyler.size, 1))[0]:
                    description = replace(description, features=())
                descriptions.append(description)
        finally:
            model.close()
    return descriptions


def can_describe(*, builtin: bool, describer: str | None = None) -> bool:
    """Whether :func:`describe` would find its model on this disk; raises ModelError for a named one."""
    from unziplora_cli.evaluation.describe import find_describer

    if describer is not None:
        return find_describer(describer).is_dir()
    if builtin and resources.has_reader():
        return True
    try:
        return find_describer(DESCRIBER).is_dir()
    except ModelError:
        return False


def outside(images: Sequence[Path], base: BaseRef, words: Words) -> Notice | None:
    """What of a training the built-in base does not know: the word, or an image that it takes for another."""
    from unziplora_cli.evaluation.reader import other_subject_in, read_image
    from unziplora_cli.images import load_image

    if base.kind != "builtin" or not resources.has_reader():
        return None
    vocabulary_of_mini = vocabulary.mini()
    subject = vocabulary_of_mini.subject(words.subject)
    fault = ""
    for path in images:
        seen, _ = read_image(load_image(path).image).get("subject", ("", 0.0))
        if subject is None:
            options = [seen, *vocabulary_of_mini.similar(words.subject)]
            similar = " or ".join(dict.fromkeys(filter(None, options)))
            fault = f"does not know {words.subject!r}" + (f"; is it {similar}?" if similar else ".")
        elif other := other_subject_in(path, subject):
            takes = f"takes {path.name} for {with_article(other)}, not for {with_article(subject)}"
            fault = f"{takes}." if seen else f"is not sure what {path.name} shows."
    remedies = (
        Remedy("See what it knows", "models show", ("mini",)),
        Remedy("For real images, train SDXL on a GPU", settings={"base": "sdxl"}),
    )
    return Notice(f"mini {fault} It may draw something else.", remedies) if fault else None


def propose(
    images: Sequence[Path], *, builtin: bool, describer: str | None = None, device: str = "auto"
) -> Generator[Event, None, list[Description | None]]:
    """A description of each image, or None without a describer on this disk.

    Only a failure of a ``describer`` that the user named is raised, as by :func:`describe`.
    """
    nothing: list[Description | None] = [None] * len(images)
    if not images or not can_describe(builtin=builtin, describer=describer):
        return nothing
    try:
        return [*(yield from describe(images, builtin=builtin, describer=describer, device=device))]
    except (ModelError, OutOfMemory) as error:
        if describer is not None:
            raise
        yield Notice(f"No words are proposed. {error.message}", error.remedies)
        return nothing


def settle_words(
    image: Path,
    texts: Mapping[str, str | None],
    description: Description | None,
    remedy: Callable[[str], Remedy],
    *,
    may_pull: bool,
) -> SettledWords:
    """The words of one image: subject, style, features and trigger of ``texts``, else those described.

    Raises UsageError for a word that is neither given nor described; ``remedy`` says how to give it, and
    ``may_pull`` that a model could be downloaded to describe it.
    """
    subject, style = "", ""
    features: tuple[str, ...] = ()
    if description is not None:
        subject, style, features = description.subject, description.style, description.features
        style = style or UNNAMED_STYLE
    subject, style = texts.get("subject") or subject, texts.get("style") or style
    for name, word in (("subject", subject), ("style", style)):
        if not word:
            pull = (PULL,) if may_pull else ()
            unsure = f", and {description.by} is not sure" if description else ""
            raise UsageError(f"The {name} of {image.name} is not given{unsure}.", remedy(name), *pull)
    words = make_words(subject, style, texts.get("trigger") or TRIGGER)
    if (listed := texts.get("features")) is not None:
        features = split_features(listed)
    if description is not None:
        used_style = words.style if words.style != UNNAMED_STYLE else description.style
        used = {"subject": words.subject, "style": used_style, "features": features}
        changed = tuple(name for name, value in used.items() if getattr(description, name) != value)
        description = replace(description, changed=changed)
    return SettledWords(words, features, description)


def _load(builtin: bool, describer: str | None, device: str) -> Describer:
    from unziplora_cli.accel.device import pick_device, pick_dtype
    from unziplora_cli.evaluation.describe import MiniDescriber, VisionLanguageDescriber

    if describer is None and builtin and resources.has_reader():
        return MiniDescriber()
    chosen = pick_device(device)
    return VisionLanguageDescriber.load(
        describer or DESCRIBER, device=chosen, dtype=pick_dtype("auto", chosen)
    )
