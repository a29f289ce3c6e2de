"""The record of one training: the command line makes it, the engine runs it, every project keeps it.

A checkpoint stores its identity, an unfinished training and the manifest embed it whole. Records are written
as JSON and read back strictly: a missing key, an unknown key, a wrong type or a value out of range is an
error that names the key.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime, timedelta
from functools import cache
from typing import Annotated, Any, ClassVar, Literal, TypeVar, cast

from pydantic import (
    AfterValidator,
    ConfigDict,
    NonNegativeInt,
    StringConstraints,
    TypeAdapter,
    ValidationError,
)

import unziplora_cli
from unziplora_cli.checks import control_character
from unziplora_cli.config import MUTABLE_ON_RESUME, Prompts, TrainConfig, Words
from unziplora_cli.errors import ProjectError

T = TypeVar("T")
Scalar = str | int | float | bool | None

SETTINGS_OF_SCHEMA_1 = {
    "echoes": "destyle_images",
    "echo_strength": "destyle_strength",
    "echo_fresh": "destyle_fresh_noise",
    "echo_floor": "destyle_min_timestep",
    "echo_only": "destyled_only",
    "echo_contrast": "destyle_contrast",
    "echo_guidance": "destyle_guidance",
    "echo_prompt": "destyle_prompt",
}
"""Settings that had another name in schema 1 of manifests and unfinished trainings."""

SETTINGS_SINCE_SCHEMA_1 = ("fuse", "destyle", "destyler")
"""Settings that schema 1 did not have; it always did what their default does."""


_FORBIDDEN = re.compile(r"[\\:\x00]")


def _printable(text: str) -> str:
    if character := control_character(text):
        raise ValueError(f"contains the control character {character!a}")
    return text


def relative_path(path: str) -> str:
    """The path itself; raises ValueError if it leads out of the folder that it is relative to."""
    if not path.strip("./") or path.startswith("/") or ".." in path.split("/") or _FORBIDDEN.search(path):
        raise ValueError(f"{path!r} is outside the project")
    return path


def _utc_time(text: str) -> str:
    if datetime.fromisoformat(text).utcoffset() != timedelta(0):
        raise ValueError("must be a time in UTC")
    return text


Text = Annotated[str, AfterValidator(_printable)]
RelativePath = Annotated[Text, AfterValidator(relative_path)]
"""A file below the project folder, with forward slashes on every platform."""
Sha256 = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
UtcTime = Annotated[Text, AfterValidator(_utc_time)]
"""A time in UTC, ISO 8601."""

STRICT = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


Prediction = Literal["epsilon", "v_prediction"]
"""What a U-Net predicts."""


@dataclass(frozen=True)
class BaseRecord:
    """The base model of a training; ``hash`` identifies a model that has no revision.

    ``prediction`` is what the user says that its U-Net predicts; None: what its files say.
    """

    spec: Text
    kind: Literal["hub", "folder", "file", "builtin"]
    id: Text
    revision: Text | None = None
    hash: Text | None = None
    prediction: Prediction | None = None

    @property
    def location(self) -> str:
        """What finds the base again, from any working folder."""
        return self.id if self.kind in ("folder", "file") else self.spec


@dataclass(frozen=True)
class SourceImage:
    """One image that a training learns from; ``file`` is its copy in the project folder."""

    file: RelativePath
    sha256: Sha256
    width: NonNegativeInt
    height: NonNegativeInt
    format: Text


@dataclass(frozen=True)
class Description:
    """What a describer sees in an image; empty where it sees nothing.

    ``by`` names the describer. ``features`` distinguish this individual from others of its kind: colours,
    markings, parts. ``changed`` names the fields that the user replaced.
    """

    by: Text
    subject: Text = ""
    style: Text = ""
    features: tuple[Text, ...] = ()
    surroundings: Text = ""
    changed: tuple[Text, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Job:
    """One training of one subject in one style.

    ``images`` is one image, or a few that show the same subject in the same style. ``features`` belong to the
    subject and only appear in the prompt of destyled images; ``destyled`` are these images, once there are
    any. ``description`` is what the words were taken from, if from a describer. ``settings`` is None for
    imported LoRAs, which were not trained here. ``validation`` are the prompts of the validation images if
    they differ from ``prompts``. ``vae`` names an autoencoder other than the base's own. ``device`` is the
    requested one; in the manifest of a finished training, the one that it ran on.
    """

    __pydantic_config__: ClassVar[ConfigDict] = STRICT

    name: Text
    created: UtcTime
    tool_version: Text = field(default_factory=lambda: unziplora_cli.__version__)
    base: BaseRecord
    images: tuple[SourceImage, ...] = ()
    words: Words
    features: tuple[Text, ...] = ()
    description: Description | None = None
    destyled: tuple[SourceImage, ...] = ()
    prompts: Prompts
    validation: Prompts | None = None
    vae: Text | None = None
    device: Text = "auto"
    settings: TrainConfig | None = None

    @property
    def config(self) -> TrainConfig:
        """The settings; raises ProjectError for imported LoRAs."""
        if self.settings is None:
            raise ProjectError(f"The project {self.name!r} was imported: its training is not known.")
        return self.settings

    def identity(self) -> dict[str, Scalar]:
        """What must be equal for a training to resume as if it had never stopped, by its name.

        Destyled images count if the user gave them; others follow from the rest.
        """
        given = self.destyled if self.config.destyle == "folder" else ()
        return {
            "version of unziplora": self.tool_version,
            "base": self.base.hash or self.base.id,
            "prediction": self.base.prediction,
            "vae": self.vae,
            **{f"image {number}": image.sha256 for number, image in enumerate(self.images, start=1)},
            **({"features": ", ".join(self.features)} if self.features else {}),
            **{f"destyled image {number}": image.sha256 for number, image in enumerate(given, start=1)},
            **{f"{name} prompt": text for name, text in asdict(self.prompts).items()},
            **{
                name.replace("_", "-"): value
                for name, value in asdict(self.config).items()
                if name not in MUTABLE_ON_RESUME
            },
        }

    def difference(self, recorded: "Job") -> tuple[str, ...]:
        """Where this training differs from a recorded one, in words; empty if they are equal."""
        old, new = (
            {name.replace("_", "-"): getattr(job.config, name) for name in MUTABLE_ON_RESUME}
            for job in (recorded, self)
        )
        validation = () if self.validation == recorded.validation else ("the validation prompt differs",)
        return (*differences(self.identity(), recorded.identity()), *differences(new, old), *validation)


def now() -> str:
    """The current time for :attr:`Job.created`."""
    return datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")


def differences(current: Mapping[str, Scalar], recorded: Mapping[str, Scalar]) -> tuple[str, ...]:
    """Where two identities differ, in words."""
    return tuple(
        f"{name} is {_short(current.get(name))}, was {_short(recorded.get(name))}"
        for name in {**recorded, **current}
        if current.get(name) != recorded.get(name)
    )


def identity_of_schema_1(identity: Mapping[str, Scalar], current: Mapping[str, Scalar]) -> dict[str, Scalar]:
    """The identity in a checkpoint of the former version, with the names and settings of the current one."""
    defaults = {name.replace("_", "-"): value for name, value in asdict(TrainConfig()).items()}
    added = {name: defaults[name] for name in SETTINGS_SINCE_SCHEMA_1 if name in current}
    settings = {old.replace("_", "-"): new.replace("_", "-") for old, new in SETTINGS_OF_SCHEMA_1.items()}
    return added | {
        settings.get(name, re.sub(r"^picture (\d+)$", r"image \1", name)): value
        for name, value in identity.items()
    }


def job_of_schema_1(data: Mapping[str, Any]) -> dict[str, Any]:
    """The job in a manifest or an unfinished training of schema 1, which had its fields at the top level."""
    settings = data.get("training")
    if not isinstance(settings, dict):
        raise ValueError("training must be an object")
    names = ("name", "created", "tool_version", "base", "words", "prompts", "validation", "vae", "device")
    return {
        **{name: data[name] for name in names if name in data},
        "images": data.get("source"),
        "settings": {SETTINGS_OF_SCHEMA_1.get(name, name): value for name, value in settings.items()} or None,
    }


def to_json(record: Any) -> bytes:
    """A record as indented JSON."""
    return (json.dumps(asdict(record), indent=2, ensure_ascii=False, allow_nan=False) + "\n").encode()


def from_json(kind: type[T], data: object, where: str) -> T:
    """A record from JSON, as bytes or parsed; raises ValueError with the key, UsageError for a setting."""
    text = data if isinstance(data, bytes) else json.dumps(data)
    try:
        return cast(T, _adapter(cast(Any, kind)).validate_json(text))
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        path = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in first["loc"])
        raise ValueError(f"{where}{path}: {first['msg']}") from error


@cache
def _adapter(kind: Any) -> TypeAdapter[Any]:
    return TypeAdapter(kind)


def _short(value: Scalar) -> str:
    text = "nothing" if value is None else str(value)
    return text if len(text) <= 80 else text[:12] + "..."
