"""Downloads from a local hub server, through the command line."""

import errno
import json
import os
import re
import resource
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import pytest
import torch
from filelock import FileLock

from tests.cli import envelopes
from tests.hub_server import TOKEN, Hub, Repository, sha256, use_endpoint
from tests.test_model_cache import sdxl_files
from unziplora_cli import hub as hub_module
from unziplora_cli import network, paths
from unziplora_cli.__main__ import run
from unziplora_cli.cli._errors import hint
from unziplora_cli.errors import ModelError
from unziplora_cli.events import Transfer
from unziplora_cli.events import run as run_events
from unziplora_cli.sdxl import base
from unziplora_cli.sdxl.load import load_unet
from unziplora_cli.sdxl.single_file import TOKENIZERS, find_tokenizers

UNET = "unet/diffusion_pytorch_model.fp16.safetensors"
LARGE = bytes(range(256)) * 100_000
PIECE = 10 * 2**20


@dataclass(frozen=True)
class Completed:
    code: int
    out: str
    err: str

    @property
    def result(self) -> dict[str, Any]:
        envelope: dict[str, Any] = json.loads(self.out)
        envelopes.check(envelope)
        assert envelope["ok"], envelope
        return envelope["result"]


@pytest.fixture
def hub(hub: Hub) -> Hub:
    """A hub with owner/name, which holds several variants of everything."""
    files = {**sdxl_files(), **sdxl_files(".safetensors"), **sdxl_files(".bin"), "README.md": b"Hello"}
    hub.repositories["owner/name"] = Repository(files)
    return hub


@pytest.fixture
def program(hub: Hub) -> Callable[..., Completed]:
    """Runs a command line in a process of its own, which finds this machine's hub through HF_ENDPOINT."""

    def invoke(*arguments: str, **variables: str) -> Completed:
        mine = {"HF_ENDPOINT": hub.url, "HF_HUB_OFFLINE": "0", "PYTHONWARNINGS": "error", **variables}
        completed = subprocess.run(
            [sys.executable, "-m", "unziplora_cli", *arguments],
            env=os.environ | mine,
            capture_output=True,
            text=True,
        )
        return checked(Completed(completed.returncode, completed.stdout, completed.stderr))

    return invoke


@pytest.fixture
def unziplora(
    hub: Hub, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., Completed]:
    """Runs a command line in this process."""

    def invoke(*arguments: str, **variables: str) -> Completed:
        use_endpoint(variables.get("HF_ENDPOINT", hub.url), monkeypatch)
        capsys.readouterr()
        with monkeypatch.context() as environment:
            for name, value in {"HF_HUB_OFFLINE": "0", **variables}.items():
                environment.setenv(name, value)
            code = run(list(arguments))
        return checked(Completed(code, *capsys.readouterr()))

    return invoke


def checked(completed: Completed) -> Completed:
    """What holds of every command."""
    assert "Traceback" not in completed.err
    assert TOKEN not in completed.out + completed.err
    return Completed(completed.code, completed.out, " ".join(completed.err.split()))


def cached(id: str = "owner/name") -> set[str]:
    """The files of a model on this disk."""
    folder = paths.hub_cache() / f"models--{id.replace('/', '--')}/snapshots" / ("c" * 40)
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def blob(data: bytes) -> Path:
    return paths.hub_cache() / "models--owner--name/blobs" / sha256(data)


def test_pull_downloads_the_files_of_a_base(hub, unziplora):
    completed = unziplora("models", "pull", "owner/name")
    assert completed.code == 0
    assert "14 files" in completed.err
    assert "free at" in completed.err
    assert cached() == set(sdxl_files())
    assert all(request.token is None for request in hub.requests)
    snapshot = hub_module.find_snapshot("owner/name")
    assert snapshot is not None
    assert (snapshot.revision, snapshot.refs) == ("c" * 40, ("main",))

    hub.requests.clear()
    again = unziplora("models", "pull", "owner/name", "--json").result
    assert again["complete"]
    assert not [request for request in hub.requests if "resolve" in request.path]


