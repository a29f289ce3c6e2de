"""Being told to stop: by Ctrl-C, by the system, or because the terminal is gone."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType
from typing import Any

SIGNALS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))


class StopRequest:
    """While this lasts, the first signal only sets ``received``; a second one raises KeyboardInterrupt.

    So the step at hand is finished first, and no half-updated weights are kept. A signal that the process
    was started to ignore, as by nohup, stays ignored. Outside the main thread, where signals cannot be
    caught, it does nothing.
    """

    def __init__(self) -> None:
        self.received = False
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> StopRequest:
        self._previous = _catch(self._receive)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        _restore(self._previous)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if self.received:
            raise KeyboardInterrupt
        self.received = True


@contextmanager
def all_as_ctrl_c() -> Iterator[None]:
    """Have every signal to stop raise KeyboardInterrupt, so that what is under way is left in order."""

    def receive(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    previous = _catch(receive)
    try:
        yield
    finally:
        _restore(previous)


def _catch(handler: Any) -> dict[int, Any]:
    if threading.current_thread() is not threading.main_thread():
        return {}
    wanted = [number for number in SIGNALS if signal.getsignal(number) is not signal.SIG_IGN]
    return {number: signal.signal(number, handler) for number in wanted}


def _restore(previous: dict[int, Any]) -> None:
    for number, handler in previous.items():
        signal.signal(number, handler)
