"""Projects on a hub of this machine, and the folders that would be uploaded."""

import ast
import gzip
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from markdown_it import MarkdownIt
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from safetensors import safe_open
from safetensors.torch import save_file

from tests.hub_server import TOKEN, Repository
from unziplora_cli import resources
from unziplora_cli.config import Words
from unziplora_cli.job import BaseRecord
from unziplora_cli.projects import manifest
from unziplora_cli.projects.manifest import Artifact
from unziplora_cli.sdxl.base import SDXL_ID
from unziplora_cli.training.trainer import STOP_SIGNALS

# The hub's library warns about the HTTP library beneath it when it uploads large files.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")

WEIGHTS = {f"fox_{role}.safetensors": f"{role}.safetensors" for role in ("content", "style", "merge")}


def front(card: str) -> dict[str, Any]:
    """What the hub reads of a card."""
    return yaml.safe_load(card.split("---\n")[1])


def bytes_of(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()
    }


@pytest.fixture
def drawn(make_project) -> Path:
    """The project fox with a picture that says how it was made; returns its folder."""
    from unziplora_cli.images import save_png

    project = make_project("fox")
    (project.folder / "images").mkdir()
    parameters = {
        "command": "content",
        "prompts": {"content": "a fox on a beach"},
        "adapters": {"content": project.manifest.artifact("content").sha256},
        "base": {"id": "/home/me/secret.safetensors"},
    }
    save_png(Image.new("RGB", (64, 64), "red"), project.folder / "images/one.png", parameters)
    return project.folder


def test_dry_run_writes_the_folder_without_network(unziplora, hub, drawn, tmp_path):
    result = unziplora(
        "push", "fox", "me/fox", "--plan", "--out", tmp_path / "out", "--license=cc-by-4.0", "--json"
    ).envelope["result"]
    assert hub.requests == []
    files = bytes_of(tmp_path / "out")
    assert sorted(files) == result["files"] == sorted([*WEIGHTS, "README.md", "images/1.png"])
    for name, original in WEIGHTS.items():
        assert files[name] == (drawn / original).read_bytes()
    with Image.open(tmp_path / "out/images/1.png") as picture:
        assert picture.info == {}
        assert picture.getpixel((0, 0)) == (255, 0, 0)
    card = files["README.md"].decode()
    metadata = front(card)
    assert metadata["license"] == "cc-by-4.0"
    assert metadata["widget"] == [{"text": "a fox on a beach", "output": {"url": "images/1.png"}}]
    assert metadata["instance_prompt"] == "a monadikos fox"
    assert "![a fox on a beach](images/1.png)" in card


def test_push_uploads_the_files_in_one_commit(unziplora, hub, drawn, monkeypatch, isolated_home):
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    completed = unziplora("push", "fox", "me/fox", "--private", "-v")
    assert completed.code == 0
    assert f"{hub.url}/me/fox" in completed.out
    made = hub.repositories["me/fox"]
    assert made.private
    assert len(hub.commits) == 1
    assert sorted(made.files) == sorted([*WEIGHTS, "README.md", "images/1.png"])
    for name, original in WEIGHTS.items():
        assert made.files[name] == (drawn / original).read_bytes()

    assert {request.token for request in hub.requests if request.host == "127.0.0.1"} == {TOKEN}
    assert {request.token for request in hub.requests if request.host != "127.0.0.1"} == {None}
    written = [path.read_bytes() for path in isolated_home.parent.rglob("*") if path.is_file()]
    message = (completed.out + completed.err).encode()
    assert all(TOKEN.encode() not in data for data in [message, *written, *hub.bodies])

    assert unziplora("push", "fox", "me/fox", "--private").code == 0  # again, into the same one
    assert len(hub.commits) == 2


@pytest.mark.parametrize("parameters", [{"prompts": ["x"]}, {"prompts": {"full": 7}}, {"prompts": "x"}, []])
def test_parameters_of_the_wrong_type_fall_back_to_the_projects_prompt(
    unziplora, drawn, tmp_path, parameters
):
    info = PngInfo()
    info.add_text("unziplora", json.dumps(parameters))
    Image.new("RGB", (64, 64)).save(tmp_path / "one.png", pnginfo=info)
    options = ("--image", tmp_path / "one.png", "--out", tmp_path / "out")
    completed = unziplora("push", "fox", "me/fox", "--plan", *options)
    assert completed.code == 0
    prompt = manifest.read(drawn).job.prompts.full
    assert f"![{prompt}](images/1.png)" in (tmp_path / "out/README.md").read_text()


