"""Progress events: what a long operation yields while it works.

Every long operation (training, generation, evaluation) is a generator. It yields events, prints nothing, and
returns its result, so that operations nest with ``result = yield from operation(...)``. Only ``cli/`` renders
events. Operations may define more event types beside these, as ``training/events.py`` does.
"""

import math
from collections.abc import Callable, Generator, Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal, TypeVar

from unziplora_cli.errors import Remedy

PhaseName = Literal[
    "download",
    "read images",
    "generate class images",
    "encode prompts",
    "encode images",
    "load base",
    "load U-Net",
    "load describer",
    "describe",
    "load destyler",
    "destyle",
    "train",
    "generate",
    "decode",
    "measure loss",
    "score",
    "finish",
]

EventT = TypeVar("EventT")
OtherT = TypeVar("OtherT")
ResultT = TypeVar("ResultT")


@dataclass(frozen=True, slots=True)
class Phase:
    """A new phase begins; ``detail`` names what it works on."""

    name: PhaseName
    detail: str = ""


@dataclass(frozen=True, slots=True)
class Notice:
    """One sentence that the user should read, and what to do about it."""

    text: str
    remedies: tuple[Remedy, ...] = ()


@dataclass(frozen=True, slots=True)
class Progress:
    """``done`` of ``total`` items are finished, and ``step`` of ``steps`` steps of the current item."""

    name: PhaseName
    done: int
    total: int
    step: int = 0
    steps: int = 0


@dataclass(frozen=True, slots=True)
class Part:
    """What follows is the part from ``start`` to ``end`` of the whole operation, as shares of its time."""

    start: float
    end: float


@dataclass(frozen=True, slots=True)
class Transfer:
    """``done`` of ``total`` bytes of a file have arrived."""

    file: str
    done: int
    total: int


@dataclass(frozen=True, slots=True)
class ImageSaved:
    """An image was written, one of several that the operation makes."""

    path: Path


Event = Phase | Notice | Progress | Part | Transfer | ImageSaved


def format_left(seconds: float | None) -> str:
    """Remaining seconds as text, rounded up: `2 h 5 min left`, `4 min left`, `35 s left`."""
    if seconds is None:
        return ""
    if seconds <= 90:
        return f"{5 * math.ceil(round(seconds) / 5)} s left"
    hours, minutes = divmod(math.ceil(round(seconds) / 60), 60)
    return f"{hours} h {minutes} min left" if hours else f"{minutes} min left"


class RemainingTime:
    """Estimates the remaining time of a task from its mean speed, recent minutes counting most.

    The speed of the last steps alone would make it jump: steps differ, and the machine has other work.
    """

    WINDOW = 60.0
    """Seconds after which what was measured counts for 1/e."""

    def __init__(self) -> None:
        self.updated: float | None = None
        self.completed = 0.0
        self.seconds = self.units = 0.0

    def update(self, completed: float, total: float, now: float) -> float | None:
        """Seconds left at the time `now`; None until two seconds were measured."""
        if self.updated is not None:
            decay = math.exp((self.updated - now) / self.WINDOW)
            self.seconds = self.seconds * decay + now - self.updated
            self.units = self.units * decay + completed - self.completed
        self.updated, self.completed = now, completed
        if self.seconds < 2.0 or self.units <= 0.0:
            return None
        return self.seconds / self.units * (total - completed)


def translate(
    operation: Generator[EventT, None, ResultT], change: Callable[[EventT], Iterable[OtherT]]
) -> Generator[OtherT, None, ResultT]:
    """Yield what ``change`` makes of each event of ``operation``, and return its result.

    What the caller throws into this generator, such as KeyboardInterrupt to stop it, reaches ``operation``.
    """
    advance: Callable[[], EventT] = partial(next, operation)
    try:
        while True:
            try:
                event = advance()
            except StopIteration as end:
                result: ResultT = end.value
                return result
            changed = change(event)
            advance = partial(next, operation)
            try:
                yield from changed
            except GeneratorExit:
                raise
            except BaseException as error:
                advance = partial(operation.throw, error)
    finally:
        operation.close()


def observe(
    operation: Generator[EventT, None, ResultT], on_event: Callable[[EventT], object]
) -> Generator[EventT, None, ResultT]:
    """Pass the events and the result of ``operation`` on, and call ``on_event`` with each event first."""

    def pass_on(event: EventT) -> tuple[EventT]:
        on_event(event)
        return (event,)

    return translate(operation, pass_on)


def run(
    operation: Generator[EventT, None, ResultT], on_event: Callable[[EventT], object] = lambda event: None
) -> ResultT:
    """Run ``operation`` to its end, call ``on_event`` with each event, and return the result.

    An interruption of ``on_event`` reaches ``operation``, as one of its own work does.
    """
    advance: Callable[[], EventT] = partial(next, operation)
    while True:
        try:
            event = advance()
        except StopIteration as end:
            result: ResultT = end.value
            return result
        advance = partial(next, operation)
        try:
            on_event(event)
        except KeyboardInterrupt as error:
            advance = partial(operation.throw, error)
