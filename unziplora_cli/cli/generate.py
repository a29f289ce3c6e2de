"""content, style, combine and cross: from projects to pictures."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from unziplora_cli.cli._options import config_options, preset_for, project_base, project_names
from unziplora_cli.cli._output import Session
from unziplora_cli.cli.projects import NAME as PROJECT
from unziplora_cli.config import ComputeConfig, GenerateConfig, check_settings, resolve_generate
from unziplora_cli.errors import UsageError

if TYPE_CHECKING:
    from unziplora_cli.projects.store import Project
    from unziplora_cli.workflows.generate import GenerateResult

PANEL = "Pictures"

PROMPT = typer.Option(
    "--prompt",
    "-p",
    help='A scene ("on a skateboard"), or a sentence with {subject} and {style}.',
    show_default=False,
)
OUT = typer.Option(
    "--out",
    "-o",
    help="Folder, or for one picture a .png file; left out: the project's images.",
    show_default=False,
)
MERGE = typer.Option(
    "--merge/--no-merge", help="Apply the learned merge weights, or add both LoRAs as they are."
)
FULL = typer.Option(help="The whole full prompt.", show_default=False)
CONTENT = typer.Option(help="The whole content prompt.", show_default=False)
STYLE = typer.Option(help="The whole style prompt.", show_default=False)


def register(app: typer.Typer) -> None:
    """Add these commands to the program."""
    for name, command in (("content", content), ("style", style), ("combine", combine), ("cross", cross)):
        with_computing = config_options(ComputeConfig, into="computing")(command)
        app.command(name, rich_help_panel=PANEL)(config_options(GenerateConfig)(with_computing))


def content(
    ctx: typer.Context,
    project: Annotated[str, PROJECT],
    prompt: Annotated[str | None, PROMPT] = None,
    content_prompt: Annotated[str | None, CONTENT] = None,
    out: Annotated[Path | None, OUT] = None,
    computing: dict[str, Any] | None = None,
    settings: dict[str, Any] | None = None,
) -> None:
    """Draw the project's subject elsewhere, without its style: the content LoRA alone."""
    session: Session = ctx.obj
    found = session.store().open(project)
    _draw(
        session,
        [found],
        {"content": found, "prompt": prompt, "overrides": {"content": content_prompt}},
        out=out,
        studio=ComputeConfig(**(computing or {})),
        settings=settings or {},
    )


def style(
    ctx: typer.Context,
    project: Annotated[str, PROJECT],
    subject: Annotated[
        str | None,
        typer.Option(help="Another subject to draw in this style; left out: the project's own noun."),
    ] = None,
    prompt: Annotated[str | None, PROMPT] = None,
    style_prompt: Annotated[str | None, STYLE] = None,
    out: Annotated[Path | None, OUT] = None,
    computing: dict[str, Any] | None = None,
    settings: dict[str, Any] | None = None,
) -> None:
    """Draw something else in the project's style: the style LoRA alone."""
    session: Session = ctx.obj
    found = session.store().open(project)
    _draw(
        session,
        [found],
        {"style": found, "prompt": prompt, "overrides": {"style": style_prompt}, "subject": subject},
        out=out,
        studio=ComputeConfig(**(computing or {})),
        settings=settings or {},
    )


def combine(
    ctx: typer.Context,
    content_project: Annotated[
        str,
        typer.Argument(
            metavar="CONTENT",
            help="Project whose content is drawn.",
            show_default=False,
            autocompletion=project_names,
        ),
    ],
    style_project: Annotated[
        str | None,
        typer.Argument(
            metavar="[STYLE]",
            help="Project whose style is used; left out: the same.",
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
    computing: dict[str, Any] | None = None,
    settings: dict[str, Any] | None = None,
) -> None:
    """Draw the content of one project in the style of another, or of the same one."""
    session: Session = ctx.obj
    store = session.store()
    first = store.open(content_project)
    second = store.open(style_project) if style_project is not None else first
    overrides = {"full": full_prompt, "content": content_prompt, "style": style_prompt}
    _draw(
        session,
        [first, second],
        {"content": first, "style": second, "prompt": prompt, "overrides": overrides, "merge": merge},
        out=out,
        studio=ComputeConfig(**(computing or {})),
        settings=settings or {},
    )


def cross(
    ctx: typer.Context,
    projects: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="PROJECT...",
            help="Projects; every content meets every style.",
            show_default=False,
            autocompletion=project_names,
        ),
    ] = None,
    content: Annotated[
        list[str] | None,
        typer.Option(
            metavar="PROJECT",
            help="A project for its content alone; may be repeated.",
            autocompletion=project_names,
        ),
    ] = None,
    style: Annotated[
        list[str] | None,
        typer.Option(
            metavar="PROJECT",
            help="A project for its style alone; may be repeated.",
            autocompletion=project_names,
        ),
    ] = None,
    prompt: Annotated[str | None, PROMPT] = None,
    merge: Annotated[bool, MERGE] = True,
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", help="Folder; left out: a new one in the first project's images."),
    ] = None,
    computing: dict[str, Any] | None = None,
    settings: dict[str, Any] | None = None,
) -> None:
    """Draw every content in every style, as files and as one labelled sheet."""
    from unziplora_cli.cli._output import ProgressDisplay
    from unziplora_cli.workflows import generate

    session: Session = ctx.obj
    store = session.store()
    contents = [store.open(name) for name in dict.fromkeys([*(projects or []), *(content or [])])]
    styles = [store.open(name) for name in dict.fromkeys([*(projects or []), *(style or [])])]
    if not contents or not styles:
        raise UsageError(
            "There is nothing to cross: a content and a style are needed.",
            hint="Name projects: unziplora cross fox rose   (unziplora list shows them)",
        )
    studio = ComputeConfig(**(computing or {}))
    check_settings(GenerateConfig, settings or {})
    found = project_base(session, studio.base, [*contents, *styles])
    order = generate.CrossSpec(
        base=found,
        config=resolve_generate(preset_for(found), settings or {}),
        contents=tuple(contents),
        styles=tuple(styles),
        prompt=prompt,
        merge=merge,
    )
    with ProgressDisplay(session.output, "cross") as display:
        made = generate.generate_cross(
            order,
            out or generate.free_folder(contents[0].images, "cross"),
            studio,
            display.progress,
        )
    _report(session, made)


def _draw(
    session: Session,
    projects: "list[Project]",
    parts: dict[str, Any],
    *,
    out: Path | None,
    studio: ComputeConfig,
    settings: dict[str, Any],
) -> None:
    from unziplora_cli.cli._output import ProgressDisplay
    from unziplora_cli.workflows import generate

    check_settings(GenerateConfig, settings)
    found = project_base(session, studio.base, projects)
    order = generate.GenerateSpec(found, resolve_generate(preset_for(found), settings), **parts)
    prompts = order.prompts
    for label in ("full", "content", "style") if order.kind == "combine" else (order.kind,):
        session.output.message(f"{label:8} {getattr(prompts, label)}")
    with ProgressDisplay(session.output, order.kind) as display:
        made = generate.generate_images(order, out or projects[0].images, studio, display.progress)
    _report(session, made)


def _report(session: Session, made: "GenerateResult") -> None:
    data = {
        "pictures": [str(path) for path in made.pictures],
        "prompts": {
            "full": made.prompts.full,
            "content": made.prompts.content,
            "style": made.prompts.style,
        },
        "sheet": str(made.sheet) if made.sheet else None,
    }
    session.output.result(data, text="\n".join(str(path) for path in (*made.pictures, made.sheet) if path))
