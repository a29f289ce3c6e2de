"""The answer to one question about a machine."""

from dataclasses import dataclass
from typing import Literal

Level = Literal["ok", "note", "problem"]
"""Fine; worth knowing; blocks training or keeps it off the GPU."""

GB = 10**9


@dataclass(frozen=True, slots=True)
class Check:
    """The answer to one question, and the line to type that mends what is wrong."""

    name: str
    level: Level
    says: str
    mend: str = ""


def gigabytes(number: float) -> str:
    """Bytes as `6.9 GB`."""
    return f"{number / GB:.1f} GB"
