"""From projects to images: one LoRA alone, both together, and every content with every style."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from unziplora_cli.config import ComputeConfig, GenerateConfig, Prompts
from unziplora_cli.errors import ProjectError, Remedy, UsageError
from unziplora_cli.events import Event, Notice
from unziplora_cli.files import check_writable, claimed, numbered, refuse_existing, write_errors
from unziplora_cli.projects.names import slugify
from unziplora_cli.projects.store import Project
from unziplora_cli.prompts import given_prompts, make_prompts, normalise_subject, plain_prompt, prompt_notes

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
            words = replace(words, subject=normalise_subject(self.subject))
        elif self.prompt is None and content == style:
            return replace(content.job.prompts, **given_prompts(self.overrides))
        return make_prompts(words, self.prompt, self.overrides)

    @property
    def notes(self) -> tuple[str, ...]:
        """What of the prompts has no effect."""
        return prompt_notes(self.prompt, self.config.negative_prompt, *self.overrides.values())


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


def generate_images(
    spec: GenerateSpec, out: Path, compute: ComputeConfig, *, force: bool = False
) -> Generator[Event, None, GenerateResult]:
    """Generate the images of ``spec`` into ``out``, a folder or a ``.png`` file name.

    In a folder, and for several images, the first unused numbers are taken: ``content-001.png``. A single
    image gets the name ``out`` itself; if that exists, ``force`` replaces it. Raises UsageError for an
    impossible prompt or size, ModelError, AdapterError, OutOfMemory, and ProjectError if the images cannot be
    written.
    """
    is_file = is_image_file(out)
    folder, stem = (out.parent, out.stem) if is_file else (out, _stem(spec))
    check_writable(folder)
    names: Iterator[Path] = numbered(folder, stem, ".png")
    replace_file = False
    if is_file and spec.config.count == 1:
        refuse_existing([out], force=force)
        names, replace_file = chain([out], names), force
    from unziplora_cli.sdxl.generate import GeneratedImage  # imports torch: after all cheap checks

    yield from map(Notice, spec.notes)
    images = []
    for event in generate_requests([AdapterCache().request(spec)], spec.base, compute):
        if isinstance(event, GeneratedImage):
            images.append(_save(event, names, force=replace_file))
        else:
            yield event
    return GenerateResult(tuple(images), spec.prompts)


def generate_cross(
    spec: CrossSpec, out: Path | None, compute: ComputeConfig, *, force: bool = False
) -> Generator[Event, None, GenerateResult]:
    """Generate every cell of ``spec`` as files in the folder ``out``, and a labelled contact sheet.

    Files that exist in ``out`` are refused, unless ``force`` allows replacing them. Without ``out`` the files
    go to a new folder ``cross-001`` in the images of the first content project. Raises as
    :func:`generate_images` does.
    """
    cells, count = spec.cells(), spec.config.count
    prompts = [cell.prompts for cell in cells]
    check_writable(out or spec.contents[0].images)
    from unziplora_cli.report.contact_sheet import Heading, contact_sheet
    from unziplora_cli.sdxl.generate import GeneratedImage

    yield from map(Notice, cells[0].notes)
    rows = [Heading(p.job.words.subject, p.name, source_image(p)) for p in spec.contents]
    columns = [Heading(p.job.words.style, p.name, source_image(p)) for p in spec.styles]
    names = [
        f"{cell.title}{f'-{number + 1}' if count > 1 else ''}.png"
        for cell in cells
        for number in range(count)
    ]
    cache = AdapterCache()
    requests = [cache.request(cell) for cell in cells]
    with _cross_folder(out, spec.contents[0].images) as folder:
        refuse_existing([folder / name for name in (*names, SHEET)], force=force)
        images: list[Path] = []
        first_of_cell = []
        for event in generate_requests(requests, spec.base, compute):
            if not isinstance(event, GeneratedImage):
                yield event
                continue
            path = folder / names[len(images)]
            images.append(_save(event, _alternatives(path), force=force and path not in images))
            if event.seed == spec.config.seed:
                first_of_cell.append(event.image)
        sheet = contact_sheet(
            [first_of_cell[i : i + len(columns)] for i in range(0, len(first_of_cell), len(columns))],
            title=spec.prompt or "Every content in every style",
            columns=columns,
            row_headings=rows,
        )
        with claimed(_alternatives(folder / SHEET), force=force) as path, write_errors(folder):
            sheet.save(path)
    return GenerateResult(tuple(images), prompts[0], path)


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
    )


class AdapterCache:
    """The LoRAs of projects, each file read once: requests with the same tensors share one fused U-Net."""

    def __init__(self) -> None:
        self._cache: dict[Path, Any] = {}

    def branches(self, spec: GenerateSpec) -> LoRAPair:
        """The LoRAs and merge weights of a spec."""
        from unziplora_cli.adapters.lora_file import read_lora
        from unziplora_cli.adapters.merge_weights import read_merge
        from unziplora_cli.method.lora import LoRAPair

        content, style = spec.content, spec.style
        pair = LoRAPair(
            content=None if content is None else self._read(content.path("content"), read_lora).lora,
            style=None if style is None else self._read(style.path("style"), read_lora).lora,
        )
        if content is None or style is None or not spec.merge:
            return pair
        return replace(
            pair,
            content_merge=self._read(content.path("merge"), read_merge).content,
            style_merge=self._read(style.path("merge"), read_merge).style,
        )

    def request(self, spec: GenerateSpec) -> ImageRequest:
        """The request that generates the images of a spec."""
        from unziplora_cli.sdxl.generate import ImageRequest

        projects = {
            role: project
            for role, project in (("content", spec.content), ("style", spec.style))
            if project is not None
        }
        notes = {
            "command": spec.kind,
            "projects": {role: project.name for role, project in projects.items()},
            "adapters": {
                artifact.role: artifact.sha256
                for role, project in projects.items()
                for artifact in project.manifest.artifacts
                if artifact.role == role
            },
            "merge_weights": spec.merge and spec.kind == "combine",
        }
        config = replace(spec.config, negative_prompt=plain_prompt(spec.config.negative_prompt))
        return ImageRequest(spec.prompts, self.branches(spec), config, notes)

    def _read(self, path: Path, read: Callable[[Path], Any]) -> Any:
        if path not in self._cache:
            self._cache[path] = read(path)
        return self._cache[path]


def source_image(project: Project) -> Image.Image | None:
    """The training image of a project; None if it was imported without one."""
    if not project.job.images:
        return None
    from unziplora_cli.images import load_image

    return load_image(project.folder / project.job.images[0].file).image


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
    return first.id if first.kind in ("folder", "file") else first.spec


def is_image_file(out: Path) -> bool:
    """Whether ``out`` names one file and not a folder; raises UsageError for formats other than PNG."""
    if out.is_dir():
        return False
    if out.suffix.lower() in _OTHER_FORMATS:
        raise UsageError(
            f"{out} is not a PNG file.", Remedy("Images are PNG", settings={"out": out.with_suffix(".png")})
        )
    return out.suffix.lower() == ".png"


def _stem(spec: GenerateSpec) -> str:
    stem = f"{spec.kind}-{spec.title}" if spec.kind == "combine" else spec.kind
    return f"{stem}-{slugify(spec.prompt)[:40].strip('-')}" if spec.prompt else stem


@contextmanager
def _cross_folder(out: Path | None, images: Path) -> Iterator[Path]:
    """The folder ``out``, or a new numbered one in ``images``, which is removed if it stays empty."""
    if out is not None:
        yield out
        return
    with write_errors(images):
        images.mkdir(parents=True, exist_ok=True)
    with claimed(numbered(images, "cross"), folder=True) as folder:
        yield folder


def _alternatives(path: Path) -> Iterator[Path]:
    """``path``, then numbered names: another process may take a name while an image is generated."""
    return chain([path], numbered(path.parent, path.stem, path.suffix))


def _save(image: GeneratedImage, names: Iterator[Path], *, force: bool) -> Path:
    """Write an image under the first of ``names`` that does not exist."""
    from unziplora_cli.images import save_png

    path = next(names)
    with write_errors(path.parent):
        path.parent.mkdir(parents=True, exist_ok=True)
    with claimed(chain([path], names), force=force) as path, write_errors(path.parent):
        save_png(image.image, path, image.parameters)
    return path
