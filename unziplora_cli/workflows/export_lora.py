"""Which base a LoRA belongs to, told by the shapes of its layers; the base need not be on this disk."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from unziplora_cli.errors import AdapterError, ProjectError, UsageError
from unziplora_cli.files import temporary_folder
from unziplora_cli.method.lora import LoRA, MergeWeights
from unziplora_cli.projects.manifest import BaseRecord
from unziplora_cli.projects.store import Project
from unziplora_cli.workflows.generate import check_writable, shared_base
from unziplora_cli.workflows.provenance import base_record, project_origin

if TYPE_CHECKING:
    from unziplora_cli.adapters.loader_rules import LoadResult
    from unziplora_cli.adapters.lora_file import LayoutName
    from unziplora_cli.method.lora import LoRA


def lookup_base(spec: str) -> BaseRecord:
    """The record of the base that ``spec`` names; raises ModelError.

    Of ``sdxl`` everything needed is known without its files.
    """
    from unziplora_cli.sdxl.base import SDXL_ID, SDXL_REVISION, resolve_base

    if spec == "sdxl":
        return BaseRecord(spec, "hub", SDXL_ID, SDXL_REVISION, SDXL_REVISION)
    return base_record(resolve_base(spec, offline=True)[0])


def unet_config(base: BaseRecord) -> Mapping[str, Any]:
    """The configuration of a base's U-Net; raises ModelError when it is not known and not on this disk."""
    from unziplora_cli.sdxl.base import SDXL_CONFIG, SDXL_ID, component_config, resolve_base
    from unziplora_cli.sdxl.shape import read_json

    if base.id == SDXL_ID:
        return read_json(SDXL_CONFIG / "unet/config.json")
    spec = base.id if base.kind in ("folder", "file") else base.spec
    return component_config(resolve_base(spec, offline=True)[0], "unet")


def check_compatible(
    base: BaseRecord,
    content: LoRA,
    style: LoRA | None = None,
    content_merge: MergeWeights | None = None,
    style_merge: MergeWeights | None = None,
) -> None:
    """Raise AdapterError unless every layer of the LoRAs has its place in the base's U-Net."""
    from unziplora_cli.accel.merged_unet import check_fit
    from unziplora_cli.method.lora import LoRAPair
    from unziplora_cli.sdxl.meta import meta_unet

    branches = LoRAPair(content, style, content_merge, style_merge)
    check_fit(meta_unet(unet_config(base)), branches)


def detect_base(content: LoRA, style: LoRA | None = None) -> BaseRecord:
    """SDXL or the built-in base, whichever the LoRAs fit; raises AdapterError."""
    for spec in ("sdxl", "mini"):
        base = lookup_base(spec)
        try:
            check_compatible(base, content, style)
        except AdapterError:
            continue
        return base
    raise AdapterError(
        "The LoRA fits neither SDXL nor the built-in base: its layers have other sizes.",
        hint="Name the base it was trained on: --base FOLDER",
    )


# From projects to LoRA files for other programs, and the proof that such a file loads.


Part = Literal["content", "style", "combined", "merge"]
PARTS: tuple[Part, ...] = ("content", "style", "merge")
"""What a project is exported as when no part is named; the three together can be imported again."""

SUFFIX = ".safetensors"
TOLERANCES = {"fp32": 1e-5, "fp16": 2e-3, "bf16": 2e-2}
"""Largest relative error of any projection's update, by the number format of the file."""


@dataclass(frozen=True)
class ExportRequest:
    """One file to be written.

    ``style_project`` gives the style of a combination, by default the project itself. ``rank`` is the most
    that any layer may keep. ``picture`` puts a small training picture into the file.
    """

    project: Project
    part: Part
    style_project: Project | None = None
    layout: LayoutName = "kohya"
    dtype: str = "fp16"
    rank: int | None = None
    picture: bool = True

    @property
    def sources(self) -> tuple[Project, Project]:
        """The project of the content, and that of the style."""
        return self.project, self.style_project or self.project

    @property
    def title(self) -> str:
        """The names of the projects that take part."""
        return "-x-".join(dict.fromkeys(project.name for project in self.sources))

    @property
    def file_name(self) -> str:
        """What the file is called when the user does not say."""
        return f"{self.title}-{self.part}{SUFFIX}"


