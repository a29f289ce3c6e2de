"""list, show, verify, rename, remove and open: projects on disk."""

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from unziplora_cli.cli._opening import open_path
from unziplora_cli.cli._options import PROJECT, project_names
from unziplora_cli.cli._output import Session, Table, format_duration, format_size
from unziplora_cli.cli.evaluate import advice_lines, evaluation_rows
from unziplora_cli.errors import ProjectError, Remedy, UsageError, count

if TYPE_CHECKING:
    from pathlib import Path

    from unziplora_cli.projects.manifest import Manifest
    from unziplora_cli.projects.store import Project
    from unziplora_cli.projects.unfinished import Unfinished

MOST_IMAGES = 10
"""Generated images that `show` lists, the newest first."""


def list_projects(ctx: typer.Context) -> None:
    """List all projects."""
    session: Session = ctx.obj
    store = session.store()
    projects, damaged = store.list()
    unfinished, damaged_trainings = store.all_unfinished()
    damaged += damaged_trainings
    trainings = [(training, store.running_step(training)) for training in unfinished]
    data = {
        "projects": [
            {**_summary(project), "state": project.manifest.state, "steps_done": project.manifest.steps_done}
            for project in projects
        ],
        "unfinished": [
            {
                **_summary(training),
                "steps_kept": training.step,
                "steps": training.job.config.steps,
                "running_step": step,
            }
            for training, step in trainings
        ],
        "damaged": [{"name": folder.name, "reason": folder.reason} for folder in damaged],
    }
    if not projects and not unfinished and not damaged:
        session.output.result(data, text="No projects yet. Create one: unziplora train IMAGE")
        return
    rows = [_row(project, _steps(project)) for project in projects]
    rows += [
        _row(
            training,
            f"{f'unfinished, {training.step}' if step is None else f'running, step {step}'} "
            f"of {training.job.config.steps}",
        )
        for training, step in trainings
    ]
    rows += [[folder.name, "damaged", "", "", "", "", ""] for folder in damaged]
    columns = ("name", "subject", "style", "base", "steps", "created", "size")
    session.output.result(data, table=Table(columns, rows))
    for folder in damaged:
        session.output.message(f"{folder.name}: {folder.reason}")


def show(ctx: typer.Context, project: Annotated[str, PROJECT]) -> None:
    """Show the images, words, settings and files of a project."""
    from unziplora_cli.workflows.report import newest_images

    session: Session = ctx.obj
    opened = session.store().open(project)
    manifest, job, images = opened.manifest, opened.job, newest_images(opened)
    rows = [
        ["folder", str(opened.folder)],
        ["created", f"{job.created} by unziplora {job.tool_version}"],
        ["base", " ".join(filter(None, (job.base.spec, job.base.revision)))],
        *(["image", f"{image.file}, {image.width} x {image.height} {image.format}"] for image in job.images),
        ["subject", job.words.subject],
        ["style", job.words.style],
        *([["features", ", ".join(job.features)]] if job.features else []),
        *_description_rows(manifest),
        ["trigger", job.words.trigger],
        ["full prompt", job.prompts.full],
        ["content prompt", job.prompts.content],
        ["style prompt", job.prompts.style],
        *_training_rows(opened),
        *(
            [artifact.role, f"{artifact.path}, {format_size(artifact.bytes)}"]
            for artifact in manifest.artifacts
        ),
        *([name.replace("_", " "), f"{value:.4g}"] for name, value in manifest.metrics.items()),
        *(evaluation_rows(manifest.evaluation) if manifest.evaluation else []),
        *_image_rows(opened, images),
    ]
    data = {"folder": opened.folder, "bytes": opened.size(), "images": images, "manifest": asdict(manifest)}
    advice = "\n".join(["", *advice_lines(opened)]) if manifest.evaluation else ""
    session.output.result(data, table=Table((opened.name, ""), rows), text=advice)


def _image_rows(project: "Project", images: "list[Path]") -> list[list[str]]:
    """The sheet of the training and the newest generated images, relative to the project."""
    names = [path.relative_to(project.folder).as_posix() for path in images]
    rows = [["sheet", "sheet.png"]] if (project.folder / "sheet.png").is_file() else []
    rows += [["generated", name] for name in names[:MOST_IMAGES]]
    return rows + ([["", f"and {len(names) - MOST_IMAGES} older"]] if len(names) > MOST_IMAGES else [])


def _description_rows(manifest: "Manifest") -> list[list[str]]:
    """Who proposed the words, and how many destyled images there are."""
    rows, job = [], manifest.job
    if job.description is not None:
        changed = ", ".join(job.description.changed)
        rows.append(["described by", job.description.by + (f"; changed: {changed}" if changed else "")])
    if job.destyled:
        by_base = manifest.artifact("destyled") is not None  # though the settings may name another way
        way = "inversion" if by_base or job.settings is None else job.settings.destyle
        rows.append(["destyled images", f"{len(job.destyled)}, by {way or 'inversion'}"])
    return rows


