"""JSON values into frozen dataclasses, strictly: wrong types, missing keys and unknown keys are named."""

import json
import re
import types
from collections.abc import Callable, Mapping
from dataclasses import MISSING, asdict, dataclass, field, fields, is_dataclass
from datetime import UTC, datetime, timedelta
from math import isfinite
from pathlib import Path, PurePosixPath
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from unziplora_cli import files
from unziplora_cli.config import Prompts, Words, no_text
from unziplora_cli.errors import ProjectError, UsageError

T = TypeVar("T")

_KINDS: dict[Any, str] = {str: "text", int: "a whole number", float: "a number", bool: "true or false"}


def decode(kind: type[T], value: object, where: str) -> T:
    """`value` as an instance of the dataclass `kind`; raises ValueError that names the key."""
    if not isinstance(value, Mapping):
        raise ValueError(f"{where} must be an object")
    hints = get_type_hints(kind)
    known = {each.name: each for each in fields(kind)}  # type: ignore[arg-type]
    for key in value:
        if key not in known:
            raise ValueError(f"{where} has an unknown key {key!r}")
    arguments = {}
    for name, each in known.items():
        if name in value:
            arguments[name] = _decode(hints[name], value[name], f"{where}.{name}")
        elif each.default is MISSING and each.default_factory is MISSING:
            raise ValueError(f"{where} lacks the key {name!r}")
    try:
        return kind(**arguments)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error


def _decode(hint: Any, value: Any, where: str) -> Any:
    origin, arms = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        return _decode_union(arms, value, where)
    if origin is Literal:
        if not (isinstance(value, str) and value in arms):
            raise ValueError(f"{where} must be one of {', '.join(arms)}")
        return value
    if origin is tuple:
        if not isinstance(value, list):
            raise ValueError(f"{where} must be a list")
        return tuple(_decode(arms[0], item, f"{where}[{index}]") for index, item in enumerate(value))
    if origin is dict:
        if not isinstance(value, Mapping):
            raise ValueError(f"{where} must be an object")
        return {str(key): _decode(arms[1], item, f"{where}.{key}") for key, item in value.items()}
    if is_dataclass(hint):
        return decode(hint, value, where)  # type: ignore[arg-type]
    return _decode_scalar(hint, value, where)


def _decode_union(arms: tuple[Any, ...], value: Any, where: str) -> Any:
    if value is None and type(None) in arms:
        return None
    arms = tuple(arm for arm in arms if arm is not type(None))
    for arm in arms:
        if type(value) is arm:
            return _decode_scalar(arm, value, where)
    if len(arms) == 1:
        return _decode(arms[0], value, where)
    raise ValueError(f"{where} must be {' or '.join(_KINDS[arm] for arm in arms)}")


def _decode_scalar(kind: Any, value: Any, where: str) -> Any:
    if kind is float and type(value) is int and abs(value) <= 2**53:
        value = float(value)
    if type(value) is not kind or (kind is float and not isfinite(value)):
        raise ValueError(f"{where} must be {_KINDS[kind]}")
    if kind is str and (found := no_text(value)):
        raise ValueError(f"{where} holds {found!a}, which is no text")
    return value


# The manifest of a project: what it was made of, with what, and which files it consists of.


SCHEMA = 1
FILE_NAME = "manifest.json"

Role = Literal["content", "style", "merge", "history"]
Scalar = str | int | float | bool | None
Unit = Literal["share", "likeness", "loss", "difference"]


@dataclass(frozen=True)
class BaseRecord:
    """The base model that a project was trained on; `hash` identifies what has no revision."""

    spec: str
    kind: Literal["hub", "folder", "file", "builtin"]
    id: str
    revision: str | None = None
    hash: str | None = None


@dataclass(frozen=True)
class SourceImage:
    """One training picture, copied into the project as `file`."""

    file: str
    sha256: str
    width: int
    height: int
    format: str

    def __post_init__(self) -> None:
        _check_path(self.file)
        _check_sha256(self.sha256)
        _check_not_negative(width=self.width, height=self.height)


@dataclass(frozen=True)
class Artifact:
    """One file that training made, with its path below the project folder."""

    role: Role
    path: str
    sha256: str
    bytes: int
    format: str
    rank: int | None = None

    def __post_init__(self) -> None:
        _check_path(self.path)
        _check_sha256(self.sha256)
        _check_not_negative(bytes=self.bytes, rank=self.rank or 0)


@dataclass(frozen=True)
class ScoreRecord:
    """One measured number of a project, beside the same number of the base alone where there is one.

    `unit`: `share` of pictures or columns, `likeness` of two things (1: the same), `loss`, `difference`
    relative to what it is measured against. `about` is a sentence for people.
    """

    name: str
    value: float
    base: float | None
    higher_is_better: bool
    about: str
    unit: Unit


@dataclass(frozen=True)
class BlockColumns:
    """How many output columns of one block of the U-Net each branch uses, and how many both do."""

    block: str
    content: int
    style: int
    shared: int
    total: int

    def __post_init__(self) -> None:
        counts = (self.content, self.style, self.shared)
        if min(counts) < 0 or max(counts) > self.total or self.shared > min(counts[:2]):
            raise ValueError("a block's columns do not add up")


