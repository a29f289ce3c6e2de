"""The report: complete, escaped, self-contained, and written without damaging other files."""

import base64
import hashlib
import io
import json
import os
from collections.abc import Callable
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path

import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from tests.full_project import COLUMNS, HOSTILE, OPEN, PROMPTS, SECRET, fill, rewrite
from unziplora_cli.errors import ProjectError, UsageError
from unziplora_cli.job import BaseRecord
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

    def images(self) -> list[Image.Image]:
        """Every image of the page, decoded."""
        data = [image["src"].partition(",")[2] for image in self.all("img")]
        return [Image.open(io.BytesIO(base64.b64decode(text, validate=True))) for text in data]


@pytest.fixture
def project(make_project: Callable[..., Project]) -> Project:
    return fill(make_project("fox"))


def test_page_shows_everything_about_the_project(project):
    result = report(project)
    page = Page(result.file)
    assert result.file == project.folder / "report.html"
    assert result.notes == ()
    for text in (
        HOSTILE.subject,
        HOSTILE.style,
        HOSTILE.trigger,
        PROMPTS.full,
        PROMPTS.content,
        PROMPTS.style,
    ):
        assert text in page.text
    # one source, one sheet, two generated, one without parameters, three in each of two validation steps
    assert result.images == 1 + 1 + 3 + 6
    assert len(page.all("img")) == result.images + 2
    for heading in (
        "Error of the predicted noise.",
        "Mean over all columns of each branch.",
        "Overlap of the merge weights",
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


def test_diagnosis_and_evaluation_sheet_are_at_the_top(project):
    Image.new("RGB", (96, 64), "teal").save(project.folder / "evaluation.png")
    page = Page(report(project).file)
    diagnosis, sheet, rest = (
        page.words.index(text)
        for text in (
            "The style leaks into <content>.",
            "The images that were scored",
            "Images Scores Training",
        )
    )
    assert diagnosis < sheet < rest
    assert page.words.count("The style leaks into <content>.") == 1
    assert page.images()[1].size == (96, 64)  # after the training image
    assert len(Page(report(rewrite(project, evaluation=None)).file).images()) == len(page.images()) - 1


def test_user_text_never_becomes_markup(project):
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
    assert any("it's \"a\" <b>file & 'more'.png" in image["alt"] for image in page.all("img"))


def test_content_security_policy_allows_only_its_style_sheet_and_data_uris(project):
    page = Page(report(project).file)
    (policy,) = [image["content"] for image in page.all("meta") if "http-equiv" in image]
    digest = base64.b64encode(hashlib.sha256(page.style.encode()).digest()).decode()
    assert policy.split("; ") == [
        "default-src 'none'",
        "img-src data:",
        f"style-src 'sha256-{digest}'",
        "base-uri 'none'",
        "form-action 'none'",
    ]


def test_images_have_alternative_text_and_headings_skip_no_level(project):
    page = Page(report(project).file)
    assert all(image["alt"] for image in page.all("img"))
    assert all("aria-label" in image or image.get("aria-hidden") == "true" for image in page.all("svg"))
    assert page.all("html") == [{"lang": "en"}]
    levels = [int(tag[1]) for tag, _ in page.elements if tag in ("h1", "h2", "h3", "h4")]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after - before <= 1 for before, after in pairwise(levels))
    anchors = {image["href"][1:] for image in page.all("a")}
    assert anchors <= {attributes.get("id") for _, attributes in page.elements}


def test_images_are_embedded_without_metadata(project):
    for image in Page(report(project).file).images():
        image.load()
        assert not {"parameters", "unziplora", "exif"} & image.info.keys()
        assert SECRET not in str(image.info)


def test_columns_are_counted_from_the_weights(project):
    words = Page(report(project).file).words
    both = sum(len(set(content) & set(style)) for content, style in OPEN.values())
    content = sum(len(content) for content, _ in OPEN.values()) - both
    style = sum(len(style) for _, style in OPEN.values()) - both
    free = COLUMNS * len(OPEN) - content - style - both
    assert f"{content} only content, {style} only style, {both} both and {free} neither" in words
    assert f"of {COLUMNS * len(OPEN)}" in words
    assert "up_blocks.0.attentions.0 belongs to content" in words
    assert "used by both0.250.75" in words
    assert "used by one0.250.75" in words


def test_project_without_history_scores_or_images_has_a_page(project):
    for path in sorted(project.folder.rglob("*"), reverse=True):
        if path.relative_to(project.folder).parts[0] in ("images", "validation"):
            path.rmdir() if path.is_dir() else path.unlink()
    artifacts = tuple(artifact for artifact in project.manifest.artifacts if artifact.role != "history")
    result = report(rewrite(project, artifacts=artifacts, evaluation=None))
    words = Page(result.file).words
    assert result.notes == ()
    assert result.images == 1
    assert "there are no curves" in words
    assert "unziplora eval fox" in words
    for command in ("content fox", "style fox", "combine fox", "cross fox"):
        assert f"unziplora {command}" in words


@pytest.mark.parametrize("role", ["content", "style", "merge", "history"])
def test_damaged_file_is_noted_and_the_rest_is_shown(project, role):
    project.path(role).write_bytes(b"\x08\0\0\0\0\0\0\0not json")
    result = report(project)
    assert len(result.notes) == 1
    assert str(project.path(role)) in result.notes[0]
    page = Page(result.file)
    assert result.notes[0] in page.text
    assert result.images == 11
    assert ("Error of the predicted noise" in page.text) == (role != "history")


