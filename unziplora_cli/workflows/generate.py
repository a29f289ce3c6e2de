"""From projects to images: one LoRA alone, both together, and every content with every style."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field, replace
from functools import cache
from itertools import chain, product
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from unziplora_cli import files, preferences
from unziplora_cli.config import ComputeConfig, GenerateConfig, Prompts
from unziplora_cli.errors import ProjectError, Remedy, UsageError
from unziplora_cli.events import Event, ImageSaved, Notice
from unziplora_cli.projects.manifest import Role
from unziplora_cli.projects.names import shorten, slugify
from unziplora_cli.projects.store import Project
from unziplora_cli.prompts import given_prompts, make_prompts, make_words, plain_prompt, prompt_notes

if TYPE_CHECKING:
    from PIL import Image

    from unziplora_cli.method.lora import LoRAPair
    from unziplora_cli.sdxl.base import BaseRef
    from unziplora_cli.sdxl.generate import GeneratedImage, ImageRequest

Kind = Literal["base", "content", "style", "combine"]
SHEET = "sheet.png"
_OTHER_FORMATS = (".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff")


@dataclass(frozen=True)
class GenerateSpec:
    """What to generate, from which projects.

    ``content`` and ``style`` are the projects whose LoRAs are applied; with neither, the base generates the
    full prompt of ``overrides``. ``merge`` applies the learned merge weights if both are. ``subject``
    replaces the project's subject, to apply a style to something else.
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
        """Which LoRAs are applied, by the name of the command."""
        if self.content is None:
            return "base" if self.style is None else "style"
        return "content" if self.style is None else "combine"

    @property
    def project(self) -> Project:
        """The project among whose images the new ones belong; raises UsageError for the base alone."""
        project = self.content or self.style
        if project is None:
            raise UsageError("Images of the base alone need a folder.")
        return project

    @property
    def title(self) -> str:
        """The names of the projects, as part of a file name."""
        names = dict.fromkeys(project.name for project in (self.content, self.style) if project is not None)
        return "-x-".join(names)

    @property
    def prompts(self) -> Prompts:
        """The three prompts, with the subject of ``content`` and the style of ``style``."""
        content, style = self.content or self.style, self.style or self.content
        if content is None or style is None:
            text = self.overrides.get("full") or ""
            return Prompts(text, text, text)
        words = replace(content.job.words, style=style.job.words.style)
        if self.subject is not None:
            words = make_words(self.subject, words.style, words.trigger)
        elif self.prompt is None and content == style:
            return replace(content.job.prompts, **given_prompts(self.overrides))
        return make_prompts(words, self.prompt, self.overrides)

    @property
    def caption(self) -> str:
        """The prompt that describes the images: that of the only branch, or the full one."""
        prompt: str = getattr(self.prompts, self.kind if self.kind in ("content", "style") else "full")
        return prompt

    @property
    def notes(self) -> tuple[str, ...]:
        """What of the prompts has no effect, and how the size was completed."""
        from unziplora_cli.sdxl.base import image_size, native_resolution

        notes = prompt_notes(self.prompt, self.config.negative_prompt, *self.overrides.values())
        (height, width), native = image_size(self.base, self.config), native_resolution(self.base)
        if (self.config.width is None) != (self.config.height is None):
            given = "height" if self.config.width is None else "width"
            notes += (
                f"Only the {given} is given, so images are square like the base's: {width} x {height} px.",
            )
        if max(height, width) > 2 * native:
            notes += (f"The base was trained at {native} px; at {width} x {height} px, images fall apart.",)
        return notes


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
        """One spec per cell, row by row: rows are contents, columns styles."""
        return [
            GenerateSpec(self.base, self.config, content, style, self.prompt, merge=self.merge)
            for content in self.contents
            for style in self.styles
        ]


@dataclass(frozen=True)
class GenerateResult:
    """The files that were written, and the prompts of the first image."""

    images: tuple[Path, ...]
    prompts: Prompts
    sheet: Path | None = None


