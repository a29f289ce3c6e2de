"""The tab that trains: drop images, check the words, watch the training, stop it and resume it."""

from __future__ import annotations

from collections.abc import Generator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gradio as gr

from unziplora_cli import events, resources
from unziplora_cli.config import TrainConfig, resolve
from unziplora_cli.errors import Remedy, UsageError
from unziplora_cli.ui.components import number_field, reporting, uploaded, whole

if TYPE_CHECKING:
    from unziplora_cli.sdxl.base import BaseRef
    from unziplora_cli.training.request import TrainRequest
    from unziplora_cli.ui.server import Context

AUTOMATIC = "automatic"
IMAGE_TYPES = [".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".heic", ".heif", ".avif"]


def build(context: Context) -> list[gr.Dropdown]:
    """The components of the tab; it has no pickers of projects."""
    with gr.Row():
        with gr.Column():
            files = gr.File(
                file_count="multiple", file_types=IMAGE_TYPES, label="Images, one project each", height=160
            )
            images = gr.Gallery([], label="What was given", columns=4, height=180, object_fit="contain")
        with gr.Column():
            subject = gr.Textbox(label="Subject, one or two words (fox)")
            style = gr.Textbox(label="Style, one or two words (watercolor)")
            features = gr.Textbox(label="Features that distinguish it (orange, white dots)")
            name = gr.Textbox(label="Name of the project (empty: the file's name)")
            base = gr.Dropdown(_bases(), value=AUTOMATIC, label="Base")
            with gr.Accordion("More settings", open=False):
                preset = gr.Dropdown([AUTOMATIC, *resources.preset_names()], value=AUTOMATIC, label="Preset")
                steps = number_field("Steps")
                rank = number_field("Rank")
                seed = number_field("Seed")
                interval = number_field("Steps between validation images")
            estimate = gr.Textbox(label="Estimate", interactive=False, lines=2)
            start = gr.Button("Train", variant="primary")
            with gr.Row():
                unfinished = gr.Dropdown([], label="Unfinished trainings", scale=2)
                resume = gr.Button("Resume", size="sm")
    chosen = [base, preset, steps, rank, seed, interval]

    def settings(base: str, preset: str, *texts: str) -> tuple[BaseRef, TrainConfig]:
        from unziplora_cli.sdxl.base import resolve_base

        model, _ = resolve_base(None if base == AUTOMATIC else base, offline=context.offline)
        names = ("steps", "rank", "seed", "validate_every")
        given = {name: whole(text, name.replace("_", " ")) for name, text in zip(names, texts, strict=True)}
        named = resources.default_preset(model.kind) if preset == AUTOMATIC else preset
        return model, resolve(named, {name: value for name, value in given.items() if value is not None})

    def show_estimate(*values: Any) -> str:
        from unziplora_cli.training.estimate import estimate_training

        model, config = settings(*values)
        found = estimate_training(model, config, "auto")
        if found.too_slow:
            return f"{found.base} needs a GPU; this machine has none. The base mini trains here in minutes."
        memory, free = found.required_bytes / 2**30, found.free_bytes / 2**30
        verdict = "" if found.fits else " It does not fit: lower the rank or the steps, or close programs."
        return (
            f"About {found.time.total / 60:.0f} min for {config.steps} steps, {memory:.1f} GiB of memory "
            f"({free:.1f} GiB are free).{verdict}"
        )

    def receive(files: Any, base: str) -> tuple[Any, ...]:
        """Read the images as the commands do, and propose the words of the first."""
        from unziplora_cli.images import load_image
        from unziplora_cli.sdxl.base import resolve_base
        from unziplora_cli.workflows.describe import can_describe, describe

        paths = uploaded(files)
        if not paths:
            return [], gr.skip(), gr.skip(), gr.skip()
        loaded = [(load_image(path).image, path.name) for path in paths]
        model, _ = resolve_base(None if base == AUTOMATIC else base, offline=context.offline)
        builtin = model.kind == "builtin"
        if len(paths) > 1 or not can_describe(builtin=builtin):
            return loaded, gr.skip(), gr.skip(), gr.skip()
        (said,) = events.run(describe(paths, builtin=builtin))
        return loaded, said.subject, said.style, ", ".join(said.features)

    def train(files: Any, subject: str, style: str, features: str, name: str, *values: Any) -> None:
        paths = uploaded(files)
        if not paths:
            raise UsageError("Drop an image first.")
        if name and len(paths) > 1:
            raise UsageError("One name, but several images: leave the name empty.")
        model, config = settings(*values)
        requests = [
            _request(context, path, (subject, style, features), name, model, config) for path in paths
        ]
        for request in requests:
            _submit(context, request)

    def go_on(name: str | None) -> None:
        from unziplora_cli.workflows.train import request_to_resume

        if not name:
            raise UsageError("There is no unfinished training.")
        _submit(context, request_to_resume(context.store, name, {}))

    def list_unfinished(before: list[str]) -> tuple[Any, Any]:
        names = _unfinished(context)
        if names == before:
            return gr.skip(), gr.skip()
        return gr.update(choices=names, value=names[0] if names else None), names

    hidden: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden"}
    files.change(
        reporting(context, receive),
        [files, base],
        [images, subject, style, features],
        api_visibility="private",
    ).then(reporting(context, show_estimate), chosen, estimate, **hidden)
    gr.on(
        [component.change for component in chosen],
        reporting(context, show_estimate),
        chosen,
        estimate,
        trigger_mode="always_last",
        **hidden,
    )
    start.click(
        reporting(context, train), [files, subject, style, features, name, *chosen], api_visibility="private"
    )
    resume.click(reporting(context, go_on), unfinished, api_visibility="private")
    listed = gr.State(["?"])
    gr.Timer(2).tick(reporting(context, list_unfinished), listed, [unfinished, listed], **hidden)
    return []


def _bases() -> list[str]:
    from unziplora_cli.model_cache import list_models

    return [AUTOMATIC, *dict.fromkeys(model.spec for model in list_models() if not model.problem)]


def _unfinished(context: Context) -> list[str]:
    """Trainings that can be resumed: those that were cut off, and stopped ones that are projects."""
    cut_off = [training.name for training in context.store.all_unfinished()[0]]
    stopped = [project.name for project in context.store.list()[0] if project.manifest.state == "interrupted"]
    running = {job.title.removeprefix("train ") for job in context.queue.jobs() if not job.ended}
    return sorted({*cut_off, *stopped} - running)


def _request(
    context: Context,
    path: Path,
    texts: tuple[str, str, str],
    name: str,
    model: BaseRef,
    config: TrainConfig,
) -> TrainRequest:
    from unziplora_cli.projects.names import check_name, slugify
    from unziplora_cli.prompts import TRIGGER, make_words, split_features
    from unziplora_cli.workflows.train import make_request

    chosen = check_name(name) if name else slugify(path.stem)
    if context.store.exists(chosen) or context.store.unfinished(chosen) is not None:
        free = context.store.free_name(chosen)
        raise UsageError(
            f"There is a project {chosen!r} already.", Remedy(f"Choose another name, such as {free}.")
        )
    subject, style, features = texts
    words = make_words(subject, style, TRIGGER)
    return make_request(chosen, [path], words, model, config, features=split_features(features))


def _submit(context: Context, request: TrainRequest) -> None:
    """Queue a training and the sheet after it."""
    from unziplora_cli.workflows.sheet import generate_sheets
    from unziplora_cli.workflows.train import train

    def operation() -> Generator[Any, None, Any]:
        trained = yield from train(request, context.store)
        assert trained is not None
        return (yield from generate_sheets([trained.project], request.base))

    context.queue.submit(f"train {request.job.name}", "train", operation)
