"""What the tabs share: errors as messages, project pickers, and the base of a generation."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

import gradio as gr

from unziplora_cli.config import ComputeConfig, GenerateConfig, new_seed, resolve_generate
from unziplora_cli.errors import ProjectError, UsageError

if TYPE_CHECKING:
    from unziplora_cli.projects.store import Project
    from unziplora_cli.sdxl.base import BaseRef
    from unziplora_cli.ui.server import Context

P = ParamSpec("P")
R = TypeVar("R")


def reporting(context: Context, handler: Callable[P, R]) -> Callable[P, R]:
    """``handler``, whose errors are shown on the page with the same words as in the terminal."""

    @wraps(handler)
    def reported(*arguments: P.args, **options: P.kwargs) -> R:
        try:
            return handler(*arguments, **options)
        except gr.Error:
            raise
        except Exception as error:
            message, remedy, _ = context.explain(error)
            text = f"{message}\n{remedy}".strip()
            raise gr.Error(text, duration=None, print_exception=False) from None

    return reported


def project_names(context: Context) -> list[str]:
    """The names of all readable projects."""
    projects, _ = context.store.list()
    return [project.name for project in projects]


def thumbnail(context: Context, name: str | None) -> str | None:
    """The training image of a project, as a file that the page may show."""
    if not name:
        return None
    project = context.store.open(name)
    images = project.job.images
    return str(project.folder / images[0].file) if images else None


def project_picker(context: Context, label: str) -> tuple[gr.Dropdown, gr.Image]:
    """A list of projects with the training image of the chosen one; the page fills it."""
    picker = gr.Dropdown([], label=label, interactive=True)
    image = gr.Image(None, label=f"{label}: its image", interactive=False, height=160, buttons=[])
    show = reporting(context, lambda name: thumbnail(context, name))
    picker.change(show, picker, image, api_visibility="private", show_progress="hidden")
    return picker, image


def refreshed(picker: gr.Dropdown | gr.CheckboxGroup, names: Sequence[str], current: Any) -> Any:
    """New choices of a picker, which keeps what is chosen as far as it still exists."""
    if isinstance(picker, gr.CheckboxGroup):
        return gr.update(choices=names, value=[name for name in current or () if name in names])
    return gr.update(choices=names, value=current if current in names else next(iter(names), None))


def base_and_config(
    context: Context, projects: Sequence[Project], settings: dict[str, Any]
) -> tuple[ComputeConfig, BaseRef, GenerateConfig]:
    """The base of the projects and the generation settings for it, as the commands choose them."""
    from unziplora_cli import resources
    from unziplora_cli.sdxl.base import resolve_base
    from unziplora_cli.workflows.generate import shared_base

    if not projects:
        raise UsageError("Choose a project; train one first if the list is empty.")
    job = projects[0].job
    base, _ = resolve_base(
        shared_base(projects), offline=context.offline, vae=job.vae, prediction=job.base.prediction
    )
    compute = replace(ComputeConfig(), vae=job.vae, prediction=job.base.prediction)
    given = {name: value for name, value in settings.items() if value is not None}
    config = resolve_generate(resources.default_preset(base.kind), {"seed": new_seed(), **given})
    return compute, base, config


def number_field(label: str, placeholder: str = "the preset's") -> gr.Textbox:
    """A field for a number that may stay empty; :func:`number` reads it."""
    return gr.Textbox(label=label, placeholder=placeholder, max_lines=1)


def number(text: str | None, name: str) -> float | None:
    """The number in a field, None if it is empty; raises UsageError for other text."""
    if not (text or "").strip():
        return None
    try:
        return float(str(text).replace(",", "."))
    except ValueError as error:
        raise UsageError(f"{name} is a number, not {text!r}.") from error


def whole(text: str | None, name: str) -> int | None:
    """The whole number in a field, None if it is empty; raises UsageError for other text."""
    value = number(text, name)
    if value is not None and not value.is_integer():
        raise UsageError(f"{name} is a whole number, not {text}.")
    return None if value is None else int(value)


def uploaded(files: Any) -> list[Path]:
    """The paths of uploaded files."""
    return [Path(file) for file in ([files] if isinstance(files, str) else files or [])]


def inside_home(context: Context, path: str) -> Path:
    """A path that the page sent back; raises ProjectError unless it lies in the home."""
    home = context.store.folder.resolve()
    resolved = Path(path).resolve()
    if not resolved.is_relative_to(home):
        raise ProjectError(f"{resolved.name} is not in the home.")
    return resolved
