"""train: from pictures to projects, and on with one that was cut off."""

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from unziplora_cli.cli._options import (
    BASE,
    DEVICE,
    VAE,
    config_options,
    find_base,
    preset_for,
    unfinished_names,
)
from unziplora_cli.cli._output import Session, format_duration, format_size
from unziplora_cli.cli.estimate import repeatable, show_estimate
from unziplora_cli.config import TrainConfig, Words, check_settings, resolve
from unziplora_cli.errors import ProjectError, Remedy, UsageError

if TYPE_CHECKING:
    from unziplora_cli.projects.store import ProjectStore
    from unziplora_cli.training.inputs import InputCache
    from unziplora_cli.workflows.train import TrainedProject, TrainOrder

PANEL = "Pictures"


def register(app: typer.Typer) -> None:
    """Add the command to the program."""
    app.command("train", rich_help_panel=PANEL)(config_options(TrainConfig)(train))


def train(
    ctx: typer.Context,
    pictures: Annotated[
        list[Path] | None,
        typer.Argument(metavar="PICTURE...", help="One project is made of each picture.", show_default=False),
    ] = None,
    subject: Annotated[
        list[str] | None,
        typer.Option(help="What the picture shows, in a word or two; once, or once per picture."),
    ] = None,
    style: Annotated[
        list[str] | None,
        typer.Option(help="How it is drawn, in a word or two; once, or once per picture."),
    ] = None,
    trigger: Annotated[str, typer.Option(help="Rare word that will name this one subject.")] = "monadikos",
    name: Annotated[
        str | None, typer.Option(help="Name of the project; left out: the file's name.", show_default=False)
    ] = None,
    together: Annotated[
        bool,
        typer.Option("--together", help="All pictures show one subject in one style: make one project."),
    ] = False,
    force: Annotated[bool, typer.Option("--force", help="Replace a project of the same name.")] = False,
    resume: Annotated[
        str | None,
        typer.Option(
            metavar="PROJECT",
            help="Go on with a training that was cut off; takes no pictures, and of the settings only "
            "learning rates and how often to save.",
            show_default=False,
            autocompletion=unfinished_names,
        ),
    ] = None,
    preset: Annotated[
        str | None,
        typer.Option(
            help="Shipped preset or a .toml file; left out: paper, or mini on the built-in base.",
            show_default=False,
        ),
    ] = None,
    base: Annotated[str | None, BASE] = None,
    vae: Annotated[str | None, VAE] = None,
    device: Annotated[str, DEVICE] = "auto",
    full_prompt: Annotated[
        str | None, typer.Option(help="The whole full prompt.", show_default=False)
    ] = None,
    content_prompt: Annotated[
        str | None, typer.Option(help="The whole content prompt.", show_default=False)
    ] = None,
    style_prompt: Annotated[
        str | None, typer.Option(help="The whole style prompt.", show_default=False)
    ] = None,
    validation_prompt: Annotated[
        str | None,
        typer.Option(help="Scene of the validation pictures, as --prompt elsewhere.", show_default=False),
    ] = None,
    plan: Annotated[
        bool,
        typer.Option(
            "--plan", help="Start nothing: tell what it would take of this machine, and what would fit."
        ),
    ] = False,
    settings: dict[str, Any] | None = None,
) -> None:
    """Learn a content LoRA and a style LoRA from one picture, both at once, with their merge weights."""
    from unziplora_cli.workflows.resume import order_to_resume
    from unziplora_cli.workflows.train import check_images

    session: Session = ctx.obj
    store = session.store()
    if resume is not None:
        decided = {"--name": name, "--preset": preset, "--base": base, "--vae": vae, "--subject": subject}
        prompts = {"--full-prompt": full_prompt, "--content-prompt": content_prompt, "--style": style}
        flags = {"--force": force or None, "--plan": plan or None}
        _refuse(pictures, {**decided, **prompts, "--style-prompt": style_prompt, **flags})
        order = order_to_resume(store, resume, settings or {}, None if device == "auto" else device)
        _finish(session, [order], store)
        return
    if not pictures:
        raise UsageError(
            "Which picture?", hint="unziplora train PICTURE, or go on: unziplora train --resume NAME"
        )
    groups: list[tuple[Path, ...]] = [tuple(pictures)] if together else [(picture,) for picture in pictures]
    if name is not None and len(groups) > 1:
        raise UsageError("--name names one project, but there are several pictures.", hint="Leave it out.")
    check_images(pictures)
    names = _names(groups, name)
    if plan:
        show_estimate(session, len(groups), base=base, preset=preset, device=device, settings=settings or {})
        return
    done = set() if force else _done(store, names)
    replacing = [each in done or _may_replace(session, store, each, force=force) for each in names]
    words = [
        Words(
            _word(session, subject, i, len(groups), "subject", "What does it show", group[0]),
            _word(session, style, i, len(groups), "style", "How is it drawn", group[0]),
            trigger,
        )
        for i, group in enumerate(groups)
    ]
    given = {"full": full_prompt, "content": content_prompt, "style": style_prompt}
    orders = _orders(
        session,
        groups,
        names,
        words,
        given,
        validation_prompt,
        base=base,
        preset=preset,
        vae=vae,
        device=device,
        settings=settings or {},
        replacing=replacing,
    )
    for each in sorted(done):
        session.output.message(f"{each}: is a project already; it stays.")
    left = [_offer(session, store, order) for order in orders if order.name not in done]
    _finish(session, left, store)