def test_list_verify_path_and_remove_agree(hub, unziplora):
    unziplora("models", "pull", "owner/name")
    (mini, listed) = unziplora("models", "list", "--json").result["models"]
    assert mini["spec"] == "mini"
    assert (listed["spec"], listed["revision"], listed["complete"]) == ("owner/name", "c" * 40, True)
    assert listed["last_used"].startswith("20")
    files = set(sdxl_files().values())
    assert listed["bytes"] == sum(map(len, files))
    verified = unziplora("models", "verify", "owner/name", "--json").result
    assert (verified["checked"], verified["unchecked"]) == (14, 0)
    assert unziplora("models", "path", "owner/name").out.strip() == listed["path"]
    assert unziplora("models", "path").out.strip() == str(paths.hub_cache())
    removed = unziplora("models", "remove", "owner/name", "--yes", "--json").result
    assert removed["bytes"] == listed["bytes"]
    assert not Path(listed["path"]).exists()


def test_a_dropped_connection_is_resumed(hub, unziplora):
    hub.repositories["owner/name"].files[UNET] = LARGE
    hub.cut[sha256(LARGE)] = [PIECE + 5_000_000]
    assert unziplora("models", "pull", "owner/name").code == 0
    first, second = hub.sent(sha256(LARGE))
    assert (first.range, second.range) == (None, f"bytes={PIECE + 5_000_000}-")
    assert blob(LARGE).read_bytes() == LARGE


def test_the_next_command_resumes_an_interrupted_download(hub, unziplora):
    """As after Ctrl-C or a power failure: the beginning of the file lies in the cache."""
    hub.repositories["owner/name"].files[UNET] = LARGE
    blob(LARGE).parent.mkdir(parents=True)
    blob(LARGE).with_name(f"{sha256(LARGE)}.incomplete").write_bytes(LARGE[:1_234_567])
    completed = unziplora("models", "pull", "owner/name")
    assert completed.code == 0
    assert "of them missing" in completed.err
    assert [request.range for request in hub.sent(sha256(LARGE))] == ["bytes=1234567-"]
    assert blob(LARGE).read_bytes() == LARGE


# Older releases of the hub's library leave the socket to the garbage collector when the disk is full.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_an_interrupted_download_is_listed_and_removed(hub, unziplora):
    """The disk refuses to grow a file beyond 12 MB in the middle of the download."""
    hub.repositories["owner/name"].files[UNET] = LARGE
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (12_000_000, before[1]))
    try:
        completed = unziplora("models", "pull", "owner/name")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert completed.code == 4
    assert "is full" in completed.err
    assert "is kept" in completed.err
    partial = blob(LARGE).with_name(f"{sha256(LARGE)}.incomplete").stat().st_size
    assert partial >= PIECE
    (_, listed) = unziplora("models", "list", "--json").result["models"]
    assert not listed["complete"]
    assert listed["bytes"] > partial
    completed = unziplora("content", "fox", "--base", "owner/name")
    assert completed.code == 3
    with pytest.raises(base.ModelError) as error:
        base.resolve_base("owner/name", offline=True)
    assert hint(error.value) == "unziplora models pull owner/name"
    removed = unziplora("models", "remove", "owner/name", "--yes", "--json").result
    assert removed["bytes"] == listed["bytes"]
    assert not blob(LARGE).parent.parent.exists()


def test_ctrl_c_says_how_to_resume(hub, unziplora, monkeypatch):
    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("unziplora_cli.hub._download_blob", stop)
    completed = unziplora("models", "pull", "owner/name")
    assert completed.code == 130
    assert "Resume: unziplora models pull owner/name" in completed.err


