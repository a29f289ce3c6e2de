"""Pictures of a project and of its base alone, drawn to be looked at, and what was seen in them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import TYPE_CHECKING, Any

from unziplora_cli import resources
from unziplora_cli.config import Prompts
from unziplora_cli.project.manifest import ScoreRecord
from unziplora_cli.project.store import Project
from unziplora_cli.workflows.drawing import OnProgress, pictures

if TYPE_CHECKING:
    from PIL import Image

    from unziplora_cli.diffusion.fuse import Branches
    from unziplora_cli.diffusion.generate import Request
    from unziplora_cli.evaluation.scenes import Shot
    from unziplora_cli.evaluation.viewer import View, Viewer
    from unziplora_cli.workflows.evaluation import EvalOrder


@dataclass(frozen=True)
class Seen:
    """What was seen, by whom, in how many pictures; ``sheet`` shows them all, None when there are none."""

    scores: tuple[ScoreRecord, ...] = ()
    notes: tuple[str, ...] = ()
    judge: str = ""
    pictures: int = 0
    sheet: Image.Image | None = None


def look(
    order: EvalOrder,
    project: Project,
    learned: Branches,
    training: Sequence[Image.Image],
    on_progress: OnProgress,
) -> Seen:
    """Draw for every purpose, with the branches and with the base alone, and name what is to be seen.

    Where nobody can look, nothing is drawn, and a note says what to type.
    """
    from unziplora_cli.evaluation.scenes import plan
    from unziplora_cli.evaluation.scores import picture_scores

    viewer, missing = _viewer(order, project, training)
    if viewer is None:
        return Seen(notes=(missing,))
    words, config = project.manifest.words, order.config
    shots = plan(words, (viewer.subject, words.subject.lower()), config.count, config.seed)
    texts = [shot.text for shot in shots]
    ours, theirs = _draw(order, learned, shots, on_progress)
    views, base_views = viewer.look(ours, texts), viewer.look(theirs, texts)
    return Seen(
        scores=picture_scores(shots, views, base_views, viewer),
        notes=viewer.notes,
        judge=viewer.name,
        pictures=len(ours) + len(theirs),
        sheet=_sheet(project, training[0], shots, (ours, views), (theirs, base_views)),
    )


def _viewer(order: EvalOrder, project: Project, training: Sequence[Image.Image]) -> tuple[Viewer | None, str]:
    """Who looks at the pictures; without anybody, what to type to have somebody."""
    words = project.manifest.words
    if order.base.kind == "builtin":
        from unziplora_cli.evaluation.viewer import JudgeViewer

        return JudgeViewer(resources.judge(), training, words), ""
    from unziplora_cli.evaluation import encoders
    from unziplora_cli.evaluation.clip_viewer import ClipViewer

    missing = encoders.missing()
    if missing:
        return None, (
            f"No pictures were drawn, since nobody could look at them: {' and '.join(missing)} would, once "
            f"fetched with unziplora eval {project.name} --pull"
        )
    return ClipViewer(encoders.Encoders.load(), training, words), ""


def _draw(
    order: EvalOrder, learned: Branches, shots: Sequence[Shot], on_progress: OnProgress
) -> tuple[list[Image.Image], list[Image.Image]]:
    """Every shot drawn with its branches, and drawn by the base alone from the same words and noise."""
    requests = [*_requests(order, shots, None), *_requests(order, shots, learned)]
    drawn = [picture.image for picture in pictures(requests, order.base, order.studio, on_progress)]
    return drawn[len(shots) :], drawn[: len(shots)]


def _requests(order: EvalOrder, shots: Sequence[Shot], learned: Branches | None) -> Iterator[Request]:
    """One request for neighbours that differ in their seed alone; without branches the base is asked."""
    from unziplora_cli.diffusion.fuse import Branches
    from unziplora_cli.diffusion.generate import Request
    from unziplora_cli.evaluation.scenes import BRANCHES

    def kind(shot: Shot) -> tuple[Any, ...]:
        return shot.purpose, shot.prompts

    for (purpose, prompts), group in groupby(shots, kind):
        same = list(group)
        settings = replace(order.drawing, count=len(same), seed=same[0].seed)
        if learned is None:
            text = same[0].text
            yield Request(Prompts(text, text, text), Branches(), settings)
        elif len(BRANCHES[purpose]) == 2:
            yield Request(prompts, learned, settings)
        else:
            branch = BRANCHES[purpose][0]
            yield Request(prompts, Branches(**{branch: getattr(learned, branch)}), settings)


def _sheet(
    project: Project,
    training: Image.Image,
    shots: Sequence[Shot],
    *drawn: tuple[Sequence[Image.Image], Sequence[View]],
) -> Image.Image:
    """One row of what the branches drew and one of what the base did, for each purpose."""
    from unziplora_cli.evaluation.scenes import PURPOSES
    from unziplora_cli.report.sheet import Cell, Heading, contact_sheet

    rows, headings = [], []
    for purpose in PURPOSES:
        for who, (images, views) in zip((purpose, "base alone"), drawn, strict=True):
            rows.append(
                [
                    Cell(image, f"{shot.text}: {view.subject}, {view.style} {view.context}".strip())
                    for shot, image, view in zip(shots, images, views, strict=True)
                    if shot.purpose == purpose
                ]
            )
            headings.append(Heading(who, group=purpose))
    rows[0].append(Cell(training, "the training picture"))
    title = f"{project.name}: what was drawn, and what was seen"
    return contact_sheet(rows, title=title, row_headings=headings)
