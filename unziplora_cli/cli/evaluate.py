"""eval: how well a project's content and style came apart."""

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from unziplora_cli.cli._options import config_options, preset_for, project_base, project_names
from unziplora_cli.cli._output import Session, Table, format_size
from unziplora_cli.config import ComputeConfig, resolve_generate
from unziplora_cli.workflows.evaluate import EvaluationConfig

if TYPE_CHECKING:
    from unziplora_cli.projects.manifest import Evaluation, ScoreRecord


def register(app: typer.Typer) -> None:
    """Add the command to the program."""
    with_computing = config_options(ComputeConfig, into="computing")(evaluate)
    app.command("eval", rich_help_panel="Projects")(config_options(EvaluationConfig)(with_computing))


def evaluate(
    ctx: typer.Context,
    project: Annotated[
        str,
        typer.Argument(
            metavar="PROJECT", help="Name of a project.", show_default=False, autocompletion=project_names
        ),
    ],
    pull: Annotated[
        bool,
        typer.Option("--pull", help="Fetch DINOv2 and CLIP first, which look at pictures of other bases."),
    ] = False,
    computing: dict[str, Any] | None = None,
    settings: dict[str, Any] | None = None,
) -> None:
    """Tell how well content and style came apart: what was kept, what leaked, and what to do about it."""
    from unziplora_cli.cli._output import ProgressDisplay
    from unziplora_cli.workflows import evaluate

    session: Session = ctx.obj
    config, studio = EvaluationConfig(**(settings or {})), ComputeConfig(**(computing or {}))
    found = session.store().open(project)
    if pull:
        session.use_network("Fetching DINOv2 and CLIP")
        evaluate.download_encoders(
            lambda id, bytes: session.output.message(f"Fetching {id}, {format_size(bytes)}.")
        )
    base = project_base(session, studio.base, [found])
    order = evaluate.EvaluationRequest(project, base, config, resolve_generate(preset_for(base), {}), studio)
    with ProgressDisplay(session.output, "eval") as display:

        def show(doing: evaluate.EvaluationProgress) -> None:
            line = f"eval: {doing.what} {doing.done:.0f} of {doing.total:.0f}"
            display.update(doing.what, doing.done, doing.total, "", line)

        done = evaluate.evaluate(order, session.store(), show)
    made = done.evaluation
    data = {"name": project, "evaluation": asdict(made), "sheet": str(done.sheet) if done.sheet else None}
    tables = (columns_table(made), scores_table(made, explain=session.output.verbose))
    session.output.result(data, table=tables, text=summary(made))
    for note in (*made.notes, *((f"What was drawn: {done.sheet}",) if done.sheet else ())):
        session.output.message(note)


def scores_table(evaluation: "Evaluation", *, explain: bool = False) -> Table:
    """The scores for people; with `explain` also what each of them is."""
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
    return Table(("score", "value", "base alone", "best", *(["what it is"] if explain else [])), rows)


def columns_table(evaluation: "Evaluation") -> Table:
    """Which branch uses how many columns in which block of the U-Net."""
    rows = [
        [each.block, str(each.content), str(each.style), str(each.shared), str(each.total)]
        for each in evaluation.columns
    ]
    return Table(("columns of", "content", "style", "shared", "total"), rows)


def summary(evaluation: "Evaluation") -> str:
    """The verdict, and each piece of advice on a line of its own."""
    return "\n".join([evaluation.diagnosis, *(f"- {each}" for each in evaluation.advice)])


def evaluation_rows(evaluation: "Evaluation | None") -> list[list[str]]:
    """The verdict, the advice and the scores as lines of two cells; none without an evaluation."""
    if evaluation is None:
        return []
    rows = [["diagnosis", evaluation.diagnosis], *(["advice", each] for each in evaluation.advice)]
    for score in evaluation.scores:
        base = f" (base alone {_number(score, score.base)})" if score.base is not None else ""
        rows.append([score.name, _number(score, score.value) + base])
    return rows


def _number(score: "ScoreRecord", value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:.0%}" if score.unit in ("share", "difference") else f"{value:.3g}"
