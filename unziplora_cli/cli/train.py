"""train: creates projects from images, and resumes unfinished trainings."""

from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from unziplora_cli import preferences, resources
from unziplora_cli.checks import check_settings
from unziplora_cli.cli._opening import openable
from unziplora_cli.cli._options import (
    BASE,
    DEVICE,
    PREDICTION,
    VAE,
    config_options,
    find_base,
    preset_names,
    unfinished_names,
)
from unziplora_cli.cli._output import ProgressDisplay, Session, format_duration, format_size
from unziplora_cli.cli.describe import DESCRIBE, DESCRIBER, FEATURES, STYLES, SUBJECTS, ask_words, check_words
from unziplora_cli.cli.estimate import make_estimate, show_estimate
from unziplora_cli.cli.train_many import (
    AT_ONCE,
    LIST,
    RAY,
    SHARD,
    expand_folders,
    read_rows,
    refuse_per_image,
    sheets_of,
    summary,
    train_rows,
)
from unziplora_cli.config import MUTABLE_ON_RESUME, TrainConfig, resolve
from unziplora_cli.dependencies import without_effect
from unziplora_cli.errors import ProjectError, Remedy, UsageError, count
from unziplora_cli.packages import check_packages
from unziplora_cli.paths import process_rank

if TYPE_CHECKING:
    from unziplora_cli.job import SourceImage
    from unziplora_cli.projects.store import Project, ProjectStore
    from unziplora_cli.training.inputs import InputCache
    from unziplora_cli.training.request import TrainRequest
    from unziplora_cli.workflows.train import TrainedProject

ACCEPTED_ON_RESUME = {"resume", "device", "sheet", *MUTABLE_ON_RESUME}
"""Parameters that may be given with --resume."""

FORCE = Remedy(settings={"force": True})


