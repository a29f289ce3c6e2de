"""The tab that generates every content in every style, with a labelled sheet."""

from __future__ import annotations

from collections.abc import Generator
from typing import TYPE_CHECKING, Any

import gradio as gr

from unziplora_cli.errors import UsageError
from unziplora_cli.ui.components import base_and_config, number_field, reporting, whole

if TYPE_CHECKING:
    from unziplora_cli.ui.server import Context


def build(context: Context) -> list[gr.CheckboxGroup]:
    """The components of the tab; returns its pickers of projects."""
    with gr.Row():
        with gr.Column():
            contents = gr.CheckboxGroup([], label="Contents (rows)")
            styles = gr.CheckboxGroup([], label="Styles (columns)")
            prompt = gr.Textbox(label='Scene ("on a beach"), or a sentence with {subject} and {style}')
            seed = number_field("Seed", "a new one")
            start = gr.Button("Generate the sheet", variant="primary")
        with gr.Column():
            cells = gr.Gallery([], label="Cells", columns=4, height=320, object_fit="contain")
            sheet = gr.Image(None, label="Sheet", interactive=False, type="filepath")

    def generate(contents: list[str], styles: list[str], prompt: str, seed: str) -> None:
        from unziplora_cli.workflows.generate import CrossSpec, generate_cross

        if not contents or not styles:
            raise UsageError("Choose at least one content and one style.")
        rows, columns = (tuple(map(context.store.open, names)) for names in (contents, styles))
        compute, base, config = base_and_config(context, [*rows, *columns], {"seed": whole(seed, "seed")})
        spec = CrossSpec(base, config, rows, columns, prompt or None)

        def operation() -> Generator[Any, None, Any]:
            return (yield from generate_cross(spec, None, compute))

        context.queue.submit(f"cross {len(rows)} x {len(columns)}", "cross", operation)

    def latest(before: tuple[Any, ...]) -> tuple[Any, ...]:
        jobs = [job for job in context.queue.jobs() if job.kind == "cross" and job.state != "waiting"]
        if not jobs:
            return gr.skip(), gr.skip(), before
        job = jobs[-1]
        done = str(job.result.sheet) if job.result is not None else None
        now = (tuple(map(str, job.images)), done)
        if now == before:
            return gr.skip(), gr.skip(), before
        return list(now[0]), done, now

    shown = gr.State(())
    hidden: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden"}
    gr.Timer(1.5).tick(latest, shown, [cells, sheet, shown], **hidden)
    start.click(reporting(context, generate), [contents, styles, prompt, seed], api_visibility="private")
    return [contents, styles]