def test_only_images_of_this_project_alone_are_published(unziplora, drawn, make_project, tmp_path):
    """Not a sheet, a damaged file, nor what another project or a former version of this one took part in."""
    from unziplora_cli.images import save_png

    fox, rose = manifest.read(drawn), make_project("rose").manifest
    hashes = {role: fox.artifact(role).sha256 for role in ("content", "style")}
    others = [
        {
            "command": "combine",
            "adapters": {"content": hashes["content"], "style": rose.artifact("style").sha256},
        },
        {"command": "content", "adapters": {"content": rose.artifact("content").sha256}},
        {"command": "content", "adapters": {"content": "0" * 64}, "projects": {"content": "fox"}},
        {"command": "cross", "projects": {"content": "fox"}},
        {"adapters": {}},
        {"adapters": ["content"]},
    ]
    for number, parameters in enumerate(others):
        save_png(Image.new("RGB", (64, 64), "blue"), drawn / f"images/other-{number}.png", parameters)
    both = {"command": "combine", "prompts": {"full": "both"}, "adapters": hashes}
    save_png(Image.new("RGB", (64, 64), "lime"), drawn / "images/both.png", both)
    save_png(Image.effect_noise((64, 64), 90).convert("RGB"), drawn / "images/half.png", both)
    half = (drawn / "images/half.png").read_bytes()
    (drawn / "images/half.png").write_bytes(half[: len(half) - 2000])
    assert unziplora("push", "fox", "me/fox", "--plan", "--out", tmp_path / "out").code == 0
    widget = front((tmp_path / "out/README.md").read_text())["widget"]
    assert sorted(image["text"] for image in widget) == ["a fox on a beach", "both"]


def test_no_image_publishes_no_image_nor_thumbnail(unziplora, drawn, tmp_path):
    tensors = {"layer.up": torch.ones(2, 2)}
    file = drawn / "content.safetensors"
    save_file(tensors, file, {"modelspec.thumbnail": "data:image/jpeg;base64,AAAA", "modelspec.title": "fox"})
    save_file(tensors, drawn / "style.safetensors")
    save_file(tensors, drawn / "merge.safetensors")
    record = manifest.read(drawn)
    artifacts = tuple(Artifact.of(drawn, a.role, a.path, a.format, a.rank) for a in record.artifacts)
    manifest.write(drawn, replace(record, artifacts=artifacts))
    out = tmp_path / "out"
    assert unziplora("push", "fox", "me/fox", "--plan", "--no-picture", "--out", out).code == 0
    assert sorted(bytes_of(out)) == sorted([*WEIGHTS, "README.md"])
    with safe_open(out / "fox_content.safetensors", "pt") as published:
        assert published.metadata()["modelspec.title"] == "fox"
        assert "modelspec.thumbnail" not in published.metadata()
        assert torch.equal(published.get_tensor("layer.up"), tensors["layer.up"])
    assert "widget" not in front((out / "README.md").read_text())


def test_dry_run_into_the_working_folder(unziplora, drawn, tmp_path, monkeypatch):
    (tmp_path / "new").mkdir()
    monkeypatch.chdir(tmp_path / "new")
    assert unziplora("push", "fox", "me/fox", "--plan", "--out", ".").code == 0
    assert sorted(path.name for path in Path().iterdir()) == sorted([*WEIGHTS, "README.md", "images"])
    assert [path.name for path in tmp_path.iterdir()] == ["new"]


def test_card_of_the_built_in_base_says_what_it_is_not_for(unziplora, make_project, tmp_path):
    make_project("fox", base=BaseRecord("mini", "builtin", "mini", hash="0" * 64))
    assert unziplora("push", "fox", "me/fox", "--plan", "--out", tmp_path / "out").code == 0
    card = (tmp_path / "out/README.md").read_text()
    assert "A trial, not for SDXL" in card
    assert "unziplora import fox_content.safetensors fox_style.safetensors --base mini" in card
    assert "ComfyUI, A1111, Forge, InvokeAI and SDXL cannot use them" in card
    assert "models/loras" not in card
    (code,) = re.findall(r"```python\n(.*?)```", card, re.DOTALL)
    ast.parse(code)
    assert str(resources.mini_base()) not in card


