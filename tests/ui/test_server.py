"""The server of the page: who may call it, which files it serves, and that texts stay texts."""

import asyncio
import socket
from collections.abc import Callable, Iterator
from html import unescape
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests.full_project import HOSTILE
from unziplora_cli.cli._errors import describe
from unziplora_cli.errors import Remedy, UsageError
from unziplora_cli.events import Notice
from unziplora_cli.projects.store import ProjectStore
from unziplora_cli.ui import server
from unziplora_cli.ui.jobs import Job, JobQueue

pytest.importorskip("gradio")

PAGE = "127.0.0.1:7860"
Answer = tuple[int, dict[str, str], bytes]


def call(app: Any, path: str, kind: str = "http", method: str = "GET", **headers: str) -> Answer:
    """The status, the headers and the body of an answer; the status of a refused websocket is its code."""
    sent: list[dict[str, Any]] = []

    requests = [{"type": "http.request" if kind == "http" else "websocket.connect", "body": b""}]

    async def receive() -> dict[str, Any]:
        if not requests:
            await asyncio.Event().wait()  # the caller stays connected
        return requests.pop()

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {
        "type": kind,
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": method,
        "scheme": "http",
        "path": path,
        "raw_path": path.encode(),
        "root_path": "",
        "query_string": b"",
        "headers": [(name.encode(), value.encode()) for name, value in headers.items()],
        "client": ("127.0.0.1", 50000),
        "server": ("127.0.0.1", 7860),
    }
    asyncio.run(app(scope, receive, send))
    first = sent[0]
    names = {name.decode().lower(): value.decode() for name, value in first.get("headers", ())}
    return first.get("status", first.get("code", 0)), names, b"".join(part.get("body", b"") for part in sent)


async def accept(scope: Any, receive: Any, send: Any) -> None:
    """An application that accepts everything."""
    if scope["type"] == "websocket":
        await send({"type": "websocket.accept", "code": 1000})
    else:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"yes"})


GUARDED = server.OwnPageOnly(accept, [Path("/home/fox"), Path("/uploads")])


@pytest.mark.parametrize(
    "host", [PAGE, "localhost:7860", "[::1]:7860", "192.168.1.5:7860", f"{socket.gethostname().upper()}:7860"]
)
@pytest.mark.parametrize("kind", ["http", "websocket"])
def test_the_page_answers_to_addresses_of_this_machine(host: str, kind: str) -> None:
    accepted = 200 if kind == "http" else 1000
    assert call(GUARDED, "/", kind, host=host)[0] == accepted
    assert call(GUARDED, "/", kind, host=host, origin=f"http://{host}")[0] == accepted


@pytest.mark.parametrize(
    ("host", "origin"),
    [
        ("evil.example:7860", None),
        ("127.0.0.1.evil.example:7860", None),
        ("localhost.evil.example", None),
        ("", None),
        ("[::1", None),
        (PAGE, "http://evil.example"),
        (PAGE, "http://127.0.0.1:8000"),
        (PAGE, "http://localhost:7860"),
        (PAGE, "null"),
        (PAGE, f"http://{PAGE}@evil.example"),
        (PAGE, "file://"),
        (PAGE, ""),
    ],
)
@pytest.mark.parametrize("kind", ["http", "websocket"])
def test_requests_for_other_hosts_and_from_other_pages_are_refused(
    host: str, origin: str | None, kind: str
) -> None:
    headers = {"host": host} | ({} if origin is None else {"origin": origin})
    assert call(GUARDED, "/", kind, **headers)[0] == (403 if kind == "http" else 1008)


def test_without_a_host_header_nothing_is_answered() -> None:
    assert call(GUARDED, "/")[0] == 403


@pytest.mark.parametrize(
    "path",
    [
        "/gradio_api/proxy=https://evil.hf.space/x",
        "/gradio_api/file=http://evil.example/x.png",
        "/gradio_api/file=HTTPS://evil.example/x.png",
        "/gradio_api/file/https://evil.example/x.png",
        "/gradio_api/file=//evil.example/share/x.png",
        "/gradio_api/file=\\\\evil.example\\share\\x.png",
        "/gradio_api/file=/home/fox/../rose/x.png",
        "/gradio_api/file=/home/foxes/x.png",
        "/gradio_api/file=/home/fox\x00/x.png",
        "/gradio_api/file=",
        "/gradio_api/run-history/buckets",
        "/gradio_api/vibe-edit/",
        "/gradio_api/component_server",
        "/gradio_api/call/v2/train",
        "/gradio_api/run/predict",
        "/gradio_api/stream/x",
        "/gradio_api/process_recording",
        "/gradio_api/deep_link",
        "/static/http://evil.example/x",
        "/monitoring",
        "/dev/reload",
        "/any",
    ],
)
def test_paths_that_the_page_does_not_use_are_refused(path: str) -> None:
    assert call(GUARDED, path, host=PAGE)[0] == 403


