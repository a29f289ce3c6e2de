"""The commands content, style, combine and cross: from projects to images."""

from collections.abc import Generator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from unziplora_cli.checks import check_settings
from unziplora_cli.cli._options import PROJECT, config_options, preset_for, project_base, project_names
from unziplora_cli.cli._output import ProgressDisplay, Session
from unziplora_cli.config import ComputeConfig, GenerateConfig, resolve_generate
from unziplora_cli.errors import Remedy, UsageError

if TYPE_CHECKING:
    from unziplora_cli.events import Event
    from unziplora_cli.projects.store import Project
    from unziplora_cli.sdxl.base import BaseRef
    from unziplora_cli.workflows.generate import GenerateResult

PANEL = "Images"

PROMPT = typer.Option(
    "--prompt",
    "-p",
    help='A scene ("on a skateboard"), or a sentence with {subject} and {style}.',
    show_default=False,
)
OUT = typer.Option(
    "--out",
    "-o",
    help="Folder, or a .png file name; default: the project's images.",
    show_default=False,
)
FORCE = typer.Option("--force", help="Replace existing files.")
MERGE = typer.Option("--merge/--no-merge", help="Apply the learned merge weights, or add both LoRAs as is.")
FULL = typer.Option(help="The complete full prompt.", show_default=False)
CONTENT = typer.Option(help="The complete content prompt.", show_default=False)
STYLE = typer.Option(help="The complete style prompt.", show_default=False)


def register(app: typer.Typer) -> None:
    """Add these commands to the program."""
    for name, command in (("content", content), ("style", style), ("combine", combine), ("cross", cross)):
        with_compute = config_options(ComputeConfig, into="computing")(command)
        app.command(name, rich_help_panel=PANEL)(config_options(GenerateConfig)(with_compute))


def content(
    ctx: typer.Context,
    project: Annotated[str, PROJECT],
    prompt: Annotated[str | None, PROMPT] = None,
    content_prompt: Annotated[str | None, CONTENT] = None,
    out: Annotated[Path | None, OUT] = None,
    force: Annotated[bool, FORCE] = False,
    computing: dict[str, Any] | None = None,
    settings: dict[str, Any] | None = None,
) -> None:
    """Generate the project's subject without its style: the content LoRA alone."""
    session: Session = ctx.obj
    opened = session.store().open(project)
    parts = {"content": opened, "prompt": prompt, "overrides": {"content": content_prompt}}
    _generate(session, [opened], parts, computing, settings, out, force)


def style(
    ctx: typer.Context,
    project: Annotated[str, PROJECT],
    subject: Annotated[
        str | None,
        typer.Option(help="Another subject for this style; default: the project's own subject."),
    ] = None,
    prompt: Annotated[str | None, PROMPT] = None,
    style_prompt: Annotated[str | None, STYLE] = None,
    out: Annotated[Path | None, OUT] = None,
    force: Annotated[bool, FORCE] = False,
    computing: dict[str, Any] | None = None,
    settings: dict[str, Any] | None = None,
) -> None:
    """Generate something else in the project's style: the style LoRA alone."""
    session: Session = ctx.obj
    opened = session.store().open(project)
    overrides = {"style": style_prompt}
    parts = {"style": opened, "prompt": prompt, "overrides": overrides, "subject": subject}
    _generate(session, [opened], parts, computing, settings, out, force)


