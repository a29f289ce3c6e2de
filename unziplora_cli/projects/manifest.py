"""The manifest of a project: its job, the environment of the training, and the files it consists of."""

import codecs
import json
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal, TypeVar

from pydantic import ConfigDict, NonNegativeFloat, NonNegativeInt

from unziplora_cli import files
from unziplora_cli.errors import ProjectError, Remedy, UsageError
from unziplora_cli.job import (
    STRICT,
    Job,
    RelativePath,
    Sha256,
    Text,
    UtcTime,
    from_json,
    job_of_schema_1,
    to_json,
)

SCHEMA: Literal[2] = 2
FILE_NAME = "manifest.json"
_RESTORE = Remedy("Undo what was changed in it, or restore it from a backup.")

T = TypeVar("T")
Migration = Callable[[dict[str, Any]], dict[str, Any]]
Role = Literal["content", "style", "merge", "history", "destyled"]
Unit = Literal["share", "likeness", "loss", "difference"]


@dataclass(frozen=True)
class Artifact:
    """One file made by the training; ``path`` is relative to the project folder."""

    role: Role
    path: RelativePath
    sha256: Sha256
    bytes: NonNegativeInt
    format: Text
    rank: NonNegativeInt | None = None

    @classmethod
    def of(cls, folder: Path, role: Role, name: str, format: str, rank: int | None = None) -> "Artifact":
        """The record of a file that exists in the project folder."""
        file = folder / name
        return cls(role, name, files.sha256(file), file.stat().st_size, format, rank)


LORA_FORMAT, MERGE_FORMAT = "sd-scripts", "unziplora-merge"


def adapter_artifacts(folder: Path, content_rank: int, style_rank: int) -> tuple[Artifact, ...]:
    """The records of the three weight files of a project."""
    return (
        Artifact.of(folder, "content", "content.safetensors", LORA_FORMAT, content_rank),
        Artifact.of(folder, "style", "style.safetensors", LORA_FORMAT, style_rank),
        Artifact.of(folder, "merge", "merge.safetensors", MERGE_FORMAT),
    )


@dataclass(frozen=True)
class ScoreRecord:
    """One measured number of a project, and the same number for the base alone if there is one.

    ``unit``: ``share`` of images or columns, ``likeness`` of two things (1: equal), ``loss``, or
    ``difference`` relative to a reference. ``about`` is a sentence for the reader.
    """

    name: Text
    value: float
    base: float | None
    higher_is_better: bool
    about: Text
    unit: Unit


@dataclass(frozen=True)
class BlockColumns:
    """How many output columns of one U-Net block each branch uses, and how many both use."""

    block: Text
    content: NonNegativeInt
    style: NonNegativeInt
    shared: NonNegativeInt
    total: NonNegativeInt

    def __post_init__(self) -> None:
        if max(self.content, self.style) > self.total or self.shared > min(self.content, self.style):
            raise ValueError("the columns of a block do not add up")


@dataclass(frozen=True)
class Evaluation:
    """How well content and style were separated, as the evaluation measured it.

    ``scorer`` names what scored the generated images, and is empty when none were generated. ``notes``
    explain the numbers.
    """

    created: UtcTime
    diagnosis: Text
    advice: tuple[Text, ...]
    scores: tuple[ScoreRecord, ...]
    columns: tuple[BlockColumns, ...] = ()
    scorer: Text = ""
    notes: tuple[Text, ...] = ()
    seed: NonNegativeInt = 0
    images: NonNegativeInt = 0


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """Everything recorded about a project. ``versions`` are those of the libraries, by name."""

    __pydantic_config__: ClassVar[ConfigDict] = STRICT

    schema: Literal[2] = SCHEMA
    job: Job
    state: Literal["complete", "interrupted"]
    steps_done: NonNegativeInt
    seconds: NonNegativeFloat
    peak_memory_bytes: NonNegativeInt | None = None
    versions: dict[Text, Text]
    metrics: dict[Text, float] = field(default_factory=dict)
    artifacts: tuple[Artifact, ...]
    evaluation: Evaluation | None = None

    def __post_init__(self) -> None:
        roles = [artifact.role for artifact in self.artifacts]
        if len(set(roles)) != len(roles):
            raise ValueError("two artifacts have the same role")

    def artifact(self, role: Role) -> Artifact | None:
        """The artifact of a role, if the project has one."""
        return next((artifact for artifact in self.artifacts if artifact.role == role), None)


def write(folder: Path, manifest: Manifest) -> None:
    """Write the manifest of the project in ``folder`` atomically."""
    files.write_bytes(folder / FILE_NAME, to_json(manifest))


def read(folder: Path) -> Manifest:
    """Read the manifest of the project in ``folder``; raises ProjectError."""
    path = folder / FILE_NAME
    try:
        return read_versioned(Manifest, files.read_bytes(path), path, SCHEMA, MIGRATIONS)
    except FileNotFoundError as error:
        raise ProjectError(
            f"The project {folder.name!r} has no {FILE_NAME}.",
            Remedy("If its training was cut off, remove it", "remove", (folder.name,)),
        ) from error
    except OSError as error:
        raise ProjectError(f"Cannot read {path}: {error.strerror}.") from error


def read_versioned(
    kind: type[T], text: bytes, path: Path, current: int, migrations: Mapping[int, Migration]
) -> T:
    """A record that carries its schema number, migrated step by step to the ``current`` one.

    Raises ProjectError when the text is damaged, or of a newer schema; ``path`` is for the message.
    """
    text = text.removeprefix(codecs.BOM_UTF8)  # of an editor
    if text.startswith(b'{\n  "schema": %d,' % current):  # as this version writes it: parse it once only
        with suppress(ValueError, TypeError, RecursionError, UsageError):
            return from_json(kind, text, path.stem)
    try:
        data = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ProjectError(f"{path} is not valid JSON: {error}.", _RESTORE) from error
    schema = data.get("schema") if isinstance(data, dict) else None
    if type(schema) is not int or schema < 1:
        raise ProjectError(f"{path} was not written by unziplora: it has no schema number.")
    if schema > current:
        raise ProjectError(
            f"{path} has schema {schema}, but this version of unziplora reads schemas up to {current}.",
            Remedy("Upgrade unziplora."),
        )
    try:
        for step in range(schema, current):
            data = migrations[step](data)
        return from_json(kind, text if schema == current else data, path.stem)
    except (ValueError, TypeError, RecursionError, UsageError) as error:
        raise ProjectError(f"{path} is damaged: {str(error).rstrip('.')}.", _RESTORE) from error


def _from_schema_1(data: dict[str, Any]) -> dict[str, Any]:
    """Schema 1 had the fields of the job at its top level, and other names in the evaluation."""
    kept = ("state", "steps_done", "seconds", "peak_memory_bytes", "versions", "metrics", "artifacts")
    evaluation = data.get("evaluation")
    if isinstance(evaluation, dict):
        names = {"verdict": "diagnosis", "judge": "scorer", "pictures": "images"}
        evaluation = {names.get(name, name): value for name, value in evaluation.items()}
    return {
        "schema": 2,
        "job": job_of_schema_1(data),
        **{name: data[name] for name in kept if name in data},
        "evaluation": evaluation,
    }


MIGRATIONS: dict[int, Migration] = {1: _from_schema_1}
"""From each old schema to the next."""
