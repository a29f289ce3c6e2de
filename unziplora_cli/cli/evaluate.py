"""eval and replay: how well content and style were separated, and whether a training can be repeated."""

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from unziplora_cli import resources
from unziplora_cli.cli._errors import remedy_text
from unziplora_cli.cli._opening import openable
from unziplora_cli.cli._options import DEVICE, PROJECT, config_options, project_base
from unziplora_cli.cli._output import Session, Table, format_duration
from unziplora_cli.config import ComputeConfig, resolve_generate
from unziplora_cli.evaluation.prompts import EvaluationConfig

if TYPE_CHECKING:
    from unziplora_cli.projects.manifest import Evaluation, ScoreRecord
    from unziplora_cli.projects.store import Project
    from unziplora_cli.workflows.replay import FileDistance, ReplayResult


@openable
@config_options(EvaluationConfig)
@config_options(ComputeConfig, into="compute")
def evaluate(
    ctx: typer.Context,
    compute: dict[str, Any],
    settings: dict[str, Any],
    project: Annotated[str, PROJECT],
    pull: Annotated[
        bool,
        typer.Option(
            "--pull", help="Download DINOv2 and CLIP first; they score images of other bases than mini."
        ),
    ] = False,
) -> None:
    """Measure how well content and style were separated.

    Reports which content or style leaked, and which option to change.
    """
    from unziplora_cli.workflows import evaluate

    session: Session = ctx.obj
    config, compute_config = EvaluationConfig(**settings), ComputeConfig(**compute)
    opened = session.store().open(project)
    if pull:
        session.use_network("Downloading DINOv2 and CLIP")
        session.run("eval", evaluate.download_encoders())
    compute_config, base = project_base(session, compute_config, [opened])
    generation = resolve_generate(resources.default_preset(base.kind), {})
    request = evaluate.EvaluationRequest(project, base, config, generation, compute_config)
    result = session.run("eval", evaluate.evaluate(request, session.store()))
    evaluation, lead = result.evaluation, [result.evaluation.diagnosis, *advice_lines(result.project)]
    session.output.result(
        {"name": project, "evaluation": asdict(evaluation), "sheet": result.sheet},
        lead="\n".join([*lead, ""]),
        table=(scores_table(evaluation, explain=session.output.verbose), columns_table(evaluation)),
        made=result.sheet,
    )
    for note in evaluation.notes:
        session.output.message(note)
    if result.project.manifest.state != "complete":
        session.output.message(f"To finish the training: unziplora train --resume {project}")
    if result.sheet:
        session.output.message(f"The generated images: {result.sheet}")
    if result.missing_scorers:
        session.output.message(
            f"No images were generated: scoring them needs {' and '.join(result.missing_scorers)}. "
            f"To download them: unziplora eval {project} --pull"
        )


def scores_table(evaluation: "Evaluation", *, explain: bool = False) -> Table:
    """The scores; with `explain` also their descriptions."""
    rows = [
        [
            score.name,
            _number(score, score.value),
            _number(score, score.base),
            "high" if score.higher_is_better else "low",
            *([score.about] if explain else []),
        ]
        for score in evaluation.scores
    ]
    return Table(("score", "value", "base alone", "best", *(["description"] if explain else [])), rows)


def columns_table(evaluation: "Evaluation") -> Table:
    """How many columns each branch uses in each block of the U-Net."""
    rows = [
        [block.block, str(block.content), str(block.style), str(block.shared), str(block.total)]
        for block in evaluation.columns
    ]
    return Table(("columns of", "content", "style", "shared", "total"), rows)


def evaluation_rows(evaluation: "Evaluation") -> list[list[str]]:
    """Diagnosis and scores as lines of two cells."""
    rows = [["diagnosis", evaluation.diagnosis]]
    for score in evaluation.scores:
        base = f" (base alone {_number(score, score.base)})" if score.base is not None else ""
        rows.append([score.name, _number(score, score.value) + base])
    return rows


def advice_lines(project: "Project") -> list[str]:
    """The advice of the last evaluation, with the commands that follow it."""
    from unziplora_cli.workflows.evaluate import recorded_advice

    lines = []
    for notice in recorded_advice(project):
        lines += [f"- {notice.text}", *(f"  {remedy_text(remedy)}" for remedy in notice.remedies)]
    return lines


def _number(score: "ScoreRecord", value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:.0%}" if score.unit in ("share", "difference") else f"{value:.3g}"


@openable
def replay(
    ctx: typer.Context,
    project: Annotated[str, PROJECT],
    name: Annotated[
        str | None,
        typer.Option(help="Keep the result as a project of this name. Default: compare and delete it."),
    ] = None,
    device: Annotated[str | None, DEVICE] = None,
) -> None:
    """Train a project again from its manifest, and compare the results."""
    from unziplora_cli.projects.names import check_name
    from unziplora_cli.workflows.replay import replay

    session: Session = ctx.obj
    keep = None if name is None else check_name(name)
    result = session.run(project, replay(session.store(), project, keep=keep, device=device))
    if result is None:
        raise typer.Exit  # another process of this training compares
    rows = [[file.role, _distance(file)] for file in result.files]
    rows += [[metric, f"{old:.6g}, now {new:.6g}"] for metric, (old, new) in result.losses.items()]
    session.output.result(
        {**asdict(result), "identical": result.identical},
        table=Table((project, "replayed"), rows),
        text=_replay_summary(result),
        made=result.kept,
    )


def _distance(file: "FileDistance") -> str:
    if file.identical:
        return "identical"
    if file.largest:
        return f"largest difference {file.largest:.3g}"
    if file.relative:
        return f"relative difference {file.relative:.3g}, {file.columns or 0:.1%} of the columns the same"
    return "the same numbers"


def _replay_summary(result: "ReplayResult") -> str:
    lines = [f"{result.project}: trained again in {format_duration(result.seconds)}."]
    if not result.identical:
        lines += [f"Changed since: {change}" for change in result.changed]
        lines += [f"Not recorded: {setting}" for setting in result.unrecorded]
    if result.kept:
        lines.append(f"The new project: {result.kept}")
    return "\n".join(lines)
