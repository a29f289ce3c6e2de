"""train with a list or a folder: many images in one command, with a table of what became of each."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from unziplora_cli.cli._errors import describe
from unziplora_cli.cli._output import ProgressDisplay, Session, Table, format_duration
from unziplora_cli.errors import Remedy, UnziploraError, UsageError, count
from unziplora_cli.paths import leave_process_group, process_count

if TYPE_CHECKING:
    from unziplora_cli.projects.store import ProjectStore
    from unziplora_cli.sdxl.base import BaseRef
    from unziplora_cli.workflows.train import TrainedProject
    from unziplora_cli.workflows.train_list import Row
    from unziplora_cli.workflows.train_many import Options, RowResult

LIST = typer.Option(
    "--list",
    metavar="FILE",
    help="A .csv, .tsv or .toml list of images: columns file, subject, style, name, and any setting.",
)
SHARD = typer.Option(
    "--shard",
    metavar="I/N",
    help="Train only shard I of N of a list or folder: images I, I + N, I + 2 N and so on.",
)
AT_ONCE = typer.Option(
    "--at-once",
    metavar="K",
    min=1,
    help="Train so many images of a list or folder as one batch, each with the numbers that it gets alone.",
)
RAY = typer.Option(
    "--ray",
    metavar="ADDRESS",
    help="Train a list or folder on the Ray cluster at this address (auto: the one this machine is in), "
    "or on all GPUs of this machine (local); no sheets.",
)


def read_rows(
    images: Sequence[Path], list_file: Path | None, shard: str | None, *, together: bool, **of_lists: object
) -> "list[Row] | None":
    """The rows of a list or of folders; None if the images are trained as they are given.

    ``of_lists`` are other options that need one.
    """
    folders = [path for path in images if path.is_dir()]
    if list_file is None and (not folders or together):
        for option, value in {"shard": shard, **of_lists}.items():
            if value:
                raise UsageError(
                    f"--{option.replace('_', '-')} needs a list of images.",
                    Remedy("Give it one", settings={"list": "FILE"}),
                )
        return None
    from unziplora_cli.workflows.train_list import read_list, rows_of_images, take_shard

    if list_file is not None and (images or together):
        what = "images" if images else "--together"
        raise UsageError(f"--list and {what} exclude each other.", Remedy("Give one of them."))
    rows = rows_of_images(images) if list_file is None else read_list(list_file)
    return rows if shard is None else take_shard(rows, shard)


def expand_folders(images: Sequence[Path]) -> list[Path]:
    """The images, with each folder replaced by the images in it."""
    if not any(path.is_dir() for path in images):
        return list(images)
    from unziplora_cli.workflows.train_list import rows_of_images

    return [row.file for row in rows_of_images(images)]


def refuse_per_image(name: str | None, **words: list[str] | None) -> None:
    """Raise UsageError for options that hold for a single image."""
    if name is not None:
        raise UsageError(
            "--name names one project, but there are several images.",
            Remedy("Name them in a list, column name."),
        )
    for option, values in words.items():
        if values and len(values) > 1:
            raise UsageError(
                f"--{option} is given {len(values)} times, but holds for all images here.",
                Remedy(f"Give it once, or give each image its own in the column {option} of a list."),
            )


def train_rows(
    session: Session, store: "ProjectStore", rows: "list[Row]", options: "Options", *, sheet: bool
) -> None:
    """Train all rows, print a table of the results, and exit with a code that says whether any failed."""
    from unziplora_cli.events import run
    from unziplora_cli.workflows.train import own_device
    from unziplora_cli.workflows.train_many import RowEnds, train_many
    from unziplora_cli.workflows.train_ray import TrainingBegins

    if process_count() > 1:
        rank, processes, local = leave_process_group()
        rows, options = rows[rank::processes], replace(options, device=own_device(options.device, local))
    with ProgressDisplay(session.output, "train", quiet_phases=True) as display:

        def show(event: Any) -> None:
            match event:
                case TrainingBegins(name):
                    display.title = name
                case RowEnds(result, number, total):
                    session.output.message(f"{number:{len(str(total))}}/{total}  {_line(result)}")
                case _:
                    display.event(event)

        results = run(train_many(rows, options, store), show)
    sheets: dict[str, Path] = {}
    trained = [result.trained for result in results if result.trained is not None]
    for start in range(0, len(trained) if sheet and options.ray is None else 0, 16):
        # The images of so many are held in memory until their sheets are written.
        sheets |= sheets_of(session, trained[start : start + 16], options.base)
    _report(session, results, sheets)


def _line(result: "RowResult") -> str:
    """What became of a row, on one line."""
    return "  ".join(filter(None, (result.row.name, result.state, _detail(result))))


def _detail(result: "RowResult") -> str:
    if result.trained is not None:
        return format_duration(result.trained.seconds)
    if result.error is not None:
        return describe(result.error)[0]
    return f"although {result.note}" if result.note else ""


def _report(session: Session, results: "Sequence[RowResult]", sheets: dict[str, Path]) -> None:
    failed = [(result, *describe(result.error)) for result in results if result.error is not None]
    trained = [result.trained for result in results if result.trained is not None]
    unchanged = [result for result in results if result.state == "unchanged"]
    lines = []
    for result, message, hint, _ in failed:
        lines += [f"{result.row.where}: {message}", *(f"  -> {line}" for line in hint.splitlines())]
    counts = (f"{len(trained)} trained", f"{len(unchanged)} already trained", f"{len(failed)} failed")
    lines.append(f"{count(len(results), 'image')}: {', '.join(counts)}.")
    if failed:
        lines.append("The same command tries again what failed.")
    session.output.result(
        {
            "projects": [summary(one, sheets.get(one.project.name)) for one in trained],
            "unchanged": [{"name": result.row.name, "differs": result.note} for result in unchanged],
            "failed": [
                {
                    "where": result.row.where,
                    "image": result.row.file,
                    "name": result.row.name,
                    "message": message,
                    "hint": hint,
                    "exit_code": code,
                }
                for result, message, hint, code in failed
            ],
        },
        table=Table(
            ("project", "image", "state", ""),
            [[result.row.name, result.row.file.name, result.state, _detail(result)] for result in results],
        ),
        text="\n".join(lines),
        links=tuple(sheets.values()),
    )
    codes = {code for *_, code in failed}
    if codes:
        raise typer.Exit(codes.pop() if len(codes) == 1 else 1)


def sheets_of(session: Session, finished: "list[TrainedProject]", base: "BaseRef") -> dict[str, Path]:
    """The sheet of each project; a failure is only said, since the projects are complete."""
    from unziplora_cli.workflows.sheet import generate_sheets

    projects = [trained.project for trained in finished]
    try:
        paths = session.run("sheet", generate_sheets(projects, base))
    except (UnziploraError, MemoryError, KeyboardInterrupt) as error:
        reason, _, _ = describe(error)
        session.output.warning(f"The training is complete, but there is no sheet: {reason}")
        return {}
    return {project.name: path for project, path in zip(projects, paths, strict=True)}


def summary(finished: "TrainedProject", sheet: Path | None) -> dict[str, Any]:
    manifest = finished.project.manifest
    return {
        "name": finished.project.name,
        "folder": finished.project.folder,
        "files": {file.role: finished.project.folder / file.path for file in manifest.artifacts},
        "sheet": sheet,
        "steps": manifest.steps_done,
        "seconds": manifest.seconds,
        "seconds_per_step": round(finished.seconds_per_step, 4),
        "peak_memory_bytes": manifest.peak_memory_bytes,
    }