@dataclass(frozen=True)
class FileCheck:
    """What each program makes of a file; ``problems`` is empty when every program that should take it does.

    ``error`` is the largest relative error of an update that diffusers applies, None where it cannot read the
    format; ``projections`` how many the base has.
    """

    path: Path
    layout: str
    layers: int
    results: tuple[LoadResult, ...]
    readers: tuple[str, ...]
    projections: int
    error: float | None
    problems: tuple[str, ...]


@dataclass(frozen=True)
class ExportedFile:
    """One written file; ``rank_error`` is the relative error of a lower rank."""

    path: Path
    part: Part
    layout: str
    rank: int
    layers: int
    bytes: int
    rank_error: float | None = None
    checked: FileCheck | None = None


def plan(
    project: Project, parts: Sequence[Part], out: Path, *, force: bool, **settings: Any
) -> list[tuple[ExportRequest, Path]]:
    """The files that an export writes; raises before anything is read or written.

    ``out`` is a folder or, for one part, a ``.safetensors`` file. Raises UsageError for settings that do not
    go together, ProjectError when the bases differ, the place cannot be written, or a file is there already
    (without ``force``).
    """
    orders = [ExportRequest(project, part, **settings) for part in parts]
    if settings.get("style_project") is not None and tuple(parts) != ("combined",):
        raise UsageError(
            "Only a combination takes the style of another project.", hint="Add --part combined."
        )
    shared_base(orders[0].sources)
    single = out.suffix == SUFFIX and not out.is_dir()
    if single and len(orders) > 1:
        raise UsageError(
            f"{out} is one file, but there are {len(orders)} to write.",
            hint="Name a folder, or one part: --part content",
        )
    check_writable(out.parent if single else out)
    planned = [(order, out if single else out / order.file_name) for order in orders]
    for _, path in planned:
        if path.exists() and not force:
            raise ProjectError(f"There is a file {path} already.", hint="Replace it with --force.")
    return planned


def export(planned: Sequence[tuple[ExportRequest, Path]], *, check: bool = False) -> list[ExportedFile]:
    """Write the files, all or none; with ``check`` only those that prove to load.

    Raises AdapterError when a project's file is damaged or a check fails, ProjectError when the disk refuses.
    """
    folder = planned[0][1].parent
    try:
        with _made(folder), temporary_folder(folder) as temporary:
            written = [_write(order, temporary / path.name, check) for order, path in planned]
            for each, (_, path) in zip(written, planned, strict=True):
                each.path.replace(path)
    except OSError as error:
        raise ProjectError(
            f"Cannot write to {folder}: {error.strerror or error}.", hint="Choose another place with --out."
        ) from error
    return [replace(each, path=path) for each, (_, path) in zip(written, planned, strict=True)]