def test_two_pulls_at_once_download_each_file_once(hub, program):
    hub.repositories["owner/name"].files[UNET] = LARGE
    both = threading.Barrier(2)

    def handle(handler: BaseHTTPRequestHandler) -> bool:
        with suppress(threading.BrokenBarrierError):
            if "/api/" in handler.path:  # none is done before the other has begun
                both.wait(60)
            elif sha256(LARGE) in handler.path:
                hub.ended.wait(2)
        return False

    hub.handle = handle
    with ThreadPoolExecutor() as pool:
        pulls = list(pool.map(lambda _: program("models", "pull", "owner/name"), range(2)))
    assert [pull.code for pull in pulls] == [0, 0]
    assert len(hub.sent(sha256(LARGE))) == 1
    snapshot = hub_module.find_snapshot("owner/name")
    assert {file.is_symlink() for file in snapshot.files()} == {True}
    assert not list(paths.hub_cache().rglob("*.incomplete"))


def test_a_file_that_another_process_downloads_is_not_waited_for_in_silence(hub):
    query = hub_module.query_model("owner/name", None)
    small = next(file for file in query.files if not file.sha256)
    locks = paths.hub_cache() / ".locks/models--owner--name"
    locks.mkdir(parents=True)
    with FileLock(locks / f"{small.blob}.lock"):
        download = hub_module.download(query)
        assert next(download) == Transfer(small.name, 0, small.bytes)
    assert run_events(download) == query.folder


def test_an_empty_file_is_downloaded(hub, unziplora):
    hub.repositories["owner/name"].files["tokenizer/special_tokens_map.json"] = b""
    completed = unziplora("models", "pull", "owner/name", "--only=tokenizers")
    assert (completed.code, "tokenizer/special_tokens_map.json" in cached()) == (0, True)
    assert completed.err.count("pull: tokenizer/special_tokens_map.json") == 1


def test_a_connection_that_was_closed_while_it_was_idle_is_opened_again(hub, unziplora):
    """Nothing was received, but the next attempt is another connection."""
    dropped = []

    def handle(handler: BaseHTTPRequestHandler) -> bool:
        if "/resolve/" not in handler.path or handler.path in dropped:
            return False
        dropped.append(handler.path)
        return True

    hub.handle = handle
    assert unziplora("models", "pull", "owner/name").code == 0
    assert len(dropped) == 12  # of 14 files, two are equal to others


def test_a_file_with_another_hash_is_refused_and_deleted(hub, unziplora):
    hub.repositories["owner/name"].files[UNET] = b"good bytes"
    hub.broken.add(sha256(b"good bytes"))
    completed = unziplora("models", "pull", "owner/name")
    assert completed.code == 4
    assert f"{UNET} of owner/name is damaged" in completed.err
    assert not list(blob(b"").parent.glob(f"{sha256(b'good bytes')}*"))
    hub.broken.clear()
    assert unziplora("models", "pull", "owner/name").code == 0


def test_a_truncated_file_is_resumed_later(hub, unziplora):
    hub.repositories["owner/name"].files[UNET] = LARGE
    hub.short[sha256(LARGE)] = 20_000_000
    completed = unziplora("models", "pull", "owner/name")
    assert completed.code == 4
    assert "Cannot download owner/name" in completed.err
    assert not blob(LARGE).exists()
    assert unziplora("models", "verify", "owner/name").code == 4
    hub.short.clear()
    assert unziplora("models", "pull", "owner/name").code == 0
    assert hub.sent(sha256(LARGE))[-1].range == "bytes=20000000-"
    assert blob(LARGE).read_bytes() == LARGE


def test_a_connection_that_keeps_dropping_gives_an_error(hub, unziplora):
    hub.repositories["owner/name"].files[UNET] = LARGE
    hub.cut[sha256(LARGE)] = [1000] * 100
    completed = unziplora("models", "pull", "owner/name")
    assert completed.code == 4
    assert "Cannot download owner/name" in completed.err


