"""Train a list of images one after the other: what is finished is skipped, failures do not stop the rest."""

from __future__ import annotations

import gc
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field, replace
from itertools import groupby, islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, Literal

from unziplora_cli import files
from unziplora_cli.config import TrainConfig
from unziplora_cli.errors import Interrupted, ProjectError, Remedy, UnziploraError, UsageError
from unziplora_cli.events import Part, translate
from unziplora_cli.job import Description, SourceImage, differences
from unziplora_cli.packages import check_packages
from unziplora_cli.paths import process_rank
from unziplora_cli.prompts import make_words
from unziplora_cli.training.request import TrainRequest
from unziplora_cli.workflows.describe import propose, settle_words
from unziplora_cli.workflows.destyle import destyle_requests
from unziplora_cli.workflows.train import (
    Joined,
    TrainedProject,
    input_cache_for,
    join,
    make_request,
    read_sources,
    request_to_resume,
    train,
    training_config,
)
from unziplora_cli.workflows.train_list import Row
from unziplora_cli.workflows.train_ray import Cluster, TrainingBegins, TrainingEnds

if TYPE_CHECKING:
    from unziplora_cli.projects.store import ProjectStore
    from unziplora_cli.sdxl.base import BaseRef
    from unziplora_cli.training.events import Event, TrainResult
    from unziplora_cli.training.inputs import InputCache

TOGETHER = 16
"""Trainings whose inputs are computed together. Keeping the encoders loaded instead would save 0.01 s per
image on `mini`, and take 1.8 GB of memory beside SDXL's U-Net."""


@dataclass(frozen=True, kw_only=True)
class Options:
    """What holds for all rows: the base, and defaults of what a row does not say."""

    base: BaseRef
    texts: Mapping[str, str | None] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)
    vae: str | None = None
    device: str = "auto"
    describe: bool = True
    describer: str | None = None
    force: bool = False
    ray: str | None = None
    """The address of a Ray cluster whose nodes train, or ``local``."""
    at_once: int = 1
    """So many images are one batch, each with its own LoRAs."""


@dataclass(frozen=True)
class RowResult:
    """What became of a row. ``error`` is set if it failed, ``note`` says what else the user should know."""

    row: Row
    state: Literal["trained", "unchanged", "failed"]
    trained: TrainedProject | None = None
    error: Exception | None = None
    note: str = ""


@dataclass(frozen=True, slots=True)
class RowEnds:
    """A row is done, number ``number`` of ``total``."""

    result: RowResult
    number: int
    total: int


def train_many(
    rows: Sequence[Row], options: Options, store: ProjectStore
) -> Generator[Event | TrainingBegins | RowEnds, None, list[RowResult]]:
    """Train every row that is not finished; returns what became of each, in their order.

    A project of the same image is finished, an unfinished training is resumed. Base, text encoders, VAE and
    U-Net stay loaded. Raises UsageError before anything is trained if a row contradicts itself, and
    Interrupted; any other error is that of its row.
    """
    rows = [row.with_defaults(options.texts, options.settings) for row in rows]
    configs = [config_of(row, options) for row in rows]
    if options.at_once > 1:
        check_alike(rows, configs, options)
    results: dict[int, RowResult] = {}

    def of_row(event: Event | TrainingBegins | TrainingEnds) -> tuple[Event | TrainingBegins | RowEnds, ...]:
        match event:
            case TrainingBegins():
                return event, Part(len(results) / len(rows), (len(results) + 1) / len(rows))
            case TrainingEnds(index, result):
                results[index] = _result(rows[index], result)
                return (RowEnds(results[index], len(results), len(rows)),)
        return (event,)

    try:
        yield from translate(_train_rows(rows, configs, options, store), of_row)
    except (KeyboardInterrupt, Interrupted) as error:
        complete = sum(result.state != "failed" for result in results.values())
        raise Interrupted(
            f"Stopped: {complete} of {len(rows)} images are complete.",
            Remedy("Run the same command again: it continues where it stopped."),
        ) from error
    return [results[index] for index in range(len(rows))]


def _train_rows(
    rows: Sequence[Row], configs: Sequence[TrainConfig], options: Options, store: ProjectStore
) -> Generator[Event | TrainingBegins | TrainingEnds, None, None]:
    with ExitStack() as stack:
        if options.ray is not None:
            cluster = yield from Cluster.connect(options.ray, options.base, options.vae, options.device)
            stack.callback(cluster.close)
        requests = yield from _requests(rows, configs, options, store)
        here = _train_here(requests, store, options.at_once)
        yield from here if options.ray is None else cluster.train(requests, store)


def _result(row: Row, result: TrainedProject | Exception | str | None) -> RowResult:
    """What became of a row: a project, an error, or how the finished project differs from the row."""
    if isinstance(result, Exception):
        result.__cause__ = result.__context__ = None
        failed = RowResult(row, "failed", error=result.with_traceback(None))
        gc.collect()  # the frames of the error held its models
        return failed
    if isinstance(result, str):
        return RowResult(row, "unchanged", note=result)
    return RowResult(row, "trained", result)


