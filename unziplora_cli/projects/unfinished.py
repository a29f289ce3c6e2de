"""Unfinished trainings: their record, their checkpoints and how far they are."""

import re
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import ConfigDict

from unziplora_cli import files
from unziplora_cli.job import STRICT, Job, job_of_schema_1, to_json
from unziplora_cli.projects.manifest import read_versioned

SCHEMA: Literal[2] = 2
FILE_NAME, FORMER_FILE_NAME = "training.json", "plan.json"
CHECKPOINTS = "checkpoints"
STATUS = "status.txt"
"""How many steps a running training has done; without meaning once nobody holds its lock."""
_STEP = re.compile(r"step-([0-9]{6,})\.safetensors")


@dataclass(frozen=True, kw_only=True)
class UnfinishedRecord:
    """What resuming a training needs beside its checkpoint.

    ``replaces``: the older project of the same name is deleted when this one is complete.
    ``sheet``: a sheet is wanted then.
    """

    __pydantic_config__: ClassVar[ConfigDict] = STRICT

    schema: Literal[2] = SCHEMA
    job: Job
    replaces: bool = False
    sheet: bool = True


@dataclass(frozen=True)
class Unfinished:
    """A training that is running or was cut off."""

    name: str
    folder: Path
    record: UnfinishedRecord

    @property
    def job(self) -> Job:
        """What is being trained."""
        return self.record.job

    @property
    def step(self) -> int:
        """The step of its last checkpoint; 0 without one."""
        return max(checkpoint_steps(self.folder), default=0)

    def size(self) -> int:
        """Bytes of everything in the folder."""
        return files.size_and_links(self.folder)[0]


def checkpoint_steps(folder: Path) -> Iterator[int]:
    """The steps of all checkpoints in the folder of a training."""
    for file in (folder / CHECKPOINTS).glob("step-*.safetensors"):
        if match := _STEP.fullmatch(file.name):
            yield int(match[1])


def has_record(folder: Path) -> bool:
    """Whether the training in ``folder`` can be resumed."""
    return any((folder / name).is_file() for name in (FILE_NAME, FORMER_FILE_NAME))


def write_record(folder: Path, record: UnfinishedRecord) -> None:
    """Write the record of the training in ``folder`` atomically."""
    files.write_bytes(folder / FILE_NAME, to_json(record))
    (folder / FORMER_FILE_NAME).unlink(missing_ok=True)


def read_record(folder: Path) -> UnfinishedRecord:
    """Read the record of the training in ``folder``; raises ProjectError."""
    path = folder / FILE_NAME
    if not path.is_file() and (folder / FORMER_FILE_NAME).is_file():
        path = folder / FORMER_FILE_NAME
    with files.translated(partial(files.disk_error, folder=path)):
        text = files.read_bytes(path)
    return read_versioned(UnfinishedRecord, text, path, SCHEMA, {1: _from_schema_1})


def write_status(folder: Path, step: int) -> None:
    """Note how far a running training is; a note that cannot be written is skipped."""
    with suppress(OSError):
        temporary = folder / f"{STATUS}.partial"
        temporary.write_text(str(step), encoding="ascii")
        temporary.replace(folder / STATUS)


def read_status(folder: Path) -> int | None:
    """How far the running training in ``folder`` is, if it has noted that."""
    try:
        return int(files.read_bytes(folder / STATUS, limit=20))
    except (OSError, ValueError):
        return None


def _from_schema_1(data: dict[str, Any]) -> dict[str, Any]:
    """Schema 1 had the fields of the job at its top level, and no name."""
    job = job_of_schema_1({"name": "", **data})
    return {"schema": 2, "job": job, "replaces": data.get("replaces", False)}