def verify(ctx: typer.Context, project: Annotated[str, PROJECT]) -> None:
    """Check that the files of a project are complete and unchanged."""
    session: Session = ctx.obj
    verification = session.store().verify(project)
    problems, checked = verification.problems, verification.checked
    if problems:
        verb = "is" if len(problems) == 1 else "are"
        damage = "; ".join(f"{problem.path} {problem.reason}" for problem in problems)
        raise ProjectError(
            f"{len(problems)} of {checked} files of {project!r} {verb} damaged: {damage}.",
            Remedy("Restore them from a backup, or train again", settings={"force": True}),
        )
    session.output.result(
        {"name": project, "checked": checked}, text=f"{project}: all {checked} files are unchanged."
    )


def rename(
    ctx: typer.Context,
    project: Annotated[str, PROJECT],
    new_name: Annotated[str, typer.Argument(help="New name.")],
) -> None:
    """Rename a project."""
    session: Session = ctx.obj
    renamed = session.store().rename(project, new_name)
    session.output.result(
        {"old": project, "new": renamed.name, "folder": renamed.folder},
        text=f"{project} is now {renamed.name}.",
    )


def remove(
    ctx: typer.Context,
    projects: Annotated[
        list[str],
        typer.Argument(metavar="PROJECT...", help="Names of projects.", autocompletion=project_names),
    ],
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask for confirmation.")] = False,
    unfinished: Annotated[
        bool, typer.Option("--unfinished", help="Delete only the unfinished trainings of these names.")
    ] = False,
) -> None:
    """Delete projects with all their files and images."""
    session: Session = ctx.obj
    store = session.store()
    names = list(dict.fromkeys(projects))
    folders = [folder for name in names for folder in store.to_remove(name, unfinished=unfinished)]
    question = (
        f"Delete {' and '.join(map(str, folders))} and everything in {'it' if len(folders) == 1 else 'them'}?"
    )
    if not yes and not session.output.confirm(question, instead=Remedy("Confirm it", settings={"yes": True})):
        session.output.result({"removed": None}, text="Nothing was removed.")
        return
    for name in names:
        store.remove(name, unfinished=unfinished)
    removed = names[0] if len(names) == 1 else names
    session.output.result({"removed": removed}, text=f"Removed {', '.join(names)}.")


def open_project(
    ctx: typer.Context,
    project: Annotated[str, PROJECT],
    what: Annotated[
        Literal["sheet", "images", "report", "folder"] | None,
        typer.Option(
            help="The sheet of its training, the folder of its images, its report, or its folder; default: "
            "the sheet if there is one, else the images."
        ),
    ] = None,
) -> None:
    """Open a project's sheet, images, report or folder."""
    from unziplora_cli.workflows.generate import images_folder

    session: Session = ctx.obj
    opened = session.store().open(project)
    paths = {
        "sheet": opened.folder / "sheet.png",
        "images": images_folder(opened),
        "report": opened.folder / "report.html",
        "folder": opened.folder,
    }
    path = paths[what] if what else next(path for path in paths.values() if path.exists())
    if not path.exists():
        makers = {
            "images": Remedy("Generate one", "combine", (project,)),
            "report": Remedy("Write it", "report", (project,), {"open": True}),
        }
        remedy = makers.get(what or "", Remedy("See what there is", "show", (project,)))
        raise ProjectError(f"The project {project!r} has no {what}: there is no {path}.", remedy)
    if not open_path(path):
        raise UsageError(
            f"There is no program to open {path} with.",
            Remedy("Open it yourself, or copy it to a machine with a screen."),
        )
    session.output.result({"opened": path}, text=str(path), links=(path,))


def _summary(item: "Project | Unfinished") -> dict[str, Any]:
    return {
        "name": item.name,
        "folder": item.folder,
        "subject": item.job.words.subject,
        "style": item.job.words.style,
        "base": item.job.base.spec,
        "created": item.job.created,
        "bytes": item.size(),
    }


def _row(item: "Project | Unfinished", steps: str) -> list[str]:
    job = item.job
    size = format_size(item.size())
    return [item.name, job.words.subject, job.words.style, job.base.spec, steps, job.created[:10], size]


def _training_rows(project: "Project") -> list[list[str]]:
    job = project.job
    if job.settings is None:
        return [["training", "imported"]]
    duration = format_duration(project.manifest.seconds)
    steps = count(project.manifest.steps_done, "step")
    if project.manifest.state != "complete":
        steps += f" of {job.settings.steps}"
    return [["training", f"{steps} on {job.device} in {duration}"], ["seed", str(job.settings.seed)]]


def _steps(project: "Project") -> str:
    if project.job.settings is None:
        return "imported"
    done = str(project.manifest.steps_done)
    return done if project.manifest.state == "complete" else f"{done} of {project.job.settings.steps}"
