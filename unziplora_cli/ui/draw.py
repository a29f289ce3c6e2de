"""The tab that generates images: content alone, style alone, or both."""

from __future__ import annotations

from collections.abc import Generator
from typing import TYPE_CHECKING, Any

import gradio as gr

from unziplora_cli.errors import UsageError
from unziplora_cli.images import parameters_text, read_parameters
from unziplora_cli.ui.components import (
    base_and_config,
    inside_home,
    number,
    number_field,
    project_picker,
    reporting,
    whole,
)

if TYPE_CHECKING:
    from unziplora_cli.ui.server import Context
    from unziplora_cli.workflows.generate import GenerateSpec

KINDS = {"content": "Content: the subject without its style", "style": "Style: on something else"}
KINDS["combine"] = "Combine: content of one, style of another"


def build(context: Context) -> list[gr.Dropdown]:
    """The components of the tab; returns its pickers of projects."""
    with gr.Row():
        with gr.Column():
            kind = gr.Radio([(text, name) for name, text in KINDS.items()], value="combine", label="What")
            with gr.Row():
                with gr.Column():
                    content, _ = project_picker(context, "Content")
                with gr.Column():
                    style, _ = project_picker(context, "Style")
            prompt = gr.Textbox(label='Scene ("on a beach"), or a sentence with {subject} and {style}')
            subject = gr.Textbox(label="Another subject for the style (house, cat)")
            prompts = gr.Textbox(label="The prompts", lines=3, interactive=False)
            with gr.Row():
                content_strength = gr.Slider(0, 2, value=1, step=0.05, label="Content strength")
                style_strength = gr.Slider(0, 2, value=1, step=0.05, label="Style strength")
            with gr.Accordion("More settings", open=False):
                guidance = number_field("Guidance")
                steps = number_field("Steps")
                count = gr.Slider(1, 16, value=2, step=1, label="Number of images")
                seed = number_field("Seed", "a new one")
            start = gr.Button("Generate", variant="primary")
        with gr.Column():
            results = gr.Gallery([], label="Images", columns=2, object_fit="contain", height=520)
            parameters = gr.Textbox(label="Its parameters", lines=6, interactive=False)
            again = gr.Button("Same again with these settings", size="sm")
    chosen = gr.State("")
    wanted = [kind, content, style, prompt, subject]
    settings = [content_strength, style_strength, guidance, steps, count, seed]

    def make_spec(
        kind: str, content: str, style: str, prompt: str, subject: str, *values: Any
    ) -> tuple[GenerateSpec, Any]:
        from unziplora_cli.workflows.generate import GenerateSpec

        names = {"content": content, "style": style}
        unused = {"content": ("style_strength",), "style": ("content_strength",), "combine": ()}
        parts = {
            role: context.store.open(name)
            for role, name in names.items()
            if name and kind in (role, "combine")
        }
        given: dict[str, Any] = {}
        if values:
            given = {"content_strength": values[0], "style_strength": values[1], "count": int(values[4])}
            given["guidance"] = number(values[2], "guidance")
            given["steps"], given["seed"] = whole(values[3], "steps"), whole(values[5], "seed")
            given = {name: value for name, value in given.items() if name not in unused[kind]}
        compute, base, config = base_and_config(context, list(parts.values()), given)
        if kind == "combine" and len(parts) < 2:
            raise UsageError("Choose a project for the content and one for the style.")
        spec = GenerateSpec(
            base,
            config,
            **parts,
            prompt=prompt or None,
            subject=(subject or None) if kind == "style" else None,
        )
        return spec, compute

    def preview(*values: Any) -> str:
        spec, _ = make_spec(*values)
        labels = ("full", "content", "style") if spec.kind == "combine" else (spec.kind,)
        return "\n".join(f"{label}: {getattr(spec.prompts, label)}" for label in labels)

    def generate(*values: Any) -> None:
        from unziplora_cli.workflows.generate import generate_images

        spec, compute = make_spec(*values)
        project = spec.content or spec.style
        assert project is not None

        def operation() -> Generator[Any, None, Any]:
            return (yield from generate_images(spec, project.images, compute))

        context.queue.submit(f"{spec.kind} {spec.title}", "draw", operation)

    def latest(before: list[str]) -> Any:
        done = [job for job in context.queue.jobs() if job.kind == "draw" and job.result is not None]
        images = [str(path) for job in reversed(done) for path in job.result.images][:24]
        return (gr.skip(), before) if images == before else (images, images)

    def inspect(event: gr.SelectData) -> tuple[str, str]:
        path = inside_home(context, event.value["image"]["path"])
        return parameters_text(read_parameters(path)), str(path)

    def repeat(path: str) -> tuple[Any, ...]:
        if not path:
            raise UsageError("Choose an image first.")
        read = read_parameters(inside_home(context, path))
        names = ("content_strength", "style_strength", "guidance", "steps", "seed")
        return tuple(gr.skip() if read.get(name) is None else read.get(name) for name in names)

    listed = gr.State([])
    timer = gr.Timer(1.5)
    hidden: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden"}
    timer.tick(latest, listed, [results, listed], **hidden)
    gr.on(
        [box.change for box in (kind, content, style, prompt, subject)],
        lambda *values: "" if not (values[1] or values[2]) else reporting(context, preview)(*values),
        wanted,
        prompts,
        trigger_mode="always_last",
        **hidden,
    )
    start.click(reporting(context, generate), [*wanted, *settings], api_visibility="private")
    results.select(reporting(context, inspect), None, [parameters, chosen], **hidden)
    again.click(
        reporting(context, repeat),
        chosen,
        [content_strength, style_strength, guidance, steps, seed],
        **hidden,
    )
    return [content, style]