def test_the_token_for_a_private_model_goes_only_to_the_hub(hub, unziplora):
    hub.repositories["owner/name"].private = True
    completed = unziplora("models", "pull", "owner/name")
    assert completed.code == 4
    assert "or it is private" in completed.err
    assert "HF_TOKEN" in completed.err
    assert unziplora("models", "pull", "owner/name", HF_TOKEN=TOKEN).code == 0
    assert {request.token for request in hub.requests if request.host == "localhost"} == {None}
    assert all(
        TOKEN.encode() not in path.read_bytes() for path in paths.hub_cache().rglob("*") if path.is_file()
    )


@pytest.mark.parametrize(
    ("change", "spec", "variables", "says"),
    [
        ({}, "owner/nothing", {}, "no model owner/nothing"),
        ({}, "owner/nothing", {"HF_TOKEN": TOKEN}, "no model owner/nothing"),
        ({}, "owner/name", {"HF_TOKEN": "hf_wrong"}, "no token, or one without permission"),
        ({}, "owner/name@v9", {}, "no such revision"),
        ({"gated": True}, "owner/name", {}, "accept its terms"),
        ({}, "owner/name", {"HF_ENDPOINT": "http://127.0.0.1:9"}, "Cannot download owner/name"),
        ({}, "owner/name", {"HF_HUB_OFFLINE": "1"}, "needs the network"),
    ],
)
def test_a_refused_download_leaves_no_files(hub, unziplora, change, spec, variables, says):
    for name, value in change.items():
        setattr(hub.repositories["owner/name"], name, value)
    completed = unziplora("models", "pull", spec, **variables)
    assert (completed.code, completed.out) == (4, "")
    assert says in completed.err
    assert "->" in completed.err
    assert "hf_wrong" not in completed.err
    assert "Signature" not in completed.err
    assert cached() == set()
    if "HF_HUB_OFFLINE" in variables:
        assert hub.requests == []


def test_offline_is_set_before_the_library_is_imported(hub):
    """The hub's library reads the variable when it is imported."""
    program = (
        "from unziplora_cli.__main__ import run\n"
        "import sys\n"
        "assert 'huggingface_hub' not in sys.modules\n"
        "run(['--offline', 'models', 'list'])\n"
        "from huggingface_hub import constants\n"
        "print(constants.HF_HUB_OFFLINE)"
    )
    variables = {"HF_ENDPOINT": hub.url, "HF_HUB_OFFLINE": "0"}
    completed = subprocess.run(
        [sys.executable, "-c", program],
        env=os.environ | variables,
        capture_output=True,
        text=True,
        check=True,
    )
    assert completed.stdout.splitlines()[-1] == "True"
    assert hub.requests == []


def test_the_cache_is_where_the_environment_says(hub, program, tmp_path):
    home = {"HF_HOME": str(tmp_path / "home"), "HF_HUB_CACHE": ""}
    assert program("models", "pull", "owner/name", **home).code == 0
    assert (tmp_path / "home/hub/models--owner--name").is_dir()
    assert program("models", "pull", "owner/name", HF_HUB_CACHE=str(tmp_path / "cache")).code == 0
    assert (tmp_path / "cache/models--owner--name").is_dir()
    assert cached() == set()


def test_an_unsupported_model_is_refused_before_its_weights_are_downloaded(hub, unziplora):
    files = {"model_index.json": b'{"_class_name": "FluxPipeline"}', "vae/config.json": b"{}", UNET: LARGE}
    hub.repositories["owner/flux"] = Repository(files)
    hub.repositories["owner/llm"] = Repository({"config.json": b"{}", "model.safetensors": LARGE})
    for id, says in (("owner/flux", "is a FluxPipeline"), ("owner/llm", "is not a diffusers model")):
        completed = unziplora("models", "pull", id)
        assert completed.code == 4
        assert says in completed.err
    assert hub.sent(sha256(LARGE)) == []


