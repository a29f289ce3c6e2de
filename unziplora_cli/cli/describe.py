"""describe and destyle: what a training will read off an image, and the images that content learns from."""

from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from unziplora_cli import preferences
from unziplora_cli.cli._errors import remedy_text
from unziplora_cli.cli._opening import openable
from unziplora_cli.cli._options import BASE, DEVICE, VAE, config_options, find_base
from unziplora_cli.cli._output import Session, T, Table
from unziplora_cli.config import TrainConfig
from unziplora_cli.errors import Remedy, UsageError

if TYPE_CHECKING:
    from unziplora_cli.job import BaseRecord, Description
    from unziplora_cli.sdxl.base import BaseRef
    from unziplora_cli.training.events import Event
    from unziplora_cli.workflows.describe import SettledWords

SUBJECTS = typer.Option(
    "--subject", help="Subject, one or two words (for example: fox); once, or once per image."
)
STYLES = typer.Option(
    "--style", help="Style, one or two words (for example: watercolor); once, or once per image."
)
FEATURES = typer.Option(
    "--features",
    help="Colors, markings and parts that distinguish the subject (orange, white dots), for destyled images; "
    "once, or once per image.",
)
DESCRIBE = typer.Option(
    "--describe/--no-describe", help="Let a model propose the words that are not given.", show_default=False
)
DESCRIBER = typer.Option(
    help="Vision-language model that proposes words: a Hugging Face id in the cache, or a folder; default: "
    "mini's own reader, or the one of `models pull describer`."
)


def describe(
    ctx: typer.Context,
    images: Annotated[list[Path], typer.Argument(metavar="IMAGE...", help="Images to describe.")],
    describer: Annotated[str | None, DESCRIBER] = None,
    base: Annotated[str | None, BASE] = None,
    device: Annotated[str, DEVICE] = "auto",
) -> None:
    """Propose subject, style, features and surroundings of images."""
    session: Session = ctx.obj
    from unziplora_cli.workflows import describe as workflow

    model = find_base(session, base)
    descriptions = _run(session, workflow.describe, images, model, describer, device)
    described = tuple(zip(images, descriptions, strict=True))
    rows = [
        [path.name, one.subject, one.style, ", ".join(one.features), one.surroundings]
        for path, one in described
    ]
    fields = ("by", "subject", "style", "features", "surroundings")
    session.output.result(
        {"images": [{"image": path, **{key: asdict(one)[key] for key in fields}} for path, one in described]},
        table=Table(("image", *fields[1:]), rows),
        text=f"Described by {descriptions[0].by}.",
    )


@openable
@config_options(TrainConfig, only=("Destyling", "resolution", "crop", "crops", "precision", "seed"))
def destyle(
    ctx: typer.Context,
    settings: dict[str, Any],
    image: Annotated[Path, typer.Argument(metavar="IMAGE", help="Image to destyle.")],
    out: Annotated[Path, typer.Option(help="Folder for the destyled images.")],
    subject: Annotated[str | None, SUBJECTS] = None,
    style: Annotated[str | None, STYLES] = None,
    features: Annotated[str | None, FEATURES] = None,
    describe: Annotated[bool, DESCRIBE] = True,
    describer: Annotated[str | None, DESCRIBER] = None,
    preset: Annotated[
        str | None,
        typer.Option(
            help="Name of a preset or a .toml file; default: destyle, or mini on the built-in base."
        ),
    ] = None,
    base: Annotated[str | None, BASE] = None,
    vae: Annotated[str | None, VAE] = None,
    device: Annotated[str, DEVICE] = "auto",
    force: Annotated[bool, typer.Option("--force", help="Replace images in the folder.")] = False,
) -> None:
    """Show the destyled images that a training would learn.

    `train --destyle FOLDER` learns those that you keep.
    """
    from unziplora_cli.projects.names import slugify
    from unziplora_cli.workflows.destyle import preview
    from unziplora_cli.workflows.train import make_request, read_sources, training_config

    session: Session = ctx.obj
    sources = read_sources([image])
    model = find_base(session, base)
    chosen = preset or ("mini" if model.kind == "builtin" else "destyle")
    _, config = training_config(model, chosen, settings)
    texts = {"subject": subject, "style": style, "features": features}
    (words,) = ask_words(
        session,
        [image],
        model,
        {name: None if text is None else [text] for name, text in texts.items()},
        describe=describe,
        describer=describer,
        device=device,
        ask_features=True,
    )
    request = make_request(
        slugify(image.stem),
        [image],
        words.words,
        model,
        config,
        sources=sources,
        features=words.features,
        vae=vae,
        device=device,
    )
    paths = session.run(image.name, preview(request, out, force=force))
    given = {"subject": words.words.subject, "style": words.words.style, "destyle": out}
    advice = f"Delete those that are not this {words.words.subject} without its style. Next"
    session.output.result(
        {"way": request.config.destyle, "images": paths},
        text="\n".join([*map(str, paths), remedy_text(Remedy(advice, "train", (image,), given))]),
        links=paths,
        made=out,
    )


# The words of a training


