"""From projects to pictures: one branch alone, both together, and every content with every style."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from unziplora_cli.config import ComputeConfig, GenerateConfig, Prompts, Words
from unziplora_cli.errors import ProjectError, UsageError
from unziplora_cli.projects.names import slugify
from unziplora_cli.projects.store import Project
from unziplora_cli.prompts import make_prompts

if TYPE_CHECKING:
    from unziplora_cli.method.lora import LoRAPair
    from unziplora_cli.sdxl.base import BaseRef
    from unziplora_cli.sdxl.generate import GeneratedImage, ImageRequest, Progress

Kind = Literal["base", "content", "style", "combine"]
OnProgress = Callable[["Progress"], None]
SHEET = "sheet.png"


@dataclass(frozen=True)
class GenerateSpec:
    """One kind of picture to draw.

    ``content`` and ``style`` are the projects whose branches act; with neither the base draws the full prompt
    of ``overrides``. ``merge`` applies the learned merge
    weights where both act. ``subject`` replaces the noun, for a style on another subject.
    """

    base: BaseRef
    config: GenerateConfig
    content: Project | None = None
    style: Project | None = None
    prompt: str | None = None
    overrides: Mapping[str, str | None] = field(default_factory=dict)
    subject: str | None = None
    merge: bool = True

    @property
    def kind(self) -> Kind:
        """Which branches act; without either it is the base alone."""
        if self.content is None:
            return "base" if self.style is None else "style"
        return "content" if self.style is None else "combine"

    @property
    def title(self) -> str:
        """The projects that take part, as part of a file name."""
        names = dict.fromkeys(project.name for project in (self.content, self.style) if project is not None)
        return "-x-".join(names)

    @property
    def prompts(self) -> Prompts:
        """The three prompts: content's words, style's style."""
        content, style = self.content or self.style, self.style or self.content
        if content is None or style is None:
            text = self.overrides.get("full") or ""
            return Prompts(text, text, text)
        mine = content.manifest.words
        subject = mine.subject if self.subject is None else self.subject
        words = Words(subject, style.manifest.words.style, mine.trigger)
        return make_prompts(words, self.prompt, self.overrides)


@dataclass(frozen=True)
class GenerateResult:
    """The pictures that were made, and what they show."""

    pictures: tuple[Path, ...]
    prompts: Prompts
    sheet: Path | None = None


def generate_images(
    order: GenerateSpec, out: Path, studio: ComputeConfig, on_progress: OnProgress | None = None
) -> GenerateResult:
    """Draw the pictures of ``order`` into ``out``, a folder or, for one picture, a ``.png`` file.

    Raises UsageError for a prompt or size that cannot be, ModelError, AdapterError, OutOfMemory, and
    ProjectError when the pictures cannot be written, before the first is drawn if that can be told.
    """
    file = is_image_file(out)
    check_writable(out.parent if file else out)
    stem = f"{order.kind}-{order.title}" if order.kind == "combine" else order.kind
    if order.prompt:
        stem += "-" + slugify(order.prompt)[:40].strip("-")
    free = _numbered(out.parent, out.stem) if file else _numbered(out, stem)
    paths = []
    for picture in generate_requests([AdapterCache().request(order)], order.base, studio, on_progress):
        paths.append(_save(picture, out if file and order.config.count == 1 else next(free)))
    return GenerateResult(tuple(paths), order.prompts)


def is_image_file(out: Path) -> bool:
    """Whether ``out`` means one file and not a folder; raises UsageError for formats other than PNG."""
    if out.is_dir():
        return False
    if out.suffix.lower() in (".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff"):
        raise UsageError(f"{out} is no PNG file.", hint=f"Pictures are PNG: --out {out.with_suffix('.png')}")
    return out.suffix.lower() == ".png"


def check_writable(folder: Path) -> None:
    """Raise ProjectError unless files can be written to ``folder``, made when it is missing."""
    place = next(each for each in (folder, *folder.absolute().parents) if os.path.lexists(each))
    if not place.is_dir():
        reason = f"{place} is not a folder"
    elif not os.access(place, os.W_OK | os.X_OK):
        reason = "permission denied" if place == folder else f"{place} must not be written to"
    else:
        return
    raise ProjectError(f"Cannot write to {folder}: {reason}.", hint="Choose another place with --out.")


@dataclass(frozen=True)
class CrossSpec:
    """Every content with every style; a project may be in both lists."""

    base: BaseRef
    config: GenerateConfig
    contents: tuple[Project, ...]
    styles: tuple[Project, ...]
    prompt: str | None = None
    merge: bool = True

    def cells(self) -> list[GenerateSpec]:
        """One order per cell, row by row: rows are contents, columns styles."""
        return [
            GenerateSpec(self.base, self.config, content, style, self.prompt, merge=self.merge)
            for content in self.contents
            for style in self.styles
        ]


def generate_cross(
    order: CrossSpec, out: Path, studio: ComputeConfig, on_progress: OnProgress | None = None
) -> GenerateResult:
    """Draw every cell of ``order`` as files in ``out``, and one labelled contact sheet, ``sheet.png``.

    A folder that holds such files already gets them in a new folder inside, ``cross-001``. Raises as
    :func:`draw` does.
    """
    cells, count = order.cells(), order.config.count
    prompts = [cell.prompts for cell in cells]
    check_writable(out)
    names = [
        f"{cell.title}{f'-{number + 1}' if count > 1 else ''}.png"
        for cell in cells
        for number in range(count)
    ]
    if any((out / name).exists() for name in (*names, SHEET)):
        out = free_folder(out, "cross")

    from unziplora_cli.report.contact_sheet import Heading, contact_sheet

    rows = [Heading(each.manifest.words.subject, each.name, source_image(each)) for each in order.contents]
    columns = [Heading(each.manifest.words.style, each.name, source_image(each)) for each in order.styles]
    shelf = AdapterCache()
    drawn = generate_requests([shelf.request(cell) for cell in cells], order.base, studio, on_progress)
    paths, images = [], []
    for name, picture in zip(names, drawn, strict=True):
        paths.append(_save(picture, out / name))
        if picture.seed == order.config.seed:
            images.append(picture.image)
    sheet = contact_sheet(
        [images[i : i + len(columns)] for i in range(0, len(images), len(columns))],
        title=order.prompt or "Every content in every style",
        columns=columns,
        row_headings=rows,
    )
    path = out / SHEET
    _write(path, lambda: sheet.save(path))
    return GenerateResult(tuple(paths), prompts[0], path)


class AdapterCache:
    """The weights of projects, each file read once: the generator sees which pictures share a LoRA."""

    def __init__(self) -> None:
        self._read: dict[Path, Any] = {}

    def branches(self, order: GenerateSpec) -> LoRAPair:
        """The LoRAs and merge weights of an order."""
        from unziplora_cli.adapters.lora_file import read_lora
        from unziplora_cli.adapters.merge_weights import read_merge
        from unziplora_cli.method.lora import LoRAPair

        content, style = order.content, order.style
        loaded = LoRAPair(
            content=content and self._once(content.path("content"), read_lora).lora,
            style=style and self._once(style.path("style"), read_lora).lora,
        )
        if content is None or style is None or not order.merge:
            return loaded
        return replace(
            loaded,
            content_merge=self._once(content.path("merge"), read_merge).content,
            style_merge=self._once(style.path("merge"), read_merge).style,
        )

    def _once(self, path: Path, read: Callable[[Path], Any]) -> Any:
        if path not in self._read:
            self._read[path] = read(path)
        return self._read[path]

    def request(self, order: GenerateSpec) -> ImageRequest:
        """What the generator is asked for one order."""
        from unziplora_cli.sdxl.generate import ImageRequest

        projects = {
            role: project
            for role, project in (("content", order.content), ("style", order.style))
            if project is not None
        }
        notes = {
            "command": order.kind,
            "projects": {role: project.name for role, project in projects.items()},
            "adapters": {
                artifact.role: artifact.sha256
                for role, project in projects.items()
                for artifact in project.manifest.artifacts
                if artifact.role == role
            },
            "merge_weights": order.merge and order.kind == "combine",
        }
        return ImageRequest(order.prompts, self.branches(order), order.config, notes)


def source_image(project: Project) -> Any:
    """The training picture of a project, upright and in RGB; None of an imported one that came without."""
    if not project.manifest.source:
        return None
    from unziplora_cli.images import load_image

    return load_image(project.folder / project.manifest.source[0].file).image


def shared_base(projects: Sequence[Project]) -> str:
    """The base that all projects were trained on, to be found from any folder.

    Raises ProjectError when they differ.
    """
    first = projects[0].manifest.base
    for other in projects[1:]:
        base = other.manifest.base
        if (base.hash or (base.id, base.revision)) != (first.hash or (first.id, first.revision)):
            on = base.id if base.id != first.id else f"another version of {base.id}"
            raise ProjectError(
                f"{projects[0].name} was trained on {first.id}, {other.name} on {on}: "
                "LoRAs of different bases cannot be combined.",
                hint=f"Train one of them again: unziplora train ... --base {first.spec}",
            )
    return first.id if first.kind in ("folder", "file") else first.spec


def generate_requests(
    requests: Sequence[ImageRequest], base: BaseRef, studio: ComputeConfig, on_progress: OnProgress | None
) -> Iterator[GeneratedImage]:
    """The pictures of all requests, in order."""
    from unziplora_cli.accel.device import pick_device, pick_dtype
    from unziplora_cli.sdxl.generate import generate

    device = pick_device(studio.device)
    return generate(
        base,
        requests,
        device=device,
        dtype=pick_dtype(studio.precision, device),
        batch_size=studio.batch_size,
        vae=studio.vae,
        on_progress=on_progress,
    )


def free_folder(parent: Path, stem: str) -> Path:
    """A folder ``stem-001``, ``stem-002``, ... that does not exist in ``parent`` yet."""
    number = 1
    while (parent / f"{stem}-{number:03d}").exists():
        number += 1
    return parent / f"{stem}-{number:03d}"


def _numbered(folder: Path, stem: str) -> Iterator[Path]:
    """Free file names ``stem-001.png``, ``stem-002.png``, ... in ``folder``."""
    used = {path.name for path in folder.glob(f"{stem}-*.png")} if folder.is_dir() else set()
    number = 0
    while True:
        number += 1
        if f"{stem}-{number:03d}.png" not in used:
            yield folder / f"{stem}-{number:03d}.png"


def _save(picture: GeneratedImage, path: Path) -> Path:
    from unziplora_cli.images import save_png

    _write(path, lambda: save_png(picture.image, path, picture.parameters))
    return path


def _write(path: Path, action: Callable[[], object]) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        action()
    except OSError as error:
        raise ProjectError(
            f"Cannot write {path}: {error.strerror or error}.", hint="Choose another place with --out."
        ) from error
