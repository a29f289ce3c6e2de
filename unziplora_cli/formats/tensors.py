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
from unziplora_cli.formats.hashes import encode_header, weight_hashes


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """All tensors of a file, on the CPU, and its metadata; raises AdapterError."""
    if not path.is_file():
        raise AdapterError(f"There is no file {path}.")
    try:
        with safe_open(path, framework="pt") as file:
            return {key: file.get_tensor(key) for key in file.keys()}, dict(file.metadata() or {})  # noqa: SIM118
    except (SafetensorError, OSError, AttributeError, ValueError, TypeError) as error:
        raise AdapterError(
            f"{path} is not a whole safetensors file: {error}.", hint="Fetch or export the file again."
        ) from error


def write_tensors(
    path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str], *, hashed: bool = False
) -> None:
    """Write a file with string metadata; an older file of that name stays until the new one is whole.

    Equal tensors and metadata are equal bytes. With ``hashed`` the metadata also tells the hashes of the
    weights.
    """
    whole = {key: tensor.detach().cpu().contiguous() for key, tensor in tensors.items()}
    file = save(whole, metadata={"format": "pt", **metadata})
    end = 8 + int.from_bytes(file[:8], "little")
    header, payload = json.loads(file[8:end]), memoryview(file)[end:]
    if hashed:
        header["__metadata__"] |= weight_hashes(header, payload)
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    # Not save_file: the file it makes can be read by its owner alone, whatever the umask.
    with replacing(path) as temporary, temporary.open("wb") as out:
        out.write(encode_header(header))
        out.write(payload)


def some(names: list[str], limit: int = 3) -> str:
    """The first few of ``names``, for an error message."""
    return ", ".join(names[:limit]) + (f" and {len(names) - limit} more" if len(names) > limit else "")
