"""Trainings that are under way or were cut off: what was asked for, and how far they are."""

import json
import re
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from unziplora_cli import files
from unziplora_cli.config import Prompts, Words
from unziplora_cli.errors import ProjectError, UsageError
from unziplora_cli.projects.manifest import BaseRecord, Scalar, SourceImage, decode

SCHEMA = 1
PLAN = "plan.json"
CHECKPOINTS = "checkpoints"
_STEP = re.compile(r"step-([0-9]{6,})\.safetensors")

MUTABLE_ON_RESUME = (
    *("content_lr", "style_lr", "merge_lr", "max_grad_norm"),
    *("checkpoint_every", "save_every", "validate_every", "validation_images", "tracker"),
)
"""Settings that a training may go on with changed."""


@dataclass(frozen=True)
class Plan:
    """All that a training needs to go on, beside its checkpoint.

    `training` is the resolved TrainConfig, `validation` the prompts of the validation pictures. `replaces`
    says that the older project of the same name goes when this one is complete.
    """

    created: str
    tool_version: str
    base: BaseRecord
    source: tuple[SourceImage, ...]
    words: Words
    prompts: Prompts
    training: dict[str, Scalar]
    device: str = "auto"
    vae: str | None = None
    validation: Prompts | None = None
    replaces: bool = False
    schema: int = SCHEMA

    def __post_init__(self) -> None:
        if self.schema != SCHEMA:
            raise ValueError(f"schema must be {SCHEMA}")

    def identity(self) -> dict[str, Scalar]:
        """What has to be the same for the training to go on as if it had never stopped, by its name."""
        return {
            "version of unziplora": self.tool_version,
            "base": self.base.hash or self.base.id,
            "vae": self.vae,
            **{f"picture {i}": each.sha256 for i, each in enumerate(self.source, start=1)},
            **{f"{name} prompt": text for name, text in asdict(self.prompts).items()},
            **{
                name.replace("_", "-"): value
                for name, value in self.training.items()
                if name not in MUTABLE_ON_RESUME
            },
        }


@dataclass(frozen=True)
class Unfinished:
    """A training that is under way or was cut off; `step` is that of its last checkpoint."""

    name: str
    folder: Path
    plan: Plan

    @property
    def step(self) -> int:
        """The steps that are safe: those of the last checkpoint."""
        return max(checkpoint_steps(self.folder), default=0)

    @property
    def steps(self) -> int:
        """The steps that were asked for."""
        steps = self.plan.training.get("steps")
        return steps if isinstance(steps, int) else 0

    def size(self) -> int:
        """Bytes of everything in the folder."""
        return files.folder_size(self.folder)


def differences(asked: dict[str, Scalar], recorded: dict[str, Scalar]) -> tuple[str, ...]:
    """Where two identities differ, in words."""
    return tuple(
        f"{name} is {_shown(asked.get(name))}, was {_shown(recorded.get(name))}"
        for name in {**recorded, **asked}
        if asked.get(name) != recorded.get(name)
    )


def checkpoint_steps(folder: Path) -> Iterator[int]:
    """The steps of all checkpoints in the folder of a training."""
    for file in (folder / CHECKPOINTS).glob("step-*.safetensors"):
        if match := _STEP.fullmatch(file.name):
            yield int(match[1])


def write_plan(folder: Path, plan: Plan) -> None:
    """Write the plan of the training in `folder` atomically."""
    files.write_bytes(folder / PLAN, (json.dumps(asdict(plan), indent=2) + "\n").encode())


def read_plan(folder: Path) -> Plan:
    """Read the plan of the training in `folder`; raises ProjectError."""
    path = folder / PLAN
    try:
        return decode(Plan, json.loads(path.read_bytes()), "plan")
    except (OSError, ValueError, UsageError, RecursionError) as error:
        raise ProjectError(f"{path} is damaged: {error}.") from error


def _shown(value: Scalar) -> str:
    text = "nothing" if value is None else str(value)
    return text if len(text) <= 80 else text[:12] + "..."
