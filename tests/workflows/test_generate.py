"""What is decided about pictures before they are drawn."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from unziplora_cli.cli._errors import hint
from unziplora_cli.config import GenerateConfig, Words
from unziplora_cli.errors import ProjectError, UsageError
from unziplora_cli.projects.manifest import BaseRecord
from unziplora_cli.projects.store import Project
from unziplora_cli.workflows.generate import (
    CrossSpec,
    GenerateSpec,
    check_writable,
    free_folder,
    is_image_file,
    shared_base,
)

MINI = BaseRecord("mini", "builtin", "mini", None, "sha256:" + "0" * 64)


@pytest.fixture
def fox(make_project: Callable[..., Project]) -> Project:
    return make_project("fox", words=Words("fox", "watercolor", "zwx"), base=MINI)


@pytest.fixture
def rose(make_project: Callable[..., Project]) -> Project:
    return make_project("rose", words=Words("rose", "pop art"), base=MINI)


def order(**parts: object) -> GenerateSpec:
    return GenerateSpec(None, GenerateConfig(), **parts)


def test_prompts_take_content_words_from_one_and_style_words_from_the_other(fox, rose):
    prompts = order(content=fox, style=rose, prompt="on a beach").prompts
    assert prompts.full == "a zwx fox in pop art style on a beach"
    assert prompts.content == "a zwx fox on a beach"
    assert prompts.style == "a fox in pop art style on a beach"


def test_another_subject_replaces_the_noun_and_an_empty_one_is_refused(fox):
    assert order(style=fox, subject="house").prompts.style == "a house in watercolor style"
    with pytest.raises(UsageError, match="subject is empty"):
        _ = order(style=fox, subject="").prompts


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
    made = order(**dict.fromkeys(roles, fox))
    assert (made.kind, made.title) == (kind, title)


def test_cells_go_row_by_row(fox, rose):
    cells = CrossSpec(None, GenerateConfig(), (fox, rose), (rose,)).cells()
    assert [(cell.content.name, cell.style.name) for cell in cells] == [("fox", "rose"), ("rose", "rose")]


def on(project: Project, **changes: object) -> Project:
    manifest = replace(project.manifest, base=replace(project.manifest.base, **changes))
    return replace(project, manifest=manifest)


def test_a_base_is_known_by_its_hash(fox, rose):
    assert shared_base([fox, rose]) == "mini"
    assert shared_base([fox, on(rose, id="/elsewhere", kind="folder")]) == "mini"
    with pytest.raises(ProjectError, match="another version of mini"):
        shared_base([fox, on(rose, hash="sha256:" + "1" * 64)])
    with pytest.raises(ProjectError, match="rose on big"):
        shared_base([fox, on(rose, id="big", hash=None)])


def test_a_folder_is_found_again_from_any_folder(fox):
    assert shared_base([on(fox, kind="folder", spec="./base", id="/models/base")]) == "/models/base"
    assert shared_base([on(fox, kind="hub", spec="sdxl", id="stabilityai/sdxl")]) == "sdxl"


@pytest.mark.parametrize(("name", "file"), [("a.png", True), ("a.PNG", True), ("a", False), ("a.b", False)])
def test_only_png_names_mean_a_file(tmp_path, name, file):
    assert is_image_file(tmp_path / name) is file
    (tmp_path / name).mkdir()
    assert is_image_file(tmp_path / name) is False


def test_other_picture_formats_are_refused():
    with pytest.raises(UsageError) as caught:
        is_image_file(Path("a/b.webp"))
    assert "--out a/b.png" in hint(caught.value).replace("\\", "/")


def test_a_place_below_a_file_is_no_place(tmp_path):
    check_writable(tmp_path)
    check_writable(tmp_path / "not/yet/there")
    (tmp_path / "file").touch()
    for folder in (tmp_path / "file", tmp_path / "file/below"):
        with pytest.raises(ProjectError, match="is not a folder"):
            check_writable(folder)


def test_new_folders_get_the_next_free_number(tmp_path):
    (tmp_path / "cross-001").mkdir()
    (tmp_path / "cross-002").touch()
    assert free_folder(tmp_path, "cross") == tmp_path / "cross-003"