@pytest.mark.parametrize(
    "path",
    [
        "/",
        "/config",
        "/assets/index.js",
        "/gradio_api/queue/join",
        "/gradio_api/file=/home/fox/projects/x.png",
    ],
)
def test_paths_that_the_page_uses_are_passed_on(path: str) -> None:
    assert call(GUARDED, path, host=PAGE)[0] == 200


@pytest.mark.parametrize("host", ["127.0.0.1", "127.1.2.3", "::1", "localhost"])
def test_a_loopback_page_needs_no_password(host: str) -> None:
    assert server.check_access(host, None) is None


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.5", "fox.example", ""])
def test_a_page_for_others_needs_a_password(host: str) -> None:
    with pytest.raises(UsageError, match="needs a user and a password"):
        server.check_access(host, None)
    assert server.check_access(host, "me:pass:word") == ("me", "pass:word")


@pytest.mark.parametrize("auth", ["", "me", "me:", ":secret"])
def test_half_a_password_is_refused(auth: str) -> None:
    with pytest.raises(UsageError, match="USER:PASSWORD"):
        server.check_access("127.0.0.1", auth)


def test_a_port_that_is_taken_is_named() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(UsageError, match=f"cannot listen on 127.0.0.1, port {port}"):
            server._listen("127.0.0.1", port)


def test_a_browser_may_connect_before_the_page_is_made() -> None:
    with server._listen("127.0.0.1", 0) as listener, socket.create_connection(listener.getsockname(), 5):
        pass