def test_damaged_and_missing_images_are_noted(project):
    (project.folder / "images" / "style-001.png").write_bytes(b"no picture")
    (project.folder / "source.png").unlink()
    (project.folder / "validation" / "step-000020" / "full-0.png").unlink()
    result = report(project)
    assert result.images == 8
    assert len(result.notes) == 3
    assert "The training image is not in this project." in Page(result.file).words


def test_images_outside_the_project_are_not_embedded(project, tmp_path):
    private = tmp_path / "private"
    private.mkdir()
    Image.new("RGB", (64, 64), "red").save(private / "passport.png")
    (project.folder / "images" / "passport.png").symlink_to(private / "passport.png")
    (project.folder / "images" / "folder").symlink_to(private)
    (project.folder / "validation" / "step-000030").symlink_to(private)
    Image.new("RGB", (64, 64), "red").save(private / "full-0.png")
    result = report(project)
    assert any("is outside its project" in note for note in result.notes)
    reds = [
        image for image in Page(result.file).images() if image.convert("RGB").getpixel((5, 5)) == (255, 0, 0)
    ]
    assert reds == []


def test_only_the_newest_images_are_shown(project):
    for number in range(20):
        path = project.folder / "images" / f"plain-{number:03d}.png"
        Image.new("RGB", (64, 64), (number * 10, 0, 0)).save(path)
        os.utime(path, (2_000_000_000 + number,) * 2)
    page = Page(report(project).file)
    assert "The newest 12 of 21." in page.words
    assert [image["alt"] for image in page.all("img") if "plain-" in image["alt"]] == [
        f"Other images: images/plain-{number:03d}.png" for number in range(8, 20)
    ]


@pytest.mark.parametrize(
    ("base", "loading"),
    [
        (BaseRecord("sdxl", "hub", "owner/it's", "abc123"), 'from_pretrained(\n    "owner/it\'s"'),
        (BaseRecord("f.safetensors", "file", "/m/f.safetensors"), "from_single_file(\n    '/m/f."),
        (BaseRecord("mini", "builtin", "mini"), "mini/base'"),
    ],
)
def test_diffusers_code_is_valid_python(project, base, loading):
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


def test_project_with_one_branch_has_a_page(project):
    artifacts = tuple(artifact for artifact in project.manifest.artifacts if artifact.role == "style")
    base = BaseRecord("sdxl", "hub", "owner/base")
    result = report(rewrite(project, artifacts=artifacts, images=(), evaluation=None, base=base))
    page = Page(result.file)
    assert result.notes == ()
    assert "--part style" in page.text
    assert "set_adapters('style')" in page.text
    assert "set_adapters('content')" not in page.text
    assert "both.png" not in page.text
    assert "--part combined" not in page.text


def test_file_names_that_are_not_utf8_are_replaced(project):
    strange = os.fsdecode(os.fsencode(project.folder) + b"/images/\xff\xfe.png")
    Image.new("RGB", (64, 64)).save(strange)
    assert "images/??.png" in report(project).file.read_text(encoding="utf-8")


def test_page_is_written_to_the_requested_place(project, tmp_path):
    assert report(project, tmp_path).file == tmp_path / "fox.html"
    nested = tmp_path / "a" / "b" / "page.HTM"
    assert report(project, nested).file == nested
    Page(nested)
    with pytest.raises(UsageError, match="neither an HTML file nor an existing folder"):
        report(project, tmp_path / "fox.png")
    with pytest.raises(ProjectError, match="not a folder"):
        report(project, nested / "under-a-file.html")
    assert sorted(path.name for path in tmp_path.rglob("*") if path.is_file()) == ["fox.html", "page.HTM"]


def test_failed_write_keeps_the_older_page(project, monkeypatch):
    old = report(project).file.read_bytes()

    def refuse(path: Path, data: bytes) -> None:
        path.touch()
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", refuse)
    with pytest.raises(ProjectError, match="No space left"):
        report(project)
    assert project.folder.joinpath("report.html").read_bytes() == old
    assert not list(project.folder.glob(".*.partial"))


def test_existing_file_is_refused_without_force(project, tmp_path):
    page = tmp_path / "holiday.html"
    page.write_text("mine")
    with pytest.raises(ProjectError, match="already exists"):
        report(project, page)
    assert page.read_text() == "mine"
    Page(report(project, page, force=True).file)
    Page(report(project, page.parent).file)  # fox.html is new
    with pytest.raises(ProjectError, match="already exists"):
        report(project, page.parent)


PARAMETERS = [
    {"command": []},
    {"command": {"content": 1}, "prompts": {"content": "x"}},
    {"command": "content", "prompts": ["x"]},
    {"command": "content", "prompts": {"content": ["x"]}},
    {"command": "combine", "prompts": {"full": None}},
    {"command": "content", "prompts": {"content": "\ud800"}},
    {"command": "content", "prompts": "content", "seed": "many"},
    [],
]


@pytest.mark.parametrize("parameters", PARAMETERS, ids=json.dumps)
def test_parameters_of_the_wrong_type_make_an_image_without_parameters(project, parameters):
    info = PngInfo()
    info.add_text("unziplora", json.dumps(parameters))
    Image.new("RGB", (64, 64), "red").save(project.images / "strange.png", pnginfo=info)
    result = report(project)
    assert result.notes == ()
    assert "Other images: images/strange.png" in [image["alt"] for image in Page(result.file).all("img")]