@contextmanager
def _made(folder: Path) -> Iterator[None]:
    """Make a folder if need be; it goes again when the block fails."""
    folder = folder.absolute()
    missing = [each for each in (folder, *folder.parents) if not each.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    try:
        yield
    except BaseException:
        for each in missing:
            each.rmdir()
        raise


def check_file(path: Path, base: BaseRecord | None = None, wanted: LoRA | None = None) -> FileCheck:
    """LoadResult every program's key rules on a file and load it with diffusers.

    ``wanted`` is what its updates should be; left out, what the file itself says. Without ``base`` the one
    that the layers fit. Raises AdapterError when the file is no usable LoRA, or diffusers refuses a format
    that it should take; ModelError when the base is not known.
    """
    from unziplora_cli.adapters.loader_rules import PROGRAMS, READERS, simulate_load
    from unziplora_cli.adapters.lora_file import read_lora

    loaded = read_lora(path)
    base = base or detect_base(loaded.lora)
    wanted = _changing(loaded.lora if wanted is None else wanted)
    readers = READERS[loaded.layout]
    results = tuple(simulate_load(program, loaded.keys, loaded.metadata) for program in PROGRAMS)
    problems = [
        problem
        for each in results
        if each.program.name in readers and (problem := _problem(each, wanted)) is not None
    ]
    if not readers:
        problems.append("no program takes the names of the authors' releases; import it, then export it")
    config = unet_config(base)
    error: float | None = None
    if "diffusers" in readers:
        from unziplora_cli.sdxl.meta import compare

        found = compare(path, config, wanted)
        error, projections = found.error, found.projections
        if found.missing or found.extra:
            problems.append(
                f"diffusers leaves out {len(found.missing)} layers and changes {len(found.extra)} others"
            )
        if not error <= TOLERANCES[loaded.dtype]:
            problems.append(f"diffusers applies {found.layer} with a relative error of {error:.1e}")
    else:
        projections = _projections(config)
    return FileCheck(path, loaded.layout, len(wanted), results, readers, projections, error, tuple(problems))


def require(checked: FileCheck) -> FileCheck:
    """The check itself; raises AdapterError when it found problems."""
    if checked.problems:
        raise AdapterError(
            f"{checked.path.name} does not load as it should: {'; '.join(checked.problems)}.",
            hint="Write it in the format that every program takes: unziplora export PROJECT --to kohya",
        )
    return checked


def _write(order: ExportRequest, path: Path, check: bool) -> ExportedFile:
    from unziplora_cli.adapters.lora_file import DTYPES, write_lora
    from unziplora_cli.adapters.merge_weights import read_merge, write_merge
    from unziplora_cli.adapters.metadata import describe
    from unziplora_cli.adapters.rank import reduce_rank

    origin = project_origin(order.project, with_picture=order.picture)
    if order.style_project is not None and order.style_project.name != order.project.name:
        origin = _merged(order)
    metadata = describe(origin, order.part)
    if order.part == "merge":
        merge = read_merge(order.project.path("merge"))
        write_merge(path, merge.content, merge.style, metadata)
        return ExportedFile(path, "merge", "merge", 0, len(merge.content), path.stat().st_size)
    lora, error = _lora(order), None
    if order.rank is not None and any(weights.rank > order.rank for weights in lora.values()):
        lora, error = reduce_rank(lora, order.rank)
    write_lora(path, lora, metadata, layout=order.layout, dtype=DTYPES[order.dtype])
    checked = require(check_file(path, order.project.manifest.base, lora)) if check else None
    changing = _changing(lora)
    rank = max((weights.rank for weights in changing.values()), default=0)
    return ExportedFile(
        path, order.part, order.layout, rank, len(changing), path.stat().st_size, error, checked
    )


def _lora(order: ExportRequest) -> LoRA:
    from unziplora_cli.adapters.lora_file import combine, read_lora
    from unziplora_cli.adapters.merge_weights import read_merge

    content, style = order.sources
    if order.part == "combined":
        return combine(
            read_lora(content.path("content")).lora,
            read_lora(style.path("style")).lora,
            read_merge(content.path("merge")).content,
            read_merge(style.path("merge")).style,
        )
    return read_lora(order.project.path("content" if order.part == "content" else "style")).lora


def _merged(order: ExportRequest) -> Any:
    """The origin of a combination of two projects: content's words, style's style."""
    from unziplora_cli.config import Words
    from unziplora_cli.prompts import make_prompts

    content, style = (project_origin(each, with_picture=order.picture) for each in order.sources)
    words = Words(content.words.subject, style.words.style, content.words.trigger)
    return replace(
        content,
        project=order.title,
        words=words,
        prompts=make_prompts(words),
        style_phrase=style.style_phrase,
        merged_from=(f"{content.project} (content)", f"{style.project} (style)"),
    )


def _changing(lora: LoRA) -> LoRA:
    from unziplora_cli.adapters.tensors import nonzero_layers

    return nonzero_layers(lora)


def _problem(result: LoadResult, wanted: LoRA) -> str | None:
    name = result.program.name
    if result.refusal:
        return f"{name}: {result.refusal}"
    if result.left_out:
        return f"{name} leaves out {len(result.left_out)} keys, as {result.left_out[0]}"
    if result.layers != wanted.keys():
        return f"{name} adapts {len(result.layers)} layers instead of {len(wanted)}"
    return None


def _projections(config: Mapping[str, Any]) -> int:
    from unziplora_cli.method.inject import adapted_projections
    from unziplora_cli.sdxl.meta import meta_unet

    return len(adapted_projections(meta_unet(config)))
