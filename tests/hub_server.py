"""A local Hugging Face hub: the part of its protocol that huggingface_hub uses, with faults to inject.

Small files are served directly and named by git's SHA-1. Large files are redirected to another host, as the
hub redirects to its storage, and named by their SHA-256.
"""

import base64
import hashlib
import json
import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest

TOKEN = "hf_aTokenThatMustNeverBeSeenAnywhere"


@dataclass
class Repository:
    """One model: the files of its only commit."""

    files: dict[str, bytes] = field(default_factory=dict)
    commit: str = "c" * 40
    private: bool = False
    gated: bool = False


@dataclass
class Request:
    """A request that the server got."""

    method: str
    host: str
    path: str
    range: str | None
    token: str | None


@dataclass
class Hub:
    """The state of the server, for tests to change and inspect.

    Keys are hashes of large files: `cut` lists after how many bytes the connection is closed, once per
    request; `broken` files are sent as zeros; `short` files end after so many bytes. `change` replaces the
    list of files of a model, `etag` every ETag; `whole`: ranges are ignored; `handle` may answer a request in
    another way, until `ended`.
    """

    repositories: dict[str, Repository] = field(default_factory=dict)
    requests: list[Request] = field(default_factory=list)
    cut: dict[str, list[int]] = field(default_factory=dict)
    broken: set[str] = field(default_factory=set)
    short: dict[str, int] = field(default_factory=dict)
    uploads: dict[str, bytes] = field(default_factory=dict)
    commits: list[list[dict[str, Any]]] = field(default_factory=list)
    bodies: list[bytes] = field(default_factory=list)
    url: str = ""
    change: Callable[[dict[str, Any]], Any] = lambda answer: answer
    etag: str = ""
    whole: bool = False
    handle: Callable[[BaseHTTPRequestHandler], bool] = lambda handler: False
    ended: threading.Event = field(default_factory=threading.Event)

    def sent(self, ending: str) -> list[Request]:
        """The requests for bytes of a path."""
        return [
            request for request in self.requests if request.method == "GET" and request.path.endswith(ending)
        ]


def is_large(name: str) -> bool:
    return name.endswith((".safetensors", ".png"))


def git_hash(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data, usedforsecurity=False).hexdigest()


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


