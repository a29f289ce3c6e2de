"""What the built-in base knows: the words that it was trained on, and whose pictures it learned from."""

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cache
from itertools import dropwhile, takewhile

from unziplora_cli import resources

_PLURALS = (("ies", "y"), ("ves", "f"), ("es", ""), ("s", ""))


@dataclass(frozen=True)
class Vocabulary:
    """Words of the base: subjects with their synonyms, styles, contexts, markings and colors."""

    subjects: Mapping[str, tuple[str, ...]]
    styles: tuple[str, ...]
    contexts: tuple[str, ...]
    markings: tuple[str, ...]
    colors: tuple[str, ...]

    def subject(self, text: str) -> str | None:
        """The subject that a text names: "two Red Foxes on a hill" -> "fox"; None if the base has none."""
        names = {word: subject for subject, others in self.subjects.items() for word in (subject, *others)}
        return next((names[phrase] for phrase in _phrases(text) if phrase in names), None)

    def similar(self, text: str) -> list[str]:
        """Subjects that are spelled like ``text``, the most similar first."""
        return get_close_matches(text.lower(), self.subjects, n=3, cutoff=0.75)


def _phrases(text: str) -> Iterator[str]:
    """The last words of a noun phrase, from all of them to one, each as it stands and in the singular."""
    text = " ".join(text.lower().split())
    yield text
    words = re.split(r" (?:in|on|with|of|and|at|by|from) ", text)[0].split()
    for start in range(len(words)):
        *others, last = words[start:]
        singulars = (last.removesuffix(end) + new for end, new in _PLURALS if last.endswith(end))
        for noun in (last, *singulars):
            yield " ".join([*others, noun])


@cache
def mini() -> Vocabulary:
    """The vocabulary of the built-in base."""
    words = json.loads((resources.mini() / "vocabulary.json").read_text(encoding="utf-8"))
    subjects = {subject: tuple(others) for subject, others in words.pop("subjects").items()}
    return Vocabulary(subjects, **{kind: tuple(names) for kind, names in words.items()})


def mini_sources() -> list[dict[str, str]]:
    """Packages whose pictures the built-in base learned from: the rows of the first table in ``SOURCES.md``.

    The keys are the heads of its columns: package, version, licence, author and what it is used for.
    """
    path = resources.mini() / "SOURCES.md"
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    table = takewhile(_in_table, dropwhile(lambda line: not _in_table(line), lines))
    heads, *rest = [[cell.strip() for cell in line.strip("| ").split("|")] for line in table] or [[]]
    return [dict(zip(heads, row, strict=True)) for row in rest[1:]]  # after the line below the heads


def _in_table(line: str) -> bool:
    return line.startswith("|")