def _done(store: "ProjectStore", names: list[str]) -> set[str]:
    """Of several projects, one of which was cut off, those that were finished before."""
    cut_off = {each for each in names if store.unfinished(each) is not None}
    return {each for each in names if store.exists(each)} - cut_off if cut_off else set()


def _refuse(pictures: list[Path] | None, given: dict[str, Any]) -> None:
    """Raise UsageError for what an unfinished training has decided already."""
    flags = [flag for flag, value in given.items() if value is not None]
    if pictures or flags:
        what = "a picture" if pictures else flags[0]
        raise UsageError(f"--resume goes on as the training began, so it takes no {what.removeprefix('a ')}.")


def _offer(session: Session, store: "ProjectStore", order: "TrainOrder") -> "TrainOrder":
    """The order, or that which goes on where the same training was cut off; raises ProjectError."""
    from dataclasses import replace

    from unziplora_cli.workflows.resume import order_to_resume, same_training

    unfinished = store.unfinished(order.name)
    if unfinished is None:
        return order
    where = f"after step {unfinished.step} of {unfinished.steps}"
    on_terminal = sys.stdin.isatty() and not session.output.json
    different = same_training(order, unfinished)
    if not different:
        if on_terminal:
            if session.output.confirm(
                f"The training of {order.name!r} was cut off {where}. Go on?",
                instead=Remedy(settings={"resume": order.name}),
            ):
                return order_to_resume(store, order.name, {}, order.device)
        elif order.force:
            session.output.message(f"{order.name}: the same training was cut off {where}; going on.")
            return order_to_resume(store, order.name, {}, order.device)
    elif on_terminal:
        session.output.message(f"{order.name}: that training differs: {'; '.join(different)}.")
    if not order.force and not (
        on_terminal
        and session.output.confirm(
            f"Give up the training of {order.name!r} {where} and begin anew?",
            instead=Remedy(settings={"force": True}),
        )
    ):
        raise ProjectError(
            f"The training of {order.name!r} was cut off {where}"
            + (f" and differs: {'; '.join(different)}." if different else "."),
            hint=f"Go on: unziplora train --resume {order.name}   Begin anew: --force",
        )
    return replace(order, force=order.force or unfinished.folder.name == order.name)


def _finish(session: Session, orders: "list[TrainOrder]", store: "ProjectStore") -> None:
    from unziplora_cli.workflows.train import input_cache_for, split_by_process

    finished = []
    orders = list(split_by_process(orders))
    input_cache = input_cache_for(orders)
    for order in orders:
        finished.append(_train(session, order, store, input_cache))
        if len(orders) > 1:
            session.output.message(f"{order.name}: done, {finished[-1].project.folder}")
    session.output.result(
        {"projects": [_summary(each) for each in finished]},
        text="\n".join(_closing(each) for each in finished),
    )


def _orders(
    session: Session,
    groups: list[tuple[Path, ...]],
    names: list[str],
    words: list[Words],
    given: dict[str, str | None],
    validation_prompt: str | None,
    *,
    base: str | None,
    preset: str | None,
    vae: str | None,
    device: str,
    settings: dict[str, Any],
    replacing: list[bool],
) -> "list[TrainOrder]":
    from unziplora_cli.prompts import make_prompts
    from unziplora_cli.workflows.train import TrainOrder

    prompts = [make_prompts(each, None, given) for each in words]
    shown = [None if validation_prompt is None else make_prompts(each, validation_prompt) for each in words]
    check_settings(TrainConfig, settings)
    if preset is not None:
        resolve(preset, settings)
    found = find_base(session, base)
    config = resolve(preset or preset_for(found), settings)
    return [
        TrainOrder(
            name=names[i],
            pictures=group,
            words=words[i],
            prompts=prompts[i],
            base=found,
            config=config,
            device=device,
            vae=vae,
            validation=shown[i],
            force=replacing[i],
            typed=repeatable(session.command_line),
            given=settings,
        )
        for i, group in enumerate(groups)
    ]


