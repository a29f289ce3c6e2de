"""A Hugging Face hub on this machine: the part of its protocol that the hub's library uses, and its faults.

Small files are answered directly and named by git's SHA-1; large ones lead to another host, as the hub leads
to its storage, and are named by their SHA-256.
"""

import base64
import hashlib
import json
import logging
import threading
from collections.abc import Iterator
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
    """What was asked for, and with which token."""

    method: str
    host: str
    path: str
    range: str | None
    token: str | None


@dataclass
class Hub:
    """The state of the server; tests change it and look into it.

    `cut` closes the connection after so many bytes of a large file, so many times; `broken` are large files
    of which other bytes are sent than were promised, `short` those of which only so many are there.
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

    def sent(self, ending: str) -> list[Request]:
        """The requests for bytes of a path."""
        return [each for each in self.requests if each.method == "GET" and each.path.endswith(ending)]


def is_large(name: str) -> bool:
    return name.endswith((".safetensors", ".png"))


def git_hash(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data, usedforsecurity=False).hexdigest()


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


@contextmanager
def serving() -> Iterator[Hub]:
    """A hub at a free port of this machine for as long as the block lasts."""
    hub = Hub()
    server = _Server(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": hub}))
    hub.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A hub without models, for commands in this process, whose library read other variables long ago."""
    from huggingface_hub import constants

    with serving() as served:
        monkeypatch.setenv("HF_HUB_OFFLINE", "0")
        monkeypatch.delenv("HF_TOKEN", raising=False)
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", "no such file")
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setattr("huggingface_hub.file_download.time.sleep", lambda _: None)
        # Its handler writes to the stderr that was there when it was made.
        monkeypatch.setattr(logging.getLogger("huggingface_hub"), "handlers", [])
        use_endpoint(served.url, monkeypatch)
        yield served


def use_endpoint(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What HF_ENDPOINT would do in a process of its own."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "ENDPOINT", url)
    template = url + "/{repo_id}/resolve/{revision}/{filename}"
    for module in ("constants", "file_download"):  # older ones have it in both
        monkeypatch.setattr(f"huggingface_hub.{module}.HUGGINGFACE_CO_URL_TEMPLATE", template, raising=False)


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, *_: Any) -> None:
        """Say nothing when a client goes away."""


class _Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: Any) -> None:
        """Say nothing."""

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
                self._refuse(404, "", "Not found")

    def _repository(self, id: str, token: str | None) -> Repository | None:
        """The model, or None when the answer is a refusal, which is sent."""
        if token not in (None, TOKEN):
            self._refuse(401, "", "Invalid credentials in Authorization header")
            return None
        found = self.hub.repositories.get(id)
        if found is None or (found.private and token is None):
            self._refuse(404 if token else 401, "RepoNotFound", "Repository not found")
            return None
        return found

    def _model(self, id: str, rest: list[str], body: bytes, token: str | None) -> None:
        found = self._repository(id, token)
        if found is None:
            return
        match rest:
            case [] | ["revision", _]:
                if rest and rest[1] not in ("main", found.commit):
                    self._refuse(404, "RevisionNotFound", "Invalid rev id")
                    return
                siblings = [_sibling(name, data) for name, data in found.files.items()]
                self._json({"id": id, "sha": found.commit, "siblings": siblings, "private": found.private})
            case ["tree", *_]:
                self._json([_entry(name, data) for name, data in found.files.items()])
            case ["preupload", _]:
                asked = json.loads(body)["files"]
                modes = ({True: "lfs", False: "regular"}[is_large(each["path"])] for each in asked)
                answers = zip(asked, modes, strict=True)
                self._json(
                    {
                        "files": [
                            {"path": each["path"], "uploadMode": mode, "shouldIgnore": False}
                            for each, mode in answers
                        ]
                    }
                )
            case ["commit", _]:
                self._commit(found, [json.loads(line) for line in body.splitlines()])
            case _:
                self._refuse(404, "", "Not found")

    def _resolve(self, id: str, revision: str, name: str, token: str | None) -> None:
        found = self._repository(id, token)
        if found is None:
            return
        if found.gated and token is None:
            self._refuse(403, "GatedRepo", "Access to this model is restricted")
        elif revision not in ("main", found.commit):
            self._refuse(404, "RevisionNotFound", "Invalid rev id")
        elif name not in found.files:
            self._refuse(404, "EntryNotFound", "Entry not found")
        elif is_large(name):
            data = found.files[name]
            self.send_response(302)
            self.send_header("X-Repo-Commit", found.commit)
            self.send_header("X-Linked-Etag", f'"{sha256(data)}"')
            self.send_header("X-Linked-Size", str(len(data)))
            self.send_header("Location", f"{self._elsewhere()}/storage/{sha256(data)}?Signature=a-secret")
            self._end(b"")
        else:
            data = found.files[name]
            self.send_response(200)
            self.send_header("X-Repo-Commit", found.commit)
            self.send_header("ETag", f'"{git_hash(data)}"')
            self._end(data)

    def _storage(self, name: str) -> None:
        known = {
            sha256(data): data for each in self.hub.repositories.values() for data in each.files.values()
        }
        data = known[name]
        if name in self.hub.broken:
            data = bytes(len(data))
        data = data[: self.hub.short.get(name)]
        asked = self.headers.get("Range")
        first = int(asked.removeprefix("bytes=").split("-")[0]) if asked else 0
        rest = data[first:]
        if asked and not rest:
            self._refuse(416, "", "Range Not Satisfiable")
            return
        self.send_response(206 if asked else 200)
        if asked:
            self.send_header("Content-Range", f"bytes {first}-{len(data) - 1}/{len(data)}")
        cuts = self.hub.cut.get(name, [])
        if cuts:
            self.send_header("Content-Length", str(len(rest)))
            self.end_headers()
            self.wfile.write(rest[: cuts.pop(0)])
            self.close_connection = True
            return
        self._end(rest)

    def _create(self, asked: dict[str, Any], token: str | None) -> None:
        if token != TOKEN:
            self._refuse(401, "", "Invalid username or password.")
            return
        id = f"{asked.get('organization') or 'me'}/{asked['name']}"
        if id in self.hub.repositories:
            self._refuse(409, "", "You already created this model repo", {"url": f"{self.hub.url}/{id}"})
            return
        private = bool(asked.get("private")) or asked.get("visibility") == "private"
        self.hub.repositories[id] = Repository(private=private)
        self._json({"url": f"{self.hub.url}/{id}", "name": id, "id": id})

    def _batch(self, asked: dict[str, Any]) -> None:
        objects = [
            {**each, "actions": {"upload": {"href": f"{self._elsewhere()}/storage/{each['oid']}"}}}
            for each in asked["objects"]
        ]
        self._json({"transfer": "basic", "objects": objects}, kind="application/vnd.git-lfs+json")

    def _commit(self, found: Repository, operations: list[dict[str, Any]]) -> None:
        self.hub.commits.append(operations)
        for each in operations:
            value = each["value"]
            if each["key"] == "file":
                found.files[value["path"]] = base64.b64decode(value["content"])
            elif each["key"] == "lfsFile":
                found.files[value["path"]] = self.hub.uploads[value["oid"]]
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
