"""The methods that are compared: how each one trains on a picture, and how it is then used."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from benchmarks.separation.scenes import Sample
from benchmarks.separation.stack import Job
from unziplora_cli.config import Prompts, TrainConfig, Words, resolve
from unziplora_cli.prompts import make_prompts

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
"""What makes an ordinary LoRA of one branch."""


@dataclass(frozen=True)
class Method:
    """One row of the table.

    ``kind``: ``pair`` is joint training of a content and a style LoRA; ``one`` a single LoRA used for
    everything; ``two`` two single ones, from the content and from the style prompt; ``blocks`` a single one
    in two blocks, of which each serves one purpose; ``none`` the base alone. ``settings`` go over ``preset``.
    """

    name: str
    kind: Kind
    preset: str = "paper"
    settings: Mapping[str, Any] = field(default_factory=dict)
    style_prompt: str = "a {subject} in {style} style"
    token_prompt: bool = False
    """B-LoRA's own training prompt, the rare token alone."""

    def config(self, seed: int) -> TrainConfig:
        """The settings of one training."""
        plain = PLAIN if self.kind in ("one", "two", "blocks") else {}
        scale = {"rank": 16, "resolution": 128} if self.preset == "paper" else {}
        return resolve(self.preset, {**scale, **plain, **self.settings, "seed": seed})

    def jobs(self, sample: Sample) -> tuple[Job, ...]:
        """The trainings that this method does on a picture."""
        config, prompts = self.config(sample.number), self.prompts(sample)
        match self.kind:
            case "none":
                return ()
            case "pair":
                return (Job(sample.number, config, prompts),)
            case "one":
                return (_alone(sample, config, prompts.full),)
            case "two":
                return tuple(_alone(sample, config, text) for text in (prompts.content, prompts.style))
            case "blocks":
                text = "a monadikos" if self.token_prompt else prompts.full
                return (replace(_alone(sample, config, text), blocks=(CONTENT_BLOCK, STYLE_BLOCK)),)

    def prompts(self, sample: Sample) -> Prompts:
        """The three training prompts."""
        words = Words(sample.subject, sample.style)
        return replace(make_prompts(words), style=self.style_text(sample.subject, sample.style))

    def style_text(self, subject: str, style: str) -> str:
        """The style prompt for ``subject`` in ``style``."""
        return self.style_prompt.format(subject=subject, style=style)


def _alone(sample: Sample, config: TrainConfig, text: str) -> Job:
    return Job(sample.number, config, Prompts(text, text, text), branches=("content",))


@dataclass(frozen=True)
class Part:
    """One trained branch in use: of which training (its place in the stack), and of which blocks."""

    job: int
    branch: str
    blocks: tuple[str, ...] = ()


@dataclass(frozen=True)
class Drawing:
    """One picture to be made, and what should be seen in it; what is None does not matter.

    ``merge`` applies the merge weights. ``wanted_style`` is ``photo`` where no style may leak in.
    """

    purpose: str
    sample: int
    content: Part | None
    style: Part | None
    merge: bool
    prompts: Prompts
    seed: int
    subject: str
    wanted_style: str | None = None
    context: str | None = None


@dataclass(frozen=True)
class Trained:
    """The places in a stack of the trainings of one method on one picture."""

    method: Method
    sample: Sample
    places: tuple[int, ...]

    def part(self, branch: str) -> Part | None:
        """What serves as the content or the style LoRA."""
        match self.method.kind:
            case "none":
                return None
            case "pair":
                return Part(self.places[0], branch)
            case "one":
                return Part(self.places[0], "content")
            case "two":
                return Part(self.places[0 if branch == "content" else 1], "content")
            case "blocks":
                block = CONTENT_BLOCK if branch == "content" else STYLE_BLOCK
                return Part(self.places[0], "content", (block,))


def drawings(trained: Mapping[int, Trained], *, each: int) -> Iterator[Drawing]:
    """All pictures of one method, from its trainings by sample; ``each`` pictures of every purpose."""
    for one in trained.values():
        yield from _of_one(one, each)
        for number, other in enumerate(one.sample.partners):
            if other in trained and number < each + 1:
                yield _together(one, trained[other], "cross", number)


def _of_one(one: Trained, each: int) -> Iterator[Drawing]:
    method, sample = one.method, one.sample
    words = Words(sample.subject, sample.style)

    def alone(purpose: str, branch: str, text: str, number: int, subject: str, **wanted: str) -> Drawing:
        content, style = (one.part(branch), None) if branch == "content" else (None, one.part(branch))
        seed = _seed(purpose, sample.number, number)
        return Drawing(
            purpose, sample.number, content, style, False, Prompts(text, text, text), seed, subject, **wanted
        )

    for number in range(each):
        text = make_prompts(words).content
        yield alone("content", "content", text, number, sample.subject, wanted_style="photo")
    for number, context in enumerate(sample.contexts[: each + 1]):
        text = make_prompts(words, context).content
        yield alone("context", "content", text, number, sample.subject, context=context)
    for number, subject in enumerate(sample.others[: each + 1]):
        if method.kind == "pair":
            text = method.style_text(subject, sample.style)
        else:
            style = "monadikos" if method.token_prompt else sample.style
            text = f"a {subject} in {style} style"
        yield alone("style", "style", text, number, subject, wanted_style=sample.style)
    for number in range(each):
        yield _together(one, one, "combine", number)
    for number, context in enumerate(sample.contexts[:each]):
        yield _together(one, one, "scene", number, context)


def _together(one: Trained, other: Trained, purpose: str, number: int, context: str | None = None) -> Drawing:
    """``one``'s content in ``other``'s style."""
    method, subject, style = one.method, one.sample.subject, other.sample.style
    prompts = make_prompts(Words(subject, style), context)
    content, styling = one.part("content"), other.part("style")
    if method.kind == "pair":
        scene = f" {context}" if context else ""
        prompts = replace(prompts, style=method.style_text(subject, style) + scene)
        if not method.config(0).prompt_separation:
            prompts = Prompts(prompts.full, prompts.full, prompts.full)
    else:
        prompts = Prompts(prompts.full, prompts.full, prompts.full)
        if method.kind == "one" and one is other:
            styling = None
    return Drawing(
        purpose,
        one.sample.number,
        content,
        styling,
        method.kind == "pair",
        prompts,
        _seed(purpose, one.sample.number, number),
        subject,
        style,
        context,
    )


def _seed(purpose: str, sample: int, number: int) -> int:
    order = ("content", "context", "style", "combine", "scene", "cross")
    return 1_000_000 + 10_000 * order.index(purpose) + 100 * sample + number
