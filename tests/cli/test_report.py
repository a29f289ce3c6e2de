"""report from the command line."""

import html
import re
import subprocess
import sys
import webbrowser
from pathlib import Path

import pytest
from PIL import Image

from tests.full_project import fill
from unziplora_cli.resources import samples


def test_report_of_a_trained_project(unziplora, two_projects):
    completed = unziplora("report", "fox", "--json")
    result = completed.envelope["result"]
    assert completed.envelope["warnings"] == []
    page = Path(result["report"])
    assert completed.code == 0
    assert page == two_projects / "projects" / "fox" / "report.html"
    assert result == {
        "report": str(page),
        "bytes": page.stat().st_size,
        "images": 1,
        "opened": False,
    }
    text = page.read_text(encoding="utf-8")
    assert "a monadikos fox in watercolor style" in text
    assert "Error of the predicted noise." in text
    assert "belongs to content" in text
    assert unziplora("verify", "fox").code == 0


def test_omissions_are_reported(unziplora, make_project, tmp_path):
    project = fill(make_project("fox"))
    project.path("merge").unlink()
    completed = unziplora("report", "fox", "--out", tmp_path)
    assert completed.code == 0
    assert f"{tmp_path / 'fox.html'}: 11 images" in completed.out
    assert "There is no map of the columns." in completed.message


@pytest.mark.parametrize("works", [True, False])
def test_browser_opens_only_with_open(unziplora, make_project, monkeypatch, works):
    opened = []
    monkeypatch.setattr(webbrowser, "open", lambda address: opened.append(address) or works)
    project = fill(make_project("fox"))
    assert unziplora("report", "fox").code == 0
    assert opened == []
    completed = unziplora("report", "fox", "--open")
    assert completed.code == 0
    assert opened == [(project.folder / "report.html").as_uri()]
    assert ("open the file yourself" in completed.message) is not works


@pytest.mark.parametrize(("out", "code"), [("page.png", 2), ("page", 2), ("file.txt/page.html", 3)])
def test_unusable_output_is_refused(unziplora, make_project, tmp_path, out, code):
    fill(make_project("fox"))
    (tmp_path / "file.txt").write_text("mine")
    completed = unziplora("report", "fox", "--out", tmp_path / out)
    assert completed.code == code
    assert "->" in completed.err
    assert [path.name for path in tmp_path.iterdir()] == ["file.txt"]
    assert unziplora("report", "nobody").code == 3


@pytest.mark.slow
def test_diffusers_code_of_the_page_runs(unziplora, isolated_home, tmp_path):
    sample = samples()["fox"]
    words = [f"--subject={sample.subject}", f"--style={sample.style}"]
    short = ["--base=mini", "--steps=12", "--recalibrations=1"]
    assert unziplora("train", sample.image, *words, *short).code == 0
    assert unziplora("report", "fox", "--out", tmp_path).code == 0
    page = (tmp_path / "fox.html").read_text(encoding="utf-8")
    program = html.unescape(re.search('<pre id="diffusers">(.*?)</pre>', page, re.DOTALL)[1])
    completed = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True)
    assert completed.returncode == 0, completed.stderr
    for name in ("content", "style", "both"):
        with Image.open(tmp_path / f"{name}.png") as picture:
            assert picture.size == (128, 128)
