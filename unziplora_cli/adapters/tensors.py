"""Safetensors files: read with clear errors, written atomically with the hashes of their weights."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from unziplora_cli.errors import AdapterError, Remedy, disk_advice
from unziplora_cli.files import atomic_write, identify, open_safetensors, read_bytes

DAMAGED = Remedy("The file is damaged; download or export it again.")

_BROKEN = (SafetensorError, AttributeError, ValueError, TypeError)
"""What safetensors raises for damaged files."""

_LARGEST_FILE = 16 << 30
_LEGACY_START, _LEGACY_LENGTH = 0x100000, 0x10000


def is_safetensors(path: Path) -> bool:
    """Whether a name is that of a safetensors file, and not one of macOS's companions (``._NAME``)."""
    return path.suffix.lower() in (".safetensors", ".sft") and not path.name.startswith("._")


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Read all tensors of a file, on the CPU, and its metadata; raises AdapterError.

    The file is not mapped: another process that shortens a mapped file ends this one by SIGBUS.
    """
    require_regular(path, _LARGEST_FILE)
    try:
        data = read_bytes(path, _LARGEST_FILE)
        tensors, end = load(data), 8 + int.from_bytes(data[:8], "little")
        header = json.loads(data[8:end])
        metadata = header.pop("__metadata__", None) or {}
        return {name: tensors[name] for name in header}, metadata
    except OSError as error:
        advice = disk_advice(error) or Remedy("Check the disk.")
        raise AdapterError(f"Cannot read {path}: {error.strerror}.", advice) from error
    except KeyError as error:  # safetensors knows more formats than its torch part
        convert = Remedy("Save it as fp16 with the program that made it.")
        raise AdapterError(
            f"{path} holds numbers in the format {error}, which cannot be read.", convert
        ) from error
    except _BROKEN as error:
        kind, remedy = identify(path) or (str(error), DAMAGED)
        raise AdapterError(f"{path} is not a whole safetensors file: {kind}.", remedy) from error


def require_regular(path: Path, limit: int) -> None:
    """Raise AdapterError unless ``path`` is a regular file of at most ``limit`` bytes."""
    if path.is_dir():
        raise AdapterError(f"{path} is a folder, not a file.", Remedy("Name one file in it."))
    if not path.exists():
        raise AdapterError(f"There is no file {path}.", Remedy("Check the spelling."))
    if not path.is_file():
        raise AdapterError(f"{path} is not a regular file.", Remedy("Name a file on a disk."))
    if path.stat().st_size > limit:
        raise AdapterError(
            f"{path} is too large: files of this kind have at most {limit >> 20} MiB.",
            Remedy("Check that it is the right file."),
        )


def read_metadata(path: Path) -> Mapping[str, str]:
    """Read the metadata of a file; empty when it cannot be read."""
    try:
        require_regular(path, _LARGEST_FILE)  # a pipe would block
        with open_safetensors(path) as file:
            return dict(file.metadata() or {})
    except (*_BROKEN, OSError, RuntimeError, AdapterError):
        return {}


def write_tensors(
    path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str], *, hashed: bool = False
) -> None:
    """Write a file atomically; with ``hashed`` the metadata holds the hashes of the weights.

    Equal tensors and metadata give equal bytes.
    """
    contiguous = {key: tensor.detach().cpu().contiguous() for key, tensor in tensors.items()}
    file = save(contiguous, metadata={"format": "pt", **metadata})
    end = 8 + int.from_bytes(file[:8], "little")
    header, payload = json.loads(file[8:end]), memoryview(file)[end:]
    if hashed:
        header["__metadata__"] |= _weight_hashes(header, payload)
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    # Not save_file: it creates files with mode 0600, whatever the umask.
    with atomic_write(path) as temporary, temporary.open("wb") as out:
        out.write(_encode_header(header))
        out.write(payload)


def summarize(names: Sequence[str], limit: int = 3) -> str:
    """The first few names, for an error message."""
    return ", ".join(names[:limit]) + (f" and {len(names) - limit} more" if len(names) > limit else "")


def _weight_hashes(header: Mapping[str, Any], payload: bytes | memoryview) -> dict[str, str]:
    """The hashes by which other programs know a file, as metadata.

    ``modelspec.hash_sha256`` and ``sshs_model_hash`` are the SHA-256 of the tensors' bytes, without the
    header. ``sshs_legacy_hash`` is A1111's older hash: the first 8 digits for 64 KiB at offset 1 MiB of the
    same file with ``ss_*`` metadata only.
    """
    digest = hashlib.sha256(payload).hexdigest()
    training = {key: value for key, value in header["__metadata__"].items() if key.startswith("ss_")}
    start = _encode_header({**header, "__metadata__": training})
    end = _LEGACY_START + _LEGACY_LENGTH
    piece = start[_LEGACY_START:end] + payload[max(0, _LEGACY_START - len(start)) : max(0, end - len(start))]
    return {
        "modelspec.hash_sha256": f"0x{digest}",
        "sshs_model_hash": digest,
        "sshs_legacy_hash": hashlib.sha256(piece).hexdigest()[:8],
    }


def _encode_header(header: Mapping[str, Any]) -> bytes:
    """A safetensors header: its length in 8 bytes, then JSON padded to a multiple of 8 bytes."""
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text
