"""The tab that generates images: content alone, style alone, or both."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import gradio as gr

from unziplora_cli.errors import UsageError
from unziplora_cli.images import parameters_text, read_parameters
from unziplora_cli.ui.components import (
    HIDDEN,
    IMAGES,
    PRIVATE,
    TO_TOP,
    base_and_config,
    import_libraries,
    number,
    number_field,
    project_picker,
    whole,
)

if TYPE_CHECKING:
    from unziplora_cli.config import ComputeConfig
    from unziplora_cli.ui.server import Context
    from unziplora_cli.workflows.generate import GenerateSpec

KINDS = {"content": "Content", "style": "Style", "combine": "Combine"}
SHOWN = 24
"""Images of former jobs in the list."""


def build(context: Context, changes: gr.State) -> list[gr.Dropdown]:
    """The components of the tab; returns its pickers of projects."""
    with gr.Row():
        with gr.Column(scale=1, min_width=300):
            kind = gr.Radio(
                [(text, name) for name, text in KINDS.items()],
                value="combine",
                label="The content of one project, the style of one, or both",
            )
            with gr.Column() as content_row:
                content = project_picker(context, "Content of")
            with gr.Column() as style_row:
                style = project_picker(context, "Style of")
            prompt = gr.Textbox(
                label="Scene", placeholder="on a beach; or a sentence with {subject} and {style}"
            )
            subject = gr.Textbox(label="Another subject in this style", placeholder="house", visible=False)
            prompts = gr.Textbox(label="The prompts", lines=3, interactive=False)
            with gr.Row():
                content_strength, style_strength = (
                    gr.Slider(0, 2, value=1, step=0.05, label=f"{name} strength", min_width=160)
                    for name in ("Content", "Style")
                )
            with gr.Row():
                count = gr.Slider(1, 16, value=2, step=1, label="Images", min_width=140)
                seed = number_field("Seed", "a new one")
            with gr.Row():
                guidance, steps = number_field("Guidance"), number_field("Steps of the sampler")
            start = gr.Button("Generate", variant="primary")
        with gr.Column(scale=2, min_width=300):
            results = gr.Gallery(
                [], label="Images", columns=3, height=560, visible=False, elem_id="results", **IMAGES
            )
            hint = gr.Markdown("Images that you generate appear here; choose one to see its parameters.")
            with gr.Column(visible=False) as beside:
                parameters = gr.Textbox(label="Parameters of the chosen image", lines=3, interactive=False)
                again = gr.Button("Same again with these", size="sm")
    wanted: list[Any] = [kind, content, style, prompt, subject]
    settings = [content_strength, style_strength, guidance, steps, count, seed]
    pinned = gr.State({})  # the prompts of the image whose parameters are used again
    chosen, listed = gr.State(""), gr.State([])

    def make_spec(
        pinned: dict[str, str], kind: str, content: str, style: str, prompt: str, subject: str, *values: Any
    ) -> tuple[GenerateSpec, ComputeConfig]:
        from unziplora_cli.workflows.generate import GenerateSpec

        parts = {
            role: context.store.open(name)
            for role, name in (("content", content), ("style", style))
            if name and kind in (role, "combine")
        }
        if len(parts) < (2 if kind == "combine" else 1):
            raise UsageError(
                "Choose a project for what you want to generate; train one first if there is none."
            )
        given: dict[str, Any] = {}
        if values:
            given = {f"{role}_strength": values[("content", "style").index(role)] for role in parts}
            given |= {"guidance": number(values[2], "Guidance"), "steps": whole(values[3], "Steps")}
            given |= {"count": int(values[4]), "seed": whole(values[5], "Seed")}
        compute, base, config = base_and_config(context, list(parts.values()), given)
        return GenerateSpec(
            base,
            config,
            parts.get("content"),
            parts.get("style"),
            prompt=prompt or None,
            overrides=pinned,
            subject=(subject or None) if kind == "style" else None,
        ), compute

    def preview(*values: Any) -> str:
        if not any(values[2:4]):
            return ""
        import_libraries()
        spec, _ = make_spec(*values)
        labels = ("full", "content", "style") if spec.kind == "combine" else (spec.kind,)
        return "\n".join(f"{label}: {getattr(spec.prompts, label)}" for label in labels)

    def generate(*values: Any) -> None:
        from unziplora_cli.workflows.generate import generate_images

        spec, compute = make_spec(*values)
        title = f"{spec.kind} {spec.title}"
        context.queue.submit(title, "draw", lambda: generate_images(spec, None, compute))

    def latest(before: list[str]) -> Any:
        jobs = [job for job in reversed(context.queue.jobs()) if job.kind == "draw"]
        images = [str(path) for job in jobs for path in job.images if path.exists()][:SHOWN]
        if images == before:
            return [gr.skip()] * 3
        return gr.update(value=images, visible=bool(images)), gr.update(visible=not images), images

    def inspect(images: list[str], event: gr.SelectData) -> tuple[str, str, Any]:
        path = images[int(event.index)]
        return parameters_text(read_parameters(Path(path))), path, gr.update(visible=True)

    def repeat(path: str) -> tuple[Any, ...]:
        """The fields as they were for the chosen image; its seed gives the same image."""
        if not path:
            raise UsageError("Choose an image first.")
        read = read_parameters(Path(path))
        projects, strengths = read.get("projects", {}), read.get("branches", {})
        return (
            read.get("prompts", {}),
            read.get("command", "combine"),
            projects.get("content", gr.skip()),
            projects.get("style", gr.skip()),
            "",
            "",
            strengths.get("content", 1),
            strengths.get("style", 1),
            str(read.get("guidance", "")),
            str(read.get("steps", "")),
            1,
            str(read.get("seed", "")),
        )

    def show_fields(kind: str) -> list[Any]:
        content, style = kind != "style", kind != "content"
        return [gr.update(visible=visible) for visible in (content, content, style, style, kind == "style")]

    gr.on(
        [pinned.change, *(box.change for box in wanted)],
        preview,
        [pinned, *wanted],
        prompts,
        trigger_mode="always_last",
        **HIDDEN,
    )
    gr.on([box.input for box in wanted], lambda: {}, None, pinned, **HIDDEN)
    fields = [content_row, content_strength, style_row, style_strength, subject]
    kind.change(show_fields, kind, fields, **HIDDEN)
    changes.change(latest, listed, [results, hint, listed], **HIDDEN)
    start.click(generate, [pinned, *wanted, *settings], **PRIVATE).success(None, js=TO_TOP)
    results.select(inspect, listed, [parameters, chosen, beside], **HIDDEN)
    again.click(repeat, chosen, [pinned, *wanted, *settings], **HIDDEN)
    return [content, style]
