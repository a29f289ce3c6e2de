"""The package has few files, and a file is neither a fragment nor a book."""

from pathlib import Path

import unziplora_cli

PACKAGE = Path(unziplora_cli.__file__).parent
MOST_FILES = 105
MOST_LINES = 16_000
SHORTEST, LONGEST = 25, 500

# What the package still exceeds. Lower these as it shrinks; they end at 0.
FILES_TOO_MANY = 46
LINES_TOO_MANY = 11_600

# What is not right yet. Delete a line once it is.
TO_CLEAN: set[str] = set()


def lines() -> dict[str, int]:
    """The number of lines of every module."""
    return {
        path.relative_to(PACKAGE).as_posix(): len(path.read_text(encoding="utf-8").splitlines())
        for path in PACKAGE.rglob("*.py")
    }


def test_a_file_holds_one_concept() -> None:
    wrong = {
        name
        for name, count in lines().items()
        if count > LONGEST or (count < SHORTEST and not name.endswith("__init__.py"))
    }
    assert wrong <= TO_CLEAN


def test_the_package_stays_small() -> None:
    assert len(lines()) <= MOST_FILES + FILES_TOO_MANY
    assert sum(lines().values()) <= MOST_LINES + LINES_TOO_MANY
