"""The commands content, style, combine and cross: from projects to images."""

from collections.abc import Callable, Generator, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_type_hints

import typer

from unziplora_cli import resources
from unziplora_cli.checks import check_settings, check_value, nearest, plain_type
from unziplora_cli.cli._opening import openable
from unziplora_cli.cli._options import PROJECT, config_options, project_base, project_names
from unziplora_cli.cli._output import Session
from unziplora_cli.config import ComputeConfig, GenerateConfig, new_seed, resolve_generate
from unziplora_cli.dependencies import GENERATION, without_effect
from unziplora_cli.errors import Remedy, UsageError
from unziplora_cli.files import check_writable

if TYPE_CHECKING:
    from unziplora_cli.events import Event
    from unziplora_cli.projects.store import Project
    from unziplora_cli.sdxl.base import BaseRef
    from unziplora_cli.workflows.generate import GenerateResult

Prompt = Annotated[
    str | None,
    typer.Option(
        "--prompt", "-p", help='A scene ("on a skateboard"), or a sentence with {subject} and {style}.'
    ),
]
Out = Annotated[
    Path | None,
    typer.Option("--out", "-o", help="Folder, or a .png file name; default: the project's images."),
]
Force = Annotated[bool, typer.Option("--force", help="Replace existing files.")]
Merge = Annotated[
    bool, typer.Option("--merge/--no-merge", help="Apply the learned merge weights, or add both LoRAs as is.")
]
Grid = Annotated[
    list[str] | None,
    typer.Option(
        metavar="NAME=X,Y",
        help="A sheet with a column per value of a setting, such as guidance=2,4,6, and a row per "
        "seed (--count); a second grid adds rows.",
    ),
]
FullPrompt = Annotated[str | None, typer.Option(help="The complete full prompt.")]
ContentPrompt = Annotated[str | None, typer.Option(help="The complete content prompt.")]
StylePrompt = Annotated[str | None, typer.Option(help="The complete style prompt.")]
Settings = dict[str, Any]


def _projects(help: str, metavar: str = "PROJECT") -> Any:
    return typer.Option(metavar=metavar, help=help, autocompletion=project_names)


def _project_argument(help: str, metavar: str) -> Any:
    return typer.Argument(metavar=metavar, help=help, autocompletion=project_names)


def with_settings(command: Callable[..., None]) -> Callable[..., None]:
    """Add the options of a command that generates images."""
    with_compute = config_options(ComputeConfig, into="computing")(command)
    return openable(config_options(GenerateConfig)(with_compute))


@with_settings
def content(
    ctx: typer.Context,
    computing: Settings,
    settings: Settings,
    project: Annotated[str, PROJECT],
    prompt: Prompt = None,
    content_prompt: ContentPrompt = None,
    grid: Grid = None,
    out: Out = None,
    force: Force = False,
) -> None:
    """Generate the project's subject without its style: the content LoRA alone."""
    opened = ctx.obj.store().open(project)
    parts = {"content": opened, "prompt": prompt, "overrides": {"content": content_prompt}}
    _generate(ctx.obj, parts, computing, settings, grid, out, force)


@with_settings
def style(
    ctx: typer.Context,
    computing: Settings,
    settings: Settings,
    project: Annotated[str, PROJECT],
    subject: Annotated[
        str | None, typer.Option(help="Another subject for this style; default: the project's own subject.")
    ] = None,
    prompt: Prompt = None,
    style_prompt: StylePrompt = None,
    grid: Grid = None,
    out: Out = None,
    force: Force = False,
) -> None:
    """Generate something else in the project's style: the style LoRA alone."""
    opened = ctx.obj.store().open(project)
    parts = {"style": opened, "prompt": prompt, "overrides": {"style": style_prompt}, "subject": subject}
    _generate(ctx.obj, parts, computing, settings, grid, out, force)


@with_settings
def combine(
    ctx: typer.Context,
    computing: Settings,
    settings: Settings,
    content_project: Annotated[str, _project_argument("Project to take the content from.", "CONTENT")],
    style_project: Annotated[
        str | None, _project_argument("Project to take the style from; default: the same.", "STYLE")
    ] = None,
    prompt: Prompt = None,
    full_prompt: FullPrompt = None,
    content_prompt: ContentPrompt = None,
    style_prompt: StylePrompt = None,
    merge: Merge = True,
    grid: Grid = None,
    out: Out = None,
    force: Force = False,
) -> None:
    """Generate the content of one project in the style of another, or of the same one."""
    store = ctx.obj.store()
    first = store.open(content_project)
    second = store.open(style_project) if style_project is not None else first
    overrides = {"full": full_prompt, "content": content_prompt, "style": style_prompt}
    parts = {"content": first, "style": second, "prompt": prompt, "overrides": overrides, "merge": merge}
    _generate(ctx.obj, parts, computing, settings, grid, out, force)