@openable
@config_options(TrainConfig)
def train(
    ctx: typer.Context,
    settings: dict[str, Any],
    images: Annotated[
        list[Path] | None,
        typer.Argument(
            metavar="IMAGE...", help="Images to train on, one project per image, or folders of images."
        ),
    ] = None,
    subject: Annotated[list[str] | None, SUBJECTS] = None,
    style: Annotated[list[str] | None, STYLES] = None,
    features: Annotated[list[str] | None, FEATURES] = None,
    describe: Annotated[bool, DESCRIBE] = True,
    describer: Annotated[str | None, DESCRIBER] = None,
    trigger: Annotated[
        str, typer.Option(help="Rare word that stands for this particular subject.")
    ] = "monadikos",
    name: Annotated[str | None, typer.Option(help="Name of the project; default: the file name.")] = None,
    list_file: Annotated[Path | None, LIST] = None,
    shard: Annotated[str | None, SHARD] = None,
    ray: Annotated[str | None, RAY] = None,
    at_once: Annotated[int, AT_ONCE] = 1,
    together: Annotated[
        bool,
        typer.Option(
            "--together", help="Create one project from all images, which show one subject in one style."
        ),
    ] = False,
    force: Annotated[bool, typer.Option("--force", help="Replace a project of the same name.")] = False,
    resume: Annotated[
        str | None,
        typer.Option(
            metavar="PROJECT",
            help="Resume an unfinished training; only learning rates and save intervals may change.",
            autocompletion=unfinished_names,
        ),
    ] = None,
    preset: Annotated[
        str | None,
        typer.Option(
            help="Name of a preset or a .toml file; default: paper, or mini on the built-in base.",
            autocompletion=preset_names,
        ),
    ] = None,
    base: Annotated[str | None, BASE] = None,
    vae: Annotated[str | None, VAE] = None,
    prediction: Annotated[Literal["epsilon", "v_prediction"] | None, PREDICTION] = None,
    device: Annotated[str, DEVICE] = "auto",
    full_prompt: Annotated[str | None, typer.Option(help="The complete full prompt.")] = None,
    content_prompt: Annotated[str | None, typer.Option(help="The complete content prompt.")] = None,
    style_prompt: Annotated[str | None, typer.Option(help="The complete style prompt.")] = None,
    validation_prompt: Annotated[
        str | None,
        typer.Option(help="Scene of the validation images, or a sentence with {subject} and {style}."),
    ] = None,
    sheet: Annotated[
        bool,
        typer.Option(
            "--sheet/--no-sheet",
            help="After training, generate a sheet: the image, its content, its style, and both.",
        ),
    ] = True,
    plan: Annotated[
        bool,
        typer.Option(
            "--plan",
            "--estimate",
            "--dry-run",
            help="Only estimate memory, time and disk space, and suggest settings that fit.",
        ),
    ] = False,
) -> None:
    """Learn a content LoRA and a style LoRA from one image."""
    from unziplora_cli.prompts import prompt_notes
    from unziplora_cli.workflows.destyle import choose_way
    from unziplora_cli.workflows.train import make_request, read_sources, request_to_resume, training_config

    session: Session = ctx.obj
    store = session.store()
    texts = {
        "full_prompt": full_prompt,
        "content_prompt": content_prompt,
        "style_prompt": style_prompt,
        "validation_prompt": validation_prompt,
    }
    words = {"subject": subject, "style": style, "features": features}
    if resume is not None:
        _refuse_fixed(ctx)
        request = request_to_resume(store, resume, settings, None if device == "auto" else device)
        _finish(session, [request], store, sheet=sheet if _is_given(ctx, "sheet") else request.sheet)
        return
    several = {"ray": ray, "at_once": at_once > 1}
    rows = read_rows(images or [], list_file, shard, together=together, **several)
    if rows is not None:
        refuse_per_image(name, **words)
        if plan:
            check_words(1, words, trigger, **texts)
            show_estimate(session, len(rows), (base, vae, prediction), preset, device, settings)
            return
        from unziplora_cli.workflows.train_many import Options

        check_settings(TrainConfig, settings)
        options = Options(
            base=find_base(session, base, vae, prediction),
            texts={
                **{key: given[0] if given else None for key, given in words.items()},
                **texts,
                "trigger": trigger,
                "preset": preset,
            },
            settings=settings,
            vae=vae,
            device=device,
            describe=describe,
            describer=describer or preferences.load().describer,
            force=force,
            ray=ray,
            at_once=at_once,
        )
        train_rows(session, store, rows, options, sheet=sheet)
        return
    images = expand_folders(images or [])
    if not images:
        raise UsageError(
            "No image is given.",
            Remedy("Train on an image", "train", ("IMAGE",)),
            Remedy("Or resume a training", "train", settings={"resume": "PROJECT"}),
        )
    groups: list[tuple[Path, ...]] = [tuple(images)] if together else [(image,) for image in images]
    if len(groups) > 1:
        refuse_per_image(name)
    sources = [read_sources(group) for group in groups]
    names = _names(groups, name)
    if plan:
        check_words(len(groups), words, trigger, **texts)
        show_estimate(session, len(groups), (base, vae, prediction), preset, device, settings)
        return
    done = set() if force else _done(store, names, sources)
    replacing = [
        project in done or _may_replace(session, store, project, group, force=force)
        for project, group in zip(names, sources, strict=True)
    ]
    check_settings(TrainConfig, settings)
    if preset is not None:
        check_packages(resolve(preset, settings))
    model = find_base(session, base, vae, prediction)
    _, config = training_config(model, preset, settings)
    check_packages(config)
    choose_way(config, model)  # raises before the questions
    if validation_prompt is not None and not config.validate_every:
        session.output.warning(
            "validation-prompt has no effect: there are no validation images (validate-every)."
        )
    settled = ask_words(
        session,
        [group[0] for group in groups],
        model,
        words,
        describe=describe,
        describer=describer,
        device=device,
        trigger=trigger,
        ask_features=config.destyle_images > 0,
    )
    if model.kind == "builtin":
        about = format_duration(make_estimate(session, model, config, device).time.total * len(groups))
        use_sdxl = USE_SDXL if base else ""  # else said when the base was chosen
        session.output.message(
            f"{resources.MINI_DESCRIPTION} This training takes about {about}. {use_sdxl}".strip()
        )
    for note in prompt_notes(*texts.values()):
        session.output.warning(note)
    requests = [
        make_request(
            names[i],
            group,
            settled[i].words,
            model,
            config,
            sources=sources[i],
            features=settled[i].features,
            description=settled[i].description,
            texts=texts,
            vae=vae,
            device=device,
            replaces=replacing[i],
            sheet=sheet,
        )
        for i, group in enumerate(groups)
    ]
    # The way depends on the style.
    unused = [without_effect(request.config, settings) for request in requests]
    for note in unused[0]:
        if all(note in notes for notes in unused):
            session.output.warning(note)
    for project in sorted(done):
        session.output.message(f"{project}: already trained, unchanged.")
    remaining = [request for request in requests if request.job.name not in done]
    _finish(session, [_offer_resume(session, store, request) for request in remaining], store, sheet=sheet)