def combine(
    ctx: typer.Context,
    content_project: Annotated[
        str,
        typer.Argument(
            metavar="CONTENT",
            help="Project to take the content from.",
            show_default=False,
            autocompletion=project_names,
        ),
    ],
    style_project: Annotated[
        str | None,
        typer.Argument(
            metavar="STYLE",
            help="Project to take the style from; default: the same.",
            show_default=False,
            autocompletion=project_names,
        ),
    ] = None,
    prompt: Annotated[str | None, PROMPT] = None,
    full_prompt: Annotated[str | None, FULL] = None,
    content_prompt: Annotated[str | None, CONTENT] = None,
    style_prompt: Annotated[str | None, STYLE] = None,
    merge: Annotated[bool, MERGE] = True,
    out: Annotated[Path | None, OUT] = None,
    force: Annotated[bool, FORCE] = False,
    computing: dict[str, Any] | None = None,
    settings: dict[str, Any] | None = None,
) -> None:
    """Generate the content of one project in the style of another, or of the same one."""
    session: Session = ctx.obj
    store = session.store()
    first = store.open(content_project)
    second = store.open(style_project) if style_project is not None else first
    overrides = {"full": full_prompt, "content": content_prompt, "style": style_prompt}
    parts = {"content": first, "style": second, "prompt": prompt, "overrides": overrides, "merge": merge}
    _generate(session, [first, second], parts, computing, settings, out, force)


def cross(
    ctx: typer.Context,
    projects: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="PROJECT...",
            help="Projects; every content is combined with every style.",
            show_default=False,
            autocompletion=project_names,
        ),
    ] = None,
    content: Annotated[
        list[str] | None,
        typer.Option(
            metavar="PROJECT",
            help="A project for its content only; repeatable.",
            autocompletion=project_names,
        ),
    ] = None,
    style: Annotated[
        list[str] | None,
        typer.Option(
            metavar="PROJECT", help="A project for its style only; repeatable.", autocompletion=project_names
        ),
    ] = None,
    prompt: Annotated[str | None, PROMPT] = None,
    merge: Annotated[bool, MERGE] = True,
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", help="Folder; default: a new one in the first project's images."),
    ] = None,
    force: Annotated[bool, FORCE] = False,
    computing: dict[str, Any] | None = None,
    settings: dict[str, Any] | None = None,
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
    compute, base, config = _resolve(session, [*contents, *styles], computing, settings)
    from unziplora_cli.workflows import generate

    spec = generate.CrossSpec(base, config, tuple(contents), tuple(styles), prompt, merge)
    _run(session, "cross", generate.generate_cross(spec, out, compute, force=force))


def _generate(
    session: Session,
    projects: "Sequence[Project]",
    parts: dict[str, Any],
    computing: dict[str, Any] | None,
    settings: dict[str, Any] | None,
    out: Path | None,
    force: bool,
) -> None:
    compute, base, config = _resolve(session, projects, computing, settings)
    from unziplora_cli.workflows import generate

    spec = generate.GenerateSpec(base, config, **parts)
    prompts = spec.prompts
    for label in ("full", "content", "style") if spec.kind == "combine" else (spec.kind,):
        session.output.message(f"{label:8} {getattr(prompts, label)}")
    _run(session, spec.kind, generate.generate_images(spec, out or projects[0].images, compute, force=force))


def _resolve(
    session: Session,
    projects: "Sequence[Project]",
    computing: dict[str, Any] | None,
    settings: dict[str, Any] | None,
) -> "tuple[ComputeConfig, BaseRef, GenerateConfig]":
    """The compute settings, the base model, and the generation settings for that base."""
    compute, settings = ComputeConfig(**(computing or {})), settings or {}
    check_settings(GenerateConfig, settings)
    compute, base = project_base(session, compute, projects)
    return compute, base, resolve_generate(preset_for(base), settings)


def _run(session: Session, title: str, operation: "Generator[Event, None, GenerateResult]") -> None:
    from unziplora_cli.events import run

    with ProgressDisplay(session.output, title) as display:
        result = run(operation, display.event)
    data = {
        "images": [str(path) for path in result.images],
        "prompts": {
            "full": result.prompts.full,
            "content": result.prompts.content,
            "style": result.prompts.style,
        },
        "sheet": str(result.sheet) if result.sheet else None,
    }
    paths = (*result.images, result.sheet) if result.sheet else result.images
    session.output.result(data, text="\n".join(str(path) for path in paths))
