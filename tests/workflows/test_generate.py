"""Prompts, names and files of generated images, without a network."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from tests.jobs import changed
from unziplora_cli.cli._errors import hint
from unziplora_cli.config import ComputeConfig, GenerateConfig, Words
from unziplora_cli.errors import ProjectError, UsageError
from unziplora_cli.events import run
from unziplora_cli.job import BaseRecord
from unziplora_cli.projects.store import Project
from unziplora_cli.sdxl.base import resolve_base
from unziplora_cli.sdxl.generate import GeneratedImage
from unziplora_cli.workflows import generate
from unziplora_cli.workflows.generate import CrossSpec, GenerateSpec, is_image_file, shared_base

MINI = BaseRecord("mini", "builtin", "mini", None, "sha256:" + "0" * 64)


@pytest.fixture
def fox(make_project: Callable[..., Project]) -> Project:
    return make_project("fox", words=Words("fox", "watercolor", "zwx"), base=MINI)


@pytest.fixture
def rose(make_project: Callable[..., Project]) -> Project:
    return make_project("rose", words=Words("rose", "pop art"), base=MINI)


def spec(**parts: object) -> GenerateSpec:
    return GenerateSpec(None, GenerateConfig(), **parts)


def test_prompts_take_content_words_from_one_and_style_words_from_the_other(fox, rose):
    prompts = spec(content=fox, style=rose, prompt="on a beach").prompts
    assert prompts.full == "a zwx fox in pop art style on a beach"
    assert prompts.content == "a zwx fox on a beach"
    assert prompts.style == "a fox in pop art style on a beach"


def test_another_subject_replaces_the_noun_and_an_empty_one_is_refused(fox):
    assert spec(style=fox, subject="house").prompts.style == "a house in watercolor style"
    assert (
        spec(style=fox, subject="a house in Watercolor style").prompts.style == "a house in watercolor style"
    )
    with pytest.raises(UsageError, match="subject is empty"):
        _ = spec(style=fox, subject="").prompts


@pytest.mark.parametrize(
    ("roles", "kind", "title"),
    [
        ((), "base", ""),
        (("content",), "content", "fox"),
        (("style",), "style", "fox"),
        (("content", "style"), "combine", "fox"),
    ],
)
def test_the_kind_follows_from_the_branches(fox, roles, kind, title):
    made = spec(**dict.fromkeys(roles, fox))
    assert (made.kind, made.title) == (kind, title)


def test_cells_go_row_by_row(fox, rose):
    cells = CrossSpec(None, GenerateConfig(), (fox, rose), (rose,)).cells()
    assert [(cell.content.name, cell.style.name) for cell in cells] == [("fox", "rose"), ("rose", "rose")]


def on(project: Project, **changes: object) -> Project:
    manifest = changed(project.manifest, base=replace(project.job.base, **changes))
    return replace(project, manifest=manifest)


def test_bases_are_compared_by_their_hash(fox, rose):
    assert shared_base([fox, rose]) == "mini"
    assert shared_base([fox, on(rose, id="/elsewhere", kind="folder")]) == "mini"
    with pytest.raises(ProjectError, match="another version of mini"):
        shared_base([fox, on(rose, hash="sha256:" + "1" * 64)])
    with pytest.raises(ProjectError, match="rose on big"):
        shared_base([fox, on(rose, id="big", hash=None)])


def test_a_base_folder_is_valid_in_any_working_folder(fox):
    assert shared_base([on(fox, kind="folder", spec="./base", id="/models/base")]) == "/models/base"
    assert shared_base([on(fox, kind="hub", spec="sdxl", id="stabilityai/sdxl")]) == "sdxl"


@pytest.mark.parametrize(("name", "file"), [("a.png", True), ("a.PNG", True), ("a", False), ("a.b", False)])
def test_only_png_names_mean_a_file(tmp_path, name, file):
    assert is_image_file(tmp_path / name) is file
    (tmp_path / name).mkdir()
    assert is_image_file(tmp_path / name) is False


def test_other_image_formats_are_refused():
    with pytest.raises(UsageError) as caught:
        is_image_file(Path("a/b.webp"))
    assert "--out a/b.png" in hint(caught.value).replace("\\", "/")


@pytest.fixture
def instant(monkeypatch: pytest.MonkeyPatch) -> None:
    """Requests yield one image per seed at once, which holds the seed in its colour."""

    def generate_requests(requests, base, compute):
        for request in requests:
            for seed in request.seeds:
                yield GeneratedImage(Image.new("RGB", (8, 8), (seed, 0, 0)), request, seed, {"seed": seed})

    monkeypatch.setattr(generate, "generate_requests", generate_requests)


def base_only(seed: int, count: int = 1) -> GenerateSpec:
    base, _ = resolve_base("mini", offline=True)
    return GenerateSpec(base, GenerateConfig(seed=seed, count=count), overrides={"full": "a fox"})


def colour(path: Path) -> int:
    with Image.open(path) as image:
        return image.getpixel((0, 0))[0]


def test_concurrent_runs_never_share_a_name(instant, tmp_path):
    def generate_five(_: int) -> tuple[Path, ...]:
        return run(generate.generate_images(base_only(0, 5), tmp_path, ComputeConfig())).images

    with ThreadPoolExecutor(8) as pool:
        batches = list(pool.map(generate_five, range(8)))
    paths = [path for batch in batches for path in batch]
    assert len(set(paths)) == 40
    assert [colour(path) for path in paths] == [*range(5)] * 8


@pytest.mark.parametrize("sheet", [False, True])
def test_a_disk_that_vanishes_meanwhile_is_named_and_nothing_made_in_its_place(
    fox, rose, monkeypatch, tmp_path, sheet
):
    home = fox.folder.parent.parent

    def vanishing(requests, base, compute):
        home.rename(tmp_path / "unplugged")
        home.mkdir()  # the mount point
        yield GeneratedImage(Image.new("RGB", (8, 8)), requests[0], 0, {})

    monkeypatch.setattr(generate, "generate_requests", vanishing)
    monkeypatch.setattr(generate.AdapterCache, "request", lambda *_: None)
    monkeypatch.setattr(generate, "source_image", lambda _: None)
    base, config = base_only(0).base, GenerateConfig()
    make = generate.generate_cross if sheet else generate.generate_images
    made = CrossSpec(base, config, (fox,), (rose,)) if sheet else GenerateSpec(base, config, fox)
    with pytest.raises(ProjectError, match="its disk was disconnected, or its folder was deleted"):
        run(make(made, None, ComputeConfig()))
    assert list(home.iterdir()) == []


def test_a_folder_is_made_before_generating_and_removed_if_it_stays_empty(monkeypatch, tmp_path):
    out = tmp_path / "a/b"

    def failing(requests, base, compute):
        assert out.is_dir()
        yield from ()
        raise RuntimeError

    monkeypatch.setattr(generate, "generate_requests", failing)
    with pytest.raises(RuntimeError):
        run(generate.generate_images(base_only(7), out, ComputeConfig()))
    assert list(tmp_path.iterdir()) == []


def test_an_image_keeps_another_name_if_its_own_was_taken_meanwhile(instant, tmp_path, monkeypatch):
    original = generate.generate_requests

    def interrupted(*args):
        (tmp_path / "a.png").write_bytes(b"of another process")
        yield from original(*args)

    monkeypatch.setattr(generate, "generate_requests", interrupted)
    result = run(generate.generate_images(base_only(7), tmp_path / "a.png", ComputeConfig()))
    assert result.images == (tmp_path / "a-001.png",)
    assert (tmp_path / "a.png").read_bytes() == b"of another process"
    assert colour(tmp_path / "a-001.png") == 7
