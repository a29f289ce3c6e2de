"""The server of the page: who may call it, what it serves, and how it starts and ends."""

from __future__ import annotations

import os
import re
import secrets
import signal
import socket
import tempfile
import webbrowser
from collections.abc import Awaitable, Callable, MutableMapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from ipaddress import ip_address
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from unziplora_cli.errors import Remedy, UsageError
from unziplora_cli.resources import template
from unziplora_cli.ui.jobs import Explain, JobQueue

if TYPE_CHECKING:
    from fastapi import FastAPI

    from unziplora_cli.projects.store import ProjectStore

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]

ENDINGS = [getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]
"""Signals that end the page as Ctrl-C does, which saves a running training."""

MAX_UPLOAD = "1gb"
"""LoRA files are imported by the page; images have the limit of the image reader."""

HEADERS = {
    "content-security-policy": (
        "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval'; "
        "style-src 'self' 'unsafe-inline'; img-src 'self' data: blob:; font-src 'self' data:; "
        "connect-src 'self'; worker-src 'self' blob:; frame-ancestors 'none'; form-action 'self'"
    ),
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
}
"""The browser loads nothing from other hosts, and no other page can frame this one."""

USED = re.compile(
    r"/$|/(assets|static|svelte)/[^:]+$|/(config|theme\.css|favicon\.ico|robots\.txt|login|logout)/?$|"
    r"/manifest\.json$|/pwa_icon(/\d+)?$|"
    r"/gradio_api/((queue/(join|data)|upload|upload_progress|startup-events|app_id|info|user|token"
    r"|login_check|cancel|reset|theme\.css)/?$|heartbeat/\w+$)"
)
"""The paths that the page uses, besides its files. Below others, Gradio fetches from other hosts, calls
components, or does what this page does not offer."""
FILE = "/gradio_api/file="


@dataclass(frozen=True)
class Context:
    """What every tab works with.

    Attributes:
        explain: the message, the remedy and the exit code of an error, worded as in the terminal.
        uploads: the folder of files that the browser sent.
    """

    store: ProjectStore
    queue: JobQueue
    explain: Explain
    uploads: Path
    offline: bool = True

    def remedy(self, remedy: Remedy) -> str:
        """What to do, worded as in the terminal."""
        return self.explain(UsageError("", remedy))[1]


