"""What the tabs share: project pickers, fields, and the base of a generation."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gradio as gr

from unziplora_cli import events, preferences
from unziplora_cli.config import ComputeConfig, GenerateConfig, new_seed, resolve_generate
from unziplora_cli.errors import UsageError

if TYPE_CHECKING:
    from PIL.Image import Image

    from unziplora_cli.job import Description
    from unziplora_cli.projects.store import Project
    from unziplora_cli.sdxl.base import BaseRef
    from unziplora_cli.ui.server import Context

PRIVATE: dict[str, Any] = {"api_visibility": "private"}
"""Options of an event: no other program calls it."""

HIDDEN: dict[str, Any] = {**PRIVATE, "show_progress": "hidden"}
"""Options of an event that runs by itself, and calls :func:`import_libraries` if it needs them."""

TO_TOP = "() => scrollTo({top: 0, behavior: 'smooth'})"
"""Shows the jobs, which a phone does not show beside a button."""

_LIBRARIES = threading.Lock()

IMAGES: dict[str, Any] = {
    "object_fit": "contain",
    "fit_columns": False,
    "buttons": ["download", "fullscreen"],
    "format": "png",
}
"""Options of every list of images."""


def import_libraries() -> None:
    """Import diffusers, whose modules import each other: it fails in two threads at once."""
    with _LIBRARIES:
        from diffusers import AutoencoderKL, UNet2DConditionModel  # noqa: F401


def as_text(line: str) -> str:
    """HTML that shows ``line`` as it is: Gradio renders messages as Markdown with HTML."""
    return "".join(letter if letter.isalnum() or letter == " " else f"&#{ord(letter)};" for letter in line)


def project_names(context: Context) -> list[str]:
    """The names of all readable projects."""
    return [project.name for project in context.store.list()[0]]


def thumbnail(context: Context, name: str | None) -> str | Image | None:
    """The training image of a project, else the newest one generated with it, else a blank card."""
    if not name or not context.store.exists(name):
        return None
    project = context.store.open(name)
    generated = sorted(project.images.glob("*.png"), key=lambda path: path.stat().st_mtime)
    files = [*(project.folder / image.file for image in project.job.images[:1]), *reversed(generated)]
    return str(files[0]) if files else _blank()


@cache
def _blank() -> Image:
    from PIL import Image, ImageDraw

    card = Image.new("RGB", (256, 256), "#e4e4e7")
    ImageDraw.Draw(card).text((128, 128), "imported", fill="#3f3f46", anchor="mm", font_size=36)
    return card


def project_picker(context: Context, label: str, elem_id: str | None = None) -> gr.Dropdown:
    """A list of projects with the training image of the chosen one; the page fills it."""
    with gr.Row():
        picker = gr.Dropdown([], label=label, interactive=True, scale=4, elem_id=elem_id)
        image = gr.Image(
            None,
            show_label=False,
            interactive=False,
            height=84,
            scale=1,
            min_width=84,
            buttons=[],
            visible=False,
            alt_text=f"The image of the project: {label}",
        )

    def show(name: str | None) -> Any:
        file = thumbnail(context, name)
        return gr.update(value=file, visible=file is not None)

    picker.change(show, picker, image, **HIDDEN)
    return picker


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
    from unziplora_cli.workflows.generate import project_base

    if not projects:
        raise UsageError("Choose a project; train one first if the list is empty.")
    compute, base, _ = project_base(projects, ComputeConfig(), offline=context.offline)
    given = {name: value for name, value in settings.items() if value is not None}
    config = resolve_generate(resources.default_preset(base.kind), {"seed": new_seed(), **given})
    return compute, base, config


def number_field(label: str, placeholder: str = "the preset's") -> gr.Textbox:
    """A field for a number that may stay empty; :func:`number` reads it."""
    return gr.Textbox(label=label, placeholder=placeholder, max_lines=1, min_width=120)


def number(text: str | None, name: str) -> float | None:
    """The number in a field, None if it is empty; raises UsageError for other text."""
    if not (text or "").strip():
        return None
    try:
        return float(str(text).replace(",", "."))
    except ValueError as error:
        raise UsageError(f"{name} must be a number, not {text!r}.") from error


def whole(text: str | None, name: str) -> int | None:
    """The whole number in a field, None if it is empty; raises UsageError for other text."""
    value = number(text, name)
    if value is not None and not value.is_integer():
        raise UsageError(f"{name} must be a whole number, not {text}.")
    return None if value is None else int(value)


def describe_images(paths: Sequence[Path], *, builtin: bool) -> list[Description]:
    """A description of each image by the describer that the user prefers; none if it is not on this disk."""
    from unziplora_cli.workflows.describe import can_describe, describe

    describer = preferences.load().describer
    if not can_describe(builtin=builtin, describer=describer):
        return []
    return events.run(describe(paths, builtin=builtin, describer=describer))


def uploaded(files: Any) -> list[Path]:
    """The paths of uploaded files."""
    return [Path(file) for file in ([files] if isinstance(files, str) else files or [])]
