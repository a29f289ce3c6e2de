"""Write one self-contained HTML page about a project: images, scores, curves, columns, settings."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from operator import attrgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import unziplora_cli
from unziplora_cli import files, resources
from unziplora_cli.config import TrainConfig
from unziplora_cli.errors import AdapterError, ProjectError, Remedy, UsageError
from unziplora_cli.job import Scalar, now
from unziplora_cli.projects.folders import SHEET as TRAINING_SHEET
from unziplora_cli.projects.store import Project
from unziplora_cli.projects.verify import inside
from unziplora_cli.workflows.evaluate import SHEET as EVALUATION_SHEET
from unziplora_cli.workflows.evaluate import recorded_advice
from unziplora_cli.workflows.generate import SHEET

if TYPE_CHECKING:
    from unziplora_cli.adapters.columns import LayerColumns
    from unziplora_cli.images import DataURI
    from unziplora_cli.report.charts import LineChart

FILE_NAME = "report.html"
SUFFIXES = (".html", ".htm")

SOURCE_SIDE, SHEET_SIDE, IMAGE_SIDE, VALIDATION_SIDE = 900, 1800, 640, 256
"""Longest sides in pixels."""
MAX_PER_GROUP, MAX_SHEETS, MAX_VALIDATION_STEPS = 12, 4, 9
"""At most this many images: the newest generated ones, and evenly spread validation steps."""
MAP_WIDTH, MAP_HEIGHT = 720, 56
"""Minimum size of a column map in pixels, so that browsers do not enlarge it."""
MAX_CAPTION = 400
"""Characters of a caption."""

GROUPS = {
    "content": ("Content", "The subject without the style of the training image."),
    "style": ("Style", "The style on other subjects."),
    "combine": ("Content and style", "Both LoRAs with their merge weights."),
    "other": ("Other images", "Images in the project's folder without generation parameters."),
}
DESTYLED = ("Destyled images", "What the content LoRA learned: the training image without its style.")


@dataclass(frozen=True)
class ReportResult:
    """The page, how many images it shows, and what had to be omitted."""

    file: Path
    images: int
    notes: tuple[str, ...]


@dataclass(frozen=True)
class ReportImage:
    """An image of the page with its alternative text and caption."""

    data: DataURI
    alt: str
    caption: str = ""


def report(
    project: Project,
    out: Path | None = None,
    *,
    force: bool = False,
    word: Callable[[Remedy], str] = attrgetter("advice"),
) -> ReportResult:
    """Write the page of ``project`` to ``out``, an HTML file or a folder (default: into the project).

    ``word`` writes the command of a remedy. What cannot be read is omitted and noted. Raises UsageError for
    another kind of file, and ProjectError when the page cannot be written or ``out`` exists and ``force`` is
    not given.
    """
    from unziplora_cli.adapters.columns import count_columns
    from unziplora_cli.report.html import render_page

    file = _destination(project, out)
    files.check_writable(file.parent)
    if out is not None:
        files.refuse_existing([file], force=force)
    notes: list[str] = []
    images = project_images(project, notes)
    record, job = project.manifest, project.job
    layers = _columns(project, notes)
    lora_files = {role: str(project.path(role)) for role in ("content", "style") if record.artifact(role)}
    page = render_page(
        {
            "name": project.name,
            "folder": str(project.folder),
            "manifest": record,
            "job": job,
            "words": job.words,
            "evaluation": record.evaluation,
            "advice": [(item.text, map(word, item.remedies)) for item in recorded_advice(project)],
            "first_sheets": _first_sheets(project, notes),
            "images": images,
            "charts": _charts(project, notes),
            "maps": _block_maps(layers, job.settings),
            "totals": count_columns(layers),
            "merge": _merge_statistics(layers) if layers and record.artifact("merge") else None,
            "files": lora_files,
            "base_path": str(resources.mini_base()) if job.base.kind == "builtin" else job.base.id,
            "settings": _settings(job.settings),
            "version": unziplora_cli.__version__,
            "today": now()[:10],
            "notes": notes,
        }
    )
    with files.write_errors(file.parent):
        file.parent.mkdir(parents=True, exist_ok=True)
        # A file name that is not valid in the system's encoding holds surrogates, which become "?".
        files.write_bytes(file, page.encode(errors="replace"))
    return ReportResult(file, images["count"], tuple(notes))


def _destination(project: Project, out: Path | None) -> Path:
    if out is None:
        return project.folder / FILE_NAME
    if out.is_dir():
        return out / f"{project.name}.html"
    if out.suffix.lower() not in SUFFIXES:
        raise UsageError(
            f"{out} is neither an HTML file nor an existing folder.",
            Remedy("The report is one HTML file", settings={"out": out.with_suffix(".html")}),
        )
    return out


# Images


def project_images(project: Project, notes: list[str]) -> dict[str, Any]:
    """The images of a project by their place on the page; what cannot be read is added to ``notes``.

    "groups" are images of one kind, "omitted" of which are not on the page; "kinds" are the commands that
    some images were generated by; "validation" are the images of some steps.
    """
    paths = newest_images(project)
    sheet_paths = [path for path in paths if path.name == SHEET]
    sheet_folders = {path.parent for path in sheet_paths}  # their other images are the sheet's cells
    by_kind: dict[str, list[tuple[Path, str]]] = {kind: [] for kind in GROUPS}
    for path in paths:
        if path.parent not in sheet_folders:
            kind, caption = _describe(project, path)
            by_kind[kind].append((path, caption))

    groups = {}
    for kind, entries in by_kind.items():
        title, description = GROUPS[kind]
        newest = reversed(entries[:MAX_PER_GROUP])  # in order of generation
        texts = {path: (f"{title}: {caption}", caption) for path, caption in newest}
        if images := _read_images(project, texts, IMAGE_SIDE, notes):
            groups[kind] = _group(title, description, images, max(0, len(entries) - MAX_PER_GROUP))
    folder, words = project.folder, project.job.words
    first = project.job.destyled[:MAX_PER_GROUP]
    texts = {folder / source.file: (f"Destyled image: {source.file}", source.file) for source in first}
    destyled = _read_images(project, texts, VALIDATION_SIDE, notes)
    about = "A contact sheet: every content in every style."
    texts = {path: (about, _relative(project, path)) for path in sheet_paths[:MAX_SHEETS]}
    sheets = _read_images(project, texts, SHEET_SIDE, notes)
    about = f"The training image: {words.subject}, {words.style}."
    texts = {folder / source.file: (about, "") for source in project.job.images}
    sources = _read_images(project, texts, SOURCE_SIDE, notes)
    kinds = (*groups, *(("sheet",) if sheets else ()))
    if destyled:
        groups["destyled"] = _group(*DESTYLED, destyled, len(project.job.destyled) - len(destyled))
    validation = dict(_validation(project, notes))
    shown = (sources, sheets, *(group["images"] for group in groups.values()), *validation.values())
    return {
        "sources": sources,
        "sheets": sheets,
        "groups": list(groups.values()),
        "validation": validation,
        "kinds": kinds,
        "count": sum(map(len, shown)),
    }


def _group(title: str, description: str, images: Sequence[ReportImage], omitted: int) -> dict[str, Any]:
    return {"title": title, "description": description, "images": images, "omitted": omitted}


def newest_images(project: Project) -> list[Path]:
    """All PNG files in a project's folder of generated images, newest first."""
    paths = [path for path in project.images.rglob("*.png") if path.is_file()]
    return sorted(paths, key=lambda path: (-path.stat().st_mtime_ns, str(path)))


