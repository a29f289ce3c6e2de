"""The whole flow on the built-in base and pictures: two trainings, and one sheet of what they learned."""

from __future__ import annotations

import time
from collections.abc import Generator, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from unziplora_cli import resources
from unziplora_cli.config import GenerateConfig, Words, resolve, resolve_generate
from unziplora_cli.errors import ProjectError, UsageError
from unziplora_cli.files import check_writable
from unziplora_cli.job import Job, now
from unziplora_cli.projects.store import Project, ProjectStore
from unziplora_cli.prompts import make_prompts
from unziplora_cli.training.request import TrainRequest
from unziplora_cli.workflows.generate import (
    AdapterCache,
    ComputeConfig,
    GenerateSpec,
    generate_requests,
    source_image,
)
from unziplora_cli.workflows.provenance import base_record
from unziplora_cli.workflows.train import TrainedProject, read_sources, train

if TYPE_CHECKING:
    from unziplora_cli.sdxl.base import BaseRef
    from unziplora_cli.training.events import Event

PRESET = "mini"
SHEET = "unziplora-demo.png"
FIRST, SECOND = "fox", "cat"
SCENES = ("on a beach", "in the snow", "in space")
OTHER_SUBJECTS = ("house", "rocket", "teapot", "mushroom")
SOFTER = 0.6
"""Style strength of the combined scenes: at full strength the picture's own background wins."""


@dataclass(frozen=True)
class Demonstrated:
    """What the demo made; the last thing that :func:`demo` tells."""

    sheet: Path
    projects: tuple[str, str]
    pictures: int
    seconds: float


@dataclass(frozen=True)
class _Row:
    """One row of the sheet: what it shows, and a picture order with a caption for each cell."""

    title: str
    note: str
    cells: tuple[tuple[str, GenerateSpec], ...]


def demo(
    store: ProjectStore,
    out: Path,
    *,
    device: str = "auto",
) -> Iterator[Event | TrainedProject | Demonstrated]:
    """Train on two shipped pictures, then draw what the base knew and what each LoRA learned onto one sheet.

    The projects are called ``demo-fox`` and ``demo-cat``; older ones of these names are replaced. ``out`` is
    a picture file, or a folder to put one in; raises UsageError or ProjectError at once when it cannot be.
    """
    from unziplora_cli.sdxl.base import resolve_base

    started = time.monotonic()
    out = _sheet_file(out)
    base, _ = resolve_base("mini", offline=True)
    projects: list[Project] = []
    for sample in (FIRST, SECOND):
        for event in train(_request(sample, base, device), store):
            if isinstance(event, TrainedProject):
                projects.append(event.project)
            yield event
    rows = _rows(projects[0], projects[1], base, resolve_generate(PRESET, {}))
    sheet, count = yield from _generate_sheet(rows, projects, base, device)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        sheet.save(out)
    except OSError as error:
        raise ProjectError(
            f"Cannot write {out}: {error.strerror or error}.", hint="Choose another place with --out."
        ) from error
    yield Demonstrated(out, (projects[0].name, projects[1].name), count, time.monotonic() - started)


def _sheet_file(out: Path) -> Path:
    if out.is_dir():
        out /= SHEET
    if out.suffix.lower() not in (".png", ".jpg", ".jpeg", ".webp"):
        raise UsageError(f"{out} is no picture file.", hint=f"Write the sheet to --out {SHEET}")
    check_writable(out.parent)
    return out


def _request(name: str, base: BaseRef, device: str) -> TrainRequest:
    sample = resources.samples()[name]
    words = Words(sample.subject, sample.style)
    job = Job(
        name=f"demo-{name}",
        created=now(),
        base=base_record(base),
        images=read_sources((sample.image,)),
        words=words,
        prompts=make_prompts(words),
        device=device,
        settings=resolve(PRESET, {}),
    )
    return TrainRequest(job, base, (sample.image,), replaces=True)


def _rows(first: Project, second: Project, base: BaseRef, config: GenerateConfig) -> tuple[_Row, ...]:
    words, style, other = first.job.words, first.job.words.style, second.job.words
    softer = replace(config, style_strength=SOFTER)

    def order(settings: GenerateConfig = config, **parts: Any) -> GenerateSpec:
        return GenerateSpec(base, settings, **parts)

    def known(prompt: str) -> tuple[str, GenerateSpec]:
        return f"“{prompt}”", order(overrides={"full": prompt})

    return (
        _Row(
            "before",
            f"the base alone knows neither this {words.subject} nor {style}",
            (
                known(first.job.prompts.content),
                known(first.job.prompts.style),
                known(f"a house in {style} style"),
            ),
        ),
        _Row(
            "content",
            f"this {words.subject}, without {style}",
            (
                (f"“{first.job.prompts.content}”", order(content=first)),
                *((scene, order(content=first, prompt=scene)) for scene in SCENES),
            ),
        ),
        _Row(
            "style",
            f"{style}, without the {words.subject}",
            tuple((f"a {noun}", order(style=first, subject=noun)) for noun in OTHER_SUBJECTS),
        ),
        _Row(
            "combined",
            f"both, with the learned merge weights; in the scenes the style at {SOFTER:.0%}",
            (
                (f"“{first.job.prompts.full}”", order(content=first, style=first)),
                *((scene, order(softer, content=first, style=first, prompt=scene)) for scene in SCENES),
            ),
        ),
        _Row(
            "crossed",
            "with a second picture",
            (
                (f"this {words.subject}, {other.style}", order(content=first, style=second)),
                (f"the {other.subject}, {style}", order(content=second, style=first)),
                (f"a house, {other.style}", order(style=second, subject="house")),
            ),
        ),
    )


def _generate_sheet(
    rows: tuple[_Row, ...],
    projects: list[Project],
    base: BaseRef,
    device: str,
) -> Generator[Event, None, tuple[Any, int]]:
    from unziplora_cli.report.contact_sheet import Cell, Heading, contact_sheet
    from unziplora_cli.sdxl.generate import GeneratedImage

    shelf = AdapterCache()
    orders = [order for row in rows for _, order in row.cells]
    requests = [shelf.request(order) for order in orders]
    images = []
    for event in generate_requests(requests, base, ComputeConfig(device=device)):
        if isinstance(event, GeneratedImage):
            images.append(event.image)
        else:
            yield event
    remaining = iter(images)
    cells = [[Cell(next(remaining), caption) for caption, _ in row.cells] for row in rows]
    cells[0].insert(0, Cell(source_image(projects[0]), "the one picture it learns from"))
    cells[-1].insert(0, Cell(source_image(projects[1]), "the second picture"))
    sheet = contact_sheet(
        cells,
        title="One picture, taken apart and put together again",
        subtitle="Trained on this machine, offline, on the built-in base.",
        row_headings=[Heading(row.title, row.note) for row in rows],
    )
    return sheet, len(requests)
