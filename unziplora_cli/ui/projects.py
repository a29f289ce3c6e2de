"""The tab of the projects: look at them, rename, remove, export for other programs, and import."""

from __future__ import annotations

import tempfile
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import gradio as gr

from unziplora_cli.errors import Remedy, UsageError
from unziplora_cli.prompts import UNNAMED_STYLE
from unziplora_cli.ui.components import (
    HIDDEN,
    IMAGES,
    PRIVATE,
    as_text,
    describe_images,
    project_names,
    project_picker,
    thumbnail,
    uploaded,
)

if TYPE_CHECKING:
    from unziplora_cli.job import BaseRecord
    from unziplora_cli.projects.store import Project
    from unziplora_cli.ui.server import Context

PROGRAMS = {
    "ComfyUI, A1111, Forge, InvokeAI, diffusers": "sd-scripts",
    "diffusers alone (peft names)": "peft",
}
PARTS: dict[str, tuple[Literal["content", "style", "merge", "combined"], ...]] = {
    "content and style, two files": ("content", "style"),
    "content": ("content",),
    "style": ("style",),
    "both in one file": ("combined",),
    "everything, for unziplora": ("content", "style", "merge"),
}


def build(context: Context, changes: gr.State) -> list[gr.Dropdown]:
    """The components of the tab; returns its picker of projects."""
    cards = gr.Gallery(
        [], label="All projects", allow_preview=False, visible=False, elem_id="cards", **IMAGES
    )
    with gr.Row():
        with gr.Column(min_width=300):
            picker = project_picker(context, "Project", "project")
            facts = gr.Textbox(label="About it", lines=6, interactive=False)
            page = gr.Button("Make its report page", size="sm")
            report_file = gr.File(label="Report page", interactive=False, visible=False)
        with gr.Column(min_width=300):
            program = gr.Dropdown(list(PROGRAMS), value=next(iter(PROGRAMS)), label="Export for")
            part = gr.Dropdown(list(PARTS), value=next(iter(PARTS)), label="Part")
            export = gr.Button("Export", variant="primary")
            exported = gr.File(
                label="Exported files", file_count="multiple", interactive=False, visible=False
            )
            new_name = gr.Textbox(label="New name")
            rename = gr.Button("Rename", size="sm")
            sure = gr.Checkbox(False, label="Yes, delete it with all its files")
            remove = gr.Button("Remove", size="sm", variant="stop")
        with gr.Column(min_width=300):
            dropped = gr.File(
                file_count="multiple", label="Import: a content LoRA and a style LoRA", height=150
            )
            image = gr.File(label="The image that they were trained on", height=150)
            import_name = gr.Textbox(label="Name of the project", placeholder="from the files")
            with gr.Row():
                subject = gr.Textbox(label="Subject", placeholder="from the files", min_width=120)
                style = gr.Textbox(label="Style", placeholder="from the files", min_width=120)
            import_ = gr.Button("Import")

    def opened(name: str | None) -> Project:
        if not name:
            raise UsageError("Choose a project first.")
        return context.store.open(name)

    def list_cards(before: list[Any]) -> tuple[Any, Any]:
        projects, _ = context.store.list()
        now = [(project.name, thumbnail(context, project.name), _caption(project)) for project in projects]
        if now == before:
            return gr.skip(), gr.skip()
        return gr.update(value=[card[1:] for card in now], visible=bool(now)), now

    def choose(listed: list[Any], event: gr.SelectData) -> str:
        return str(listed[int(event.index)][0])

    def write_report(name: str | None) -> Any:
        from unziplora_cli.workflows.report import report

        project = opened(name)
        folder = Path(tempfile.mkdtemp(dir=context.uploads))
        page = report(project, folder / f"{project.name}.html", word=context.remedy)
        return gr.update(value=str(page.file), visible=True)

    def chosen(name: str) -> Any:
        """The picker with a project that is new in it; Gradio refuses values that are no choice."""
        return gr.update(choices=project_names(context), value=name)

    def rename_project(name: str | None, new: str) -> tuple[Any, str]:
        context.store.rename(opened(name).name, new.strip())
        return chosen(new.strip()), ""

    def remove_project(name: str | None, sure: bool) -> tuple[Any, bool]:
        project = opened(name)
        if not sure:
            raise UsageError(f"Tick the box to delete {project.name!r} with all its files.")
        context.store.remove(project.name)
        names = project_names(context)
        return gr.update(choices=names, value=next(iter(names), None)), False

    def export_files(name: str | None, program: str, part: str) -> Any:
        from unziplora_cli.workflows.export_lora import export_files, plan_export

        project = opened(name)
        folder = Path(tempfile.mkdtemp(dir=context.uploads))
        planned = plan_export(project, PARTS[part], folder, force=False, layout=PROGRAMS[program])
        return gr.update(value=[str(file.path) for file in export_files(planned)], visible=True)

    def import_files(
        files: Any, image: str | None, name: str, subject: str, style: str
    ) -> tuple[None, None, str, str, str, Any]:
        from unziplora_cli.workflows.import_lora import import_project

        if not uploaded(files):
            raise UsageError("Drop a content LoRA and a style LoRA first.")
        described = cache(lambda builtin: describe_images(uploaded(image), builtin=builtin) if image else [])

        def missing(word: str, base: BaseRecord) -> str:
            seen = described(base.kind == "builtin")
            if not seen or not getattr(seen[0], word):
                raise UsageError(f"The files do not name the {word}.", Remedy("Name it in one or two words."))
            return str(getattr(seen[0], word))

        made = import_project(
            context.store,
            uploaded(files),
            {"subject": subject or None, "style": style or None},
            missing,
            name=name or None,
            image=uploaded(image)[0] if image else None,
        )
        for note in made.pair.notes:
            gr.Info(as_text(note), duration=None)
        return None, None, "", "", "", chosen(made.project.name)

    listed = gr.State([])
    changes.change(list_cards, listed, [cards, listed], **HIDDEN)
    cards.select(choose, listed, picker, **HIDDEN)
    picker.change(lambda name: _facts(context, name), picker, facts, **HIDDEN)
    page.click(write_report, picker, report_file, **PRIVATE)
    rename.click(rename_project, [picker, new_name], [picker, new_name], **PRIVATE)
    remove.click(remove_project, [picker, sure], [picker, sure], **PRIVATE)
    export.click(export_files, [picker, program, part], exported, **PRIVATE)
    fields = [dropped, image, import_name, subject, style]
    import_.click(import_files, fields, [*fields, picker], **PRIVATE)
    return [picker]


def _caption(project: Project) -> str:
    words = project.job.words
    return f"{project.name}: {words.subject}" + ("" if words.style == UNNAMED_STYLE else f", {words.style}")


def _facts(context: Context, name: str | None) -> str:
    if not name or not context.store.exists(name):
        return ""
    project = context.store.open(name)
    job, record = project.job, project.manifest
    lines = [
        _caption(project),
        f"base {job.base.spec}",
        "imported"
        if job.settings is None
        else f"rank {job.config.rank}, {record.steps_done} of {job.config.steps} steps",
        f"made {job.created[:10]}",
        *(f"{metric.replace('_', ' ')}: {value:.4g}" for metric, value in record.metrics.items()),
    ]
    if record.evaluation is not None:
        lines += [record.evaluation.diagnosis, *record.evaluation.advice]
        lines += [f"{score.name}: {score.value:.3f}" for score in record.evaluation.scores]
    return "\n".join(lines)