def _validation(project: Project, notes: list[str]) -> Iterator[tuple[int, tuple[ReportImage, ...]]]:
    """The first validation image of each prompt, step by step."""
    folders = {
        int(match[1]): path
        for path in (project.folder / "validation").glob("step-*")
        if (match := re.fullmatch(r"step-(\d{1,9})", path.name))
    }
    for step in _spread(sorted(folders), MAX_VALIDATION_STEPS):
        texts = {
            folders[step] / f"{name}-0.png": (f"Step {step}, {name} prompt: {prompt}", "")
            for name, prompt in asdict(project.job.prompts).items()
        }
        if images := _read_images(project, texts, VALIDATION_SIDE, notes):
            yield step, images


def _first_sheets(project: Project, notes: list[str]) -> tuple[ReportImage, ...]:
    """What the training ended with, and the images that the evaluation scored."""
    sheets = {TRAINING_SHEET: "What the training image became: its content, its style, and both."}
    if project.manifest.evaluation is not None:
        sheets[EVALUATION_SHEET] = (
            "The images that were scored. Below each: its prompt, and what the scorer sees in it."
        )
    paths = {project.folder / name: (caption, caption) for name, caption in sheets.items()}
    there = {path: texts for path, texts in paths.items() if path.is_file()}
    return _read_images(project, there, SHEET_SIDE, notes)


def _read_images(
    project: Project, texts: Mapping[Path, tuple[str, str]], longest: int, notes: list[str]
) -> tuple[ReportImage, ...]:
    """Images with their alternative text and caption; what cannot be read is noted."""
    from unziplora_cli.images import data_uri, load_image

    images = []
    for path, (alt, caption) in texts.items():
        try:
            inside(project.folder, str(path.relative_to(project.folder)))
            images.append(ReportImage(data_uri(load_image(path).image, longest), alt, caption))
        except (ProjectError, UsageError) as error:
            notes.append(f"An image is omitted. {error.message}")
    return tuple(images)


def _describe(project: Project, path: Path) -> tuple[str, str]:
    """The group of a generated image and a caption: from its own parameters, else from its path."""
    from unziplora_cli.images import read_parameters

    name = _relative(project, path)
    try:
        inside(project.folder, name)
        parameters = read_parameters(path)
    except (ProjectError, UsageError):
        return "other", name
    kind = parameters.get("command", "")
    prompt = parameters.get("prompts", {}).get("full" if kind == "combine" else kind)
    if kind not in GROUPS or prompt is None:
        return "other", name
    seed = f", seed {parameters['seed']}" if "seed" in parameters else ""
    return kind, prompt[:MAX_CAPTION] + seed


