"""The tab that trains: drop images, check the words, watch the training, stop it and resume it."""

from __future__ import annotations

from collections.abc import Generator, Set
from itertools import zip_longest
from typing import TYPE_CHECKING, Any

import gradio as gr

from unziplora_cli import preferences, resources
from unziplora_cli.config import TrainConfig
from unziplora_cli.errors import Remedy, UsageError
from unziplora_cli.ui.components import (
    HIDDEN,
    IMAGES,
    PRIVATE,
    TO_TOP,
    describe_images,
    import_libraries,
    number_field,
    uploaded,
    whole,
)

if TYPE_CHECKING:
    from unziplora_cli.job import Description
    from unziplora_cli.sdxl.base import BaseRef
    from unziplora_cli.training.request import TrainRequest
    from unziplora_cli.ui.server import Context

AUTOMATIC = "automatic"


def build(context: Context, changes: gr.State) -> list[gr.Dropdown]:
    """The components of the tab; it has no pickers of projects."""
    from unziplora_cli.model_cache import list_models

    bases = [AUTOMATIC, *dict.fromkeys(model.spec for model in list_models() if not model.problem)]
    with gr.Row():
        with gr.Column(scale=1, min_width=300):
            files = gr.File(file_count="multiple", label="Images, one project each", height=150)
            images = gr.Gallery([], label="Training images", columns=4, height=220, visible=False, **IMAGES)
            with gr.Row(visible=False, elem_id="unfinished") as unfinished_row:
                unfinished = gr.Dropdown([], label="Unfinished trainings", scale=2)
                resume = gr.Button("Resume", size="sm")
        with gr.Column(scale=1, min_width=300):
            with gr.Row():
                subject = gr.Textbox(label="Subject, one or two words", placeholder="fox", min_width=200)
                style = gr.Textbox(label="Style, one or two words", placeholder="watercolor", min_width=200)
            features = gr.Textbox(label="Features that distinguish it", placeholder="orange, white dots")
            with gr.Row():
                name = gr.Textbox(label="Name of the project", placeholder="the file's name", min_width=200)
                base = gr.Dropdown(bases, value=AUTOMATIC, label="Base", min_width=200)
            with gr.Accordion("More settings", open=False):
                with gr.Row():
                    preset = gr.Dropdown(
                        [AUTOMATIC, *resources.preset_names()], value=AUTOMATIC, label="Preset", min_width=120
                    )
                    steps, rank = number_field("Steps"), number_field("Rank")
                with gr.Row():
                    seed, destyled = number_field("Seed"), number_field("Destyled images")
                    interval = number_field("Steps between validation images")
            estimate = gr.Textbox(
                label="Estimate",
                placeholder="memory and time, once there is an image",
                interactive=False,
                lines=2,
            )
            start = gr.Button("Train", variant="primary")
    chosen: list[Any] = [base, preset, steps, rank, seed, interval, destyled]

    def settings(base: str, preset: str, *texts: str) -> tuple[BaseRef, TrainConfig]:
        from unziplora_cli.workflows.train import training_config

        model = _base(context, base)
        names = ("steps", "rank", "seed", "validate_every", "destyle_images")
        boxes = zip(names, chosen[2:], texts, strict=True)
        given = {name: whole(text, box.label) for name, box, text in boxes}
        return model, training_config(model, None if preset == AUTOMATIC else preset, given)[1]

    def show_estimate(files: Any, *values: Any) -> str:
        import_libraries()
        from rich.filesize import decimal

        from unziplora_cli.training.estimate import estimate_training

        try:
            model, config = settings(*values)
        except UsageError as error:
            return str(error)
        needed = estimate_training(model, config, "auto")
        if needed.too_slow:
            return f"{needed.base} needs a GPU; this machine has none. The base mini trains here in minutes."
        images = max(len(uploaded(files)), 1)
        several = f"{images} images of " if images > 1 else ""
        notes = "" if needed.fits else " It does not fit: lower the rank, or close other programs."
        notes += f"\n{resources.MINI_DESCRIPTION}" if model.kind == "builtin" else ""
        return (
            f"About {max(needed.time.total * images / 60, 0.1):.1f} min for {several}{config.steps} steps, "
            f"{decimal(needed.required_bytes)} of memory ({decimal(needed.free_bytes)} are free).{notes}"
        )

    def receive(files: Any, base: str) -> tuple[Any, tuple[str, ...]]:
        """Read the images as the commands do, and propose the words of a single one."""
        from unziplora_cli.images import load_image

        paths = uploaded(files)
        loaded = [(load_image(path).image, path.name) for path in paths]
        model = _base(context, base)
        proposed = describe_images(paths, builtin=model.kind == "builtin") if len(paths) == 1 else []
        now = next(((one.subject, one.style, ", ".join(one.features)) for one in proposed), ("",) * 3)
        return gr.update(value=loaded, visible=bool(loaded)), now

    def fill(proposed: tuple[str, ...], before: tuple[str, ...], *words: str) -> tuple[Any, ...]:
        """Put the proposal into the fields; what was typed stays, also during the description."""
        fields = zip(proposed, before, words, strict=True)
        return proposed, *(new if word in ("", old) else word for new, old, word in fields)

    def train(files: Any, subject: str, style: str, features: str, name: str, *values: Any) -> list[Any]:
        """Queue a training of each image, and empty the fields for the next ones."""
        from unziplora_cli.projects.names import check_name, slugify
        from unziplora_cli.workflows.describe import settle_words
        from unziplora_cli.workflows.train import make_request

        paths = uploaded(files)
        if not paths:
            raise UsageError("Drop an image first.")
        if name and len(paths) > 1:
            raise UsageError("One name, but several images: leave the name empty.")
        model, config = settings(*values)
        texts = {"subject": subject.strip(), "style": style.strip(), "features": features or None}
        described: list[Description] = []
        if len(paths) > 1 and not (subject and style):
            described = describe_images(paths, builtin=model.kind == "builtin")
        requests: list[TrainRequest] = []

        def ask(word: str) -> Remedy:
            return Remedy(f"Name its {word} in one or two words.")

        for path, description in zip_longest(paths, described):
            chosen = check_name(name) if name else slugify(path.stem)
            _check_unused(context, chosen, context.queue.projects() | {one.job.name for one in requests})
            settled = settle_words(path, texts, description, ask, may_pull=model.kind != "builtin")
            notes: dict[str, Any] = {"features": settled.features, "description": settled.description}
            requests.append(make_request(chosen, [path], settled.words, model, config, **notes))
        for request in requests:
            _submit(context, request)
        return [None, *[""] * 4]

    def go_on(name: str | None) -> None:
        from unziplora_cli.workflows.train import request_to_resume

        if not name:
            raise UsageError("There is no unfinished training.")
        _submit(context, request_to_resume(context.store, name, {}))

    def list_unfinished(before: list[str]) -> tuple[Any, ...]:
        names = _unfinished(context)
        if names == before:
            return gr.skip(), gr.skip(), gr.skip()
        return gr.update(visible=bool(names)), gr.update(choices=names, value=next(iter(names), None)), names

    proposed, filled, words = gr.State(("",) * 3), gr.State(("",) * 3), [subject, style, features]
    files.change(receive, [files, base], [images, proposed], **PRIVATE).success(
        fill, [proposed, filled, *words], [filled, *words], **HIDDEN
    ).success(show_estimate, [files, *chosen], estimate, **HIDDEN)
    gr.on(
        [component.change for component in chosen],
        show_estimate,
        [files, *chosen],
        estimate,
        trigger_mode="always_last",
        **HIDDEN,
    )
    fields = [files, *words, name]
    start.click(train, [*fields, *chosen], fields, **PRIVATE).success(None, js=TO_TOP)
    resume.click(go_on, unfinished, **PRIVATE)
    listed = gr.State(["?"])
    changes.change(list_unfinished, listed, [unfinished_row, unfinished, listed], **HIDDEN)
    return []