def _train(
    session: Session, order: "TrainOrder", store: "ProjectStore", input_cache: "InputCache"
) -> "TrainedProject":
    from unziplora_cli.cli._output import ProgressDisplay
    from unziplora_cli.workflows.train import TrainedProject, train

    output = session.output
    output.message(f"{order.name}: full     {order.prompts.full}")
    output.message(f"{order.name}: content  {order.prompts.content}")
    output.message(f"{order.name}: style    {order.prompts.style}")
    finished: TrainedProject | None = None
    with ProgressDisplay(output, order.name) as display:
        for event in train(order, store, input_cache):
            if isinstance(event, TrainedProject):
                finished = event
            else:
                display.event(event)
    if finished is None:
        raise typer.Exit  # another process of this training writes the project
    return finished


def _names(groups: list[tuple[Path, ...]], name: str | None) -> list[str]:
    """The name of each project: the given one, or that of its first picture's file."""
    from unziplora_cli.projects.names import check_name, slugify

    if name is not None:
        return [check_name(name)]
    names = [slugify(group[0].stem) for group in groups]
    for i, chosen in enumerate(names):
        if chosen in names[:i]:
            first, second = groups[names.index(chosen)][0], groups[i][0]
            raise UsageError(
                f"{first} and {second} would both become the project {chosen!r}.",
                hint="Train them one by one with --name, or as one project with --together.",
            )
    return names


def _may_replace(session: Session, store: "ProjectStore", name: str, *, force: bool) -> bool:
    """Whether an older project of this name may go; raises ProjectError when there is one that may not."""
    if int(os.environ.get("RANK", "0")) == 0:
        store.check_unused(name)
    if force or not store.exists(name) or store.unfinished(name) is not None:
        return force
    if session.output.json or not sys.stdin.isatty():
        raise ProjectError(
            f"There is a project {name!r} already.",
            hint="Choose another with --name, or replace it with --force.",
        )
    if not session.output.confirm(
        f"There is a project {name!r} already. Replace it?", instead=Remedy(settings={"force": True})
    ):
        raise ProjectError(f"The project {name!r} stays as it is.", hint="Choose another with --name.")
    return True


def _word(
    session: Session, given: list[str] | None, index: int, count: int, flag: str, question: str, picture: Path
) -> str:
    """The subject or style of one picture: given, or asked for on a terminal."""
    if given:
        if len(given) not in (1, count):
            raise UsageError(
                f"--{flag} is given {len(given)} times for {count} picture(s).",
                hint="Give it once, or once per picture in their order.",
            )
        return given[index if len(given) > 1 else 0]
    if session.output.json or not sys.stdin.isatty():
        raise UsageError(
            f"What {flag} has {picture.name}?",
            hint=f"Say it in a word or two: --{flag} " + ("fox" if flag == "subject" else "watercolor"),
        )
    from unziplora_cli.projects.names import slugify

    guess = slugify(picture.stem).replace("-", " ").replace("_", " ") if flag == "subject" else None
    answer: str = typer.prompt(f"{question} ({picture.name})", default=guess, err=True)
    return answer


def _summary(finished: "TrainedProject") -> dict[str, Any]:
    manifest = finished.project.manifest
    return {
        "name": finished.project.name,
        "folder": str(finished.project.folder),
        "files": {each.role: str(finished.project.folder / each.path) for each in manifest.artifacts},
        "steps": manifest.steps_done,
        "seconds": manifest.seconds,
        "seconds_per_step": round(finished.seconds_per_step, 4),
        "peak_memory_bytes": manifest.peak_memory_bytes,
    }


def _closing(finished: "TrainedProject") -> str:
    project, manifest = finished.project, finished.project.manifest
    lines = [
        f"{project.name}: {manifest.steps_done} steps in {format_duration(finished.seconds)} "
        f"({finished.seconds_per_step:.2f} s a step, {format_size(manifest.peak_memory_bytes or 0)} at most)",
        *(f"  {each.role:8} {project.folder / each.path}" for each in manifest.artifacts),
        f'Next: unziplora combine {project.name} --prompt "on a beach"',
    ]
    return "\n".join(lines)