def _done(store: "ProjectStore", names: list[str], sources: "list[tuple[SourceImage, ...]]") -> set[str]:
    """The complete projects of these images among `names`, if another one is unfinished."""
    unfinished = {name for name in names if store.unfinished(name) is not None}
    done = {
        name
        for name, group in zip(names, sources, strict=True)
        if store.exists(name) and _is_of(store, name, group)
    }
    return done - unfinished if unfinished else set()


def _refuse_fixed(ctx: typer.Context) -> None:
    """Raise UsageError for a parameter that a resumed training does not accept."""
    for parameter in ctx.command.params:
        name = parameter.name or ""
        if _is_given(ctx, name) and name not in ACCEPTED_ON_RESUME:
            accepted = ", ".join(sorted(ACCEPTED_ON_RESUME - {"resume"})).replace("_", "-")
            what = "image" if name == "images" else parameter.opts[0].removeprefix("--")
            raise UsageError(
                f"A resumed training keeps its settings, so --resume accepts no {what}.",
                Remedy(f"These may change: {accepted}."),
            )


def _is_given(ctx: typer.Context, name: str) -> bool:
    source = ctx.get_parameter_source(name)
    return source is not None and source.name not in ("DEFAULT", "DEFAULT_MAP")


def _offer_resume(session: Session, store: "ProjectStore", request: "TrainRequest") -> "TrainRequest":
    """The request itself, or the one that resumes the same training; raises ProjectError."""
    from unziplora_cli.workflows.train import request_to_resume

    name, output = request.job.name, session.output
    unfinished = store.unfinished(name)
    if unfinished is None:
        return request
    if process_rank() == 0:  # another process may have begun it just now
        store.check_unused(name)
    where = f"after step {unfinished.step} of {unfinished.job.config.steps}"
    on_terminal = output.can_ask
    different = replace(request.job, created=unfinished.job.created).difference(unfinished.job)
    if different and on_terminal:
        output.message(f"{name}: that training differs: {'; '.join(different)}.")
    if not different:
        resume = not on_terminal and request.replaces
        if resume:
            output.message(f"{name}: the same training stopped {where}; resuming it.")
        elif on_terminal:
            question = f"The training of {name!r} stopped {where}. Resume it?"
            resume = output.confirm(question, instead=Remedy(settings={"resume": name}), default=True)
        if resume:
            return request_to_resume(store, name, {}, request.job.device)
    discard = f"Discard the training of {name!r} {where} and start again?"
    if not request.replaces and not (on_terminal and output.confirm(discard, instead=FORCE)):
        raise ProjectError(
            f"The training of {name!r} stopped {where}"
            + (f" and differs: {'; '.join(different)}." if different else "."),
            Remedy("Resume it", "train", settings={"resume": name}),
            Remedy("Start again", settings={"force": True})
            if _is_of(store, name, request.job.images)
            else Remedy("Choose another name", settings={"name": store.free_name(name)}),
        )
    return replace(request, replaces=request.replaces or unfinished.folder.name == name)


def _finish(session: Session, requests: "list[TrainRequest]", store: "ProjectStore", *, sheet: bool) -> None:
    from unziplora_cli.events import run
    from unziplora_cli.workflows.destyle import destyle_requests
    from unziplora_cli.workflows.train import input_cache_for, split_by_process

    finished = []
    with TemporaryDirectory(prefix="unziplora-") as scratch:
        with ProgressDisplay(session.output, "train") as display:  # this imports torch
            split = list(split_by_process(requests))
            requests = run(destyle_requests(split, Path(scratch)), display.event)
            cache = input_cache_for(requests)
        for request in requests:
            finished.append(_train(session, request, store, cache))
            if len(requests) > 1:
                session.output.message(f"{request.job.name}: done, {finished[-1].project.folder}")
    del cache  # the sheets need its memory
    sheets = sheets_of(session, finished, requests[0].base) if sheet and finished else {}
    session.output.result(
        {"projects": [summary(trained, sheets.get(trained.project.name)) for trained in finished]},
        text="\n".join(_closing(trained, sheets.get(trained.project.name), store) for trained in finished),
        links=tuple(sheets.values()),
        made=next(iter(sheets.values()), finished[0].project.folder if finished else None),
    )


