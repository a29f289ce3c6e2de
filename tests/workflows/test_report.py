"""The page of a project: all of it is there, nothing that was typed becomes markup, no file is harmed."""

import base64
import hashlib
import io
import os
from collections.abc import Callable
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path

import pytest
from PIL import Image

from tests.full_project import COLUMNS, HOSTILE, OPEN, PROMPTS, SECRET, fill, rewrite
from unziplora_cli.errors import ProjectError, UsageError
from unziplora_cli.projects.manifest import BaseRecord
from unziplora_cli.projects.store import Project
from unziplora_cli.workflows.report import report

VOID = {"meta", "link", "img", "br"}
ELEMENTS = {
    *("html", "head", "meta", "link", "title", "style", "body", "header", "main", "footer", "nav", "section"),
    *("h1", "h2", "h3", "h4", "p", "b", "i", "br", "a", "span", "div", "code", "pre", "figure", "figcaption"),
    *("dl", "dt", "dd", "ul", "ol", "li", "table", "thead", "tbody", "tr", "th", "td"),
    *("img", "svg", "path", "rect", "text"),
}


class Page(HTMLParser):
    """A page as a browser reads it: its elements with their attributes, and its text."""

    def __init__(self, file: Path) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.text, self.style, self.inside = "", "", []
        self.feed(file.read_text(encoding="utf-8"))
        assert self.inside == [], "an element was not closed"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        names = [name for name, _ in attrs]
        assert len(set(names)) == len(names)
        self.elements.append((tag, {name: value or "" for name, value in attrs}))
        if tag not in VOID:
            self.inside.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, {name: value or "" for name, value in attrs}))

    def handle_endtag(self, tag: str) -> None:
        assert self.inside.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.inside and self.inside[-1] == "style":
            self.style += data
        else:
            self.text += data

    def all(self, tag: str) -> list[dict[str, str]]:
        """The attributes of every element of a kind."""
        return [attributes for name, attributes in self.elements if name == tag]

    @property
    def words(self) -> str:
        """The text with single spaces."""
        return " ".join(self.text.split())

    def pictures(self) -> list[Image.Image]:
        """Every picture of the page, decoded."""
        data = [each["src"].partition(",")[2] for each in self.all("img")]
        return [Image.open(io.BytesIO(base64.b64decode(each, validate=True))) for each in data]


@pytest.fixture
def project(make_project: Callable[..., Project]) -> Project:
    return fill(make_project("fox"))


def test_the_page_holds_words_prompts_pictures_curves_maps_scores_settings_and_paths(project):
    made = report(project)
    page = Page(made.file)
    assert made.file == project.folder / "report.html"
    assert made.notes == ()
    for text in (
        HOSTILE.subject,
        HOSTILE.style,
        HOSTILE.trigger,
        PROMPTS.full,
        PROMPTS.content,
        PROMPTS.style,
    ):
        assert text in page.text
    # one source, one sheet, two drawn, one that does not say how, three of two moments; then two maps
    assert made.pictures == 1 + 1 + 3 + 6
    assert len(page.all("img")) == made.pictures + 2
    for heading in (
        "How far off it still was",
        "How much each branch weighs",
        "How much the two share",
    ):
        assert heading in page.text
    assert "The style leaks into <content>." in page.words
    assert "75%" in page.words
    assert "50%" in page.words
    assert "0.0123" in page.words
    assert "content-lr" in page.words
    for branch in ("content", "style"):
        assert str(project.path(branch)) in page.text
    assert "unziplora combine fox" in page.text


def test_nothing_that_was_typed_becomes_markup(project):
    page = Page(report(project).file)
    assert {tag for tag, _ in page.elements} <= ELEMENTS
    for tag, attributes in page.elements:
        assert not [name for name in attributes if name.startswith("on") or name in ("style", "srcset")]
        for name in ("href", "src"):
            if name in attributes:
                assert attributes[name].startswith("#" if tag == "a" else "data:")
    assert len(page.all("style")) == 1
    assert "http://" not in page.style
    assert "url(" not in page.style
    assert "@import" not in page.style
    assert any("it's \"a\" <b>file & 'more'.png" in each["alt"] for each in page.all("img"))


