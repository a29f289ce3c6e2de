"""describe and destyle: what a training will read off an image, and the images that content learns from."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from unziplora_cli import preferences
from unziplora_cli.cli._errors import remedy_text
from unziplora_cli.cli._opening import openable
from unziplora_cli.cli._options import BASE, DEVICE, VAE, config_options, find_base
from unziplora_cli.cli._output import ProgressDisplay, Session, Table
from unziplora_cli.config import TrainConfig, Words
from unziplora_cli.errors import ModelError, OutOfMemory, Remedy, UsageError

if TYPE_CHECKING:
    from unziplora_cli.job import BaseRecord, Description
    from unziplora_cli.sdxl.base import BaseRef

PANEL = "Images"
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
    show_default=False,
)
DESCRIBE = typer.Option(
    "--describe/--no-describe", help="Let a model propose the words that are not given.", show_default=False
)
DESCRIBER = typer.Option(
    help="Vision-language model that proposes words: a Hugging Face id in the cache, or a folder; default: "
    "mini's own reader, or the one of `models pull describer`.",
    show_default=False,
)


def register(app: typer.Typer) -> None:
    """Add these commands to the program."""
    app.command("describe", rich_help_panel=PANEL)(describe)
    only = ("Destyling", "resolution", "crop", "crops", "precision", "seed")
    app.command("destyle", rich_help_panel=PANEL)(openable(config_options(TrainConfig, only=only)(destyle)))


def describe(
    ctx: typer.Context,
    images: Annotated[
        list[Path], typer.Argument(metavar="IMAGE...", help="Images to describe.", show_default=False)
    ],
    describer: Annotated[str | None, DESCRIBER] = None,
    base: Annotated[str | None, BASE] = None,
    device: Annotated[str, DEVICE] = "auto",
) -> None:
    """Propose subject, style, features and surroundings of images."""
    session: Session = ctx.obj
    builtin = find_base(session, base).kind == "builtin"
    describer = describer or preferences.load().describer
    descriptions = _run(session, images, builtin, describer, device)
    rows = [
        [
            path.name,
            description.subject,
            description.style,
            ", ".join(description.features),
            description.surroundings,
        ]
        for path, description in zip(images, descriptions, strict=True)
    ]
    fields = ("by", "subject", "style", "features", "surroundings")
    session.output.result(
        {
            "images": [
                {"image": str(path), **{name: asdict(description)[name] for name in fields}}
                for path, description in zip(images, descriptions, strict=True)
            ]
        },
        table=Table(("image", "subject", "style", "features", "surroundings"), rows),
        text=f"Described by {descriptions[0].by}.",
    )


def destyle(
    ctx: typer.Context,
    image: Annotated[Path, typer.Argument(metavar="IMAGE", help="Image to destyle.", show_default=False)],
    out: Annotated[Path, typer.Option(help="Folder for the destyled images.", show_default=False)],
    subject: Annotated[str | None, SUBJECTS] = None,
    style: Annotated[str | None, STYLES] = None,
    features: Annotated[str | None, FEATURES] = None,
    describe: Annotated[bool, DESCRIBE] = True,
    describer: Annotated[str | None, DESCRIBER] = None,
    preset: Annotated[
        str | None,
        typer.Option(
            help="Name of a preset or a .toml file; default: destyle, or mini on the built-in base.",
            show_default=False,
        ),
    ] = None,
    base: Annotated[str | None, BASE] = None,
    vae: Annotated[str | None, VAE] = None,
    device: Annotated[str, DEVICE] = "auto",
    force: Annotated[bool, typer.Option("--force", help="Replace images in the folder.")] = False,
    settings: dict[str, Any] | None = None,
) -> None:
    """Show the destyled images that a training would learn.

    `train --destyle FOLDER` learns those that you keep.
    """
    from unziplora_cli.events import run
    from unziplora_cli.projects.names import slugify
    from unziplora_cli.workflows.destyle import preview
    from unziplora_cli.workflows.train import make_request, read_sources, training_config

    session: Session = ctx.obj
    sources = read_sources([image])
    model = find_base(session, base)
    chosen = preset or ("mini" if model.kind == "builtin" else "destyle")
    _, config = training_config(model, chosen, settings or {})
    lists = [None if text is None else [text] for text in (subject, style, features)]
    given = GivenWords(lists[0], lists[1], lists[2])
    options = DescribeOptions(describe, describer, device)
    (words,) = settle_words(session, [image], model, given, options, ask_features=True)
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
    with ProgressDisplay(session.output, image.name) as display:
        result = run(preview(request, out, force=force), display.event)
    session.output.result(
        {"way": result.way, "images": [str(path) for path in result.paths]},
        text="\n".join(
            [
                *map(str, result.paths),
                f"Delete those that are not this {words.words.subject} without its style. Next: "
                f"unziplora train {image} --destyle {out}",
            ]
        ),
        links=result.paths,
        made=out,
    )


# The words of a training


@dataclass(frozen=True)
class GivenWords:
    """What the user gave for all images: one value, or one per image."""

    subject: Sequence[str] | None = None
    style: Sequence[str] | None = None
    features: Sequence[str] | None = None
    trigger: str | None = None


@dataclass(frozen=True)
class DescribeOptions:
    """Whether and how to propose the words that were not given."""

    enabled: bool = True
    describer: str | None = None
    device: str = "auto"


@dataclass(frozen=True)
class SettledWords:
    """The words of one image, and the description from which they were proposed."""

    words: Words
    features: tuple[str, ...]
    description: "Description | None"


def settle_words(
    session: Session,
    images: Sequence[Path],
    base: "BaseRef",
    given: GivenWords,
    options: DescribeOptions,
    *,
    ask_features: bool,
) -> list[SettledWords]:
    """The words of each image: given, else proposed by a describer, which on a terminal can be corrected.

    Raises UsageError for words that are neither given nor proposed, if there is no terminal to ask on.
    """
    from unziplora_cli.prompts import TRIGGER, UNNAMED_STYLE, make_words, split_features, with_article
    from unziplora_cli.workflows.describe import compare

    proposals = propose(session, images, base, given, options)
    settled = []
    for index, (image, proposal) in enumerate(zip(images, proposals, strict=True)):
        subject, style, features = (
            _one_of(getattr(given, name), index, len(images), name)
            for name in ("subject", "style", "features")
        )
        taken = subject is None or style is None
        if subject is None:
            guess = proposal.subject if proposal else ""
            subject = _word(session, image, "subject", guess, base, options)
        if style is None:
            guess = proposal.style if proposal else ""
            if proposal and not guess and not session.output.can_ask:
                guess = UNNAMED_STYLE
            style = _word(session, image, "style", guess, base, options)
        listed = split_features(features) if features is not None else proposal.features if proposal else ()
        if features is None and listed and ask_features and session.output.can_ask:
            question = f"Its features, or none ({image.name})"
            listed = split_features(session.output.ask(question, ", ".join(listed)))
        words = make_words(subject, style, TRIGGER if given.trigger is None else given.trigger)
        if proposal and taken and not session.output.can_ask:
            styled = "in a style without a name" if style == UNNAMED_STYLE else f"in {words.style} style"
            what = ", ".join([f"{with_article(words.subject)} {styled}", *listed])
            session.output.message(
                f"{image.name}: {what}, says {proposal.by}. --subject, --style and --features replace this."
            )
        description = compare(proposal, words, listed) if proposal else None
        settled.append(SettledWords(words, listed, description))
    return settled


def propose(
    session: Session,
    images: Sequence[Path],
    base: "BaseRef | BaseRecord",
    given: GivenWords,
    options: DescribeOptions,
) -> "list[Description | None]":
    """A description of each image if a word is missing and a describer is on this disk."""
    from unziplora_cli.workflows.describe import can_describe

    nothing: list[Description | None] = [None] * len(images)
    if not options.enabled or (given.subject and given.style and options.describer is None):
        return nothing
    builtin = base.kind == "builtin"
    describer = options.describer or preferences.load().describer
    if not can_describe(builtin=builtin, describer=describer):
        return nothing
    try:
        return list(_run(session, images, builtin, describer, options.device))
    except (ModelError, OutOfMemory) as error:
        if options.describer is not None:
            raise
        remedies = " ".join(map(remedy_text, error.remedies))
        session.output.warning(f"No words are proposed. {error.message} {remedies}".strip())
        return nothing


def _run(
    session: Session, images: Sequence[Path], builtin: bool, describer: str | None, device: str
) -> "list[Description]":
    from unziplora_cli.events import run
    from unziplora_cli.workflows.describe import describe

    with ProgressDisplay(session.output, "describe") as display:
        return run(describe(images, builtin=builtin, describer=describer, device=device), display.event)


def _word(
    session: Session, image: Path, name: str, proposal: str, base: "BaseRef", options: DescribeOptions
) -> str:
    """The subject or style of one image: proposed, and on a terminal confirmed or typed."""
    from unziplora_cli.prompts import normalise_style, normalise_subject, subject_of_file_name

    example, explanation = EXAMPLES[name]
    question = f"{name.capitalize()} of {image.name}, one or two words (for example: {example})"
    guess = proposal or (subject_of_file_name(image.stem) or "" if name == "subject" else "")
    while session.output.can_ask:
        answer = session.output.ask(question, guess)
        try:
            return normalise_subject(answer) if name == "subject" else normalise_style(answer)
        except UsageError as error:
            session.output.message(f"{error.message} {explanation}")
    if proposal:
        return proposal
    pull = Remedy("Or let a model name it: first download it", "models pull", ("describer",))
    raise UsageError(
        f"The {name} of {image.name} is not given.",
        Remedy("Name it in one or two words", settings={name: example}),
        *([pull] if options.enabled and base.kind != "builtin" else []),
    )


EXAMPLES = {
    "subject": ("fox", "It is what the image shows; prompts need a word for it, such as fox or teapot."),
    "style": (
        "watercolor",
        "It is how the image is made; prompts need a word for it, such as watercolor or pencil sketch. For a "
        "photograph, answer photo.",
    ),
}
"""An example of each word, and what it is for."""


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
