"""From a project to one page of HTML that shows all of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import unziplora_cli
from unziplora_cli import resources
from unziplora_cli.config import TrainConfig
from unziplora_cli.errors import AdapterError, ProjectError, UsageError
from unziplora_cli.files import atomic_write
from unziplora_cli.projects import manifest
from unziplora_cli.projects.manifest import Scalar
from unziplora_cli.projects.store import Project
from unziplora_cli.workflows.generate import check_writable

if TYPE_CHECKING:
    from unziplora_cli.adapters.columns import ColumnCounts, LayerColumns
    from unziplora_cli.images import DataURI
    from unziplora_cli.report.charts import LineChart

FILE_NAME = "report.html"
SUFFIXES = (".html", ".htm")
MAP_WIDTH, MAP_HEIGHT = 720, 56
"""Minimum size of a column map in pixels, so that browsers do not enlarge it."""


@dataclass(frozen=True)
class ReportResult:
    """The page, how many pictures it holds, and what of the project it had to leave out."""

    file: Path
    pictures: int
    notes: tuple[str, ...]


@dataclass(frozen=True)
class Setting:
    """One value of the training; ``changed`` when it is not the paper's."""

    name: str
    value: str
    changed: bool


@dataclass(frozen=True)
class SettingGroup:
    """Settings under one heading."""

    title: str
    rows: tuple[Setting, ...]


@dataclass(frozen=True)
class BlockMap:
    """The columns of one attention group; ``owner`` is the branch that block separation gives them to."""

    name: str
    image: DataURI
    counts: ColumnCounts
    owner: str


@dataclass(frozen=True)
class MergeMean:
    """The mean merge weight of both branches over some columns; None where there is no such column."""

    label: str
    content: float | None
    style: float | None


def report(project: Project, out: Path | None = None) -> ReportResult:
    """Write the page of ``project`` to ``out``, a file or a folder; left out: into the project.

    What cannot be read is left out and noted. Raises UsageError for a file name that is none of HTML, and
    ProjectError when the page cannot be written.
    """
    from unziplora_cli.adapters.columns import count_columns
    from unziplora_cli.report.html import render
    from unziplora_cli.workflows.project_images import project_images

    file = _destination(project, out)
    check_writable(file.parent)
    notes: list[str] = []
    shown = project_images(project, notes)
    record = project.manifest
    layers = _columns(project, notes)
    files = {role: str(project.path(role)) for role in ("content", "style") if record.artifact(role)}
    page = render(
        {
            "name": project.name,
            "folder": str(project.folder),
            "manifest": record,
            "words": record.words,
            "evaluation": record.evaluation,
            **vars(shown),
            "missing": _commands(project.name, shown.kinds),
            "charts": _charts(project, notes),
            "maps": _block_maps(layers, record.training),
            "totals": count_columns(layers),
            "merge": _merge(layers) if layers and record.artifact("merge") else None,
            "files": files,
            "branches": tuple(files),
            "base_path": str(resources.mini_base()) if record.base.kind == "builtin" else record.base.id,
            "settings": _settings(record.training),
            "version": unziplora_cli.__version__,
            "today": manifest.now()[:10],
            "notes": notes,
        }
    )
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(file) as temporary:
            # A file name that is no text in this system's encoding loses the letters that are none.
            temporary.write_bytes(page.encode(errors="replace"))
    except OSError as error:
        raise ProjectError(
            f"Cannot write {file}: {error.strerror or error}.", hint="Choose another place with --out."
        ) from error
    return ReportResult(file, shown.count, tuple(notes))


def _destination(project: Project, out: Path | None) -> Path:
    if out is None:
        return project.folder / FILE_NAME
    if out.is_dir():
        return out / f"{project.name}.html"
    if out.suffix.lower() not in SUFFIXES:
        raise UsageError(
            f"{out} is neither an HTML file nor a folder that exists.",
            hint=f"The report is one HTML file: --out {out.with_suffix('.html')}",
        )
    return out


def _commands(name: str, drawn: Sequence[str]) -> list[str]:
    """What draws the kinds of pictures that the project does not have yet."""
    commands = {
        "content": f'unziplora content {name} --prompt "on a skateboard" --count 4',
        "style": f"unziplora style {name} --subject house --count 4",
        "combine": f'unziplora combine {name} --prompt "on a beach" --count 4',
        "sheet": f"unziplora cross {name} OTHER_PROJECT",
    }
    return [command for kind, command in commands.items() if kind not in drawn]