def _train(
    session: Session, request: "TrainRequest", store: "ProjectStore", cache: "InputCache"
) -> "TrainedProject":
    from unziplora_cli.workflows.train import train

    name, prompts = request.job.name, request.job.prompts
    session.output.message(f"{name}: full     {prompts.full}")
    session.output.message(f"{name}: content  {prompts.content}")
    session.output.message(f"{name}: style    {prompts.style}")
    finished = session.run(name, train(request, store, cache))
    if finished is None:
        raise typer.Exit  # another process of this training writes the project
    return finished


def _names(groups: list[tuple[Path, ...]], name: str | None) -> list[str]:
    """The name of each project: the given one, or that of the file of its first image."""
    from unziplora_cli.projects.names import check_name, slugify

    if name is not None:
        return [check_name(name)]
    names = [slugify(group[0].stem) for group in groups]
    for i, chosen in enumerate(names):
        if chosen in names[:i]:
            first, second = groups[names.index(chosen)][0], groups[i][0]
            raise UsageError(
                f"{first} and {second} would both create the project {chosen!r}.",
                Remedy("Train them one by one under different names", settings={"name": "NAME"}),
                Remedy("Or as one project", settings={"together": True}),
            )
    return names


def _is_of(store: "ProjectStore", name: str, sources: "tuple[SourceImage, ...]") -> bool:
    """Whether the project or unfinished training of this name has the same images."""
    try:
        unfinished = store.unfinished(name)
        job = store.open(name).job if unfinished is None else unfinished.job
    except ProjectError:  # it is damaged
        return False
    return [image.sha256 for image in job.images] == [image.sha256 for image in sources]


def _may_replace(
    session: Session, store: "ProjectStore", name: str, sources: "tuple[SourceImage, ...]", *, force: bool
) -> bool:
    """Whether an existing project of this name may be replaced; raises ProjectError if not.

    The remedies never replace the project of another image.
    """
    if process_rank() == 0:
        store.check_unused(name)
    if force or not store.exists(name) or store.unfinished(name) is not None:
        return force
    same = _is_of(store, name, sources)
    fact = f"There is a project {name!r} already" + ("." if same else ", of another image.")
    rename = Remedy("Choose another name", settings={"name": store.free_name(name)})
    if not session.output.can_ask:
        raise ProjectError(fact, rename, *((replace(FORCE, advice="Or replace it"),) if same else ()))
    if not session.output.confirm(f"{fact} Replace it?", instead=FORCE if same else rename):
        raise ProjectError(f"The project {name!r} was not replaced.", rename)
    return True


USE_SDXL = "For real use, train SDXL on a GPU: unziplora models pull sdxl"


def _closing(finished: "TrainedProject", sheet: Path | None, store: "ProjectStore") -> str:
    """What was made and where, and commands that are useful next."""
    from unziplora_cli.workflows.sheet import other_subject

    project, manifest = finished.project, finished.project.manifest
    partner = _partner(project, store)
    following = [
        f'combine {project.name} --prompt "on a beach"',
        f"style {project.name} --subject {other_subject(project)}",
    ]
    following += [f"combine {project.name} {partner}"] if partner else []
    strips = sorted((project.folder / "validation").glob("*/strip.png"))
    lines = [
        f"{project.name}: {count(manifest.steps_done, 'step')} in {format_duration(finished.seconds)} "
        f"({finished.seconds_per_step:.2f} s per step, peak {format_size(manifest.peak_memory_bytes or 0)})",
        f"  {'folder':10} {project.folder}",
        f"  {'files':10} content.safetensors, style.safetensors, merge.safetensors",
        *([f"  {'validation':10} {strips[-1]}"] if strips else []),
        *([f"  {'sheet':10} {sheet}"] if sheet else []),
        "Next:",
        *(f"  unziplora {line}" for line in (*following, f"eval {project.name}")),
    ]
    return "\n".join(lines)


def _partner(project: "Project", store: "ProjectStore") -> str | None:
    """Another project of the same base, to combine with."""
    for name in [name for name in store.names() if name != project.name][:20]:
        with suppress(ProjectError):
            if store.open(name).job.base == project.job.base:
                return name
    return None