def test_a_linked_cache_works(hub, unziplora, tmp_path):
    (tmp_path / "disk").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "disk")
    assert unziplora("models", "pull", "owner/name", HF_HUB_CACHE=str(tmp_path / "link")).code == 0
    assert unziplora("models", "verify", "owner/name", HF_HUB_CACHE=str(tmp_path / "link")).code == 0


def test_an_unwritable_cache_is_not_blamed_on_the_connection(hub, unziplora, tmp_path):
    (tmp_path / "file").touch()
    completed = unziplora("models", "pull", "owner/name", HF_HUB_CACHE=str(tmp_path / "file/cache"))
    assert completed.code == 4
    assert "Cannot write to" in completed.err
    assert "HF_HOME" in completed.err


def test_only_tokenizers_downloads_a_few_files(hub, unziplora):
    completed = unziplora("models", "pull", "owner/name", "--only", "tokenizers")
    assert completed.code == 0
    tokenizers = {f"{name}/{file}" for name in TOKENIZERS for file in ("vocab.json", "merges.txt")}
    assert cached() == {"model_index.json", *tokenizers}
    assert unziplora("models", "pull", "owner/name", "--only", "vae").code == 2


def test_sdxl_is_the_default_once_it_is_complete(hub, unziplora, tiny_base):
    """The tiny base in the place of SDXL, at the commit that sdxl means."""
    parts = {path.relative_to(tiny_base).as_posix(): path for path in tiny_base.rglob("*") if path.is_file()}
    files = {
        name.replace(".safetensors", ".fp16.safetensors"): path.read_bytes() for name, path in parts.items()
    }
    hub.repositories[base.SDXL_ID] = Repository(files, commit=base.SDXL_REVISION)
    assert unziplora("models", "pull", "sdxl", "--only", "tokenizers").code == 0
    words = len(json.loads(files["tokenizer/vocab.json"]))
    tokenizers = find_tokenizers(Path("photo.safetensors"), words)
    assert base.resolve_base(None, offline=True)[0].spec == "mini"

    completed = unziplora("models", "pull", "sdxl")
    assert completed.code == 0
    assert "of them missing" in completed.err
    assert "unziplora models pull madebyollin/sdxl-vae-fp16-fix" in completed.err
    resolved, notice = base.resolve_base(None, offline=True)
    assert (resolved.spec, resolved.revision, notice) == ("sdxl", base.SDXL_REVISION, None)
    assert tokenizers == resolved.path
    assert base.resolve_base(base.SDXL_ID, offline=True)[0].path == resolved.path
    assert load_unet(resolved, device="cpu", dtype=torch.float32).conv_in.in_channels == 4


def test_two_commits_share_equal_files(hub, unziplora):
    unziplora("models", "pull", "owner/name")
    hub.repositories["owner/name"] = Repository({**sdxl_files(), UNET: b"newer"}, commit="d" * 40)
    unziplora("models", "pull", "owner/name")
    specs = {model["spec"] for model in unziplora("models", "list", "--json").result["models"]}
    old = f"owner/name@{'c' * 40}"
    assert specs == {"mini", "owner/name", old}
    completed = unziplora("models", "remove", old)
    assert f"free {len(sdxl_files()[UNET])} bytes" in completed.err
    assert "shared with other commits" in completed.err
    freed = unziplora("models", "remove", old, "--yes", "--json").result["bytes"]
    assert freed == len(sdxl_files()[UNET])
    assert unziplora("models", "verify", "owner/name").code == 0


def test_a_query_downloads_nothing(hub, unziplora):
    assert unziplora("models", "pull", "owner/name@main").code == 0
    plan = hub_module.query_model("owner/name", None)
    assert (plan.revision, plan.missing()) == ("c" * 40, 0)
    assert plan.bytes == sum(map(len, sdxl_files().values()))


HOSTILE = ("/etc/x", "../../../x", "", 5, None, ["a"], {}, "x" * 100_000, "\x1b[2J", "A" * 40)