def _requests(
    rows: Sequence[Row], configs: Sequence[TrainConfig], options: Options, store: ProjectStore
) -> Generator[Event | TrainingEnds, None, dict[int, TrainRequest]]:
    """The trainings of all rows that are neither finished nor wrong, by the index of their row."""
    sources: dict[int, tuple[SourceImage, ...]] = {}
    for index, (row, config) in enumerate(zip(rows, configs, strict=True)):
        result: Exception | str | None
        try:
            result = _finished(row, config, options, store)
            if result is None:
                sources[index] = read_sources([row.file])
        except Exception as error:
            result = error
        if result is not None:
            yield TrainingEnds(index, result)
    requests = {}
    descriptions = yield from _describe([rows[index] for index in sources], options)
    for (index, images), description in zip(sources.items(), descriptions, strict=True):
        try:
            requests[index] = _request(rows[index], images, configs[index], description, options, store)
        except Exception as error:
            yield TrainingEnds(index, error)
    return requests


def _train_here(
    requests: Mapping[int, TrainRequest], store: ProjectStore, at_once: int
) -> Generator[Event | TrainingBegins | TrainingEnds, None, None]:
    """Train one after the other, or so many at once, in this process, which keeps the models loaded."""
    models, cache = None, input_cache_for([])
    for chunk in _chunks(requests):
        first = requests[chunk[0]]
        with TemporaryDirectory(prefix="unziplora-") as scratch:
            if models_of(first) != models or first.config.destyle == "edit":
                models, cache = models_of(first), input_cache_for([])
            chunk_requests = yield from _destyled([requests[index] for index in chunk], Path(scratch))
            cache.expect(chunk_requests)
            destyled = dict(zip(chunk, chunk_requests, strict=True))
            anew = [index for index in chunk if at_once > 1 and not requests[index].resume]
            for start in range(0, len(anew), at_once):
                group = {index: destyled.pop(index) for index in anew[start : start + at_once]}
                yield from _train_group(group, store, cache)
            for index, request in destyled.items():
                yield TrainingBegins(request.job.name)
                try:
                    yield TrainingEnds(index, (yield from train(request, store, cache)))
                except Interrupted:
                    raise
                except Exception as error:
                    yield TrainingEnds(index, error)


def _train_group(
    requests: Mapping[int, TrainRequest], store: ProjectStore, cache: InputCache
) -> Generator[Event | TrainingBegins | TrainingEnds, None, None]:
    """Train all ``requests`` as one batch; each becomes its own project, or fails by itself."""
    from unziplora_cli.training.at_once import train_at_once
    from unziplora_cli.training.events import Destyled, StepDone

    members: dict[int, Generator[Any, None, TrainedProject | None]] = {}
    joined: list[tuple[int, Joined]] = []

    def note(numbered: tuple[int, Event]) -> list[Event]:
        """Keep an event for its training; the steps of the first one are shown for all."""
        number, event = numbered
        if isinstance(event, Destyled | StepDone):
            joined[number][1].events.append(event)
        return [event] if number == 0 or not isinstance(event, StepDone) else []

    def without_steps(event: Event) -> list[Event]:
        """What a training repeats was shown before."""
        return [] if isinstance(event, Destyled | StepDone) else [event]

    with ExitStack() as stack:
        for index, request in requests.items():
            yield TrainingBegins(request.job.name)
            members[index] = train(request, store, run=join)
            stack.callback(members[index].close)
            try:
                for event in members[index]:
                    if isinstance(event, Joined):
                        joined.append((index, event))
                        break
                    yield event
            except Exception as error:
                yield TrainingEnds(index, error)
        results: Sequence[TrainResult | Exception]
        try:
            results = yield from translate(train_at_once([j.request for _, j in joined], cache), note)
        except Exception as error:
            results = [error] * len(joined)
        interrupted = None
        for (index, waiting), result in zip(joined, results, strict=True):
            waiting.result = result
            try:
                trained = yield from translate(members[index], without_steps)
                yield TrainingEnds(index, trained)
            except Interrupted as error:
                interrupted = error
            except Exception as error:
                yield TrainingEnds(index, error)
        if interrupted is not None:
            raise interrupted


def check_alike(rows: Sequence[Row], configs: Sequence[TrainConfig], options: Options) -> None:
    """Raise UsageError unless the rows can be trained at once: one batch has one set of settings."""
    from unziplora_cli.training.at_once import PER_IMAGE, check_at_once

    if options.ray is not None:
        raise UsageError(
            "A worker of a cluster trains one image at a time.",
            Remedy("Train on this machine alone, or one image at a time."),
        )
    for row, config in zip(rows, configs, strict=True):
        check_at_once(config)
        of_image = {name: getattr(configs[0], name) for name in PER_IMAGE}
        if different := differences(asdict(replace(config, **of_image)), asdict(configs[0])):
            raise UsageError(
                f"{row.where} has other settings than {rows[0].where}: {'; '.join(different)}. "
                "Images that are trained at once need the same.",
                Remedy("Train them one after the other", settings={"at_once": 1}),
            )