def _relative(project: Project, path: Path) -> str:
    return path.relative_to(project.folder).as_posix()


def _spread(steps: Sequence[int], count: int) -> list[int]:
    """At most ``count`` evenly spread elements, including the first and the last."""
    if len(steps) <= count:
        return list(steps)
    return [steps[round(index * (len(steps) - 1) / (count - 1))] for index in range(count)]


# Curves, columns and settings


def _charts(project: Project, notes: list[str]) -> Mapping[str, LineChart | None]:
    """The curves of training; None for each without a history."""
    from unziplora_cli.report.charts import line_chart
    from unziplora_cli.training import callbacks

    rows: Sequence[callbacks.HistoryRow] = ()
    if project.manifest.artifact("history") is not None:
        try:
            rows = callbacks.read_history(project.path("history"))
        except ProjectError as error:
            notes.append(f"There are no curves. {error.message}")
    merge = {
        "content": [(row.step, row.merge_content) for row in rows],
        "style": [(row.step, row.merge_style) for row in rows],
    }
    return {
        "loss": line_chart({"loss": [(row.step, row.reconstruction) for row in rows]}, smooth=True),
        "overlap": line_chart({"both": [(row.step, row.overlap) for row in rows]}, smooth=False),
        "merge": line_chart(merge, smooth=False, top=1.0),
    }


def _columns(project: Project, notes: list[str]) -> Mapping[str, LayerColumns]:
    """Every projection's columns; empty when the weights cannot be read."""
    from unziplora_cli.adapters.columns import read_columns
    from unziplora_cli.adapters.lora_file import read_lora
    from unziplora_cli.adapters.merge_weights import read_merge
    from unziplora_cli.method.lora import LoRAPair

    has = project.manifest.artifact
    try:
        merge = read_merge(project.path("merge")) if has("merge") else None
        return read_columns(
            LoRAPair(
                content=read_lora(project.path("content")).lora if has("content") else None,
                style=read_lora(project.path("style")).lora if has("style") else None,
                content_merge=merge.content if merge else None,
                style_merge=merge.style if merge else None,
            )
        )
    except (AdapterError, ProjectError) as error:
        notes.append(f"There is no map of the columns. {error.message}")
        return {}


def _block_maps(layers: Mapping[str, LayerColumns], config: TrainConfig | None) -> list[dict[str, Any]]:
    """A map of each block of the U-Net, in the order of the network.

    "owner" is the branch that block separation gives the block to.
    """
    from unziplora_cli.adapters.columns import column_map, count_columns, group_by_block
    from unziplora_cli.images import data_uri
    from unziplora_cli.method.blocks import policy

    separated = config is not None and config.column_separation and config.block_separation
    owners = {"content": "style", "style": "content", "both": ""}  # the selective branch -> the owner
    maps = []
    for block, part in group_by_block(layers).items():
        masks = {name: (layer.content, layer.style) for name, layer in part.items()}
        image = data_uri(column_map(masks, min_width=MAP_WIDTH, min_height=MAP_HEIGHT))
        owner = owners[policy(f"{block}.", block_separation=separated)]
        maps.append({"name": block, "image": image, "counts": count_columns(part), "owner": owner})
    return maps


def _merge_statistics(layers: Mapping[str, LayerColumns]) -> dict[str, object]:
    """A histogram of the merge weights of shared columns, and means by kind of column.

    A row of "means" is (label, content, style); None where no column is of that kind.
    """
    import torch

    from unziplora_cli.report.charts import histogram

    def weights(branch: str, *, shared: bool) -> list[float]:
        parts = []
        for layer in layers.values():
            mask = getattr(layer, branch) & ((layer.content & layer.style) == shared)
            parts.append(getattr(layer, f"{branch}_merge")[mask])
        values: list[float] = torch.cat(parts).tolist()
        return values

    both, one = (
        {branch: weights(branch, shared=shared) for branch in ("content", "style")}
        for shared in (True, False)
    )
    means = (
        (label, *(sum(values) / len(values) if values else None for values in branches.values()))
        for label, branches in (("used by both", both), ("used by one", one))
    )
    return {"shared": histogram(both), "means": tuple(means)}


def _settings(config: TrainConfig | None) -> dict[str, list[tuple[str, str, bool]]]:
    """The training settings by the group that their options have in the help: name, value, changed.

    A setting is changed if it is not the default, which is the paper's.
    """
    groups: dict[str, list[tuple[str, str, bool]]] = {}
    for setting in fields(config) if config else ():
        value = getattr(config, setting.name)
        row = (setting.name.replace("_", "-"), _value_text(value), value != setting.default)
        groups.setdefault(setting.metadata["group"], []).append(row)
    return groups


def _value_text(value: Scalar) -> str:
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "on" if value else "off"
    return f"{value:g}" if isinstance(value, float) else str(value)
