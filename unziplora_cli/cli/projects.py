"""list, show, verify, rename and remove: projects on disk."""

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from unziplora_cli.cli._options import PANEL, PROJECT
from unziplora_cli.cli._output import Session, Table, format_duration, format_size
from unziplora_cli.cli.evaluate import evaluation_rows
from unziplora_cli.errors import ProjectError, Remedy

if TYPE_CHECKING:
    from unziplora_cli.projects.store import Project
    from unziplora_cli.projects.unfinished import Unfinished


def register(app: typer.Typer) -> None:
    """Add these commands to the program."""
    app.command("list", rich_help_panel=PANEL)(list_projects)
    app.command("show", rich_help_panel=PANEL)(show)
    app.command("verify", rich_help_panel=PANEL)(verify)
    app.command("rename", rich_help_panel=PANEL)(rename)
    app.command("remove", rich_help_panel=PANEL)(remove)


def list_projects(ctx: typer.Context) -> None:
    """List all projects."""
    session: Session = ctx.obj
    store = session.store()
    projects, damaged = store.list()
    unfinished, lost = store.all_unfinished()
    damaged += lost
    data = {
        "projects": [_summary(project) for project in projects],
        "unfinished": [_progress(each) for each in unfinished],
        "damaged": [{"name": each.name, "reason": each.reason} for each in damaged],
    }
    if not projects and not unfinished and not damaged:
        session.output.result(data, text="No projects yet. Make one: unziplora train PICTURE")
        return
    rows = [
        [
            project.name,
            project.job.words.subject,
            project.job.words.style,
            project.job.base.spec,
            _steps(project),
            project.job.created[:10],
            format_size(project.size()),
        ]
        for project in projects
    ]
    rows += [
        [
            each.name,
            each.job.words.subject,
            each.job.words.style,
            each.job.base.spec,
            f"unfinished, {each.step} of {each.job.config.steps}",
            each.job.created[:10],
            format_size(each.size()),
        ]
        for each in unfinished
    ]
    rows += [[each.name, "damaged", "", "", "", "", ""] for each in damaged]
    columns = ("name", "subject", "style", "base", "steps", "created", "size")
    session.output.result(data, table=Table(columns, rows))
    for each in damaged:
        session.output.message(f"{each.name}: {each.reason}")


def show(ctx: typer.Context, project: Annotated[str, PROJECT]) -> None:
    """Show what a project was made of."""
    session: Session = ctx.obj
    found = session.store().open(project)
    manifest, job = found.manifest, found.job
    rows = [
        ["folder", str(found.folder)],
        ["created", f"{job.created} by unziplora {job.tool_version}"],
        ["base", " ".join(filter(None, (job.base.spec, job.base.revision)))],
        *(["image", f"{each.file}, {each.width} x {each.height} {each.format}"] for each in job.images),
        ["subject", job.words.subject],
        ["style", job.words.style],
        ["trigger", job.words.trigger],
        ["full prompt", job.prompts.full],
        ["content prompt", job.prompts.content],
        ["style prompt", job.prompts.style],
        *_training(found),
        *([each.role, f"{each.path}, {format_size(each.bytes)}"] for each in manifest.artifacts),
        *([name, f"{value:.4g}"] for name, value in manifest.metrics.items()),
        *evaluation_rows(manifest.evaluation),
    ]
    data = {"folder": str(found.folder), "bytes": found.size(), "manifest": asdict(manifest)}
    session.output.result(data, table=Table((found.name, ""), rows))


def verify(ctx: typer.Context, project: Annotated[str, PROJECT]) -> None:
    """Check that a project's files are whole and unchanged."""
    session: Session = ctx.obj
    found = session.store().verify(project)
    if found.problems:
        damage = "; ".join(f"{each.path} {each.reason}" for each in found.problems)
        raise ProjectError(
            f"{len(found.problems)} of {found.checked} files of {project!r} are damaged: {damage}.",
            Remedy("Restore them from a copy, or train again", settings={"force": True}),
        )
    session.output.result(
        {"name": project, "checked": found.checked},
        text=f"{project}: all {found.checked} files are as they were written.",
    )


def rename(
    ctx: typer.Context,
    project: Annotated[str, PROJECT],
    new_name: Annotated[str, typer.Argument(help="Its new name.", show_default=False)],
) -> None:
    """Give a project another name."""
    session: Session = ctx.obj
    renamed = session.store().rename(project, new_name)
    session.output.result(
        {"old": project, "new": renamed.name, "folder": str(renamed.folder)},
        text=f"{project} is now {renamed.name}.",
    )


def remove(
    ctx: typer.Context,
    project: Annotated[str, PROJECT],
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    unfinished: Annotated[
        bool, typer.Option("--unfinished", help="Only the training of that name that was cut off.")
    ] = False,
) -> None:
    """Delete a project with all its files and pictures."""
    session: Session = ctx.obj
    store = session.store()
    folders = " and ".join(map(str, store.to_remove(project, unfinished=unfinished)))
    if not yes and not session.output.confirm(
        f"Delete {folders} and everything in it?", instead=Remedy(settings={"yes": True})
    ):
        session.output.result({"removed": None}, text="Nothing was removed.")
        return
    store.remove(project, unfinished=unfinished)
    session.output.result({"removed": project}, text=f"Removed {project}.")


def _summary(project: "Project") -> dict[str, Any]:
    manifest, job = project.manifest, project.job
    return {
        "name": project.name,
        "folder": str(project.folder),
        "subject": job.words.subject,
        "style": job.words.style,
        "base": job.base.spec,
        "state": manifest.state,
        "steps_done": manifest.steps_done,
        "created": job.created,
        "bytes": project.size(),
    }


def _training(project: "Project") -> list[list[str]]:
    job = project.job
    if job.settings is None:
        return [["training", "imported"]]
    duration = format_duration(project.manifest.seconds)
    return [
        ["training", f"{_steps(project)} steps on {job.device} in {duration}"],
        ["seed", str(job.settings.seed)],
    ]


def _progress(training: "Unfinished") -> dict[str, Any]:
    return {
        "name": training.name,
        "folder": str(training.folder),
        "subject": training.job.words.subject,
        "style": training.job.words.style,
        "base": training.job.base.spec,
        "steps_kept": training.step,
        "steps": training.job.config.steps,
        "created": training.job.created,
        "bytes": training.size(),
    }


def _steps(project: "Project") -> str:
    if project.job.settings is None:
        return "imported"
    done = str(project.manifest.steps_done)
    if project.manifest.state == "complete":
        return done
    return f"{done} of {project.job.settings.steps}"
