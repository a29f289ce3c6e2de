"""Bases in Hugging Face's cache, and what is said of a base."""

import shutil
from pathlib import Path

from unziplora_cli import paths
from unziplora_cli.cli._errors import remedy_text
from unziplora_cli.events import Notice


def notice_text(notice: Notice) -> str:
    """A notice and its remedies as text."""
    return " ".join([notice.text, *map(remedy_text, notice.remedies)])


def put_in_cache(folder: Path, id: str, revision: str) -> Path:
    """Place a base where huggingface_hub keeps its downloads."""
    repository = paths.hub_cache() / f"models--{id.replace('/', '--')}"
    shutil.copytree(folder, repository / "snapshots" / revision)
    (repository / "refs").mkdir()
    (repository / "refs/main").write_text(revision)
    return repository / "snapshots" / revision
