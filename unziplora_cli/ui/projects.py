"""The tab of the projects: look at them, rename, remove, export for other programs, and import."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gradio as gr

from unziplora_cli.errors import UsageError
from unziplora_cli.ui.components import project_picker, reporting, thumbnail, uploaded

if TYPE_CHECKING:
    from unziplora_cli.projects.store import Project
    from unziplora_cli.ui.server import Context

PROGRAMS = {
    "ComfyUI, A1111, Forge, InvokeAI, diffusers": "sd-scripts",
    "diffusers alone (peft names)": "peft",
}
PARTS = {
    "content and style, two files": ("content", "style"),
    "content": ("content",),
    "style": ("style",),
    "both in one file": ("combined",),
    "everything, for unziplora": ("content", "style", "merge"),
}


def build(context: Context) -> list[gr.Dropdown]:
    """The components of the tab; returns its picker of projects."""
    cards = gr.Gallery([], label="All projects", columns=6, height=300, object_fit="contain")
    with gr.Row():
        with gr.Column():
            picker, _ = project_picker(context, "Project")
            facts = gr.Textbox(label="About it", lines=8, interactive=False)
        with gr.Column():
            page = gr.DownloadButton("Make its report page", size="sm")
            with gr.Row():
                new_name = gr.Textbox(label="New name")
                rename = gr.Button("Rename", size="sm")
            with gr.Row():
                sure = gr.Checkbox(False, label="Yes, delete it with all its files")
                remove = gr.Button("Remove", size="sm", variant="stop")
            with gr.Row():
                program = gr.Dropdown(list(PROGRAMS), value=next(iter(PROGRAMS)), label="For")
                part = gr.Dropdown(list(PARTS), value=next(iter(PARTS)), label="Part")
            export = gr.Button("Export")
            exported = gr.File(label="Exported files", file_count="multiple", interactive=False)
        with gr.Column():
            dropped = gr.File(
                file_count="multiple", label="Import: a content LoRA and a style LoRA", height=140
            )
            import_name = gr.Textbox(label="Name of the project (empty: from the files)")
            subject = gr.Textbox(label="Subject (empty: from the files)")
            style = gr.Textbox(label="Style (empty: from the files)")
            import_ = gr.Button("Import")

    def opened(name: str | None) -> Project:
        if not name:
            raise UsageError("Choose a project first.")
        return context.store.open(name)

    def list_cards(before: list[Any]) -> tuple[Any, Any]:
        projects, _ = context.store.list()
        now = [(thumbnail(context, project.name), _caption(project)) for project in projects]
        now = [(image, text) for image, text in now if image is not None]
        return (gr.skip(), before) if now == before else (now, now)

    def choose(event: gr.SelectData) -> str:
        return str(event.value["caption"]).partition(":")[0]

    def write_report(name: str | None) -> str:
        from unziplora_cli.workflows.report import report

        project = opened(name)
        folder = Path(tempfile.mkdtemp(dir=context.uploads))
        return str(report(project, folder / f"{project.name}.html").file)

    def rename_project(name: str | None, new: str) -> tuple[str, str]:
        context.store.rename(opened(name).name, new.strip())
        return new.strip(), ""

    def remove_project(name: str | None, sure: bool) -> bool:
        project = opened(name)
        if not sure:
            raise UsageError(f"Tick the box to delete {project.name!r} with all its files.")
        context.store.remove(project.name)
        return False

    def export_files(name: str | None, program: str, part: str) -> list[str]:
        from unziplora_cli.workflows.export_lora import export_files, plan_export

        project = opened(name)
        folder = Path(tempfile.mkdtemp(dir=context.uploads))
        planned = plan_export(project, PARTS[part], folder, force=False, layout=PROGRAMS[program])
        return [str(file.path) for file in export_files(planned)]

    def import_files(files: Any, name: str, subject: str, style: str) -> tuple[None, str]:
        from unziplora_cli.projects.names import check_name, slugify
        from unziplora_cli.prompts import TRIGGER, make_words
        from unziplora_cli.workflows import export_lora, import_lora

        if not uploaded(files):
            raise UsageError("Drop a content LoRA and a style LoRA first.")
        sources = import_lora.find_pair(uploaded(files))
        pair = import_lora.read_pair(sources)
        words = make_words(
            subject or pair.word("subject", "content") or "",
            style or pair.word("style", "style") or "",
            pair.word("trigger", "content") or TRIGGER,
        )
        chosen = check_name(name) if name else slugify(sources.name)
        record = export_lora.detect_base(pair.loras)
        project = import_lora.import_pair(context.store, chosen, pair, words, record)
        return None, project.name

    hidden: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden"}
    private: dict[str, Any] = {"api_visibility": "private"}
    listed = gr.State([])
    gr.Timer(2).tick(reporting(context, list_cards), listed, [cards, listed], **hidden)
    cards.select(choose, None, picker, **hidden)
    picker.change(reporting(context, lambda name: _facts(context, name)), picker, facts, **hidden)
    page.click(reporting(context, write_report), picker, page, **private)
    rename.click(reporting(context, rename_project), [picker, new_name], [picker, new_name], **private)
    remove.click(reporting(context, remove_project), [picker, sure], sure, **private)
    export.click(reporting(context, export_files), [picker, program, part], exported, **private)
    import_.click(
        reporting(context, import_files), [dropped, import_name, subject, style], [dropped, picker], **private
    )
    return [picker]


def _caption(project: Project) -> str:
    words = project.job.words
    return f"{project.name}: {words.subject}, {words.style}"


def _facts(context: Context, name: str | None) -> str:
    if not name:
        return ""
    project = context.store.open(name)
    job, record = project.job, project.manifest
    lines = [
        _caption(project),
        f"base {job.base.spec}, rank {job.config.rank}, {record.steps_done} of {job.config.steps} steps",
        f"made {job.created}",
        *(f"{metric}: {value:.4g}" for metric, value in record.metrics.items()),
    ]
    if record.evaluation is not None:
        lines += [f"{score.name}: {score.value:.3f}" for score in record.evaluation.scores]
    return "\n".join(lines)
