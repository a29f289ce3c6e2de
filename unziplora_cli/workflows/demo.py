"""The demo: two trainings with the built-in base, and one sheet of what their LoRAs generate."""

from __future__ import annotations

import multiprocessing
import os
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass, replace
from functools import partial
from itertools import accumulate, pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from unziplora_cli import resources
from unziplora_cli.config import ComputeConfig, TrainConfig, Words, resolve, resolve_generate
from unziplora_cli.errors import Remedy, UsageError
from unziplora_cli.events import Notice, Part, Phase, run, translate
from unziplora_cli.files import alternatives, check_writable, refuse_existing, write_errors
from unziplora_cli.projects.store import Project, ProjectStore
from unziplora_cli.training.request import TrainRequest
from unziplora_cli.workflows.describe import describe
from unziplora_cli.workflows.generate import AdapterCache, GenerateSpec, collect_images, source_image
from unziplora_cli.workflows.train import TrainedProject, make_request, train

if TYPE_CHECKING:
    from multiprocessing.process import BaseProcess

    from PIL import Image

    from unziplora_cli.sdxl.base import BaseRef
    from unziplora_cli.training.events import Event

PRESET = "mini"
SETTINGS = {"steps": 300, "content_lr": 1.5e-3, "style_lr": 8e-4}
"""Three fifths of the preset's time; on tuning images as good but for markings (benchmarks/README.md)."""
SHEET = "unziplora-demo.png"
SAMPLES = ("fox", "octopus")
SCENES = ("on a beach", "in the snow", "in space")
OTHER_SUBJECTS = ("house", "rocket", "teapot", "mushroom")
SCENE_STYLE_STRENGTH = 0.6
"""At full strength, the style LoRA paints the background of the training image over the scene."""

SHARES = {False: (0.01, 0.42, 0.01, 0.42, 0.14), True: (0.03, 0.73, 0.24)}
"""Shares of the time of destyling, training, and so on, and generating; True: with a second process."""
SECOND_PROCESS = 2**30
"""Bytes of free memory from which on a second process trains as well."""

RequestFactory = Callable[[], TrainRequest]
"""Makes a request in the process that trains it: a request holds functions, which cannot be sent."""
Row = tuple[str, str, list[tuple[str, GenerateSpec]]]
"""Title and note of a row, and a caption with what to generate for each cell."""


@dataclass(frozen=True)
class DemoResult:
    """The file of the sheet, the names of both projects, the number of images and the seconds it took."""

    sheet: Path
    projects: tuple[str, str]
    images: int
    seconds: float


def demo(
    store: ProjectStore, out: Path, *, device: str = "auto", force: bool = False
) -> Generator[Event, None, DemoResult]:
    """Train ``demo-fox`` and ``demo-octopus``, and write a sheet with images of the base, each LoRA and both.

    ``out`` is an image file or a folder; an existing file is replaced only with ``force``. Raises UsageError
    or ProjectError before the training if it cannot be written.
    """
    started = time.monotonic()
    out = out / SHEET if out.is_dir() else out
    if out.suffix.lower() not in (".png", ".jpg", ".jpeg", ".webp"):
        raise UsageError(
            f"{out} is not an image file.", Remedy("Write the sheet to", settings={"out": SHEET})
        )
    check_writable(out.parent)
    refuse_existing([out], force=force)
    from unziplora_cli.images import save_image
    from unziplora_cli.sdxl.base import resolve_base

    base, _ = resolve_base("mini", offline=True)
    projects: list[Project] = []
    images = [resources.samples()[sample].image for sample in SAMPLES]
    features: list[tuple[str, ...]] = [()] * len(images)
    if resources.has_reader():
        features = [one.features for one in (yield from describe(images, builtin=True))]
    config = resolve(PRESET, SETTINGS)
    factories = [partial(_request, *one, base, config, device) for one in zip(SAMPLES, features, strict=True)]
    with second_process(store, device, factories[1]) as process:
        parts = [Part(*ends) for ends in pairwise(accumulate(SHARES[process is not None], initial=0.0))]
        for factory in factories:
            request = factory()
            learned = train(request, store)
            if process is None or not projects:
                learned = _in_parts(learned, parts)
            else:
                yield Phase("train", f"{request.job.name}, in a second process")
                process.join()
                if process.exitcode == 0:
                    projects.append(store.open(request.job.name))
                    break
            if (trained := (yield from learned)) is not None:
                projects.append(trained.project)
                yield Notice(f"{trained.project.name}: trained in {trained.seconds:.0f} s")
    first, second = projects
    yield parts.pop(0)
    sheet, count = yield from _generate_sheet(first, second, base, device)
    with write_errors(out.parent):
        out.parent.mkdir(parents=True, exist_ok=True)
        format = out.suffix[1:].lower().replace("jpg", "jpeg")
        out = save_image(sheet, alternatives(out), force=force, format=format)
    return DemoResult(out, (first.name, second.name), count, time.monotonic() - started)


