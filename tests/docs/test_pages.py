"""Pages link to what exists, and their commands can be typed."""

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml

from unziplora_cli.__main__ import _global_options_first
from unziplora_cli.cli.app import GLOBAL_OPTIONS, app
from unziplora_cli.packages import TORCH_BUILDS

CHECKOUT = Path(__file__).parents[2]
DOCS = CHECKOUT / "docs"
ROOT_PAGES = ("README.md", "CONTRIBUTING.md", "SECURITY.md", "benchmarks/README.md")
PAGES = sorted([*DOCS.rglob("*.md"), *(CHECKOUT / name for name in ROOT_PAGES)])
LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)")
CODE = re.compile(r"```.*?```|`[^`\n]+`", re.S)
SHELL = re.compile(r"^ *```sh\n(.*?)^ *```", re.S | re.M)
COMMAND = re.compile(r"`(unziplora [^`]+)`")


def text_of(page: Path) -> str:
    """The page with the files that it includes."""
    text = page.read_text(encoding="utf-8")
    return re.sub(r'--8<-- "([\w.]+)[^"]*"', lambda match: (CHECKOUT / match[1]).read_text("utf-8"), text)


def anchors(page: Path) -> set[str]:
    """The anchors of its headings, as GitHub and Python-Markdown name them."""
    headings = re.findall(r"^#+ (.+)$", re.sub(r"```.*?```", "", text_of(page), flags=re.S), re.M)
    return {re.sub(r"[\s-]+", "-", re.sub(r"[^\w\s-]", "", heading).strip().lower()) for heading in headings}


def shell_lines(page: Path) -> Iterator[str]:
    """The lines of its shell blocks, and the complete commands in its text."""
    text = text_of(page)
    for block in SHELL.findall(text):
        yield from (line.strip() for line in block.splitlines() if line.strip())
    for line in COMMAND.findall(CODE.sub(lambda match: "" if "\n" in match[0] else match[0], text)):
        yield line.replace("\\|", "|")


def name_of(page: Path) -> str:
    return page.relative_to(CHECKOUT).as_posix()


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_anchors_and_figures_exist(page: Path) -> None:
    for link in LINK.findall(CODE.sub("", text_of(page))):
        if re.match(r"https?://", link):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), link
        if anchor:
            assert anchor in anchors(target), link
        if page.is_relative_to(DOCS):
            assert target.is_relative_to(DOCS), f"{link} is not part of the site"


def test_every_page_is_in_the_navigation() -> None:
    site = yaml.safe_load((CHECKOUT / "mkdocs.yml").read_text(encoding="utf-8"))
    listed = re.findall(r"[\w/-]+\.md", str(site["nav"]))
    assert sorted(listed) == sorted(page.relative_to(DOCS).as_posix() for page in DOCS.rglob("*.md"))


def test_every_figure_is_used_and_readable_without_its_page() -> None:
    used = {Path(link).name for page in PAGES for link in LINK.findall(text_of(page))}
    for figure in (*DOCS.glob("*.jpg"), *DOCS.glob("figures/*")):
        assert figure.name in used
        if figure.suffix == ".svg":
            svg = figure.read_text(encoding="utf-8")
            assert 'fill="#fff"' in svg, "a dark page would show dark text on dark"
            assert "aria-label=" in svg
            assert not re.search(r'(href|src)="https?:', svg)


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_command_can_be_typed(page: Path) -> None:
    """Its options and values are those of the program; nothing is run."""
    root: Any = typer.main.get_command(app)
    for line in shell_lines(page):
        words = shlex.split(line, comments=True)
        if words[:1] != ["unziplora"] or any("…" in word for word in words):
            continue
        if unknown := parse_error(root, _global_options_first(words[1:], GLOBAL_OPTIONS)):
            pytest.fail(f"{line}: {unknown}")


def parse_error(group: Any, words: list[str]) -> str:
    """What the parser says against a command line; a command named without its arguments is right."""
    try:
        context = group.make_context("unziplora", words)
        while hasattr(context.command, "commands"):
            rest = [*context._protected_args, *context.args]
            if not rest:
                return ""
            name, command, rest = context.command.resolve_command(context, rest)
            context = command.make_context(name, rest, parent=context)
    except typer.Exit:
        return ""
    except Exception as error:
        named_only = type(error).__name__ == "MissingParameter" or "Missing" in str(error)
        return "" if named_only else str(getattr(error, "message", error))
    return ""


def test_the_parser_finds_mistakes() -> None:
    root: Any = typer.main.get_command(app)
    for wrong in (
        ["trian"],
        ["train", "x", "--ranks", "3"],
        ["train", "x", "--rank", "many"],
        ["models", "get"],
    ):
        assert parse_error(root, wrong), wrong
    assert not parse_error(root, ["combine", "fox", "rose", "--prompt", "on a beach"])


def test_the_readme_is_short_and_names_every_command() -> None:
    readme = (CHECKOUT / "README.md").read_text(encoding="utf-8")
    assert readme.count("\n") <= 180
    root: Any = typer.main.get_command(app)
    for name in root.commands:
        assert re.search(rf"`(unziplora )?{name}`|^unziplora {name}\b", readme, re.M) or name == "help", name
    for build in set(TORCH_BUILDS.values()) - {"", "cu126"}:
        assert build in readme


def test_troubleshooting_quotes_messages_of_the_program() -> None:
    source = "\n".join(path.read_text("utf-8") for path in (CHECKOUT / "unziplora_cli").rglob("*.py"))
    headings = re.findall(r'^### "(.+)"$', (DOCS / "troubleshooting.md").read_text("utf-8"), re.M)
    assert len(headings) > 15
    for heading in headings:
        assert heading in source, heading


def test_python_blocks_and_preset_files_are_valid() -> None:
    import tomllib

    from unziplora_cli.config import GenerateConfig, TrainConfig

    for page in PAGES:
        text = text_of(page)
        for block in re.findall(r"```python\n(.*?)```", text, re.S):
            compile(block, str(page), "exec")
        for block in re.findall(r"```toml\n(.*?)```", text, re.S):
            preset = tomllib.loads(block)
            TrainConfig(**preset.get("train", {}))
            GenerateConfig(**preset.get("generate", {}))


def test_the_citation_names_the_paper_first() -> None:
    citation = yaml.safe_load((CHECKOUT / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["cff-version"] == "1.2.0"
    assert {"message", "title", "authors"} <= citation.keys()
    paper = citation["preferred-citation"]
    assert "2412.04465" in paper["url"]
    assert [author["family-names"] for author in paper["authors"]] == ["Liu", "Shah", "Cui", "Lazebnik"]
