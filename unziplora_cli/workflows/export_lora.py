"""Export a project's LoRAs for other programs, and check that a LoRA file loads in them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from unziplora_cli import files
from unziplora_cli.adapters.layouts import LayoutName, nonzero_layers
from unziplora_cli.adapters.loader_rules import PROGRAMS, LoadResult, expected_load
from unziplora_cli.adapters.lora_file import DTYPES, combine, lora_in, read_lora, reduce_rank, write_lora
from unziplora_cli.adapters.merge_weights import read_merge, write_merge
from unziplora_cli.adapters.metadata import Part, file_metadata, thumbnail
from unziplora_cli.adapters.tensors import is_safetensors
from unziplora_cli.errors import AdapterError, Remedy, UsageError, count
from unziplora_cli.job import BaseRecord
from unziplora_cli.method.lora import LoRA, LoRAPair
from unziplora_cli.projects.store import Project
from unziplora_cli.prompts import make_prompts
from unziplora_cli.workflows.generate import shared_base

PARTS: dict[str, tuple[Part, ...]] = {
    "both": ("content", "style"),
    "all": ("content", "style", "merge"),
    "content": ("content",),
    "style": ("style",),
    "combined": ("combined",),
}
"""The files of each choice. Only all three together restore the project; others cannot load merge weights."""

TOLERANCES = {"fp32": 1e-5, "fp16": 2e-3, "bf16": 2e-2}
"""Largest relative error of the update of any projection, by the dtype of the file."""


@dataclass(frozen=True)
class ExportRequest:
    """One file to write.

    ``style_project`` provides the style of a combined file, by default the project itself. ``rank`` is the
    maximum rank per layer. ``image`` puts a thumbnail of the training image into the file.
    """

    project: Project
    part: Part
    style_project: Project | None = None
    layout: LayoutName = "sd-scripts"
    dtype: str = "fp16"
    rank: int | None = None
    image: bool = True

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
        """The default name of the file."""
        return f"{self.title}-{self.part}.safetensors"


@dataclass(frozen=True)
class FileCheck:
    """What each program does with a file; ``problems`` are those of programs that support its layout.

    ``readers`` are the programs that load every layer. ``error`` is the largest relative error of an update
    that diffusers applies, None where diffusers does not load the file; ``projections`` is how many
    projections the base has, ``silent`` how many layers of the file have a zero update.
    """

    path: Path
    layout: str
    layers: int
    silent: int
    base: str
    results: tuple[LoadResult, ...]
    readers: tuple[str, ...]
    projections: int
    error: float | None
    problems: tuple[str, ...]


@dataclass(frozen=True)
class ExportedFile:
    """One written file; ``rank_error`` is the relative error of a reduced rank."""

    path: Path
    part: Part
    layout: str
    rank: int
    layers: int
    bytes: int
    rank_error: float | None = None
    check: FileCheck | None = None


def plan_export(
    project: Project, parts: Sequence[Part], out: Path, *, force: bool, **settings: Any
) -> list[tuple[ExportRequest, Path]]:
    """The files that an export writes; raises before anything is read or written.

    ``out`` is a folder or, for one part, a ``.safetensors`` file. Raises UsageError for settings that exclude
    each other, ProjectError when the bases differ, the folder cannot be written to, or a file exists (without
    ``force``).
    """
    requests = [ExportRequest(project, part, **settings) for part in parts]
    if settings.get("style_project") is not None and tuple(parts) != ("combined",):
        raise UsageError(
            "Only a combined file takes the style of another project.",
            Remedy("Export a combined file", settings={"part": "combined"}),
        )
    shared_base(requests[0].sources)
    single = is_safetensors(out) and not out.is_dir()
    if single and len(requests) > 1:
        raise UsageError(
            f"{out} is one file, but there are {len(requests)} to write.",
            Remedy("Name a folder, or one part", settings={"part": "content"}),
        )
    files.check_writable(out.parent if single else out)
    planned = [(request, out if single else out / request.file_name) for request in requests]
    files.refuse_existing((path for _, path in planned), force=force)
    return planned


def export_files(
    planned: Sequence[tuple[ExportRequest, Path]], *, check: bool = False, force: bool = False
) -> list[ExportedFile]:
    """Write all files or none; with ``check``, only if all of them load.

    Raises AdapterError when a project's file is damaged or a check fails, ProjectError when a file exists
    by now (without ``force``) or the disk fails.
    """
    folder = planned[0][1].parent
    paths = [path for _, path in planned]
    placed: list[Path] = []
    with files.write_errors(folder), files.new_folder(folder), files.temporary_folder(folder) as temporary:
        exported = [_write(request, temporary / path.name, check) for request, path in planned]
        try:
            for file, path in zip(exported, paths, strict=True):
                placed.append(files.place(file.path, path, force=force))
        except BaseException:
            for path in () if force else placed:
                path.unlink()
            raise
    return [replace(file, path=path) for file, path in zip(exported, paths, strict=True)]


def check_file(path: Path, base: BaseRecord | None = None, expected: LoRA | None = None) -> FileCheck:
    """Apply every program's loader rules to a file, and load it with diffusers.

    ``path`` may be a folder with one LoRA. ``expected`` are the updates that it should have; default: those
    in the file. Without ``base`` it is detected from the layers. Raises AdapterError when the file is not a
    usable LoRA for the base; ModelError when the base is not known.
    """
    from unziplora_cli.method.inject import adapted_projections
    from unziplora_cli.sdxl.meta import compare, meta_unet

    path = lora_in(path)
    loaded = read_lora(path)
    if not loaded.lora and expected is None:
        raise AdapterError(
            f"{path.name} has the metadata of a LoRA but no layers; it has no effect.",
            Remedy("Export it again from its training."),
        )
    pair = LoRAPair(loaded.lora)
    base = base or detect_base(pair)
    config = unet_config(base)
    check_compatible(base, pair)
    fits_sdxl = base.kind != "builtin" and _fits(lookup_base("sdxl"), pair)
    results = [expected_load(program, loaded, fits_sdxl=fits_sdxl) for program in PROGRAMS]
    error, projections, problems = None, len(adapted_projections(meta_unet(config))), []
    *others, diffusers = results
    if loaded.lora and diffusers.supported and not diffusers.refusal:
        try:
            comparison = compare(path, config, {**loaded.lora, **nonzero_layers(expected or {})})
        except AdapterError as refusal:
            results = [*others, replace(diffusers, layers=0, refusal=refusal.message)]
        else:
            error, wrong = comparison.error, len(comparison.missing) + len(comparison.extra)
            if wrong:
                problems.append(f"diffusers does not apply {count(wrong, 'layer')} as the file has them")
            if not error <= TOLERANCES[loaded.dtype]:
                problems.append(f"diffusers applies {comparison.layer} with a relative error of {error:.1e}")
    problems += [f"{result.program.name} {result.refusal}" for result in results if result.problem]
    readers = tuple(
        result.program.name
        for result in results
        if result.layers == len(loaded.lora) and not result.refusal and result.supported
    )
    return FileCheck(
        path=path,
        layout=loaded.layout,
        layers=len(loaded.lora),
        silent=len(loaded.lora) - len(nonzero_layers(loaded.lora)),
        base=base.spec,
        results=tuple(results),
        readers=readers,
        projections=projections,
        error=error,
        problems=tuple(problems),
    )


def _write(request: ExportRequest, path: Path, check: bool) -> ExportedFile:
    metadata = _metadata(request)
    if request.part == "merge":
        merge = read_merge(request.project.path("merge"))
        write_merge(path, merge.content, merge.style, metadata)
        return ExportedFile(path, "merge", "merge", 0, len(merge.content), path.stat().st_size)
    lora, error = _lora(request), None
    if request.rank is not None and any(weights.rank > request.rank for weights in lora.values()):
        lora, error = reduce_rank(lora, request.rank)
    write_lora(path, lora, metadata, layout=request.layout, dtype=DTYPES[request.dtype])
    checked = check_file(path, request.project.job.base, lora) if check else None
    if checked and checked.problems:
        raise AdapterError(
            f"{path.name} does not load correctly: {'; '.join(checked.problems)}.",
            Remedy(
                "Export it in the format that every program reads",
                command="export",
                arguments=("PROJECT",),
                settings={"to": "sd-scripts"},
            ),
        )
    written = nonzero_layers(lora)
    rank = max((weights.rank for weights in written.values()), default=0)
    return ExportedFile(
        path, request.part, request.layout, rank, len(written), path.stat().st_size, error, checked
    )


def _lora(request: ExportRequest) -> LoRA:
    if request.part != "combined":
        return read_lora(request.project.path("content" if request.part == "content" else "style")).lora
    content, style = request.sources
    return combine(
        read_lora(content.path("content")).lora,
        read_lora(style.path("style")).lora,
        read_merge(content.path("merge")).content,
        read_merge(style.path("merge")).style,
    )


def _metadata(request: ExportRequest) -> dict[str, str]:
    """The metadata of a file; of two combined projects, the content's words with the style's style."""
    content, style = request.sources
    job, merged_from = content.job, tuple[str, ...]()
    if content.name != style.name:
        words = replace(job.words, style=style.job.words.style)
        job = replace(job, name=request.title, words=words, prompts=make_prompts(words))
        merged_from = (f"{content.name} (content)", f"{style.name} (style)")
    image = content.training_image if request.image else None
    return file_metadata(job, request.part, thumbnail(image) if image else "", merged_from)


# The base of a LoRA; its weights need not be on this disk


def lookup_base(spec: str) -> BaseRecord:
    """The record of a base, without downloading anything; raises ModelError."""
    from unziplora_cli.sdxl.base import SDXL_ID, SDXL_REVISION, resolve_base

    if spec == "sdxl":
        return BaseRecord(spec, "hub", SDXL_ID, SDXL_REVISION, SDXL_REVISION)
    return resolve_base(spec, offline=True)[0].record()


def unet_config(base: BaseRecord) -> Mapping[str, Any]:
    """The configuration of a base's U-Net; raises ModelError when it is not on this disk."""
    from unziplora_cli.sdxl.base import SDXL_CONFIG, SDXL_ID, component_config, resolve_base
    from unziplora_cli.sdxl.folder import read_json

    if base.id == SDXL_ID:
        return read_json(SDXL_CONFIG / "unet/config.json")
    return component_config(resolve_base(base.location, offline=True)[0], "unet")


def check_compatible(base: BaseRecord, loras: LoRAPair) -> None:
    """Raise AdapterError unless the base's U-Net has every layer of the LoRAs, in the same shape."""
    from unziplora_cli.accel.fused_lora import check_fit
    from unziplora_cli.sdxl.meta import meta_unet

    check_fit(meta_unet(unet_config(base)), loras)


def detect_base(loras: LoRAPair) -> BaseRecord:
    """The built-in base or SDXL, whichever the LoRAs fit; raises AdapterError."""
    base = next((base for base in map(lookup_base, ("mini", "sdxl")) if _fits(base, loras)), None)
    if base is None:
        raise AdapterError(
            "The LoRA fits neither SDXL nor the built-in base: its layers have other sizes.",
            Remedy("Name the base that it was trained on", settings={"base": "FOLDER"}),
        )
    return base


def _fits(base: BaseRecord, loras: LoRAPair) -> bool:
    try:
        check_compatible(base, loras)
    except AdapterError:
        return False
    return True