@contextmanager
def second_process(store: ProjectStore, device: str, factory: RequestFactory) -> Iterator[BaseProcess | None]:
    """A process that trains as well, as a training uses one core; None on a GPU, or without room for it."""
    import torch

    from unziplora_cli.accel.device import pick_device
    from unziplora_cli.training.memory import free_memory

    cpu = pick_device(device)
    if cpu.type != "cpu" or torch.get_num_threads() < 2 or free_memory(cpu) < SECOND_PROCESS:
        yield None
        return
    spawn = multiprocessing.get_context("spawn")
    process = spawn.Process(target=_train_silently, args=(store, factory), daemon=True)
    process.start()
    try:
        yield process
    finally:
        process.terminate()
        process.join()


def _train_silently(store: ProjectStore, factory: RequestFactory) -> None:
    """Train; exit code 1 if that fails, since the first process then does it and says why."""
    with Path(os.devnull).open("w") as nowhere, redirect_stdout(nowhere), redirect_stderr(nowhere):
        try:
            run(train(factory(), store))
        except BaseException as error:
            raise SystemExit(1) from error


def _in_parts(
    training: Generator[Event, None, TrainedProject | None], parts: list[Part]
) -> Generator[Event, None, TrainedProject | None]:
    """The events and the result of a training, with the next of ``parts`` before destyling and training.

    Destyling begins anew if its first way shows another subject; that is the same part.
    """
    begun: set[str] = set()

    def with_part(event: Event) -> tuple[Event, ...]:
        if isinstance(event, Phase) and event.name in {"destyle", "train"} - begun:
            begun.add(event.name)
            return parts.pop(0), event
        return (event,)

    return translate(training, with_part)


def _request(
    name: str, features: tuple[str, ...], base: BaseRef, config: TrainConfig, device: str
) -> TrainRequest:
    sample = resources.samples()[name]
    return make_request(
        f"demo-{name}",
        (sample.image,),
        Words(sample.subject, sample.style),
        base,
        config,
        features=features,
        device=device,
        replaces=True,
    )


def _rows(first: Project, second: Project, base: BaseRef) -> list[Row]:
    words, prompts, other = first.manifest.job.words, first.manifest.job.prompts, second.manifest.job.words
    style = words.style
    config = resolve_generate(PRESET, {})
    scene_config = replace(config, style_strength=SCENE_STYLE_STRENGTH)

    def spec(**parts: Any) -> GenerateSpec:
        return GenerateSpec(base, **{"config": config, **parts})

    def scenes(**parts: Any) -> list[tuple[str, GenerateSpec]]:
        return [(scene, spec(prompt=scene, **parts)) for scene in SCENES]

    before = (prompts.content, prompts.style, f"a house in {style} style")
    return [
        (
            "before",
            f"the base alone knows neither this {words.subject} nor {style}",
            [(f"“{prompt}”", spec(overrides={"full": prompt})) for prompt in before],
        ),
        (
            "content",
            f"this {words.subject}, without {style}",
            [(f"“{prompts.content}”", spec(content=first)), *scenes(content=first)],
        ),
        (
            "style",
            f"{style}, without the {words.subject}",
            [(f"a {noun}", spec(style=first, subject=noun)) for noun in OTHER_SUBJECTS],
        ),
        (
            "combined",
            f"both, with the learned merge weights; in the scenes the style at {SCENE_STYLE_STRENGTH:.0%}",
            [
                (f"“{prompts.full}”", spec(content=first, style=first)),
                *scenes(content=first, style=first, config=scene_config),
            ],
        ),
        (
            "crossed",
            "with a second image",
            [
                (f"this {words.subject}, {other.style}", spec(content=first, style=second)),
                (f"the {other.subject}, {style}", spec(content=second, style=first)),
                (f"a house, {other.style}", spec(style=second, subject="house")),
            ],
        ),
    ]


def _generate_sheet(
    first: Project, second: Project, base: BaseRef, device: str
) -> Generator[Event, None, tuple[Image.Image, int]]:
    """The sheet, and the number of generated images on it."""
    from unziplora_cli.report.contact_sheet import Cell, Heading, contact_sheet

    rows = _rows(first, second, base)
    cache = AdapterCache()
    requests = [cache.request(spec) for _, _, row in rows for _, spec in row]
    images = yield from collect_images(requests, base, ComputeConfig(device=device))
    remaining = iter(images)
    cells = [[Cell(next(remaining), caption) for caption, _ in row] for _, _, row in rows]
    cells[0].insert(0, Cell(source_image(first), "the only image it learns from"))
    cells[-1].insert(0, Cell(source_image(second), "the second image"))
    sheet = contact_sheet(
        cells,
        title="One image, separated into content and style, and combined again",
        subtitle="Trained on this machine, offline, with the built-in base.",
        row_headings=[Heading(title, note) for title, note, _ in rows],
    )
    return sheet, len(images)