@contextmanager
def serving() -> Iterator[Hub]:
    """Run a hub on a free port during the block."""
    hub = Hub()
    server = _Server(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": hub}))
    hub.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield hub
    finally:
        hub.ended.set()
        server.shutdown()
        server.server_close()
        thread.join()


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A hub without models, for commands in this process, where the library is already imported."""
    from huggingface_hub import constants

    with serving() as served:
        monkeypatch.setenv("HF_HUB_OFFLINE", "0")
        monkeypatch.delenv("HF_TOKEN", raising=False)
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", "no such file")
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        # Its handler writes to the stderr of another test.
        monkeypatch.setattr(logging.getLogger("huggingface_hub"), "handlers", [])
        use_endpoint(served.url, monkeypatch)
        yield served


def use_endpoint(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Do what HF_ENDPOINT does in a new process."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "ENDPOINT", url)
    template = url + "/{repo_id}/resolve/{revision}/{filename}"
    for module in ("constants", "file_download"):  # older ones have it in both
        monkeypatch.setattr(f"huggingface_hub.{module}.HUGGINGFACE_CO_URL_TEMPLATE", template, raising=False)


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, *_: Any) -> None:
        """Ignore clients that close the connection."""


class _Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: Any) -> None:
        """Print nothing."""

    def do_HEAD(self) -> None:
        self._handle()

    def do_GET(self) -> None:
        self._handle()

    def do_PUT(self) -> None:
        self._handle()

    def do_POST(self) -> None:
        self._handle()

    def _handle(self) -> None:
        token = (self.headers.get("Authorization") or "").removeprefix("Bearer ") or None
        path = unquote(urlsplit(self.path).path)
        host = (self.headers.get("Host") or "").split(":")[0]
        self.hub.requests.append(Request(self.command, host, path, self.headers.get("Range"), token))
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.hub.bodies.append(body)
        if self.hub.handle(self):
            self.close_connection = True
            return
        parts = path.strip("/").split("/")
        match [self.command, *parts]:
            case ["GET", "storage", name]:
                self._storage(name)
            case ["PUT", "storage", name]:
                self.hub.uploads[name] = body
                self._json({})
            case ["POST", "api", "validate-yaml"]:
                self._json({"errors": [], "warnings": []})
            case ["POST", "api", "repos", "create"]:
                self._create(json.loads(body), token)
            case ["GET" | "POST", "api", "models", owner, name, *rest]:
                self._model(f"{owner}/{name}", rest, body, token)
            case ["HEAD" | "GET", owner, name, "resolve", revision, *file]:
                self._resolve(f"{owner}/{name}", revision, "/".join(file), token)
            case ["POST", _, _, "info", "lfs", "objects", "batch"]:
                self._batch(json.loads(body))
            case _:
                self._refuse(404, "", "Not model")

    def _repository(self, id: str, token: str | None) -> Repository | None:
        """The model; None if the request was refused."""
        if token not in (None, TOKEN):
            self._refuse(401, "", "Invalid credentials in Authorization header")
            return None
        model = self.hub.repositories.get(id)
        if model is None or (model.private and token is None):
            self._refuse(404 if token else 401, "RepoNotFound", "Repository not model")
            return None
        return model

    def _model(self, id: str, rest: list[str], body: bytes, token: str | None) -> None:
        model = self._repository(id, token)
        if model is None:
            return
        match rest:
            case [] | ["revision", _]:
                if rest and rest[1] not in ("main", model.commit):
                    self._refuse(404, "RevisionNotFound", "Invalid rev id")
                    return
                siblings = [_sibling(name, data) for name, data in model.files.items()]
                answer = {"id": id, "sha": model.commit, "siblings": siblings, "private": model.private}
                self._json(self.hub.change(answer))
            case ["tree", *_]:
                self._json([_entry(name, data) for name, data in model.files.items()])
            case ["preupload", _]:
                uploads = json.loads(body)["files"]
                modes = ({True: "lfs", False: "regular"}[is_large(upload["path"])] for upload in uploads)
                answers = zip(uploads, modes, strict=True)
                self._json(
                    {
                        "files": [
                            {"path": upload["path"], "uploadMode": mode, "shouldIgnore": False}
                            for upload, mode in answers
                        ]
                    }
                )
            case ["commit", _]:
                self._commit(model, [json.loads(line) for line in body.splitlines()])
            case _:
                self._refuse(404, "", "Not model")

    def _resolve(self, id: str, revision: str, name: str, token: str | None) -> None:
        model = self._repository(id, token)
        if model is None:
            return
        if model.gated and token is None:
            self._refuse(403, "GatedRepo", "Access to this model is restricted")
        elif revision not in ("main", model.commit):
            self._refuse(404, "RevisionNotFound", "Invalid rev id")
        elif name not in model.files:
            self._refuse(404, "EntryNotFound", "Entry not model")
        elif is_large(name):
            data = model.files[name]
            self.send_response(302)
            self.send_header("X-Repo-Commit", model.commit)
            self.send_header("X-Linked-Etag", self.hub.etag or f'"{sha256(data)}"')
            self.send_header("X-Linked-Size", str(len(data)))
            self.send_header("Location", f"{self._elsewhere()}/storage/{sha256(data)}?Signature=a-secret")
            self._end(b"")
        else:
            data = model.files[name]
            self.send_response(200)
            self.send_header("X-Repo-Commit", model.commit)
            self.send_header("ETag", self.hub.etag or f'"{git_hash(data)}"')
            self._end(data)

    def _storage(self, name: str) -> None:
        stored = [data for model in self.hub.repositories.values() for data in model.files.values()]
        data = next(data for data in stored if sha256(data) == name)
        if name in self.hub.broken:
            data = bytes(len(data))
        data = data[: self.hub.short.get(name)]
        range_header = None if self.hub.whole else self.headers.get("Range")
        first = int(range_header.removeprefix("bytes=").split("-")[0]) if range_header else 0
        rest = data[first:]
        if range_header and not rest:
            self._refuse(416, "", "Range Not Satisfiable")
            return
        self.send_response(206 if range_header else 200)
        if range_header:
            self.send_header("Content-Range", f"bytes {first}-{len(data) - 1}/{len(data)}")
        cuts = self.hub.cut.get(name, [])
        if cuts:
            self.send_header("Content-Length", str(len(rest)))
            self.end_headers()
            self.wfile.write(rest[: cuts.pop(0)])
            self.close_connection = True
            return
        self._end(rest)

    def _create(self, settings: dict[str, Any], token: str | None) -> None:
        if token != TOKEN:
            self._refuse(401, "", "Invalid username or password.")
            return
        id = f"{settings.get('organization') or 'me'}/{settings['name']}"
        if id in self.hub.repositories:
            self._refuse(409, "", "You already created this model repo", {"url": f"{self.hub.url}/{id}"})
            return
        private = bool(settings.get("private")) or settings.get("visibility") == "private"
        self.hub.repositories[id] = Repository(private=private)
        self._json({"url": f"{self.hub.url}/{id}", "name": id, "id": id})

    def _batch(self, batch: dict[str, Any]) -> None:
        objects = [
            {**item, "actions": {"upload": {"href": f"{self._elsewhere()}/storage/{item['oid']}"}}}
            for item in batch["objects"]
        ]
        self._json({"transfer": "basic", "objects": objects}, kind="application/vnd.git-lfs+json")

    def _commit(self, model: Repository, operations: list[dict[str, Any]]) -> None:
        self.hub.commits.append(operations)
        for operation in operations:
            value = operation["value"]
            if operation["key"] == "file":
                model.files[value["path"]] = base64.b64decode(value["content"])
            elif operation["key"] == "lfsFile":
                model.files[value["path"]] = self.hub.uploads[value["oid"]]
        self._json({"commitUrl": f"{self.hub.url}/me/x/commit/{'d' * 40}", "commitOid": "d" * 40})

    def _elsewhere(self) -> str:
        return self.hub.url.replace("127.0.0.1", "localhost")

    def _refuse(self, status: int, code: str, why: str, body: dict[str, Any] | None = None) -> None:
        self.send_response(status)
        self.send_header("X-Error-Code", code)
        self.send_header("X-Error-Message", why)
        self._end(json.dumps({"error": why, **(body or {})}).encode())

    def _json(self, value: Any, kind: str = "application/json") -> None:
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self._end(json.dumps(value).encode())

    def _end(self, body: bytes) -> None:
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)


def _large(data: bytes) -> dict[str, Any]:
    return {"sha256": sha256(data), "size": len(data), "pointerSize": 134}


def _sibling(name: str, data: bytes) -> dict[str, Any]:
    about = {"rfilename": name, "size": len(data), "blobId": git_hash(data)}
    return about | ({"lfs": _large(data)} if is_large(name) else {})


def _entry(name: str, data: bytes) -> dict[str, Any]:
    about = {"type": "file", "path": name, "size": len(data), "oid": git_hash(data)}
    large = {"oid": sha256(data), "size": len(data), "pointerSize": 134}
    return about | ({"lfs": large} if is_large(name) else {})
