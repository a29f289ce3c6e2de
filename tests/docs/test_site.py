"""The site builds without warnings, and loads nothing from other hosts."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

CHECKOUT = Path(__file__).parents[2]
LOADED = re.compile(r"<(?:script|link|img|iframe|source)\b[^>]*?\b(?:src|href)=[\"']?(https?:[^\"'\s>]+)")


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The built pages."""
    folder = tmp_path_factory.mktemp("site")
    for name in ("mkdocs.yml", "CONTRIBUTING.md", "SECURITY.md"):
        shutil.copy(CHECKOUT / name, folder)
    shutil.copytree(CHECKOUT / "docs", folder / "docs")
    build = [sys.executable, "-m", "zensical", "build", "--strict"]
    result = subprocess.run(build, cwd=folder, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr
    return folder / "site"


def test_no_page_loads_anything_from_another_host(site: Path) -> None:
    pages = list(site.rglob("*.html"))
    assert len(pages) > 15
    assert [(page.name, url) for page in pages for url in LOADED.findall(page.read_text("utf-8"))] == []
    for style in site.rglob("*.css"):
        assert not re.search(r"url\([\"']?https?:|@import", style.read_text("utf-8")), style


def test_includes_tables_and_figures_are_rendered(site: Path) -> None:
    names = yaml.safe_load((CHECKOUT / "mkdocs.yml").read_text(encoding="utf-8"))["nav"]
    assert len(names) == 5
    contributing = (site / "contributing.html").read_text(encoding="utf-8")
    assert "The house in one picture" in contributing
    assert "Threats and measures" in (site / "security.html").read_text(encoding="utf-8")
    for page in site.rglob("*.html"):
        text = page.read_text(encoding="utf-8")
        assert "--8&lt;--" not in text, page
        assert "|---|" not in text, page
        for source in re.findall(r'<img[^>]*\bsrc="([^"]+)"', text):
            assert (page.parent / source).is_file() or source.startswith("data:"), source