def with_sibling(**changes: Any) -> Callable[[dict[str, Any]], Any]:
    """Changes the first configuration or, for lfs, the weights of the U-Net in a list of files."""

    def change(answer: dict[str, Any]) -> Any:
        wanted = UNET if "lfs" in changes else "model_index.json"
        next(file for file in answer["siblings"] if file["rfilename"] == wanted).update(changes)
        return answer

    return change


INVALID = [
    *(lambda answer, value=value: {**answer, "sha": value} for value in HOSTILE),
    *(with_sibling(lfs={"sha256": value}) for value in HOSTILE),
    *(with_sibling(lfs=value) for value in ("x", 5, ["sha256"])),
    *(with_sibling(blobId=value) for value in HOSTILE),
    *(with_sibling(size=value) for value in ("5", None, [], -1, 1.5, 10**30)),
    *(
        with_sibling(rfilename=value)
        for value in ("../config.json", "/config.json", "a\0/config.json", 5, [], "\ud800/config.json")
    ),
    with_sibling(rfilename="tokenizer/" + 60 * "\U0001f98a" + ".json"),  # 245 bytes: too long with an ending
    *(lambda answer, value=value: {**answer, "siblings": value} for value in ("x", 5, None, [5], [None])),
    *(lambda answer, value=value: value for value in (None, [], 5, "x")),
]


def test_an_answer_never_becomes_a_path_unchecked(hub):
    machine = paths.hub_cache().parent.parent
    before = set(machine.rglob("*"))
    for change in INVALID:
        hub.change = change
        with pytest.raises(ModelError, match="gave an invalid answer about owner/name") as error:
            hub_module.query_model("owner/name", None)
        assert len(error.value.message) < 500
        assert error.value.remedies
    assert set(machine.rglob("*")) == before


def test_an_etag_is_no_path(hub, unziplora):
    hub.etag = '"../../../../evil"'
    assert unziplora("models", "pull", "owner/name").code == 0
    assert cached() == set(sdxl_files())
    assert not list(paths.hub_cache().parent.parent.rglob("*evil*"))


@pytest.mark.parametrize("spec", ["owner/name@..", "owner/..", "../name", "owner/name@"])
def test_an_id_or_a_revision_of_dots_is_refused(hub, unziplora, spec):
    completed = unziplora("models", "pull", spec)
    assert completed.code == 4
    assert "is not the id of a model" in completed.err
    assert hub.requests == []


def silence(handler: BaseHTTPRequestHandler, hub: Hub) -> None:
    hub.ended.wait(10)


def endless_headers(handler: BaseHTTPRequestHandler, hub: Hub) -> None:
    handler.wfile.write(b"HTTP/1.1 200 OK\r\n")
    while not hub.ended.wait(0.01):
        handler.wfile.write(b"X-More: 1\r\n")


def one_byte_at_a_time(handler: BaseHTTPRequestHandler, hub: Hub) -> None:
    handler.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n")
    while not hub.ended.wait(0.01):
        handler.wfile.write(b" ")


