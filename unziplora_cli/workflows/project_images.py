"""The pictures of a project: what it was made of, what it drew, and what it drew while it was learning."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from unziplora_cli.errors import ProjectError, UsageError
from unziplora_cli.projects.store import Project
from unziplora_cli.projects.verify import inside
from unziplora_cli.workflows.generate import SHEET

if TYPE_CHECKING:
    from unziplora_cli.images import DataURI

SOURCE, SHEET_SIDE, SINGLE, MOMENT = 900, 1800, 640, 256
"""Longest sides in pixels."""

PER_GALLERY, SHEETS, MOMENTS = 12, 4, 9
"""How many pictures at most; of what was drawn the newest, of what was drawn in training evenly spread."""

GALLERIES = {
    "content": ("Content", "The subject alone, without the style of the picture."),
    "style": ("Style", "The style alone, on other subjects."),
    "combine": ("Content and style together", "Both LoRAs with their merge weights."),
    "other": ("Other pictures", "Images in the project's folder that do not say how they were drawn."),
}
PROMPTS = ("full", "content", "style")


@dataclass(frozen=True)
class ReportImage:
    """A picture of the page: what it shows in words, and the line under it."""

    picture: DataURI
    alt: str
    caption: str = ""


@dataclass(frozen=True)
class Gallery:
    """Images of one kind; ``more`` are in the project but not shown."""

    title: str
    about: str
    pictures: tuple[ReportImage, ...]
    more: int


@dataclass(frozen=True)
class ValidationStep:
    """What was drawn after so many steps of the training, full, content and style."""

    step: int
    pictures: tuple[ReportImage, ...]


@dataclass(frozen=True)
class ProjectImages:
    """All pictures of the page; ``kinds`` names those of which there are any."""

    sources: tuple[ReportImage, ...]
    sheets: tuple[ReportImage, ...]
    galleries: tuple[Gallery, ...]
    moments: tuple[ValidationStep, ...]
    kinds: tuple[str, ...]

    @property
    def count(self) -> int:
        """How many pictures there are in all."""
        groups = (*(each.pictures for each in self.galleries), *(each.pictures for each in self.moments))
        return len(self.sources) + len(self.sheets) + sum(map(len, groups))


def project_images(project: Project, notes: list[str]) -> ProjectImages:
    """Read the pictures of ``project``; what cannot be read is told in ``notes``."""
    drawn = _newest(project.images)
    sheets = [path for path in drawn if path.name == SHEET]
    crossed = {path.parent for path in sheets}
    kinds: dict[str, list[Path]] = {kind: [] for kind in GALLERIES}
    for path in drawn:
        if path.parent not in crossed:
            kinds[_parameters(project, path)[0]].append(path)

    galleries = {}
    for kind, paths in kinds.items():
        newest = reversed(paths[:PER_GALLERY])  # in the order in which they were drawn
        shown = tuple(filter(None, (_single(project, path, notes) for path in newest)))
        if shown:
            galleries[kind] = Gallery(*GALLERIES[kind], shown, max(0, len(paths) - PER_GALLERY))
    shown_sheets = tuple(filter(None, (_sheet(project, path, notes) for path in sheets[:SHEETS])))
    return ProjectImages(
        sources=_sources(project, notes),
        sheets=shown_sheets,
        galleries=tuple(galleries.values()),
        moments=_moments(project, notes),
        kinds=(*galleries, *(("sheet",) if shown_sheets else ())),
    )


def _sources(project: Project, notes: list[str]) -> tuple[ReportImage, ...]:
    words = project.manifest.words
    alt = f"The training picture: {words.subject}, {words.style}."
    pictures = (
        _embedded(project, project.folder / each.file, SOURCE, notes) for each in project.manifest.source
    )
    return tuple(ReportImage(picture, alt) for picture in pictures if picture)


def _sheet(project: Project, path: Path, notes: list[str]) -> ReportImage | None:
    picture = _embedded(project, path, SHEET_SIDE, notes)
    place = path.relative_to(project.folder).as_posix()
    return ReportImage(picture, "A contact sheet: every content in every style.", place) if picture else None


def _single(project: Project, path: Path, notes: list[str]) -> ReportImage | None:
    picture = _embedded(project, path, SINGLE, notes)
    kind, caption = _parameters(project, path)
    return ReportImage(picture, f"{GALLERIES[kind][0]}: {caption}", caption) if picture else None


def _moments(project: Project, notes: list[str]) -> tuple[ValidationStep, ...]:
    """The first picture of each prompt after some steps, in the order of time."""
    folders = {
        int(found[1]): path
        for path in (project.folder / "validation").glob("step-*")
        if (found := re.fullmatch(r"step-(\d{1,9})", path.name))
    }
    moments = []
    for step in _spread(sorted(folders), MOMENTS):
        shown = []
        for prompt in PROMPTS:
            picture = _embedded(project, folders[step] / f"{prompt}-0.png", MOMENT, notes)
            if picture:
                text = getattr(project.manifest.prompts, prompt)
                shown.append(ReportImage(picture, f"After step {step}, {prompt} prompt: {text}"))
        if shown:
            moments.append(ValidationStep(step, tuple(shown)))
    return tuple(moments)


def _embedded(project: Project, path: Path, longest: int, notes: list[str]) -> DataURI | None:
    from unziplora_cli.images import data_uri, load_image

    try:
        inside(project.folder, str(path.relative_to(project.folder)))
        return data_uri(load_image(path).image, longest)
    except (ProjectError, UsageError) as error:
        notes.append(f"A picture was left out. {error.message}")
        return None


def _parameters(project: Project, path: Path) -> tuple[str, str]:
    """The kind of a drawn picture and a line about it, by its own account; else its place."""
    from unziplora_cli.images import read_parameters

    place = path.relative_to(project.folder).as_posix()
    try:
        inside(project.folder, place)
        said = read_parameters(path)
    except (ProjectError, UsageError):
        return "other", place
    kind, prompts = said.get("command"), said.get("prompts")
    if kind not in GALLERIES or not isinstance(prompts, dict):
        return "other", place
    prompt = prompts.get("full" if kind == "combine" else kind)
    return kind, f"{prompt}, seed {said.get('seed')}"[:400]


def _newest(folder: Path) -> list[Path]:
    """All PNG files below a folder, the newest first."""
    files = [path for path in folder.rglob("*.png") if path.is_file()]
    return sorted(files, key=lambda path: (-path.stat().st_mtime_ns, str(path)))


def _spread(steps: Sequence[int], most: int) -> list[int]:
    """At most so many of them, the first and the last included, evenly spread."""
    if len(steps) <= most:
        return list(steps)
    return [steps[round(number * (len(steps) - 1) / (most - 1))] for number in range(most)]