@dataclass(frozen=True)
class Evaluation:
    """How well content and style were separated, as `unziplora eval` measured it.

    `created` is ISO 8601 in UTC. `scorer` names what scored the generated images, and is empty when none were
    generated. `notes` explain the numbers.
    """

    created: str
    diagnosis: str
    advice: tuple[str, ...]
    scores: tuple[ScoreRecord, ...]
    columns: tuple[BlockColumns, ...] = ()
    scorer: str = ""
    notes: tuple[str, ...] = ()
    seed: int = 0
    images: int = 0

    def __post_init__(self) -> None:
        _check_utc(self.created)
        _check_not_negative(seed=self.seed, images=self.images)


@dataclass(frozen=True)
class Manifest:
    """Schema 1. `created` is ISO 8601 in UTC; `training` is the resolved TrainConfig.

    `vae` is the autoencoder that was trained with instead of the base's own.
    """

    name: str
    created: str
    tool_version: str
    base: BaseRecord
    source: tuple[SourceImage, ...]
    words: Words
    prompts: Prompts
    training: dict[str, Scalar]
    seed: int
    device: str
    versions: dict[str, str]
    seconds: float
    steps_done: int
    state: Literal["complete", "interrupted"]
    artifacts: tuple[Artifact, ...]
    vae: str | None = None
    peak_memory_bytes: int | None = None
    metrics: dict[str, float] = field(default_factory=dict)
    evaluation: Evaluation | None = None
    schema: int = SCHEMA

    def __post_init__(self) -> None:
        if self.schema != SCHEMA:
            raise ValueError(f"schema must be {SCHEMA}")
        _check_utc(self.created)
        _check_not_negative(seconds=self.seconds, steps_done=self.steps_done, seed=self.seed)
        _check_not_negative(peak_memory_bytes=self.peak_memory_bytes or 0)
        roles = [artifact.role for artifact in self.artifacts]
        if len(set(roles)) != len(roles):
            raise ValueError("two artifacts have the same role")

    def artifact(self, role: Role) -> Artifact | None:
        """The artifact of a role, if the project has one."""
        return next((each for each in self.artifacts if each.role == role), None)

    def to_json(self) -> dict[str, Any]:
        """The manifest as JSON values, `schema` first."""
        return {"schema": self.schema, **asdict(self)}


def now() -> str:
    """The time for `created`."""
    return datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")


def write(folder: Path, manifest: Manifest) -> None:
    """Write the manifest of the project in `folder` atomically."""
    text = json.dumps(manifest.to_json(), indent=2, ensure_ascii=False, allow_nan=False)
    files.write_bytes(folder / FILE_NAME, (text + "\n").encode())


def read(folder: Path) -> Manifest:
    """Read the manifest of the project in `folder`; raises ProjectError."""
    path = folder / FILE_NAME
    try:
        return parse(path.read_bytes(), path)
    except FileNotFoundError as error:
        raise ProjectError(
            f"The project {folder.name!r} has no {FILE_NAME}.",
            hint=f"If its training was cut off, remove it: unziplora remove {folder.name}",
        ) from error
    except OSError as error:
        raise ProjectError(f"Cannot read {path}: {error.strerror}.") from error


def parse(text: bytes, path: Path) -> Manifest:
    """A manifest from its bytes, migrated from an older schema if need be; raises ProjectError.

    `path` is for the messages.
    """
    try:
        data = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ProjectError(f"{path} is not valid JSON: {error}.") from error
    schema = data.get("schema") if isinstance(data, dict) else None
    if type(schema) is not int or schema < 1:
        raise ProjectError(f"{path} is not a manifest of unziplora: it has no schema number.")
    if schema > SCHEMA:
        raise ProjectError(
            f"{path} has schema {schema}, but this version of unziplora knows schemas up to {SCHEMA}.",
            hint="Upgrade: pipx upgrade unziplora",
        )
    try:
        for step in range(schema, SCHEMA):
            data = MIGRATIONS[step](data)
        return decode(Manifest, data, "manifest")
    except (ValueError, UsageError) as error:
        raise ProjectError(f"{path} is damaged: {error}.") from error


# From each old schema to the next.
MIGRATIONS: dict[int, Callable[[dict[str, Any]], dict[str, Any]]] = {}


def _check_path(path: str) -> None:
    """A path below the project folder, with forward slashes on every platform."""
    parts = PurePosixPath(path).parts
    if not parts or path.startswith("/") or ".." in parts or re.search(r"[\\:\x00]", path):
        raise ValueError(f"the path {path!r} leads out of the project")


def _check_sha256(text: str) -> None:
    if not re.fullmatch(r"[0-9a-f]{64}", text):
        raise ValueError("sha256 must be 64 hexadecimal digits")


def _check_utc(created: str) -> None:
    if datetime.fromisoformat(created).utcoffset() != timedelta(0):
        raise ValueError("created must be a time in UTC")


def _check_not_negative(**numbers: float) -> None:
    for name, number in numbers.items():
        if number < 0:
            raise ValueError(f"{name} must not be negative")