class OwnPageOnly:
    """ASGI middleware that refuses requests made for another host or by another site's page.

    A request must name this machine by ``localhost``, its own name or an IP address (a domain that an
    attacker points here cannot), and its ``Origin``, if any, must be the page itself. It reaches the paths of
    ``USED``, and files in ``folders``.
    """

    def __init__(self, app: Any, folders: Sequence[Path]) -> None:
        self.app, self.folders = app, folders
        self.names = {"localhost", socket.gethostname().lower(), f"{socket.gethostname().lower()}.local"}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or answer 403."""
        if scope["type"] not in ("http", "websocket"):
            await self.app(scope, receive, send)
            return
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        is_own = self._is_own(headers.get("host", ""), headers.get("origin"))
        if not is_own or not self._is_used(scope["path"]):
            if scope["type"] == "http":
                text = (b"content-type", b"text/plain")
                await send({"type": "http.response.start", "status": 403, "headers": [text]})
                await send({"type": "http.response.body", "body": b"This page answers only to itself."})
            else:
                await send({"type": "websocket.close", "code": 1008})
            return

        async def with_headers(message: MutableMapping[str, Any]) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [
                    *message.get("headers", ()),
                    *((name.encode(), value.encode()) for name, value in HEADERS.items()),
                ]
            await send(message)

        await self.app(scope, receive, with_headers)

    def _is_used(self, path: str) -> bool:
        if path.startswith(FILE):
            return is_within(path.removeprefix(FILE), self.folders)
        return USED.match(path) is not None

    def _is_own(self, host: str, origin: str | None) -> bool:
        try:
            name = urlsplit(f"//{host}").hostname or ""
            is_own = origin is None or (urlsplit(origin).netloc == host and urlsplit(origin).scheme != "null")
        except ValueError:
            return False
        return is_own and (name in self.names or _is_address(name))


def is_within(path: str, folders: Sequence[Path]) -> bool:
    """Whether an absolute path lies in one of the folders, and does so after following links.

    A path elsewhere is not touched: on Windows, that of a share would ask another machine.
    """
    lexical = Path(os.path.normpath(path))
    try:
        return any(
            lexical.is_relative_to(os.path.normpath(folder.absolute()))
            and lexical.resolve().is_relative_to(folder.resolve())
            for folder in folders
        )
    except (OSError, ValueError):
        return False


def _is_address(name: str) -> bool:
    try:
        ip_address(name)
    except ValueError:
        return False
    return True


def is_loopback(host: str) -> bool:
    """Whether only programs of this machine can reach ``host``."""
    return host == "localhost" or (_is_address(host) and ip_address(host).is_loopback)


def check_access(host: str, auth: str | None) -> tuple[str, str] | None:
    """User name and password of ``USER:PASSWORD``; raises UsageError for a page that others reach without."""
    if auth is None:
        if not is_loopback(host):
            raise UsageError(
                f"With the host {host}, others can reach the page, so it needs a user and a password.",
                Remedy("Set them", "ui", settings={"host": host, "auth": "USER:PASSWORD"}),
                Remedy("Or keep the page on this machine", "ui"),
            )
        return None
    user, colon, password = auth.partition(":")
    if not (user and colon and password):
        raise UsageError(
            "A user and a password are USER:PASSWORD, neither of them empty.",
            Remedy("For example", "ui", settings={"auth": f"me:{secrets.token_urlsafe(9)}"}),
        )
    return user, password


def check_installed() -> None:
    """Raise UsageError with the line to type if the optional packages of the page are missing."""
    if find_spec("gradio") is None:
        raise UsageError("The page needs the package gradio, which is not installed.", Remedy(extra="ui"))


def make_app(context: Context, auth: tuple[str, str] | None = None) -> FastAPI:
    """The page as an ASGI application."""
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    os.environ["GRADIO_TEMP_DIR"] = str(context.uploads)
    import gradio as gr
    from fastapi import FastAPI

    from unziplora_cli.ui.look import theme
    from unziplora_cli.ui.page import build

    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    context.store.folder.mkdir(parents=True, exist_ok=True)
    gr.mount_gradio_app(
        app,
        build(context),
        path="/",
        auth=auth,
        allowed_paths=[str(context.store.folder.resolve())],
        max_file_size=MAX_UPLOAD,
        show_error=True,
        enable_monitoring=False,
        ssr_mode=False,
        footer_links=[],
        theme=theme(),
        css=template("ui/style.css").read_text(encoding="utf-8"),
        js=template("ui/script.js").read_text(encoding="utf-8"),
    )
    app.add_middleware(OwnPageOnly, folders=(context.store.folder, context.uploads))
    return app


def serve(
    store: ProjectStore,
    explain: Explain,
    *,
    host: str,
    port: int,
    auth: str | None,
    offline: bool,
    ready: Callable[[str], object],
    open_page: bool,
) -> None:
    """Serve the page until the process is stopped; ``ready`` gets its address.

    A running training is stopped as by Ctrl-C, so that it can be resumed. Raises UsageError if the packages
    are missing, the page would be open to others, or the port is taken.
    """
    check_installed()
    credentials = check_access(host, auth)
    listener = _listen(host, port)
    import uvicorn

    for number in ENDINGS:  # the server repeats a signal once it has ended
        if signal.getsignal(number) is signal.SIG_DFL:
            signal.signal(number, signal.default_int_handler)
    with tempfile.TemporaryDirectory(prefix="unziplora-ui-") as uploads:
        named = without_folders(explain, Path(uploads))
        queue = JobQueue(named)
        context = Context(store, queue, named, Path(uploads), offline)
        config = uvicorn.Config(
            make_app(context, credentials),
            log_level="critical",  # open pages are cut off at the end, which is no error
            access_log=False,
            timeout_graceful_shutdown=1,
        )
        shown = "127.0.0.1" if host in ("0.0.0.0", "::") else f"[{host}]" if ":" in host else host
        address = f"http://{shown}:{listener.getsockname()[1]}"
        ready(address)
        if open_page:
            webbrowser.open(address)
        try:
            uvicorn.Server(config).run(sockets=[listener])
        finally:
            queue.close()


def without_folders(explain: Explain, uploads: Path) -> Explain:
    """``explain`` that names a file sent to the page as its sender does."""

    def named(error: BaseException) -> tuple[str, str, int]:
        message, remedy, code = explain(error)
        folder = re.escape(str(uploads)) + r"[/\\]\w+[/\\]"
        return re.sub(folder, "", message), re.sub(folder, "", remedy), code

    return named


def _listen(host: str, port: int) -> socket.socket:
    listener = None
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listener = socket.socket(family, kind, protocol)
        if os.name == "posix":
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen()  # a browser that opens the address at once waits for the page
    except (OSError, OverflowError, UnicodeError) as error:
        if listener is not None:
            listener.close()
        reason = getattr(error, "strerror", None) or str(error)
        raise UsageError(
            f"The page cannot listen on {host}, port {port}: {reason}.",
            Remedy("Choose another port; 0 takes a free one", "ui", settings={"port": 0}),
        ) from error
    return listener