def _base(context: Context, spec: str) -> BaseRef:
    from unziplora_cli.sdxl.base import resolve_base

    named = preferences.load().base if spec == AUTOMATIC else spec
    return resolve_base(named, offline=context.offline)[0]


def _unfinished(context: Context) -> list[str]:
    """Trainings that can be resumed: those that were cut off, and stopped ones that are projects."""
    cut_off = [training.name for training in context.store.all_unfinished()[0]]
    stopped = [project.name for project in context.store.list()[0] if project.manifest.state == "interrupted"]
    return sorted({*cut_off, *stopped} - context.queue.projects())


def _check_unused(context: Context, name: str, taken: Set[str]) -> None:
    if name in taken or context.store.exists(name) or context.store.unfinished(name) is not None:
        free = context.store.free_name(name)
        raise UsageError(
            f"There is a project {name!r} already.", Remedy(f"Choose another name, such as {free}.")
        )


def _submit(context: Context, request: TrainRequest) -> None:
    """Queue a training and the sheet after it."""
    from unziplora_cli.workflows.sheet import generate_sheets
    from unziplora_cli.workflows.train import train

    def operation() -> Generator[Any, None, Any]:
        trained = yield from train(request, context.store)
        assert trained is not None
        return (yield from generate_sheets([trained.project], request.base))

    context.queue.submit(f"train {request.job.name}", "train", operation, request.job.name)
