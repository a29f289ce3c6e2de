"""The page: the jobs on top, below them one tab for each thing to do."""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING, Any

import gradio as gr

from unziplora_cli.report import charts
from unziplora_cli.ui import cross, draw, projects, train
from unziplora_cli.ui.components import project_names, refreshed, reporting

if TYPE_CHECKING:
    from unziplora_cli.ui.jobs import Job, JobQueue
    from unziplora_cli.ui.server import Context

THEME_FONTS = ("system-ui", "sans-serif")
CSS = """
.job { border: 1px solid var(--border-color-primary); border-radius: 8px; padding: 0.6rem 0.9rem; }
.job progress { width: 100%; height: 0.9rem; }
.job h2 { font-size: 1.05rem; margin: 0 0 0.3rem; }
.job p, .job ol { margin: 0.2rem 0; }
.job svg { width: 100%; max-height: 9rem; }
.gradio-container { max-width: 2000px; margin: 0 auto; }
footer { display: none; }
"""
NOTHING = "<section class='job' aria-live='polite'><p>No job is running.</p></section>"
SECONDS = 1.0
"""Between two looks at the jobs."""


def build(context: Context) -> gr.Blocks:
    """All components of the page and what they do."""
    queue = context.queue
    with gr.Blocks(title="unziplora", analytics_enabled=False, fill_width=True) as page:
        gr.Markdown("# unziplora\nOne image in, its content and its style out, each as a LoRA.")
        with gr.Row():
            with gr.Column(scale=2):
                status = gr.HTML(NOTHING, elem_id="jobs")
                with gr.Row():
                    stop = gr.Button("Stop the running job", size="sm", interactive=False)
                    waiting = gr.Dropdown([], label="Waiting jobs", scale=2, visible=False)
                    cancel = gr.Button("Cancel it", size="sm", visible=False)
            made = gr.Gallery(
                [], label="Made by the last job", columns=4, height=220, scale=2, object_fit="contain"
            )
        pickers: list[Any] = []
        with gr.Tabs():
            for title, tab in (("Train", train), ("Draw", draw), ("Cross", cross), ("Projects", projects)):
                with gr.Tab(title):
                    pickers += tab.build(context)
        shown, listed = gr.State(()), gr.State([])
        timer = gr.Timer(SECONDS)

        def look(before: tuple[Any, ...]) -> tuple[Any, ...]:
            """The state of the jobs; components that did not change are left alone."""
            job = _shown_job(queue)
            names = [f"{job.number}: {job.title}" for job in queue.jobs() if job.state == "waiting"]
            images = [str(path) for path in job.images] if job else []
            now = (
                status_html(queue),
                tuple(names),
                tuple(images),
                job is not None and job.state == "running",
            )
            if now == before:
                return (gr.skip(),) * 6
            old = before or ("", (), (), False)
            return (
                now[0],
                gr.skip() if old[2] == now[2] else images,
                gr.update(interactive=now[3]),
                gr.update(choices=names, value=names[0] if names else None, visible=bool(names)),
                gr.update(visible=bool(names)),
                now,
            )

        def list_projects(before: list[str], *chosen: Any) -> list[Any]:
            names = project_names(context)
            if names == before:
                return [gr.skip()] * (len(pickers) + 1)
            updates = [refreshed(one, names, value) for one, value in zip(pickers, chosen, strict=True)]
            return [names, *updates]

        hidden: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden"}
        both = [listed, *pickers]
        gr.on([page.load, timer.tick], reporting(context, list_projects), both, both, **hidden)
        outputs = [status, made, stop, waiting, cancel, shown]
        gr.on([page.load, timer.tick], look, shown, outputs, **hidden)
        stop.click(lambda: _stop(queue), api_visibility="private")
        cancel.click(lambda name: _cancel(queue, name), waiting, api_visibility="private")
    return page


def status_html(queue: JobQueue) -> str:
    """The running job, else the last one, and those that wait; every text is escaped."""
    job = _shown_job(queue)
    if job is None:
        return NOTHING
    lines = [f"<h2>{escape(job.title)}: {job.state}</h2>"]
    if job.state in ("running", "stopping"):
        value = "" if job.fraction is None else f" value='{job.fraction:.3f}'"
        lines.append(f"<progress max='1'{value} aria-label='Progress of {escape(job.title)}'></progress>")
        lines.append(f"<p>{escape(job.phase or 'starting')}</p>")
    if job.error:
        lines.append(f"<p role='alert'><strong>{escape(job.error)}</strong></p>")
        lines += [f"<p>{escape(line)}</p>" for line in job.remedy.splitlines()]
    lines += [f"<p>{escape(notice)}</p>" for notice in job.notices[-3:]]
    if len(job.losses) > 1:
        lines.append(_loss_chart(job))
    return f"<section class='job' aria-live='polite'>{''.join(lines)}</section>"


def _loss_chart(job: Job) -> str:
    chart = charts.line_chart({"loss": job.losses}, smooth=True)
    if chart is None:
        return ""
    line = chart.lines[0]
    return (
        f"<svg viewBox='0 0 {charts.WIDTH} {charts.HEIGHT}' role='img' "
        f"aria-label='Loss, from {line.first:.3f} to {line.last:.3f}'>"
        f"<path d='{line.raw}' fill='none' stroke='currentColor' opacity='0.25'/>"
        f"<path d='{line.path}' fill='none' stroke='currentColor' stroke-width='2'/></svg>"
    )


def _shown_job(queue: JobQueue) -> Job | None:
    """The running job, else the one that ended last."""
    ended = [job for job in queue.jobs() if job.ended]
    return queue.current() or (ended[-1] if ended else None)


def _stop(queue: JobQueue) -> None:
    job = queue.current()
    if job is not None:
        queue.cancel(job.number)


def _cancel(queue: JobQueue, name: str | None) -> None:
    if name:
        queue.cancel(int(name.partition(":")[0]))
