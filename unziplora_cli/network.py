"""Reading from a server with limits on time and size, so that nothing is endless and nothing waits for ever.

The connection and the token are those of the library ``huggingface_hub``.
"""

import threading
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager, suppress
from queue import Empty, Full, Queue
from typing import Any, TypeVar, cast

from unziplora_cli.errors import ModelError, Remedy

ResultT = TypeVar("ResultT")

WINDOW, SLOWEST = 60.0, 1000
"""An answer must begin within WINDOW seconds, then bring SLOWEST bytes per second in every WINDOW."""
POLL = 0.5
"""Seconds between two looks at the clock."""
LIBRARY_CALL = "call of the hub's library"
"""The name of the threads that run one, and which a process that ends does not wait for."""


class TooLarge(ModelError):
    """An answer is larger than it may be."""


class Refused(Exception):
    """An answer with an HTTP status of 400 or more."""

    def __init__(self, response: Any) -> None:
        super().__init__(f"HTTP status {response.status_code}")
        self.response = response


def read(url: str, limit: int, start: int = 0) -> Generator[Any, None, None]:
    """Yield the offset at which an answer begins, ``start`` or 0, then its bytes.

    A thread reads, so that Ctrl-C and the limits of WINDOW end the wait at once. Raises ModelError.
    """
    pieces: Queue[Any] = Queue(maxsize=8)
    abandoned = threading.Event()

    def put(piece: Any) -> None:
        while not abandoned.is_set():
            with suppress(Full):
                pieces.put(piece, timeout=POLL)
                return

    def work() -> None:
        try:
            for piece in _stream(url, start):
                put(piece)
                if abandoned.is_set():
                    return
            put(None)
        except Exception as error:
            put(error)

    threading.Thread(target=work, daemon=True).start()
    try:
        received, waited, in_window = 0, 0.0, -1
        while True:
            begun = time.monotonic()
            try:
                piece = pieces.get(timeout=min(POLL, WINDOW))
            except Empty:
                piece = b""
            waited += time.monotonic() - begun
            if piece is None:
                return
            if isinstance(piece, Exception):
                raise piece
            if isinstance(piece, int):
                received, waited, in_window = piece, 0.0, 0
                yield piece
            elif piece:
                received, in_window = received + len(piece), in_window + len(piece)
                if received > limit:
                    raise _too_large(url, limit)
                yield piece
            if waited > WINDOW:
                if in_window < SLOWEST * WINDOW:
                    what = "does not answer" if in_window < 0 else f"sent only {in_window} bytes"
                    raise TimeoutError(f"the server {what} in {waited:.0f} s")
                waited, in_window = 0.0, 0
    finally:
        abandoned.set()


def _stream(url: str, start: int) -> Iterator[Any]:
    """Yield the offset at which the answer begins, then its bytes; raises Refused and the errors of HTTP."""
    from huggingface_hub import utils

    library: Any = utils  # both functions are public, but not in its list of exports
    session = library.get_session()
    headers = {**library.build_hf_headers(), "Accept-Encoding": "identity"}
    if start:
        headers["Range"] = f"bytes={start}-"
    with session.stream("GET", url, headers=headers, follow_redirects=True, timeout=2 * WINDOW) as response:
        if response.status_code >= 400:
            raise Refused(response)
        yield start if response.status_code == 206 else 0
        yield from response.iter_bytes()


@contextmanager
def limited_answers(limit: int) -> Iterator[None]:
    """Let the library's own calls raise TooLarge for answers of more than ``limit`` bytes, once unpacked."""
    from huggingface_hub import utils

    session = cast(Any, utils).get_session()
    hooks = session.event_hooks

    def read_body(response: Any) -> None:
        pieces, size = [], 0
        for piece in response.iter_bytes():
            pieces.append(piece)
            size += len(piece)
            if size > limit:
                raise _too_large(response.url, limit)
        response._content = b"".join(pieces)  # what response.read() would set

    session.event_hooks = {**hooks, "response": [*hooks["response"], read_body]}
    try:
        yield
    finally:
        session.event_hooks = hooks


def _too_large(url: Any, limit: int) -> TooLarge:
    return TooLarge(
        f"The answer of {url} is larger than {limit} bytes.",
        Remedy("Check that HF_ENDPOINT names a hub, and try again later."),
    )


def within(seconds: float, function: Callable[[], ResultT]) -> ResultT:
    """The result of a function of the hub's library; raises TimeoutError when it takes longer.

    A thread runs it, so that the limit and Ctrl-C end the wait at once.
    """
    results: Queue[tuple[Any, Exception | None]] = Queue()

    def run() -> None:
        try:
            results.put((function(), None))
        except Exception as error:
            results.put((None, error))

    threading.Thread(target=run, daemon=True, name=LIBRARY_CALL).start()
    deadline = time.monotonic() + seconds
    while True:
        try:
            result, error = results.get(timeout=min(POLL, seconds))
        except Empty:
            if time.monotonic() > deadline:
                raise TimeoutError(f"the server was not done after {seconds:.0f} s") from None
            continue
        if error is not None:
            raise error
        return cast(ResultT, result)