def test_its_policy_allows_its_own_style_sheet_and_embedded_pictures_alone(project):
    page = Page(report(project).file)
    (policy,) = [each["content"] for each in page.all("meta") if "http-equiv" in each]
    digest = base64.b64encode(hashlib.sha256(page.style.encode()).digest()).decode()
    assert policy.split("; ") == [
        "default-src 'none'",
        "img-src data:",
        f"style-src 'sha256-{digest}'",
        "base-uri 'none'",
        "form-action 'none'",
    ]


def test_every_picture_is_described_and_headings_leave_no_level_out(project):
    page = Page(report(project).file)
    assert all(each["alt"] for each in page.all("img"))
    assert all("aria-label" in each or each.get("aria-hidden") == "true" for each in page.all("svg"))
    assert page.all("html") == [{"lang": "en"}]
    levels = [int(tag[1]) for tag, _ in page.elements if tag in ("h1", "h2", "h3", "h4")]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after - before <= 1 for before, after in pairwise(levels))
    anchors = {each["href"][1:] for each in page.all("a")}
    assert anchors <= {attributes.get("id") for _, attributes in page.elements}


def test_pictures_come_without_their_metadata(project):
    for picture in Page(report(project).file).pictures():
        picture.load()
        assert not {"parameters", "unziplora", "exif"} & picture.info.keys()
        assert SECRET not in str(picture.info)


def test_columns_are_counted_from_the_rows_of_the_weights(project):
    words = Page(report(project).file).words
    both = sum(len(set(content) & set(style)) for content, style in OPEN.values())
    content = sum(len(content) for content, _ in OPEN.values()) - both
    style = sum(len(style) for _, style in OPEN.values()) - both
    free = COLUMNS * len(OPEN) - content - style - both
    assert f"Of all {COLUMNS * len(OPEN)} columns, {content} are content's alone" in words
    assert f"{style} style's alone, {both} are used by both and {free} by neither" in words
    assert "up_blocks.0.attentions.0 belongs to content" in words
    assert "used by both0.250.75" in words
    assert "of one alone0.250.75" in words


def test_an_older_project_without_history_scores_or_pictures_has_a_page_too(project):
    for path in sorted(project.folder.rglob("*"), reverse=True):
        if path.relative_to(project.folder).parts[0] in ("images", "validation"):
            path.rmdir() if path.is_dir() else path.unlink()
    artifacts = tuple(each for each in project.manifest.artifacts if each.role != "history")
    made = report(rewrite(project, artifacts=artifacts, evaluation=None))
    words = Page(made.file).words
    assert made.notes == ()
    assert made.pictures == 1
    assert "there are no curves" in words
    assert "unziplora eval fox" in words
    for command in ("content fox", "style fox", "combine fox", "cross fox"):
        assert f"unziplora {command}" in words


@pytest.mark.parametrize("role", ["content", "style", "merge", "history"])
def test_a_damaged_file_is_noted_and_the_rest_is_shown(project, role):
    project.path(role).write_bytes(b"\x08\0\0\0\0\0\0\0not json")
    made = report(project)
    assert len(made.notes) == 1
    assert str(project.path(role)) in made.notes[0]
    page = Page(made.file)
    assert made.notes[0] in page.text
    assert made.pictures == 11
    assert ("How far off" in page.text) == (role != "history")


def test_damaged_and_missing_pictures_are_noted(project):
    (project.folder / "images" / "style-001.png").write_bytes(b"no picture")
    (project.folder / "source.png").unlink()
    (project.folder / "validation" / "step-000020" / "full-0.png").unlink()
    made = report(project)
    assert made.pictures == 8
    assert len(made.notes) == 3
    assert "The training picture is not in this project." in Page(made.file).words


