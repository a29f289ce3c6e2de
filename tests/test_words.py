"""Names and texts use the words of the field, not those of the first edition (private words and riddles)."""

import ast
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SUFFIXES = {".py", ".md", ".toml", ".html", ".css", ".json", ""}

WORDS = re.compile(
    r"""
    \b(
        echo(es|ed)? | workshops? | materials | studio | hollow | anatom(y|ies) | foresight | logbooks?
      | verdicts?
      | shel(f|ves) | halves | unfold(ed|s)? | wording | retunable | heard | galler(y|ies) | judges?
      | mend(s|ed|ing)? | whoever | is\ told | are\ told | left\ out | to\ be\ had | nobody\ is\ there
      | come\ apart | came\ apart | by\ night | looks?\ at\ the\ drawn
    )\b
  | \b(
        Echo\w* | Workshop | Materials | Studio | Hollow\w* | Anatomy | Foresight | Logbook | Watch | Verdict
      | Finding | Case | Shelf | Halves | Folds? | Remade | Viewer | JudgeViewer | Judge | Seen | View
      | \w+Order | Drawn | Gallery
    )\b
  | hollow_ | _echo | echo_ | speed_up | project_together | _verdict | verdict_ | _judge | judge_
    """,
    re.VERBOSE,
)
ALLOWED = re.compile(r"typer\.echo|\becho \"|\bgr\.Gallery\(")

NAMES = {"each", "found", "told", "own", "known", "some", "heard", "asked", "away", "said"}
"""Variables that do not say what they hold."""

# Files that hold the words on purpose.
EXCEPT = (
    "tests/test_words.py",
    "tests/data/",
    "tests/fuzz/findings/",
    "tests/golden/golden_a/",
    "LICENSE",
    # These name what the former version wrote.
    "CHANGELOG.md",
    "tests/cli/test_former_version.py",
    "unziplora_cli/job.py",
    "unziplora_cli/projects/manifest.py",
    "recipes/mini/scene.py",  # a studio and a shelf are in its scenes
    "recipes/mini/artists.json",  # names of drawn things
    "unziplora_cli/mini/",
)

# What is not clean yet. Delete a line once its files are.
TO_CLEAN: tuple[str, ...] = ()


def files() -> list[str]:
    """Every tracked text file, relative to the repository."""
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    return [
        name
        for name in tracked.splitlines()
        if Path(name).suffix in SUFFIXES and not name.startswith(EXCEPT) and (ROOT / name).is_file()
    ]


def private_words(name: str) -> Iterator[str]:
    """The lines of a file that hold a private word, and the variables with a name that says nothing."""
    text = (ROOT / name).read_text(encoding="utf-8", errors="replace")
    for number, line in enumerate(text.splitlines(), 1):
        if (match := WORDS.search(line)) and not ALLOWED.search(line):
            yield f"{name}:{number}: {match.group(0)}"
    if not name.endswith(".py"):
        return
    for node in ast.walk(ast.parse(text)):
        variable = None
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            variable = node.id
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            variable = node.attr
        elif isinstance(node, ast.arg):
            variable = node.arg
        if variable in NAMES:
            yield f"{name}:{node.lineno}: variable {variable}"


@pytest.mark.skipif(not (ROOT / ".git").exists(), reason="not a checkout")
def test_no_file_uses_a_private_word() -> None:
    wrong = [line for name in files() if not name.startswith(TO_CLEAN) for line in private_words(name)]
    assert wrong == []


@pytest.mark.skipif(not (ROOT / ".git").exists(), reason="not a checkout")
def test_no_file_is_named_with_a_private_word() -> None:
    names = [name for name in files() if not name.startswith(TO_CLEAN)]
    assert [name for name in names if WORDS.search(Path(name).stem)] == []


@pytest.mark.parametrize("text", ["Draw the echoes.", "def speed_up(unet):", "class Workshop:", "is told"])
def test_a_private_word_is_recognized(text: str) -> None:
    assert WORDS.search(text)