@dataclass(frozen=True)
class GridSpec:
    """The images of ``spec`` for every value of one setting, and optionally of a second one.

    An axis is the name of a setting and its values; the first is the columns of the sheet. Each image of
    ``spec`` is a row, so that seeds and strengths can be compared.
    """

    spec: GenerateSpec
    columns: tuple[str, Sequence[float]]
    rows: tuple[str, Sequence[float]] | None = None

    @property
    def axes(self) -> list[tuple[str, Sequence[float]]]:
        """Both axes, or the only one."""
        return [self.columns] if self.rows is None else [self.columns, self.rows]

    def cells(self) -> list[GenerateSpec]:
        """One spec per column and value of the second axis, column by column: equal weights stay together."""
        names, values = zip(*self.axes, strict=True)
        changes = [dict(zip(names, cell, strict=True)) for cell in product(*values)]
        return [replace(self.spec, config=replace(self.spec.config, **change)) for change in changes]


def images_folder(project: Project) -> Path:
    """The folder for images of a project: in the user's preferred folder, else in the project."""
    folder = preferences.load().output_folder
    return Path(folder) / project.name if folder else project.images


def generate_images(
    spec: GenerateSpec, out: Path | None, compute: ComputeConfig, *, force: bool = False
) -> Generator[Event, None, GenerateResult]:
    """Generate the images of ``spec`` into ``out``: a folder, a ``.png`` file name, or the project's folder.

    In a folder, names tell command, projects, scene and seed: ``content-fox-on-a-beach-seed7.png``; a number
    follows if that exists. A single image gets the name ``out`` itself; if that exists, ``force`` replaces
    it. Raises UsageError for an impossible prompt or size, ModelError, AdapterError, OutOfMemory, and
    ProjectError if the images cannot be written.
    """
    out = out or images_folder(spec.project)
    is_file = is_image_file(out)
    folder = out.parent if is_file else out
    files.check_writable(folder)
    replace_file = is_file and spec.config.count == 1
    if replace_file:
        files.refuse_existing([out], force=force)
    from unziplora_cli.sdxl.generate import GeneratedImage  # imports torch: after all cheap checks

    yield from map(Notice, spec.notes)
    images = []
    with files.new_folder(folder):
        for event in generate_requests([AdapterCache().request(spec)], spec.base, compute):
            if isinstance(event, GeneratedImage):
                names = files.alternatives(out if is_file else folder / f"{_stem(spec)}-seed{event.seed}.png")
                if is_file and not replace_file:
                    names = files.numbered(folder, out.stem, ".png")
                images.append(_save(event, names, force=replace_file and force))
                yield ImageSaved(images[-1])
            else:
                yield event
    return GenerateResult(tuple(images), spec.prompts)


def generate_cross(
    spec: CrossSpec, out: Path | None, compute: ComputeConfig, *, force: bool = False
) -> Generator[Event, None, GenerateResult]:
    """Generate every cell of ``spec`` as files in the folder ``out``, and a labelled contact sheet.

    Files that exist in ``out`` are refused, unless ``force`` allows replacing them. Without ``out`` the files
    go to a new folder ``cross-001`` among the images of the first content project. Raises as
    :func:`generate_images` does.
    """
    from unziplora_cli.report.contact_sheet import Heading, contact_sheet

    count, width = spec.config.count, len(spec.styles)
    rows = [Heading(p.job.words.subject, p.name, source_image(p)) for p in spec.contents]
    columns = [Heading(p.job.words.style, p.name, source_image(p)) for p in spec.styles]
    cells = spec.cells()
    names = [f"{cell.title}{f'-{n + 1}' if count > 1 else ''}.png" for cell in cells for n in range(count)]

    def sheet(cells: Sequence[Image.Image]) -> Image.Image:
        first = cells[::count]
        return contact_sheet(
            [first[i : i + width] for i in range(0, len(first), width)],
            title=spec.prompt or "Every content in every style",
            columns=columns,
            row_headings=rows,
        )

    place = _sheet_place(out, spec.contents[0], "cross", force=force)
    return (yield from _generate_sheet(cells, names, sheet, place, compute, force=force))


