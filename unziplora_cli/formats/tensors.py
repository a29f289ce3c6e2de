"""Safetensors files: read with clear errors, written whole or not at all."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from unziplora_cli.atomic import replacing
from unziplora_cli.errors import AdapterError


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """All tensors of a file, on the CPU, and its metadata; raises AdapterError."""
    if not path.is_file():
        raise AdapterError(f"There is no file {path}.")
    try:
        with safe_open(path, framework="pt") as file:
            return {key: file.get_tensor(key) for key in file.keys()}, dict(file.metadata() or {})  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise AdapterError(
            f"{path} is not a whole safetensors file: {error}.", hint="Fetch or export the file again."
        ) from error


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Write a file with string metadata; an older file of that name stays until the new one is whole."""
    whole = {key: tensor.detach().cpu().contiguous() for key, tensor in tensors.items()}
    with replacing(path) as temporary:
        # Not save_file: the file it makes can be read by its owner alone, whatever the umask.
        temporary.write_bytes(_sorted_metadata(save(whole, metadata={"format": "pt", **metadata})))


def some(names: list[str], limit: int = 3) -> str:
    """The first few of ``names``, for an error message."""
    return ", ".join(names[:limit]) + (f" and {len(names) - limit} more" if len(names) > limit else "")


def _sorted_metadata(file: bytes) -> bytes:
    """The same safetensors file with its metadata in order, so that equal weights are equal bytes."""
    end = 8 + int.from_bytes(file[:8], "little")
    header = json.loads(file[8:end])
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + file[end:]