def test_a_missing_extra_is_named_with_the_line_that_installs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "find_spec", lambda name: None)
    with pytest.raises(UsageError, match="not installed") as caught:
        server.check_installed()
    assert "unziplora[ui]" in describe(caught.value)[1]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home with one image, beside a file that nobody may read."""
    folder = tmp_path_factory.mktemp("parent")
    (folder / "secret.txt").write_text("secret")
    home = folder / "home"
    (home / "projects").mkdir(parents=True)
    Image.new("RGB", (64, 64), "orange").save(home / "projects/fox.png")
    (home / "projects/link.png").symlink_to(folder / "secret.txt")
    (home / "projects/folder").symlink_to(folder)
    return home


@pytest.fixture(scope="module")
def context(home: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[server.Context]:
    queue = JobQueue(describe)
    yield server.Context(ProjectStore(home), queue, describe, tmp_path_factory.mktemp("uploads"))
    queue.close()


def in_loop(make: Callable[[], Any]) -> Any:
    """What ``make`` returns, called in an event loop; Gradio leaves one open otherwise."""

    async def run() -> Any:
        return make()

    return asyncio.run(run())


@pytest.fixture(scope="module")
def app(context: server.Context) -> Any:
    return in_loop(lambda: server.make_app(context))


def test_files_of_the_home_are_served_with_headers_that_keep_other_hosts_out(app: Any, home: Path) -> None:
    status, headers, body = call(app, f"/gradio_api/file={home}/projects/fox.png", host=PAGE)
    assert (status, body) == (200, (home / "projects/fox.png").read_bytes())
    assert "default-src 'self'" in headers["content-security-policy"]
    assert headers["x-content-type-options"] == "nosniff"


@pytest.mark.parametrize(
    "path",
    [
        "/etc/passwd",
        "{home}/../secret.txt",
        "{home}/projects/../../secret.txt",
        "{home}/projects/link.png",
        "{home}/projects/folder/secret.txt",
        "{home}",
        "../secret.txt",
        "README.md",
        "{cwd}/README.md",
        "{cwd}/pyproject.toml",
        "\\\\server\\share",
    ],
)
def test_no_other_file_is_served(app: Any, home: Path, path: str) -> None:
    path = path.format(home=home, cwd=Path.cwd())
    for route in ("file=", "file/"):
        assert call(app, f"/gradio_api/{route}{path}", host=PAGE)[0] in (403, 404), route


@pytest.fixture(scope="module")
def page(context: server.Context) -> Any:
    """The page, without its server."""
    from unziplora_cli.ui.page import build

    return in_loop(lambda: build(context))


def file_entries(page: Any, path: Any, url: Any = None) -> tuple[Any, list[Any]]:
    """The first function of the page that takes files, and its inputs with one file entry."""
    function = next(
        fn for fn in page.fns.values() if any(block.get_block_name() == "file" for block in fn.inputs)
    )
    entry = {"path": path, "url": url, "meta": {"_type": "gradio.FileData"}, "orig_name": "x.png"}
    return function, [[entry] if block.get_block_name() == "file" else None for block in function.inputs]


@pytest.mark.parametrize(
    "path",
    [
        "http://evil.example/x.png",
        "https://evil.example/x.png",
        "HTTP://evil.example/x.png",
        "file:///etc/passwd",
        "//evil.example/share/x.png",
        "\\\\evil.example\\share\\x.png",
        "data:image/png;base64,iVBORw0KGgo=",
        "/etc/passwd",
        "{home}/projects/fox.png",
        "{uploads}/../x.png",
        "{uploads}/link.png",
        "{uploads}-beside/x.png",
        "x.png",
        "{uploads}/\x00.png",
        "",
        None,
        ["/etc/passwd"],
    ],
)
@pytest.mark.parametrize("nested", [False, True])
def test_a_request_can_name_no_file_but_those_sent_to_the_page(
    page: Any, context: server.Context, home: Path, path: Any, nested: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    import gradio as gr

    addresses: list[Any] = []
    monkeypatch.setattr(socket, "getaddrinfo", lambda *arguments, **options: addresses.append(arguments))
    monkeypatch.setattr(socket.socket, "connect", lambda self, address: addresses.append(address))
    link = context.uploads / "link.png"
    if not link.is_symlink():
        link.symlink_to(home / "projects/fox.png")
    if isinstance(path, str):
        path = path.format(home=home, uploads=context.uploads)
    function, inputs = file_entries(page, path, path)
    if nested:
        inputs = [{"value": value} for value in inputs]
    with pytest.raises(gr.Error, match="only files that were sent to it") as caught:
        asyncio.run(page.process_api(function, inputs))
    assert not caught.value.print_exception
    assert addresses == []


def test_a_file_that_was_sent_is_taken_whatever_url_it_names(page: Any, context: server.Context) -> None:
    sent = context.uploads / "0123/x.png"
    sent.parent.mkdir()
    Image.new("RGB", (8, 8), "orange").save(sent)
    function, inputs = file_entries(page, str(sent), "http://evil.example/x.png")
    taken = asyncio.run(page.preprocess_data(function, inputs, None))
    assert Path(taken[0][0]).read_bytes() == sent.read_bytes()


def test_errors_say_what_the_terminal_says_and_nothing_in_them_is_html(context: server.Context) -> None:
    import gradio as gr

    from unziplora_cli.ui.page import Page

    def fail() -> None:
        raise UsageError("<b>Bad</b> name.", Remedy("Look at it", "show", ("<i>fox</i>",)))

    def make() -> Page:
        page = Page(context)
        with page:
            page.load(fail)
        return page

    page = in_loop(make)
    with pytest.raises(gr.Error) as caught:
        asyncio.run(page.process_api(0, []))
    lines = caught.value.message.split("<br>")
    assert not any(letter in line for line in lines for letter in "<>`*[")
    assert [unescape(line) for line in lines] == [
        "<b>Bad</b> name.",
        "Look at it: unziplora show '<i>fox</i>'",
    ]
    assert not caught.value.print_exception


def test_a_file_is_called_as_its_sender_called_it(tmp_path: Path) -> None:
    def explain(error: BaseException) -> tuple[str, str, int]:
        return f"{error} is broken.", f"Open {error}.", 2

    named = server.without_folders(explain, tmp_path)
    file = tmp_path / "0123456789abcdef" / "my fox.png"
    assert named(ValueError(file)) == ("my fox.png is broken.", "Open my fox.png.", 2)


def test_the_page_names_no_other_host(app: Any) -> None:
    _, _, body = call(app, "/", host=PAGE)
    config = call(app, "/config", host=PAGE)[2]
    for text in (body, config):
        for word in (b"googleapis", b"gstatic", b"cdnjs", b"huggingface.co", b"gradio.live"):
            assert word not in text
    assert b'"analytics_enabled":false' in config.replace(b": ", b":")


def test_a_page_with_a_password_shows_nothing_without_it(context: server.Context, home: Path) -> None:
    app = in_loop(lambda: server.make_app(context, ("me", "secret")))
    assert call(app, f"/gradio_api/file={home}/projects/fox.png", host=PAGE)[0] == 401
    assert call(app, "/config", host=PAGE)[0] == 401
    assert b"Generate" not in call(app, "/", host=PAGE)[2]


def test_texts_of_jobs_are_escaped() -> None:
    from unziplora_cli.ui.page import job_html

    job = Job(1, f"train {HOSTILE.subject}", "train", lambda: iter(()))  # type: ignore[arg-type, return-value]
    job.state, job.phase, job.error = "running", HOSTILE.style, "<b>bad</b>"
    slow = Notice("<u>slow</u>", (Remedy("<s>wait</s>", "show", (HOSTILE.subject,)),))
    job.remedy, job.notices = "<i>do</i>", [slow]
    html = job_html(job, lambda remedy: remedy.advice)
    for text in (HOSTILE.subject, HOSTILE.style, "<b>bad</b>", "<i>do</i>", "<u>slow</u>", "<s>wait</s>"):
        assert text not in html
        assert text in unescape(html)