def generate_grid(
    grid: GridSpec, out: Path | None, compute: ComputeConfig, *, force: bool = False
) -> Generator[Event, None, GenerateResult]:
    """Generate every cell of ``grid`` as files in the folder ``out``, and a labelled contact sheet.

    Without ``out`` the files go to a new folder ``grid-001`` among the project's images.
    Raises as :func:`generate_cross` does.
    """
    from unziplora_cli.report.contact_sheet import Heading, contact_sheet

    spec, cells = grid.spec, grid.cells()
    seeds = range(spec.config.seed, spec.config.seed + spec.config.count)
    varied = [
        "".join(f"{name.replace('_', '-')}{getattr(cell.config, name):g}-" for name, _ in grid.axes)
        for cell in cells
    ]
    names = [f"{values}seed{seed}.png" for values in varied for seed in seeds]
    columns, *rows = (
        [f"{name.replace('_', ' ')} {value:g}" for value in values] for name, values in grid.axes
    )
    headings = [Heading(f"seed {seed}") for seed in seeds]
    if rows:
        headings = [Heading(row, f"seed {seed}") for row in rows[0] for seed in seeds]

    def sheet(cells: Sequence[Image.Image]) -> Image.Image:
        return contact_sheet(
            [cells[row :: len(headings)] for row in range(len(headings))],
            title=spec.caption,
            subtitle=f"{spec.kind} {spec.title}",
            columns=columns,
            row_headings=headings,
        )

    place = _sheet_place(out, spec.project, "grid", force=force)
    return (yield from _generate_sheet(cells, names, sheet, place, compute, force=force))


def _generate_sheet(
    cells: Sequence[GenerateSpec],
    names: Sequence[str],
    sheet: Callable[[Sequence[Image.Image]], Image.Image],
    place: AbstractContextManager[tuple[Path, Path]],
    compute: ComputeConfig,
    *,
    force: bool,
) -> Generator[Event, None, GenerateResult]:
    """Write the images of ``cells`` under ``names``, and the sheet of all of them."""
    from unziplora_cli.images import save_image
    from unziplora_cli.sdxl.generate import GeneratedImage

    adapters = AdapterCache()
    requests = [adapters.request(cell) for cell in cells]
    yield from map(Notice, cells[0].notes)
    with place as (folder, sheet_file):
        files.refuse_existing([folder / name for name in names], force=force)
        paths: list[Path] = []
        images = []
        for event in generate_requests(requests, cells[0].base, compute):
            if not isinstance(event, GeneratedImage):
                yield event
                continue
            path = folder / names[len(paths)]
            paths.append(_save(event, files.alternatives(path), force=force and path not in paths))
            images.append(event.image)
            yield ImageSaved(paths[-1])
        with files.write_errors(sheet_file.parent):
            path = save_image(sheet(images), files.alternatives(sheet_file), force=force)
    return GenerateResult(tuple(paths), cells[0].prompts, path)


def generate_requests(
    requests: Sequence[ImageRequest], base: BaseRef, compute: ComputeConfig
) -> Iterator[Event | GeneratedImage]:
    """Yield the images of all requests in order, and progress events."""
    from unziplora_cli.accel.device import pick_device, pick_dtype
    from unziplora_cli.sdxl.generate import generate

    device = pick_device(compute.device)
    return generate(
        base,
        requests,
        device=device,
        dtype=pick_dtype(compute.precision, device),
        batch_size=compute.batch_size,
        vae=compute.vae,
        fuse=compute.fuse,
    )


def collect_images(
    requests: Sequence[ImageRequest], base: BaseRef, compute: ComputeConfig
) -> Generator[Event, None, list[Image.Image]]:
    """Generate the images of all requests, and return them in order."""
    from unziplora_cli.sdxl.generate import GeneratedImage

    images = []
    for event in generate_requests(requests, base, compute):
        if isinstance(event, GeneratedImage):
            images.append(event.image)
        else:
            yield event
    return images


class AdapterCache:
    """The LoRAs of projects, each file read once: requests with the same tensors share one fused U-Net."""

    def __init__(self) -> None:
        from unziplora_cli.adapters.lora_file import read_lora
        from unziplora_cli.adapters.merge_weights import read_merge

        self._lora, self._merge = cache(read_lora), cache(read_merge)

    def branches(self, spec: GenerateSpec) -> LoRAPair:
        """The LoRAs and merge weights of a spec."""
        from unziplora_cli.method.lora import LoRAPair

        content, style = spec.content, spec.style
        pair = LoRAPair(
            content=None if content is None else self._lora(content.path("content")).lora,
            style=None if style is None else self._lora(style.path("style")).lora,
        )
        if content is None or style is None or not spec.merge:
            return pair
        return replace(
            pair,
            content_merge=self._merge(content.path("merge")).content,
            style_merge=self._merge(style.path("merge")).style,
        )

    def request(self, spec: GenerateSpec) -> ImageRequest:
        """The request that generates the images of a spec."""
        from unziplora_cli.sdxl.generate import ImageRequest

        roles: tuple[tuple[Role, Project | None], ...] = (("content", spec.content), ("style", spec.style))
        projects = {role: project for role, project in roles if project is not None}
        artifacts = [project.manifest.artifact(role) for role, project in projects.items()]
        notes = {
            "command": spec.kind,
            "projects": {role: project.name for role, project in projects.items()},
            "adapters": {artifact.role: artifact.sha256 for artifact in artifacts if artifact},
            "merge_weights": spec.merge and spec.kind == "combine",
        }
        config = replace(spec.config, negative_prompt=plain_prompt(spec.config.negative_prompt))
        return ImageRequest(spec.prompts, self.branches(spec), config, notes)