def config_of(row: Row, options: Options) -> TrainConfig:
    """The settings of a row; raises UsageError, naming the row, if they contradict each other."""
    try:
        _, config = training_config(options.base, row.texts.get("preset"), row.settings)
        check_packages(config)
    except UnziploraError as error:
        raise type(error)(f"{row.where}: {error.message}", *error.remedies) from error
    return config


def _finished(row: Row, config: TrainConfig, options: Options, store: ProjectStore) -> str | None:
    """How the finished project of this image differs from the row, "" if not at all; None without one.

    Raises ProjectError if the name belongs to another image, or if another process trains it.
    """
    if process_rank() == 0:
        store.check_unused(row.name)
    if options.force or not store.exists(row.name) or store.unfinished(row.name) is not None:
        return None
    job = store.open(row.name).job
    if not row.file.is_file() or [image.sha256 for image in job.images] != [files.sha256(row.file)]:
        if not row.file.is_file():
            read_sources([row.file])
        raise ProjectError(
            f"There is a project {row.name!r} already, of another image.",
            Remedy(f"Name this one in the column name, for example {store.free_name(row.name)}."),
        )
    words = make_words(
        row.texts.get("subject", job.words.subject),
        row.texts.get("style", job.words.style),
        job.words.trigger,
    )
    settings = [name for name in row.settings if name != "destyle"]  # a project records what was chosen
    wanted, recorded = (
        {"subject": words.subject, "style": words.style, **{name: getattr(config, name) for name in settings}}
        for words, config in ((words, config), (job.words, job.config))
    )
    return "; ".join(differences(wanted, recorded))


def _describe(rows: Sequence[Row], options: Options) -> Generator[Event, None, list[Description | None]]:
    """A description of each row that lacks a word, if a describer is on this disk."""
    due = [row for row in rows if options.describer or not {"subject", "style"} <= row.texts.keys()]
    descriptions = yield from propose(
        [row.file for row in due if options.describe],
        builtin=options.base.kind == "builtin",
        describer=options.describer,
        device=options.device,
    )
    by_name = {row.name: description for row, description in zip(due, descriptions, strict=False)}
    return [by_name.get(row.name) for row in rows]


def _request(
    row: Row,
    sources: tuple[SourceImage, ...],
    config: TrainConfig,
    description: Description | None,
    options: Options,
    store: ProjectStore,
) -> TrainRequest:
    """The training of a row: a new one, or the unfinished one. Raises UnziploraError."""
    texts = row.texts
    settled = settle_words(
        row.file,
        texts,
        description,
        lambda name: Remedy(
            f"Name it in the column {name} of a list, or train it alone", "train", (row.file,)
        ),
        may_pull=options.describe and options.base.kind != "builtin",
    )
    request = make_request(
        row.name,
        [row.file],
        settled.words,
        options.base,
        config,
        sources=sources,
        features=settled.features,
        description=settled.description,
        texts=texts,
        vae=options.vae,
        device=options.device,
        replaces=options.force,
    )
    unfinished = store.unfinished(row.name)
    if unfinished is None:
        return request
    if options.ray is not None:
        raise ProjectError(
            f"A training of {row.name!r} stopped on this machine after step {unfinished.step}.",
            Remedy("Resume it here", "train", settings={"resume": row.name}),
            Remedy("Or discard it", "remove", (row.name,), {"unfinished": True}),
        )
    different = replace(request.job, created=unfinished.job.created).difference(unfinished.job)
    if not different:
        return request_to_resume(store, row.name, {}, options.device)
    if not options.force:
        raise ProjectError(
            f"The training of {row.name!r} stopped after step {unfinished.step} of "
            f"{unfinished.job.config.steps} and differs: {'; '.join(different)}.",
            Remedy("Resume it", "train", settings={"resume": row.name}),
            Remedy("Or discard it", "remove", (row.name,), {"unfinished": True}),
        )
    return request


def models_of(request: TrainRequest) -> tuple[str | bool | None, ...]:
    """What decides which models a training loads; those for which it is equal share the U-Net."""
    config = request.config
    return config.precision, config.quantize, config.fuse, config.destyle


def _chunks(requests: Mapping[int, TrainRequest]) -> Iterator[list[int]]:
    """The indices of consecutive trainings that need the same models, at most `TOGETHER` each."""
    for _, same in groupby(requests, lambda index: models_of(requests[index])):
        while chunk := list(islice(same, TOGETHER)):
            yield chunk


def _destyled(requests: list[TrainRequest], scratch: Path) -> Generator[Event, None, list[TrainRequest]]:
    """The requests with destyled images by one model; after a failure, each training makes its own."""
    try:
        return (yield from destyle_requests(requests, scratch))
    except Interrupted:
        raise
    except Exception:
        return requests