@pytest.mark.parametrize("exists", [True, False])
def test_two_commands_do_not_mix_their_files_in_one_folder(unziplora, drawn, tmp_path, monkeypatch, exists):
    """Another command fills the folder while this one prepares its files."""
    from unziplora_cli.workflows import publish

    out, write = tmp_path / "out", publish._write
    if exists:
        out.mkdir()

    def slow(request, store, folder):
        names = write(request, store, folder)
        out.mkdir(exist_ok=True)
        (out / "README.md").write_text("of another project")
        return names

    monkeypatch.setattr(publish, "_write", slow)
    completed = unziplora("push", "fox", "me/fox", "--plan", "--out", out)
    assert (completed.code, completed.out) == (2, "")
    assert "already exists" in completed.message
    assert bytes_of(tmp_path) == {"out/README.md": b"of another project"}


def test_dry_run_leaves_other_hidden_folders_alone(unziplora, drawn, tmp_path):
    other = tmp_path / ".out.partial"
    other.mkdir()
    (other / "mine.txt").write_text("mine")
    assert unziplora("push", "fox", "me/fox", "--plan", "--out", tmp_path / "out").code == 0
    assert bytes_of(other) == {"mine.txt": b"mine"}
    assert "mine.txt" not in bytes_of(tmp_path / "out")


@pytest.mark.parametrize("token", [None, "hf_wrong"])
def test_missing_or_wrong_token_is_reported(unziplora, hub, drawn, monkeypatch, token):
    if token:
        monkeypatch.setenv("HF_TOKEN", token)
    completed = unziplora("push", "fox", "me/fox", "-v")
    assert completed.code == 4
    assert "refused to push to me/fox (401)" in completed.message
    assert "hf auth login" in completed.message
    assert "hf_wrong" not in completed.err
    assert hub.repositories == {}