def source_image(project: Project) -> Image.Image | None:
    """The training image of a project; None if it was imported without one."""
    from unziplora_cli.images import load_image

    return load_image(project.training_image).image if project.training_image else None


def shared_base(projects: Sequence[Project]) -> str:
    """The base that all projects were trained on, as a spec that is valid in any working folder.

    Raises ProjectError if they differ.
    """
    first = projects[0].job.base
    for other in projects[1:]:
        base = other.job.base
        if (base.hash or (base.id, base.revision)) != (first.hash or (first.id, first.revision)):
            other_base = base.id if base.id != first.id else f"another version of {base.id}"
            raise ProjectError(
                f"{projects[0].name} was trained on {first.id}, {other.name} on {other_base}: "
                "LoRAs of different bases cannot be combined.",
                Remedy("Train one of them again", command="train", settings={"base": first.spec}),
            )
    return first.location


def project_base(
    projects: Sequence[Project], compute: ComputeConfig, *, offline: bool
) -> tuple[ComputeConfig, BaseRef, Notice | None]:
    """The base in ``compute``, otherwise that of ``projects`` with its VAE and prediction type.

    Returns the compute settings completed by them, the base, and what to say about it. Raises ProjectError if
    the bases differ, ModelError if the base is not on this disk.
    """
    from unziplora_cli.sdxl.base import resolve_base

    job = projects[0].job
    if compute.base is None:
        prediction = compute.prediction or job.base.prediction
        compute = replace(compute, vae=compute.vae or job.vae, prediction=prediction)
    base, notice = resolve_base(
        compute.base or shared_base(projects), offline=offline, vae=compute.vae, prediction=compute.prediction
    )
    return compute, base, notice


def is_image_file(out: Path) -> bool:
    """Whether ``out`` names one file and not a folder; raises UsageError for formats other than PNG."""
    if out.is_dir():
        return False
    if out.suffix.lower() in _OTHER_FORMATS:
        raise UsageError(
            f"{out} is not a PNG file.", Remedy("Images are PNG", settings={"out": out.with_suffix(".png")})
        )
    return out.suffix.lower() == ".png"


def check_sheet(out: Path, *, force: bool) -> tuple[Path, Path]:
    """The folder of a sheet's images, and its file, as ``out`` names them; raises if it cannot be written."""
    folder, file = (out.with_suffix(""), out) if is_image_file(out) else (out, out / SHEET)
    files.check_writable(file.parent)
    files.refuse_existing([file], force=force)
    return folder, file


def _stem(spec: GenerateSpec) -> str:
    """The start of a file name: command, projects, another subject, scene."""
    parts = [spec.kind, shorten(spec.title, 80)]
    parts += [shorten(slugify(text), 40) for text in (spec.subject, spec.prompt) if text]
    return "-".join(part for part in parts if part)


@contextmanager
def _sheet_place(
    out: Path | None, project: Project, name: str, *, force: bool
) -> Iterator[tuple[Path, Path]]:
    """As :func:`check_sheet`; the default is a new numbered folder, removed if it stays empty."""
    if out is not None:
        folder, file = check_sheet(out, force=force)
        with files.new_folder(folder):
            yield folder, file
        return
    files.check_writable(images := images_folder(project))
    unused = files.claimed_folder(files.numbered(images, name))
    with files.write_errors(images), files.new_folder(images), unused as folder:
        yield folder, folder / SHEET


def _save(image: GeneratedImage, names: Iterator[Path], *, force: bool) -> Path:
    """Write an image under the first of ``names`` that does not exist."""
    from unziplora_cli.images import save_png

    path = next(names)
    with files.write_errors(path.parent):
        path.parent.mkdir(exist_ok=True)  # not its parents: they are gone with their disk
        return save_png(image.image, chain([path], names), image.parameters, force=force)
