"""From projects to pictures: one branch alone, both together, and every content with every style."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from unziplora_cli.config import GenerateConfig, Prompts, Words
from unziplora_cli.errors import ProjectError
from unziplora_cli.project.names import slugify
from unziplora_cli.project.store import Project
from unziplora_cli.wording import make_prompts

if TYPE_CHECKING:
    from unziplora_cli.diffusion.base import BaseRef
    from unziplora_cli.diffusion.fuse import Branches
    from unziplora_cli.diffusion.generate import Picture, Progress, Request

Kind = Literal["base", "content", "style", "combine"]
OnProgress = Callable[["Progress"], None]


@dataclass(frozen=True)
class DrawOrder:
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
        words = Words(self.subject or mine.subject, style.manifest.words.style, mine.trigger)
        return make_prompts(words, self.prompt, self.overrides)


@dataclass(frozen=True)
class Drawn:
    """The pictures that were made, and what they show."""

    pictures: tuple[Path, ...]
    prompts: Prompts
    sheet: Path | None = None


@dataclass(frozen=True)
class Studio:
    """Where and how pictures are computed."""

    device: str = "auto"
    precision: str = "auto"
    batch_size: int = 1
    vae: str | None = None


def draw(order: DrawOrder, out: Path, studio: Studio, on_progress: OnProgress | None = None) -> Drawn:
    """Draw the pictures of ``order`` into ``out``, a folder or, for one picture, a ``.png`` file.

    Raises UsageError for a prompt or size that cannot be, ModelError, AdapterError, OutOfMemory, and
    ProjectError when the pictures cannot be written.
    """
    stem = f"{order.kind}-{order.title}" if order.kind == "combine" else order.kind
    if order.prompt:
        stem += "-" + slugify(order.prompt)[:40].strip("-")
    single = out.suffix.lower() == ".png" and order.config.count == 1
    taken = _numbered(out.with_suffix("") if out.suffix.lower() == ".png" else out, stem)
    paths = []
    for picture in pictures([Shelf().request(order)], order.base, studio, on_progress):
        paths.append(_save(picture, out if single else next(taken)))
    return Drawn(tuple(paths), order.prompts)


@dataclass(frozen=True)
class CrossOrder:
    """Every content with every style; a project may be in both lists."""

    base: BaseRef
    config: GenerateConfig
    contents: tuple[Project, ...]
    styles: tuple[Project, ...]
    prompt: str | None = None
    merge: bool = True

    def cells(self) -> list[DrawOrder]:
        """One order per cell, row by row: rows are contents, columns styles."""
        return [
            DrawOrder(self.base, self.config, content, style, self.prompt, merge=self.merge)
            for content in self.contents
            for style in self.styles
        ]


def cross(order: CrossOrder, out: Path, studio: Studio, on_progress: OnProgress | None = None) -> Drawn:
    """Draw every cell of ``order`` as files in ``out``, and one labelled contact sheet, ``sheet.png``."""
    from unziplora_cli.report.sheet import Heading, contact_sheet

    cells, shelf = order.cells(), Shelf()
    requests = [shelf.request(cell) for cell in cells]
    paths, images = [], []
    for picture in pictures(requests, order.base, studio, on_progress):
        cell = cells[requests.index(picture.request)]
        number = picture.seed - order.config.seed
        suffix = f"-{number + 1}" if order.config.count > 1 else ""
        paths.append(_save(picture, out / f"{cell.title}{suffix}.png"))
        if number == 0:
            images.append(picture.image)
    columns = len(order.styles)
    sheet = contact_sheet(
        [images[i * columns : (i + 1) * columns] for i in range(len(order.contents))],
        title=order.prompt or "Every content in every style",
        columns=[Heading(each.manifest.words.style, each.name, source(each)) for each in order.styles],
        row_headings=[
            Heading(each.manifest.words.subject, each.name, source(each)) for each in order.contents
        ],
    )
    path = out / "sheet.png"
    _write(path, lambda: sheet.save(path))
    return Drawn(tuple(paths), cells[0].prompts, path)


class Shelf:
    """The weights of projects, each file read once: the generator sees which pictures share a LoRA."""

    def __init__(self) -> None:
        self._read: dict[Path, Any] = {}

    def branches(self, order: DrawOrder) -> Branches:
        """The LoRAs and merge weights of an order."""
        from unziplora_cli.diffusion.fuse import Branches
        from unziplora_cli.formats import read_lora
        from unziplora_cli.formats.merge import read_merge

        content, style = order.content, order.style
        loaded = Branches(
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

    def request(self, order: DrawOrder) -> Request:
        """What the generator is asked for one order."""
        from unziplora_cli.diffusion.generate import Request

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
        return Request(order.prompts, self.branches(order), order.config, notes)


def source(project: Project) -> Any:
    """The training picture of a project, upright and in RGB."""
    from unziplora_cli.training.pictures import load_picture

    return load_picture(project.folder / project.manifest.source[0].file).image


def shared_base(projects: Sequence[Project]) -> str:
    """The base that all projects were trained on; raises ProjectError when they differ."""
    first = projects[0].manifest.base
    for other in projects[1:]:
        if (other.manifest.base.id, other.manifest.base.revision) != (first.id, first.revision):
            raise ProjectError(
                f"{projects[0].name} was trained on {first.id}, {other.name} on {other.manifest.base.id}: "
                "LoRAs of different bases cannot be combined.",
                hint=f"Train one of them again: unziplora train ... --base {first.spec}",
            )
    return first.spec


def pictures(
    requests: Sequence[Request], base: BaseRef, studio: Studio, on_progress: OnProgress | None
) -> Iterator[Picture]:
    """The pictures of all requests, in order."""
    from unziplora_cli.diffusion.device import pick_device, pick_dtype
    from unziplora_cli.diffusion.generate import generate

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


def _save(picture: Picture, path: Path) -> Path:
    from unziplora_cli.report.png import save_png

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
