"""Bases in Hugging Face's cache."""

import shutil
from pathlib import Path

from unziplora_cli import paths


def put_in_cache(folder: Path, id: str, revision: str) -> Path:
    """Place a base where huggingface_hub keeps its downloads."""
    repository = paths.hub_cache() / f"models--{id.replace('/', '--')}"
    shutil.copytree(folder, repository / "snapshots" / revision)
    (repository / "refs").mkdir()
    (repository / "refs/main").write_text(revision)
    return repository / "snapshots" / revision
