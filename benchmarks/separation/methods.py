"""The compared methods: how a method trains on an image, and how its LoRAs are used afterwards."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any, Literal

from PIL import Image

from benchmarks.separation.scenes import Sample
from benchmarks.separation.stack import Source, StackedJob
from recipes.mini.scene import MARKS
from unziplora_cli.config import Prompts, TrainConfig, Words, resolve
from unziplora_cli.evaluation.reader import read_image
from unziplora_cli.prompts import make_prompts

Features = tuple[str, str | None, str]
"""Colour of the body, colour of the marking (None: unknown or none) and marking of an individual."""
Kind = Literal["none", "pair", "one", "two", "blocks"]
CONTENT_BLOCK, STYLE_BLOCK = "up_blocks.0.attentions.0.", "up_blocks.0.attentions.1."
"""The blocks that B-LoRA trains (Frenkel et al., arXiv 2403.14572)."""
PLAIN = {
    "column_separation": False,
    "prompt_separation": False,
    "block_separation": False,
    "start": "zero",
    "destyle_images": 0,
}
"""Settings that reduce the method to a single ordinary LoRA."""


@dataclass(frozen=True)
class Method:
    """One row of the table.

    ``kind``: ``pair`` trains a content and a style LoRA jointly; ``one`` trains one LoRA for all purposes;
    ``two`` trains one LoRA on the content prompt and one on the style prompt; ``blocks`` trains one LoRA in
    two blocks, one per purpose; ``none`` is the base alone. ``settings`` override ``preset``.
    """

    name: str
    kind: Kind
    preset: str = "paper"
    settings: Mapping[str, Any] = field(default_factory=dict)
    style_prompt: str = "a {subject} in {style} style"
    token_prompt: bool = False
    """Use B-LoRA's own training prompt, which is only the rare token."""
    source: Source = "inversion"
    """Where the destyled images come from."""
    described: Literal["", "read", "true"] = ""
    """Colours and marking in the destyle prompt or for the destyler: as the reader reads them, or true."""

    def config(self, seed: int) -> TrainConfig:
        """The settings of one training."""
        plain = PLAIN if self.kind in ("one", "two", "blocks") else {}
        scale = {"rank": 16, "resolution": 128} if self.preset == "paper" else {}
        return resolve(self.preset, {**scale, **plain, **self.settings, "seed": seed})

    def jobs(self, sample: Sample) -> tuple[StackedJob, ...]:
        """The trainings that this method needs for one image."""
        config, prompts = self.config(sample.number), self.prompts(sample)
        match self.kind:
            case "none":
                return ()
            case "pair":
                features = self.features(sample)
                if features and self.source == "inversion":
                    described = prompts.content.replace(sample.subject, phrase(sample.subject, features))
                    prompt = config.destyle_prompt.replace("{content}", described)
                    config = replace(config, destyle_prompt=prompt)
                return (StackedJob(sample.number, config, prompts, source=self.source, features=features),)
            case "one":
                return (_single_lora(sample, config, prompts.full),)
            case "two":
                return tuple(_single_lora(sample, config, text) for text in (prompts.content, prompts.style))
            case "blocks":
                text = "a monadikos" if self.token_prompt else prompts.full
                return (replace(_single_lora(sample, config, text), blocks=(CONTENT_BLOCK, STYLE_BLOCK)),)

    def features(self, sample: Sample) -> Features | None:
        """What is said of the individual; None without a description."""
        match self.described:
            case "read":
                return read_features(sample)
            case "true":
                who = sample.scene.individual
                return who.color, who.second_color if who.marking in MARKS else None, who.marking
        return None

    def prompts(self, sample: Sample) -> Prompts:
        """The three training prompts."""
        words = Words(sample.subject, sample.style)
        return replace(make_prompts(words), style=self.style_text(sample.subject, sample.style))

    def style_text(self, subject: str, style: str) -> str:
        """The style prompt for ``subject`` in ``style``."""
        return self.style_prompt.format(subject=subject, style=style)


def phrase(subject: str, features: Features) -> str:
    """The subject with its features, as in "orange fox with white dots"; unknown ones are omitted."""
    color, second, marking = features
    if second and marking in MARKS:
        return f"{color} {subject} with {second} {MARKS[marking]}".strip()
    return " ".join(word for word in (color, marking, subject) if word)


@cache
def read_features(sample: Sample) -> Features:
    """Colours and marking as the reader names them in the training image; what it is not sure of is empty."""
    fields = read_image(Image.fromarray(sample.image()))
    color, second, marking = (fields.get(name, ("",))[0] for name in ("color", "second_color", "marking"))
    return color, second or None, marking


