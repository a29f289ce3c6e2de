"""The page: the jobs on top, below them one tab for each thing to do."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import gradio as gr

from unziplora_cli.errors import Remedy, UsageError
from unziplora_cli.report import charts
from unziplora_cli.report.html import render
from unziplora_cli.ui import components, cross, draw, projects, train
from unziplora_cli.ui.components import HIDDEN, IMAGES, PRIVATE, as_text, project_names, refreshed
from unziplora_cli.ui.server import is_within

if TYPE_CHECKING:
    from unziplora_cli.ui.jobs import Job, JobQueue
    from unziplora_cli.ui.server import Context

NO_PROJECT = "There is no project yet. Train one, or import LoRAs on the tab Projects."
SECONDS = 1.0
"""Between two looks at the jobs."""


class Page(gr.Blocks):
    """Blocks that take only files sent to the page, and show errors in the words of the terminal.

    Gradio would fetch a file entry that names a URL, and checks no path in an application that it did not
    launch itself.
    """

    def __init__(self, context: Context, **options: Any) -> None:
        super().__init__(**options)
        self.context = context

    async def process_api(self, block_fn: Any, *arguments: Any, **options: Any) -> dict[str, Any]:
        """Run a function of the page; raises gr.Error with message and remedy."""
        function = self.fns[block_fn] if isinstance(block_fn, int) else block_fn
        try:
            if function.show_progress != HIDDEN["show_progress"]:
                await asyncio.to_thread(components.import_libraries)
            return await super().process_api(function, *arguments, **options)
        except gr.Error as error:  # Gradio's own
            error.print_exception = False
            raise
        except Exception as error:
            message, remedy, _ = self.context.explain(error)
            raise gr.Error(
                "<br>".join(as_text(line) for line in (message, *remedy.splitlines())),
                duration=None,
                print_exception=False,
            ) from None

    async def preprocess_data(self, block_fn: Any, inputs: list[Any], *rest: Any, **options: Any) -> Any:
        """As Gradio's; raises UsageError for a file that was not sent to the page."""
        return await super().preprocess_data(block_fn, self._sent_files(inputs), *rest, **options)

    def _sent_files(self, value: Any) -> Any:
        if isinstance(value, list):
            return [self._sent_files(item) for item in value]
        if not isinstance(value, dict):
            return value
        if not value.keys() & {"path", "url"}:
            return {key: self._sent_files(item) for key, item in value.items()}
        path = value.get("path")
        if not isinstance(path, str) or not is_within(path, [self.context.uploads]):
            raise UsageError("The page takes only files that were sent to it.")
        names = ("path", "orig_name", "size", "mime_type", "meta")
        return {name: value[name] for name in names if name in value}


def build(context: Context) -> gr.Blocks:
    """All components of the page and what they do."""
    queue = context.queue
    page = Page(context, title="unziplora", analytics_enabled=False, fill_width=True)
    with page:
        gr.Markdown("# unziplora")
        with gr.Row():
            with gr.Column(scale=3, min_width=300):
                status = gr.HTML(job_html(None, context.remedy), elem_id="jobs", padding=False)
                with gr.Row(elem_id="queue"):
                    stop = gr.Button("Stop the running job", size="sm", scale=0, min_width=200, visible=False)
                    waiting = gr.Dropdown([], label="Waiting jobs", scale=2, visible=False, min_width=200)
                    cancel = gr.Button(
                        "Cancel the waiting job", size="sm", scale=0, min_width=200, visible=False
                    )
            with gr.Column(scale=2, min_width=300, visible=False) as beside:
                made = gr.Gallery([], label="Images of this job", elem_id="made", height=190, **IMAGES)
        shown, changes, listed = gr.State(()), gr.State(()), gr.State([])
        pickers: list[Any] = []
        hints: list[gr.Markdown] = []
        with gr.Tabs():
            for title, tab in (("Train", train), ("Draw", draw), ("Cross", cross), ("Projects", projects)):
                with gr.Tab(title):
                    if tab is not train:
                        hints.append(gr.Markdown(NO_PROJECT))
                    pickers += tab.build(context, changes)

        def look(before: tuple[Any, ...]) -> list[Any]:
            """The state of the jobs; components that did not change are left alone."""
            ended = [job for job in queue.jobs() if job.ended and (job.phase or job.state != "stopped")]
            job = queue.current() or (ended[-1] if ended else None)
            jobs = [job for job in queue.jobs() if job.state == "waiting"]
            names = [(f"{job.number}: {job.title}", job.number) for job in jobs]
            images = [str(path) for path in job.images if path.exists()] if job else []
            running = job is not None and job.state == "running"
            states = [(job.number, job.state, len(job.images)) for job in queue.jobs()]
            now = (
                job_html(job, context.remedy),
                running,
                tuple(names),
                tuple(images),
                (states, context.store.names()),
            )
            updates = (
                (0, now[0]),
                (1, gr.update(visible=running)),
                (2, gr.update(choices=names, value=names[0][1] if names else None, visible=bool(names))),
                (2, gr.update(visible=bool(names))),
                (3, images),
                (3, gr.update(visible=bool(images))),
                (4, now[4]),
            )
            old = before or (None,) * len(now)
            return [*(gr.skip() if now[i] == old[i] else update for i, update in updates), now]

        def list_projects(before: list[str], *chosen: Any) -> list[Any]:
            names = project_names(context)
            if names == before:
                return [gr.skip()] * (1 + len(pickers) + len(hints))
            updates = [refreshed(one, names, value) for one, value in zip(pickers, chosen, strict=True)]
            return [names, *updates, *[gr.update(visible=not names)] * len(hints)]

        both = [listed, *pickers]
        gr.on([page.load, changes.change], list_projects, both, [*both, *hints], **HIDDEN)
        outputs = [status, stop, waiting, cancel, made, beside, changes, shown]
        timer = gr.Timer(SECONDS)
        gr.on([page.load, timer.tick], look, shown, outputs, **HIDDEN)
        stop.click(lambda: _stop(queue), **PRIVATE)
        cancel.click(lambda number: queue.cancel(number or 0), waiting, **PRIVATE)
    return page


def job_html(job: Job | None, word: Callable[[Remedy], str]) -> str:
    """What a job does and says, and what to do by ``word``; every text is escaped."""
    chart = charts.line_chart({"loss": job.losses}, smooth=True) if job and len(job.losses) > 1 else None
    return render("ui/job.html", {"job": job, "chart": chart, "charts": charts, "word": word})


def _stop(queue: JobQueue) -> None:
    if (job := queue.current()) is not None:
        queue.cancel(job.number)
