"""The sheet at the end of a training: the image, its content, its style on something else, and both."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from unziplora_cli import resources
from unziplora_cli.config import ComputeConfig, GenerateConfig, resolve_generate
from unziplora_cli.errors import count
from unziplora_cli.events import Event, ImageSaved
from unziplora_cli.files import write_errors
from unziplora_cli.projects.folders import SHEET, SHEET_MARK
from unziplora_cli.projects.store import Project
from unziplora_cli.workflows.generate import AdapterCache, GenerateSpec, collect_images, source_image

if TYPE_CHECKING:
    from unziplora_cli.sdxl.base import BaseRef

OTHER_SUBJECTS = ("house", "cat")
"""What the style is shown on: the first one that is not the project's own subject."""


def generate_sheets(projects: Sequence[Project], base: BaseRef) -> Generator[Event, None, tuple[Path, ...]]:
    """Write ``sheet.png`` into the folder of each project; the base is loaded once.

    All projects were trained on ``base``, with the same settings. Raises ModelError, AdapterError,
    OutOfMemory, and ProjectError if a sheet cannot be written.
    """
    from PIL.PngImagePlugin import PngInfo

    from unziplora_cli.images import save_image
    from unziplora_cli.report.contact_sheet import Cell, contact_sheet

    job = projects[0].job
    compute = ComputeConfig(device=job.device, precision=job.config.precision, vae=job.vae)
    config = replace(resolve_generate(resources.default_preset(base.kind), {}), count=1, seed=0)
    mark = PngInfo()
    mark.add_text(*SHEET_MARK)
    cache = AdapterCache()
    specs = [spec for project in projects for spec in _specs(project, base, config)]
    images = yield from collect_images([cache.request(spec) for spec in specs], base, compute)
    cells = map(Cell, images, [spec.caption for spec in specs])
    paths = []
    for project in projects:
        row = [Cell(source_image(project), "what it learned from"), *islice(cells, 3)]
        sheet = contact_sheet(
            [row],
            title=f"{project.job.words.subject}, {project.job.words.style}",
            subtitle=f"The project {project.name}, after {count(project.manifest.steps_done, 'step')}.",
            columns=("your image", "content", "style", "combined"),
        )
        paths.append(project.folder / SHEET)
        with write_errors(project.folder, "The training is complete."):
            save_image(sheet, paths[-1], force=True, pnginfo=mark)
        yield ImageSaved(paths[-1])
    return tuple(paths)


def other_subject(project: Project) -> str:
    """Something else than the project's subject, to show its style on."""
    return next(subject for subject in OTHER_SUBJECTS if subject not in project.job.words.subject)


def _specs(project: Project, base: BaseRef, config: GenerateConfig) -> tuple[GenerateSpec, ...]:
    return (
        GenerateSpec(base, config, content=project),
        GenerateSpec(base, config, style=project, subject=other_subject(project)),
        GenerateSpec(base, config, content=project, style=project),
    )