def test_private_push_to_a_public_model_is_refused(unziplora, hub, drawn, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    hub.repositories["me/fox"] = Repository()
    completed = unziplora("push", "fox", "me/fox", "--private")
    assert completed.code == 4
    assert "is public" in completed.message
    assert hub.commits == []


def test_unreachable_hub_is_reported(unziplora, hub, drawn, monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    completed = unziplora("push", "fox", "me/fox")
    assert completed.code == 4
    assert "Cannot push to me/fox (http://127.0.0.1:9): Connect" in completed.message


STAGES = ("/api/repos/create", "/preupload/", "/info/lfs/objects/batch", "/commit/")


def answering(part: str, answer: bytes, status: int = 200, **headers: str) -> Callable[..., bool]:
    """Gives this answer to each request whose path has ``part``."""

    def handle(handler: BaseHTTPRequestHandler) -> bool:
        if part not in handler.path:
            return False
        handler.send_response(status)
        for name, value in {"Content-Length": str(len(answer)), **headers}.items():
            handler.send_header(name.replace("_", "-"), value)
        handler.end_headers()
        handler.wfile.write(answer)
        return True

    return handle


@pytest.mark.parametrize("stage", STAGES)
def test_an_answer_that_no_hub_gives_ends_a_push(unziplora, hub, drawn, monkeypatch, stage):
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    wrong = b'{"url": 5, "files": [5], "objects": [5], "commitUrl": 5, "x": "\\u001b[2J"}'
    for answer in (b"", b"[]", b"[" * 100_000, wrong):
        hub.handle = answering(stage, answer)
        completed = unziplora("push", "fox", "me/fox")
        if stage != "/commit/" or completed.code:  # the answer to a commit is not needed
            assert completed.code == 4, (answer, completed)
            assert f"Cannot push to me/fox ({hub.url}): " in completed.message
        assert "\x1b[2J" not in completed.err
        assert hub.commits == []


@pytest.mark.parametrize("stage", STAGES)
def test_an_endless_answer_ends_a_push(unziplora, hub, drawn, monkeypatch, stage):
    """Also one that is small until it is unpacked."""
    from unziplora_cli import hub as hub_module

    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setattr(hub_module, "LARGEST_ANSWER", 1_000_000)
    hub.handle = answering(stage, gzip.compress(b" " * 2_000_000), Content_Encoding="gzip")
    completed = unziplora("push", "fox", "me/fox")
    assert completed.code == 4
    assert "is larger than 1000000 bytes" in completed.message
    assert hub.commits == []


@pytest.mark.parametrize("stage", STAGES)
def test_a_redirection_to_another_host_gets_no_token(unziplora, hub, drawn, monkeypatch, stage):
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    elsewhere = hub.url.replace("127.0.0.1", "localhost")

    def handle(handler: BaseHTTPRequestHandler) -> bool:
        here = handler.headers["Host"].startswith("127.0.0.1")
        return here and answering(stage, b"", 307, Location=elsewhere + handler.path)(handler)

    hub.handle = handle
    unziplora("push", "fox", "me/fox")
    redirected = [request for request in hub.requests if request.host == "localhost"]
    assert redirected
    assert {request.token for request in redirected} == {None}


@pytest.mark.parametrize("token", [TOKEN, "abc123"])
@pytest.mark.parametrize("status", [400, 500])
def test_a_token_that_the_hub_repeats_is_not_shown(unziplora, hub, drawn, monkeypatch, token, status):
    monkeypatch.setenv("HF_TOKEN", token)
    answer = json.dumps({"error": f"not {token}"}).encode()
    hub.handle = answering("/api/repos/create", answer, status, X_Error_Message=f"bad {token}")
    for option in ("-v", "--json"):
        completed = unziplora("push", "fox", "me/fox", option)
        assert completed.code == 4
        assert token not in completed.out + completed.err


@pytest.mark.parametrize(
    ("stop", "code", "says"),
    [
        *((number, 130, "Interrupted.") for number in STOP_SIGNALS),
        (None, 4, "the server was not done after"),
    ],
)
def test_an_upload_that_never_ends_is_given_up_and_not_waited_for(hub, drawn, tmp_path, stop, code, says):
    """Neither after a signal nor after the time limit does the process wait for the library's threads."""
    (tmp_path / "scratch").mkdir()
    signals = [stop] if stop else []
    program = (
        "import signal, sys\n"
        "signal.signal(signal.SIGHUP, signal.SIG_DFL)\n"  # nohup ignores it
        "from unziplora_cli import network\n"
        "from unziplora_cli.__main__ import main\n"
        "from unziplora_cli.workflows import publish\n"
        f"network.WINDOW, publish.SLOWEST_UPLOAD = {6 if stop else 0.5}, 1e9\n"
        "sys.argv[1:] = ['push', 'fox', 'me/fox']\n"
        "main()"
    )

    def handle(handler: BaseHTTPRequestHandler) -> bool:
        if handler.command == "PUT":
            if signals:
                process.send_signal(signals.pop())
            hub.ended.wait(60)
        return handler.command == "PUT"

    hub.handle = handle
    environment = {**os.environ, "HF_ENDPOINT": hub.url, "HF_TOKEN": TOKEN, "HF_HUB_DISABLE_XET": "1"}
    environment["TMPDIR"] = str(tmp_path / "scratch")
    with subprocess.Popen(
        [sys.executable, "-c", program], env=environment, stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            error = process.communicate(timeout=50)[1]
        finally:
            process.kill()
    assert (process.returncode, "Traceback" in error) == (code, False)
    assert says in error
    assert list((tmp_path / "scratch").iterdir()) == []


def test_the_address_of_the_model_is_not_what_the_hub_says(unziplora, hub, drawn, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    assert unziplora("push", "fox", "me/fox").code == 0
    hub.handle = answering("/api/repos/create", json.dumps({"url": f"{hub.url}/you/rose"}).encode())
    completed = unziplora("push", "fox", "me/fox", "--json")
    assert completed.envelope["result"]["url"] == f"{hub.url}/me/fox"


@pytest.mark.parametrize(
    ("line", "code", "says"),
    [
        ("push fox fox", 2, "owner/name"),
        ("push fox ../fox", 2, "owner/name"),
        ("push fox me/fox --out x", 2, "--plan"),
        ("push fix me/fox", 3, "Did you mean fox"),
        ("push fox me/fox --image nowhere.png", 2, "no file nowhere.png"),
        ("--offline push fox me/fox", 4, "needs the network"),
    ],
)
def test_wrong_arguments_are_refused_before_any_request(unziplora, hub, drawn, line, code, says):
    completed = unziplora(*line.split())
    assert (completed.code, completed.out) == (code, "")
    assert says in completed.message
    assert hub.requests == []


def test_damaged_project_is_not_published(unziplora, hub, drawn, tmp_path):
    (drawn / "style.safetensors").write_bytes(b"other")
    for more in ([], ["--plan", "--out", tmp_path / "out"]):
        completed = unziplora("push", "fox", "me/fox", *more)
        assert completed.code == 3
        assert "unziplora verify fox" in completed.message
    assert hub.requests == []
    assert list(tmp_path.iterdir()) == []


def test_a_link_to_itself_is_no_folder(unziplora, drawn, tmp_path):
    (tmp_path / "loop").symlink_to("loop")
    completed = unziplora("push", "fox", "me/fox", "--plan", "--out", tmp_path / "loop/card")
    assert completed.code == 3
    assert f"{tmp_path / 'loop'} is not a folder" in completed.message


def test_nonempty_folder_is_refused(unziplora, drawn, tmp_path):
    (tmp_path / "mine.txt").write_text("mine")
    completed = unziplora("push", "fox", "me/fox", "--plan", "--out", tmp_path)
    assert completed.code == 2
    assert "already exists" in completed.message
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_a_link_to_nothing_is_not_followed(unziplora, drawn, tmp_path):
    (tmp_path / "link").symlink_to(tmp_path / "nothing")
    assert unziplora("push", "fox", "me/fox", "--plan", "--out", tmp_path / "link").code == 2
    assert [path.name for path in tmp_path.iterdir()] == ["link"]


def test_card_names_the_base_on_the_hub_and_its_code_parses(unziplora, make_project, tmp_path):
    make_project("fox", base=BaseRecord("sdxl", "hub", SDXL_ID, revision="ab" * 20))
    assert unziplora("push", "fox", "me/fox", "--plan", "--out", tmp_path / "out").code == 0
    card = (tmp_path / "out/README.md").read_text()
    assert front(card)["base_model"] == SDXL_ID
    (code,) = re.findall(r"```python\n(.*?)```", card, re.DOTALL)
    ast.parse(code)
    assert f'from_pretrained("{SDXL_ID}", torch_dtype=torch.float16, variant="fp16")' in code
    assert 'load_lora_weights("me/fox", weight_name="fox_style.safetensors", adapter_name="style")' in code


def test_published_files_contain_no_local_paths(unziplora, two_projects, tiny_base, tmp_path):
    """The project in `trained_home` was trained on a base in a folder; its LoRAs and pictures say a lot."""
    assert unziplora("content", "fox", "--steps=1", "--device=cpu").code == 0
    assert unziplora("push", "fox", "me/fox", "--plan", "--out", tmp_path / "out").code == 0
    files = bytes_of(tmp_path / "out")
    assert "images/1.png" in files
    for name, data in files.items():
        assert str(tiny_base.parent).encode() not in data, name
        assert str(two_projects).encode() not in data, name
    assert "base_model" not in front(files["README.md"].decode())


def test_user_text_is_neither_markup_nor_metadata(unziplora, make_project, tmp_path):
    nasty = Words('fox"\nlicense: mit', "[ink](http://x.org) | *bold* <b> $$x$$ {{ 7 * 7 }} www.y.org &lt;")
    project = make_project("fox", words=nasty)
    prompts = replace(project.job.prompts, content='a "fox": #1\n- x', full='a `fox` \\ "ink"')
    make_project("rose", words=nasty, prompts=prompts)
    assert unziplora("push", "rose", "me/rose", "--plan", "--out", tmp_path / "out").code == 0
    card = (tmp_path / "out/README.md").read_text()
    metadata = front(card)
    assert "license" not in metadata
    assert metadata["instance_prompt"] == prompts.content
    links = re.findall(r"(?<!\\)\]\((.*?)\)", card)
    assert [link for link in links if not link.startswith("images/")] == ["https://arxiv.org/abs/2412.04465"]
    body = MarkdownIt("gfm-like", {"linkify": False}).render(card.split("---\n", 2)[2])
    assert "&lt;b&gt; $$x$$ {{ 7 * 7 }} www.y.org &amp;lt;" in body
    assert not re.search(r"(?<!\\)(\$\$|:(?=//x)|www(?=\.))", card.split("```")[0].split("---\n", 2)[2])
    (code,) = re.findall(r"```python\n(.*?)```", card, re.DOTALL)
    (drawn,) = (node.args[0].value for node in ast.walk(ast.parse(code)) if called(node, "pipe"))
    assert drawn == prompts.full


def called(node: ast.AST, name: str) -> bool:
    return isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == name