def test_no_picture_from_outside_the_project_gets_in(project, tmp_path):
    private = tmp_path / "private"
    private.mkdir()
    Image.new("RGB", (64, 64), "red").save(private / "passport.png")
    (project.folder / "images" / "passport.png").symlink_to(private / "passport.png")
    (project.folder / "images" / "folder").symlink_to(private)
    (project.folder / "validation" / "step-000030").symlink_to(private)
    Image.new("RGB", (64, 64), "red").save(private / "full-0.png")
    made = report(project)
    assert any("leads out of its project" in note for note in made.notes)
    reds = [
        each for each in Page(made.file).pictures() if each.convert("RGB").getpixel((5, 5)) == (255, 0, 0)
    ]
    assert reds == []


def test_of_many_pictures_the_newest_are_shown(project):
    for number in range(20):
        path = project.folder / "images" / f"plain-{number:03d}.png"
        Image.new("RGB", (64, 64), (number * 10, 0, 0)).save(path)
        os.utime(path, (2_000_000_000 + number,) * 2)
    page = Page(report(project).file)
    assert "The newest 12 of 21." in page.words
    assert [each["alt"] for each in page.all("img") if "plain-" in each["alt"]] == [
        f"Other pictures: images/plain-{number:03d}.png" for number in range(8, 20)
    ]


@pytest.mark.parametrize(
    ("base", "loading"),
    [
        (BaseRecord("sdxl", "hub", "owner/it's", "abc123"), 'from_pretrained(\n    "owner/it\'s"'),
        (BaseRecord("f.safetensors", "file", "/m/f.safetensors"), "from_single_file(\n    '/m/f."),
        (BaseRecord("mini", "builtin", "mini"), "mini/base'"),
    ],
)
def test_other_programs_are_told_paths_and_words_that_python_can_read(project, base, loading):
    page = Page(report(rewrite(project, base=base)).file)
    assert loading in page.text
    assert ("unziplora export fox --part content" in page.text) == (base.kind != "builtin")
    assert ("<lora:fox-combined:1>" in page.text) == (base.kind != "builtin")
    assert ('.to("cuda")' in page.text) == (base.kind != "builtin")
    start = page.text.index("import torch")
    program = page.text[start : page.text.index('save("both.png")') + len('save("both.png")')]
    compile(program, "page", "exec")
    assert repr(PROMPTS.content) in program
    assert ("revision='abc123'" in program) == (base.revision is not None)


def test_a_project_of_one_branch_has_a_page(project):
    artifacts = tuple(each for each in project.manifest.artifacts if each.role == "style")
    base = BaseRecord("sdxl", "hub", "owner/base")
    made = report(rewrite(project, artifacts=artifacts, source=(), evaluation=None, base=base))
    page = Page(made.file)
    assert made.notes == ()
    assert "--part style" in page.text
    assert "set_adapters('style')" in page.text
    assert "set_adapters('content')" not in page.text
    assert "both.png" not in page.text
    assert "--part combined" not in page.text


def test_names_that_are_no_text_do_no_harm(project):
    strange = os.fsdecode(os.fsencode(project.folder) + b"/images/\xff\xfe.png")
    Image.new("RGB", (64, 64)).save(strange)
    assert "images/??.png" in report(project).file.read_text(encoding="utf-8")


def test_the_page_goes_where_it_was_asked_to(project, tmp_path):
    assert report(project, tmp_path).file == tmp_path / "fox.html"
    nested = tmp_path / "a" / "b" / "page.HTM"
    assert report(project, nested).file == nested
    Page(nested)
    with pytest.raises(UsageError, match="neither an HTML file nor a folder"):
        report(project, tmp_path / "fox.png")
    with pytest.raises(ProjectError, match="not a folder"):
        report(project, nested / "under-a-file.html")
    assert sorted(path.name for path in tmp_path.rglob("*") if path.is_file()) == ["fox.html", "page.HTM"]


def test_an_older_page_stays_when_the_disk_refuses_the_new_one(project, monkeypatch):
    old = report(project).file.read_bytes()

    def refuse(path: Path, data: bytes) -> None:
        path.touch()
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", refuse)
    with pytest.raises(ProjectError, match="No space left"):
        report(project)
    assert project.folder.joinpath("report.html").read_bytes() == old
    assert not list(project.folder.glob(".*.partial"))