def _single_lora(sample: Sample, config: TrainConfig, text: str) -> StackedJob:
    return StackedJob(sample.number, config, Prompts(text, text, text), branches=("content",))


@dataclass(frozen=True)
class BranchRef:
    """A trained branch: the position of its training in the stack, and the blocks to use (all if empty)."""

    job: int
    branch: str
    blocks: tuple[str, ...] = ()


@dataclass(frozen=True)
class ImageRequest:
    """One image to generate, and what it should show; None means that anything is correct.

    ``merge`` applies the merge weights. ``wanted_style`` is ``photo`` where no style may leak in.
    """

    purpose: str
    sample: int
    content: BranchRef | None
    style: BranchRef | None
    merge: bool
    prompts: Prompts
    seed: int
    subject: str
    wanted_style: str | None = None
    context: str | None = None


@dataclass(frozen=True)
class Trained:
    """The positions in a stack of the trainings of one method on one image."""

    method: Method
    sample: Sample
    positions: tuple[int, ...]

    def part(self, branch: str) -> BranchRef | None:
        """The branch used as content or as style LoRA."""
        match self.method.kind:
            case "none":
                return None
            case "pair":
                return BranchRef(self.positions[0], branch)
            case "one":
                return BranchRef(self.positions[0], "content")
            case "two":
                return BranchRef(self.positions[0 if branch == "content" else 1], "content")
            case "blocks":
                block = CONTENT_BLOCK if branch == "content" else STYLE_BLOCK
                return BranchRef(self.positions[0], "content", (block,))


def image_requests(trained: Mapping[int, Trained], *, count: int) -> Iterator[ImageRequest]:
    """All images of one method, from its trainings by sample; ``count`` images for every purpose."""
    for content in trained.values():
        yield from _of_sample(content, count)
        for number, partner in enumerate(content.sample.partners):
            if partner in trained and number < count + 1:
                yield _combined(content, trained[partner], "cross", number)


def _of_sample(trained: Trained, count: int) -> Iterator[ImageRequest]:
    method, sample = trained.method, trained.sample
    words = Words(sample.subject, sample.style)

    def single(
        purpose: str, branch: str, text: str, number: int, subject: str, **wanted: str
    ) -> ImageRequest:
        content, style = (trained.part(branch), None) if branch == "content" else (None, trained.part(branch))
        seed = _seed(purpose, sample.number, number)
        return ImageRequest(
            purpose, sample.number, content, style, False, Prompts(text, text, text), seed, subject, **wanted
        )

    for number in range(count):
        text = make_prompts(words).content
        yield single("content", "content", text, number, sample.subject, wanted_style="photo")
    for number, context in enumerate(sample.contexts[: count + 1]):
        text = make_prompts(words, context).content
        yield single("context", "content", text, number, sample.subject, context=context)
    for number, subject in enumerate(sample.others[: count + 1]):
        if method.kind == "pair":
            text = method.style_text(subject, sample.style)
        else:
            style = "monadikos" if method.token_prompt else sample.style
            text = f"a {subject} in {style} style"
        yield single("style", "style", text, number, subject, wanted_style=sample.style)
    for number in range(count):
        yield _combined(trained, trained, "combine", number)
    for number, context in enumerate(sample.contexts[:count]):
        yield _combined(trained, trained, "scene", number, context)


def _combined(
    content: Trained, style: Trained, purpose: str, number: int, context: str | None = None
) -> ImageRequest:
    """The content of one training in the style of another."""
    method, subject, style_word = content.method, content.sample.subject, style.sample.style
    prompts = make_prompts(Words(subject, style_word), context)
    content_branch, style_branch = content.part("content"), style.part("style")
    if method.kind == "pair":
        scene = f" {context}" if context else ""
        prompts = replace(prompts, style=method.style_text(subject, style_word) + scene)
        if not method.config(0).prompt_separation:
            prompts = Prompts(prompts.full, prompts.full, prompts.full)
    else:
        prompts = Prompts(prompts.full, prompts.full, prompts.full)
        if method.kind == "one" and content is style:
            style_branch = None
    return ImageRequest(
        purpose,
        content.sample.number,
        content_branch,
        style_branch,
        method.kind == "pair",
        prompts,
        _seed(purpose, content.sample.number, number),
        subject,
        style_word,
        context,
    )


def _seed(purpose: str, sample: int, number: int) -> int:
    order = ("content", "context", "style", "combine", "scene", "cross")
    return 1_000_000 + 10_000 * order.index(purpose) + 100 * sample + number