@with_settings
def cross(
    ctx: typer.Context,
    computing: Settings,
    settings: Settings,
    projects: Annotated[
        list[str] | None,
        _project_argument("Projects; every content is combined with every style.", "PROJECT..."),
    ] = None,
    content: Annotated[list[str] | None, _projects("A project for its content only; repeatable.")] = None,
    style: Annotated[list[str] | None, _projects("A project for its style only; repeatable.")] = None,
    prompt: Prompt = None,
    merge: Merge = True,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            "-o",
            help="Folder, or a .png file name of the sheet; default: a new folder in the project's images.",
        ),
    ] = None,
    force: Force = False,
) -> None:
    """Generate every content in every style, with a labelled contact sheet."""
    session: Session = ctx.obj
    store = session.store()
    contents = [store.open(name) for name in dict.fromkeys([*(projects or []), *(content or [])])]
    styles = [store.open(name) for name in dict.fromkeys([*(projects or []), *(style or [])])]
    if not contents or not styles:
        raise UsageError(
            "cross needs at least one content and one style.",
            Remedy("Name projects", command="cross", arguments=("fox", "rose")),
            Remedy("List all projects", command="list"),
        )
    from unziplora_cli.workflows import generate

    if out is not None:  # reading the base takes seconds
        generate.check_sheet(out, force=force)
    compute, base, config = _resolve(session, [*contents, *styles], computing, settings)
    spec = generate.CrossSpec(base, config, tuple(contents), tuple(styles), prompt, merge)
    cells = generate.generate_cross(spec, out, compute, force=force)
    _run(session, "cross", config, cells)


def _generate(
    session: Session,
    parts: dict[str, Any],
    computing: Settings,
    settings: Settings,
    grid: list[str] | None,
    out: Path | None,
    force: bool,
) -> None:
    projects: list[Project] = [parts[role] for role in ("content", "style") if role in parts]
    if len(parts.keys() & {"content", "style"}) == 1:
        kind, other = ("content", "style") if "content" in parts else ("style", "content")
        if f"{other}_strength" in {**settings, **dict.fromkeys(_axis_names(grid))}:
            raise UsageError(
                f"{other}-strength has no effect here: only the {kind} LoRA is applied.",
                Remedy("Apply both", "combine", (projects[0].name,), {**settings, "grid": grid or []}),
            )
    axes = [_axis(text) for text in grid or ()]
    if len(axes) > 2:
        raise UsageError("A sheet has two axes, so at most two grids.", Remedy("Remove a grid."))
    from unziplora_cli.workflows import generate

    if out is not None and axes:  # reading the base takes seconds
        generate.check_sheet(out, force=force)
    elif out is not None:
        check_writable(out.parent if generate.is_image_file(out) else out)
    compute, base, config = _resolve(session, projects, computing, settings)
    spec = generate.GenerateSpec(base, config, **parts)
    for label in ("full", "content", "style") if spec.kind == "combine" else (spec.kind,):
        session.output.message(f"{label:8} {getattr(spec.prompts, label)}")
    if axes:
        cells = generate.GridSpec(spec, *axes)
        operation = generate.generate_grid(cells, out, compute, force=force)
        _run(session, "grid", config, operation)
    else:
        images = generate.generate_images(spec, out, compute, force=force)
        _run(session, spec.kind, config, images)


def _axis_names(grid: list[str] | None) -> list[str]:
    return [text.partition("=")[0].strip().replace("-", "_") for text in grid or ()]


def _axis(text: str) -> tuple[str, tuple[float, ...]]:
    """A setting and its values, from text such as "style-strength=0.4,0.7,1"; raises UsageError."""
    hints = get_type_hints(GenerateConfig)
    numbers = {f.name: f for f in fields(GenerateConfig) if hints[f.name] in (int, float)}
    settings = {name: setting for name, setting in numbers.items() if name not in ("count", "seed")}
    (name,), values = _axis_names([text]), text.partition("=")[2]
    example = Remedy("Name a setting and its values", settings={"grid": "style-strength=0.4,0.7,1"})
    if name not in settings:
        shown = [setting.replace("_", "-") for setting in settings]
        close = nearest(name.replace("_", "-"), shown)
        raise UsageError(f"A grid varies one of {', '.join(shown)}, not {name!r}.{close}", example)
    kind = plain_type(hints[name])
    try:
        given = [kind(value) for value in values.split(",")]
    except ValueError as error:
        raise UsageError(f"The grid {text!r} has a value that is not a number.", example) from error
    checked = [check_value(name, value, hints[name], settings[name].metadata) for value in given]
    return name, tuple(dict.fromkeys(checked))


def _resolve(
    session: Session, projects: "Sequence[Project]", computing: Settings, settings: Settings
) -> "tuple[ComputeConfig, BaseRef, GenerateConfig]":
    """The compute settings, the base model, and the generation settings for that base."""
    check_settings(GenerateConfig, settings)
    compute, base = project_base(session, ComputeConfig(**computing), projects)
    config = resolve_generate(resources.default_preset(base.kind), {"seed": new_seed(), **settings})
    for note in without_effect(config, settings, GENERATION):
        session.output.warning(note)
    return compute, base, config


def _run(
    session: Session, title: str, config: GenerateConfig, operation: "Generator[Event, None, GenerateResult]"
) -> None:
    session.output.message(f"seed     {config.seed}")
    result = session.run(title, operation)
    data = {
        "images": result.images,
        "prompts": asdict(result.prompts),
        "seed": config.seed,
        "sheet": result.sheet,
    }
    paths = (*result.images, result.sheet) if result.sheet else result.images
    made = result.sheet or (paths[0] if len(paths) == 1 else paths[0].parent)
    session.output.result(data, text="\n".join(str(path) for path in paths), links=paths, made=made)
