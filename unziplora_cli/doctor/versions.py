"""Version numbers, and the range of each library that was tested."""

import re
from pathlib import Path

PYTHONS = ("3.11", "3.12")
"""The lowest and the newest Python that the tests run with."""


def release(version: str) -> tuple[int, ...]:
    """The numbers of a version, for comparing: `2.13.0+cpu` is (2, 13), as `2.13` is."""
    numbers = re.match(r"\d+(\.\d+)*", version)
    parts = [int(part) for part in numbers.group().split(".")] if numbers else []
    while parts and parts[-1] == 0:
        parts.pop()
    return tuple(parts)


def read_pins(path: Path) -> dict[str, str]:
    """The versions of a constraints file by the library's name, with dashes."""
    pins = re.findall(r"^([\w.-]+)==([^\s;]+)", path.read_text(encoding="utf-8"), re.MULTILINE)
    return {name.replace("_", "-").lower(): version for name, version in pins}