def _charts(project: Project, notes: list[str]) -> Mapping[str, LineChart | None]:
    """The curves of the training; none for a project without a history."""
    from unziplora_cli.report.charts import line_chart
    from unziplora_cli.training import callbacks

    if project.manifest.artifact("history") is None:
        return {"loss": None, "merge": None, "overlap": None}
    try:
        rows = callbacks.read_history(project.path("history"))
    except ProjectError as error:
        notes.append(f"There are no curves. {error.message}")
        rows = ()
    return {
        "loss": line_chart({"loss": [(row.step, row.reconstruction) for row in rows]}, smooth=True),
        "overlap": line_chart({"both": [(row.step, row.overlap) for row in rows]}, smooth=False),
        "merge": line_chart(
            {
                "content": [(row.step, row.merge_content) for row in rows],
                "style": [(row.step, row.merge_style) for row in rows],
            },
            smooth=False,
            top=1.0,
        ),
    }


def _columns(project: Project, notes: list[str]) -> Mapping[str, LayerColumns]:
    """Every projection's columns; empty when the weights cannot be read."""
    from unziplora_cli.adapters.columns import read_columns
    from unziplora_cli.adapters.lora_file import read_lora
    from unziplora_cli.adapters.merge_weights import read_merge

    has = project.manifest.artifact
    try:
        merge = read_merge(project.path("merge")) if has("merge") else None
        return read_columns(
            content=read_lora(project.path("content")).lora if has("content") else None,
            style=read_lora(project.path("style")).lora if has("style") else None,
            content_merge=merge.content if merge else None,
            style_merge=merge.style if merge else None,
        )
    except (AdapterError, ProjectError) as error:
        notes.append(f"There is no map of the columns. {error.message}")
        return {}


def _block_maps(layers: Mapping[str, LayerColumns], training: Mapping[str, Scalar]) -> list[BlockMap]:
    """A map of each block of the U-Net, in the order of the network."""
    from unziplora_cli.adapters.columns import column_map, count_columns, group_by_block
    from unziplora_cli.images import data_uri
    from unziplora_cli.method.blocks import policy

    separated = bool(training.get("column_separation") and training.get("block_separation"))
    owners = {"content": "style", "style": "content", "both": ""}  # the selective branch -> the owner
    return [
        BlockMap(
            name=block,
            image=data_uri(
                column_map(
                    {name: (layer.content, layer.style) for name, layer in part.items()},
                    min_width=MAP_WIDTH,
                    min_height=MAP_HEIGHT,
                )
            ),
            counts=count_columns(part),
            owner=owners[policy(f"{block}.", block_separation=separated)],
        )
        for block, part in group_by_block(layers).items()
    ]


def _merge(layers: Mapping[str, LayerColumns]) -> dict[str, Any]:
    """How the merge weights are spread where both branches meet, and their means there and elsewhere."""
    import torch
    from torch import Tensor

    from unziplora_cli.report.charts import histogram

    def weights(branch: str, *, shared: bool) -> list[float]:
        parts = []
        for each in layers.values():
            mine: Tensor = getattr(each, branch)
            both = each.content & each.style
            parts.append(getattr(each, f"{branch}_merge")[mine & (both if shared else ~both)])
        return torch.cat(parts).tolist() if parts else []

    def mean(values: Sequence[float]) -> float | None:
        return sum(values) / len(values) if values else None

    spread = {
        shared: {branch: weights(branch, shared=shared) for branch in ("content", "style")}
        for shared in (True, False)
    }
    return {
        "shared": histogram(spread[True]),
        "rows": [
            MergeMean(label, mean(spread[shared]["content"]), mean(spread[shared]["style"]))
            for label, shared in (("used by both", True), ("of one alone", False))
        ],
    }


def _settings(training: Mapping[str, Scalar]) -> list[SettingGroup]:
    """The training's values under the headings that its options have."""
    known = {each.name: each for each in fields(TrainConfig)}
    groups: dict[str, list[Setting]] = {}
    for name, value in training.items():
        title = known[name].metadata["group"] if name in known else "Of another version"
        changed = name in known and value != known[name].default
        groups.setdefault(title, []).append(Setting(name.replace("_", "-"), _plain(value), changed))
    return [SettingGroup(title, tuple(rows)) for title, rows in groups.items()]


def _plain(value: Scalar) -> str:
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "on" if value else "off"
    return f"{value:g}" if isinstance(value, float) else str(value)
