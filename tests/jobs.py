"""Jobs and manifests of tests."""

from dataclasses import fields, replace
from typing import Any

from unziplora_cli.config import TrainConfig, Words
from unziplora_cli.job import BaseRecord, Job
from unziplora_cli.projects.manifest import Manifest
from unziplora_cli.prompts import make_prompts

WORDS = Words("fox", "watercolor")
JOB_FIELDS = {field.name for field in fields(Job)}


def make_job(**changes: Any) -> Job:
    """The job of training the built-in base on a watercolor fox."""
    values: dict[str, Any] = {
        "name": "fox",
        "created": "2025-01-02T03:04:05Z",
        "tool_version": "0.1.0",
        "base": BaseRecord(spec="mini", kind="builtin", id="mini", hash="sha256:" + "0" * 64),
        "words": WORDS,
        "prompts": make_prompts(WORDS),
        "settings": TrainConfig(),
    }
    return Job(**{**values, **changes})


def changed(manifest: Manifest, **changes: Any) -> Manifest:
    """The manifest with other fields, those of its job included."""
    of_job = {name: value for name, value in changes.items() if name in JOB_FIELDS}
    rest = {name: value for name, value in changes.items() if name not in JOB_FIELDS}
    return replace(manifest, job=replace(manifest.job, **of_job), **rest)
