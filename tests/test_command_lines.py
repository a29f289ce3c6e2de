"""Only the command line words command lines: modules below it carry remedies as data."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import unziplora_cli
from unziplora_cli.cli.app import app

PACKAGE = Path(unziplora_cli.__file__).parent
COMMANDS = sorted(
    {
        *(
            command.name or command.callback.__name__
            for command in app.registered_commands
            if command.callback
        ),
        *(group.name for group in app.registered_groups if group.name),
    }
)
SHELL = re.compile(rf"\bunziplora ({'|'.join(COMMANDS)})\b|(?:^|[\s`'\"(])--(?:[a-z]|$)")

# Arguments for programs that a module starts, and the separator in the folders of the hub's cache.
EXEMPT = {"hub.py"}

# Modules that still word command lines. Delete a line once it is clean.
TO_CLEAN: set[str] = set()


def texts(path: Path) -> Iterator[tuple[int, str]]:
    """The string literals of a module, without docstrings and descriptions of attributes."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    statements = {node.value for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and node not in statements:
            yield node.lineno, node.value


def test_no_module_below_the_command_line_words_one() -> None:
    wrong: dict[str, list[str]] = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        name = path.relative_to(PACKAGE).as_posix()
        if name.startswith("cli/") or name in EXEMPT or name == "__main__.py":
            continue
        for number, text in texts(path):
            if SHELL.search(text):
                wrong.setdefault(name, []).append(f"{name}:{number}: {text}")
    assert [line for name, lines in wrong.items() if name not in TO_CLEAN for line in lines] == []


@pytest.mark.parametrize("text", ["Try unziplora doctor.", "Add --force", "--", "(--base)", "`--plan`"])
def test_a_command_line_is_recognized(text: str) -> None:
    assert SHELL.search(text)


@pytest.mark.parametrize("text", ["unziplora is a program", "a -- b", "x--y", "content-lr"])
def test_plain_text_is_not_a_command_line(text: str) -> None:
    assert not SHELL.search(text)