def ask_words(
    session: Session,
    images: Sequence[Path],
    base: "BaseRef",
    given: Mapping[str, Sequence[str] | None],
    *,
    describe: bool,
    describer: str | None,
    device: str,
    trigger: str | None = None,
    ask_features: bool,
) -> "list[SettledWords]":
    """The words of each image: given, else proposed by a describer, which on a terminal can be corrected.

    ``given`` are subject, style and features: one value, or one per image. Raises UsageError for words that
    are neither given nor proposed, if there is no terminal to ask on.
    """
    from unziplora_cli.prompts import UNNAMED_STYLE, with_article
    from unziplora_cli.workflows.describe import settle_words

    output = session.output
    proposals: list[Description | None] = [None] * len(images)
    if describe and (describer is not None or not (given.get("subject") and given.get("style"))):
        proposals = propose(session, images, base, describer, device)
    settled = []
    for index, (image, proposal) in enumerate(zip(images, proposals, strict=True)):
        texts = {name: _one_of(values, index, len(images), name) for name, values in given.items()}
        is_proposed = proposal is not None and None in (texts["subject"], texts["style"])
        if output.can_ask:
            for name in ("subject", "style"):
                if texts[name] is None:
                    texts[name] = _ask(session, image, name, getattr(proposal, name, ""))
            if texts["features"] is None and ask_features and proposal and proposal.features:
                question = f"Its features, or none ({image.name})"
                texts["features"] = output.ask(question, ", ".join(proposal.features))
        words = settle_words(
            image,
            {**texts, "trigger": trigger},
            proposal,
            lambda name: Remedy("Name it in one or two words", settings={name: EXAMPLES[name][0]}),
            may_pull=describe and base.kind != "builtin",
        )
        if is_proposed and proposal and not output.can_ask:
            unnamed = words.words.style == UNNAMED_STYLE
            styled = "in a style without a name" if unnamed else f"in {words.words.style} style"
            what = ", ".join([f"{with_article(words.words.subject)} {styled}", *words.features])
            advice = "--subject, --style and --features replace this."
            advice += " If it is a photo: --style photo" if unnamed else ""
            output.message(f"{image.name}: {what}, says {proposal.by}. {advice}")
        settled.append(words)
    return settled


def propose(
    session: Session,
    images: Sequence[Path],
    base: "BaseRef | BaseRecord",
    describer: str | None = None,
    device: str = "auto",
) -> "list[Description | None]":
    """A description of each image in the words of ``base``, or None without a describer on this disk."""
    from unziplora_cli.workflows import describe as workflow

    return _run(session, workflow.propose, images, base, describer, device)


def _run(
    session: Session,
    describe: "Callable[..., Generator[Event, None, T]]",
    images: Sequence[Path],
    base: "BaseRef | BaseRecord",
    describer: str | None,
    device: str,
) -> T:
    describer = describer or preferences.load().describer
    operation = describe(images, builtin=base.kind == "builtin", describer=describer, device=device)
    return session.run("describe", operation, quiet_phases=True)


def _ask(session: Session, image: Path, name: str, proposal: str) -> str:
    """The subject or style of one image, as the user confirms or types it."""
    from unziplora_cli.prompts import normalise_style, normalise_subject, subject_of_file_name

    example, explanation = EXAMPLES[name]
    question = f"{name.capitalize()} of {image.name}, one or two words (for example: {example})"
    guess = proposal or (subject_of_file_name(image.stem) or "" if name == "subject" else "")
    while True:
        answer = session.output.ask(question, guess)
        try:
            return normalise_subject(answer) if name == "subject" else normalise_style(answer)
        except UsageError as error:
            session.output.message(f"{error.message} {explanation}")


EXAMPLES = {
    "subject": ("fox", "It is what the image shows; prompts need a word for it, such as fox or teapot."),
    "style": (
        "watercolor",
        "It is how the image is made; prompts need a word for it, such as watercolor or pencil sketch. For a "
        "photograph, answer photo.",
    ),
}
"""An example of each word, and what it is for."""


def check_words(
    number: int, given: Mapping[str, Sequence[str] | None], trigger: str | None, **prompts: str | None
) -> None:
    """Raise UsageError if a training of this number of images would refuse its words or prompts."""
    from unziplora_cli.prompts import TRIGGER, given_prompts, make_prompts, make_words, split_features

    for index in range(number):
        texts = {name: _one_of(values, index, number, name) or "" for name, values in given.items()}
        words = make_words(texts["subject"] or "0", texts["style"] or "0", trigger or TRIGGER)
        split_features(texts["features"])
        make_prompts(words, prompts["validation_prompt"])
    given_prompts(prompts)


def _one_of(given: Sequence[str] | None, index: int, count: int, name: str) -> str | None:
    """The value of an option for one image: the only one, or that of the image."""
    if not given:
        return None
    if len(given) not in (1, count):
        raise UsageError(
            f"{name} is given {len(given)} times for {count} {'image' if count == 1 else 'images'}.",
            Remedy("Give it once, or once per image in the same order."),
        )
    return given[index if len(given) > 1 else 0]
