"""replay: train again from the manifest alone, and compare."""

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from unziplora_cli.cli._options import DEVICE
from unziplora_cli.cli._output import Session, Table, format_duration
from unziplora_cli.cli.projects import NAME, PANEL

if TYPE_CHECKING:
    from unziplora_cli.workflows.replay import FileDistance, ReplayResult


def register(app: typer.Typer) -> None:
    """Add the command to the program."""
    app.command("replay", rich_help_panel=PANEL)(replay)


def replay(
    ctx: typer.Context,
    project: Annotated[str, NAME],
    name: Annotated[
        str | None,
        typer.Option(help="Keep the result as a project of this name; left out: compare and delete it."),
    ] = None,
    device: Annotated[str | None, DEVICE] = None,
) -> None:
    """Train a project again from its manifest alone, and say how far the result is from the recorded one."""
    from unziplora_cli.cli._output import ProgressDisplay
    from unziplora_cli.projects.names import check_name
    from unziplora_cli.workflows.replay import ReplayResult
    from unziplora_cli.workflows.replay import replay as run

    session: Session = ctx.obj
    keep = None if name is None else check_name(name)
    finished: ReplayResult | None = None
    with ProgressDisplay(session.output, project) as display:
        for event in run(session.store(), project, keep=keep, device=device):
            if isinstance(event, ReplayResult):
                finished = event
            else:
                display.event(event)
    if finished is None:
        raise typer.Exit  # another process of this training compares
    rows = [[each.role, _distance(each)] for each in finished.files]
    rows += [[metric, f"{was:.6g}, now {now:.6g}"] for metric, (was, now) in finished.losses.items()]
    session.output.result(
        {**asdict(finished), "identical": finished.identical},
        table=Table((project, "replayed"), rows),
        text=_closing(finished),
    )


def _distance(each: "FileDistance") -> str:
    if each.identical:
        return "the same file, byte for byte"
    if each.largest is not None:
        return f"largest difference {each.largest:.3g}" if each.largest else "the same numbers"
    if not each.relative:
        return "the same numbers"
    return f"{each.relative:.3g} of its size apart, {each.columns or 0:.1%} of the columns the same"


def _closing(finished: "ReplayResult") -> str:
    lines = [f"{finished.project}: trained again in {format_duration(finished.seconds)}."]
    if not finished.identical:
        lines += [f"Changed since: {each}" for each in finished.changed]
        lines += [f"Not recorded: {each}" for each in finished.unrecorded]
    if finished.kept:
        lines.append(f"The new project: {finished.kept}")
    return "\n".join(lines)
