"""The tab that generates every content in every style, with a labelled sheet."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import gradio as gr

from unziplora_cli.errors import UsageError
from unziplora_cli.ui.components import HIDDEN, IMAGES, PRIVATE, TO_TOP, base_and_config, number_field, whole

if TYPE_CHECKING:
    from unziplora_cli.ui.server import Context


def build(context: Context, changes: gr.State) -> list[gr.CheckboxGroup]:
    """The components of the tab; returns its pickers of projects."""
    with gr.Row():
        with gr.Column(scale=1, min_width=300):
            contents = gr.CheckboxGroup([], label="Contents (rows)", elem_id="contents")
            styles = gr.CheckboxGroup([], label="Styles (columns)", elem_id="styles")
            prompt = gr.Textbox(
                label="Scene", placeholder="on a beach; or a sentence with {subject} and {style}"
            )
            seed = number_field("Seed", "a new one")
            start = gr.Button("Generate the sheet", variant="primary")
        with gr.Column(scale=2, min_width=300):
            hint = gr.Markdown("The cells appear here, then the sheet of all of them.")
            cells = gr.Gallery([], label="Cells", columns=4, height=320, visible=False, **IMAGES)
            sheet = gr.Image(
                None,
                label="Sheet",
                interactive=False,
                format="png",
                visible=False,
                buttons=["download", "fullscreen"],
                alt_text="All contents in all styles",
            )

    def generate(contents: list[str], styles: list[str], prompt: str, seed: str) -> None:
        from unziplora_cli.workflows.generate import CrossSpec, generate_cross

        if not contents or not styles:
            raise UsageError("Choose at least one content and one style.")
        rows, columns = (tuple(map(context.store.open, names)) for names in (contents, styles))
        compute, base, config = base_and_config(context, [*rows, *columns], {"seed": whole(seed, "Seed")})
        spec = CrossSpec(base, config, rows, columns, prompt or None)
        title = f"cross {len(rows)} x {len(columns)}"
        context.queue.submit(title, "cross", lambda: generate_cross(spec, None, compute))

    def latest(before: tuple[Any, ...]) -> tuple[Any, ...]:
        """Cells and sheet of the last cross that began."""
        job = context.queue.latest("cross")
        images = [str(path) for path in job.images if path.exists()] if job else []
        done = str(job.result.sheet) if job and job.result is not None else None
        now = (tuple(images), done)
        if now == before:
            return (gr.skip(),) * 4
        return (
            gr.update(value=images, visible=bool(images)),
            gr.update(visible=not images),
            gr.update(value=done, visible=done is not None),
            now,
        )

    shown = gr.State(())
    changes.change(latest, shown, [cells, hint, sheet, shown], **HIDDEN)
    start.click(generate, [contents, styles, prompt, seed], **PRIVATE).success(None, js=TO_TOP)
    return [contents, styles]