def endless(handler: BaseHTTPRequestHandler, hub: Hub) -> None:
    handler.wfile.write(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n")
    while not hub.ended.is_set():
        handler.wfile.write(b" " * 10_000)


def wait_600(handler: BaseHTTPRequestHandler, hub: Hub) -> None:
    handler.wfile.write(b"HTTP/1.1 429 Too Many\r\nRetry-After: 600\r\nContent-Length: 0\r\n\r\n")


@pytest.mark.parametrize("part", ["/api/", "/storage/"])
@pytest.mark.parametrize(
    ("answer", "says"),
    [
        (silence, "does not answer in"),
        (endless_headers, "does not answer in"),
        (one_byte_at_a_time, "sent only|does not answer in"),
        (endless, "is larger than"),
        (wait_600, "try again in 600 s"),
    ],
)
def test_nothing_is_endless_or_waited_for_in_silence(hub, unziplora, monkeypatch, answer, says, part):
    """While the list of files or a file is read; what is waited for is on the screen."""
    hub.repositories["owner/name"].files[UNET] = LARGE

    def handle(handler: BaseHTTPRequestHandler) -> bool:
        if part not in handler.path:
            return False
        with suppress(OSError):
            answer(handler, hub)
        return True

    hub.handle = handle
    monkeypatch.setattr(network, "WINDOW", 0.3)
    monkeypatch.setattr(hub_module, "LARGEST_ANSWER", 1_000_000)
    completed = unziplora("models", "pull", "owner/name")
    assert completed.code == 4
    assert re.search(says, completed.err)
    assert completed.err.startswith(f"Asking {hub.url} for the files of owner/name.")
    assert not list(paths.hub_cache().rglob("unet/*.safetensors"))


def test_ctrl_c_ends_the_wait_for_a_silent_hub(hub, unziplora):
    def handle(handler: BaseHTTPRequestHandler) -> bool:
        os.kill(os.getpid(), signal.SIGINT)
        silence(handler, hub)
        return True

    hub.handle = handle
    assert unziplora("models", "pull", "owner/name").code == 130
    assert len(hub.requests) == 1


def test_a_server_that_ignores_the_range_starts_again(hub, unziplora):
    """The rest is not appended to what is there already."""
    hub.repositories["owner/name"].files[UNET] = LARGE
    hub.whole = True
    blob(LARGE).parent.mkdir(parents=True)
    blob(LARGE).with_name(f"{sha256(LARGE)}.incomplete").write_bytes(b"x" * 1000)
    assert unziplora("models", "pull", "owner/name").code == 0
    assert blob(LARGE).read_bytes() == LARGE


def test_without_links_the_files_themselves_are_in_the_snapshot(hub, unziplora, monkeypatch):
    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.EPERM, "no links here")

    monkeypatch.setattr(Path, "symlink_to", refuse)
    assert unziplora("models", "pull", "owner/name").code == 0
    assert cached() == set(sdxl_files())
    hub.requests.clear()
    assert unziplora("models", "pull", "owner/name").code == 0
    assert not [request for request in hub.requests if "resolve" in request.path]


def test_the_describer_is_pulled_listed_verified_and_removed(hub, unziplora):
    """Only what a vision-language model needs is downloaded, and it is no base."""
    shards = {f"model-0000{number}-of-00002.safetensors": bytes([number]) * 9_000 for number in (1, 2)}
    index = {"weight_map": dict(zip("ab", shards, strict=True))}
    small = {
        "config.json": b'{"model_type": "qwen3_vl"}',
        "preprocessor_config.json": b"{}",
        "video_preprocessor_config.json": b"{}",
        "chat_template.json": b"{}",
        "tokenizer.json": b"{ }",
        "tokenizer_config.json": b"{  }",
        "vocab.json": b"{   }",
        "merges.txt": b"#version: 0.2",
        "model.safetensors.index.json": json.dumps(index).encode(),
    }
    others = {"README.md": b"Hello", "pytorch_model.bin": b"pickle", "onnx/model.onnx": b"x"}
    hub.repositories[hub_module.DESCRIBER] = Repository({**small, **shards, **others})
    assert unziplora("models", "pull", "describer").code == 0
    assert cached(hub_module.DESCRIBER) == {*small, *shards}
    models = unziplora("models", "list", "--json").result["models"]
    assert [(model["spec"], model["complete"]) for model in models[1:]] == [("describer", True)]
    assert unziplora("models", "verify", "describer", "--json").result["checked"] == len({*small, *shards})
    folder = Path(unziplora("models", "path", "describer").out.strip())
    (folder / "model-00002-of-00002.safetensors").unlink()
    (model,) = unziplora("models", "list", "--json").result["models"][1:]
    assert "model-00002-of-00002.safetensors" in model["problem"]
    assert unziplora("models", "remove", "describer", "--yes").code == 0
    assert hub_module.find_snapshot(hub_module.DESCRIBER) is None
