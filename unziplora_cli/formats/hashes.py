"""The hashes by which other programs know a file of weights."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

_LEGACY_START, _LEGACY_LENGTH = 0x100000, 0x10000


def weight_hashes(header: Mapping[str, Any], payload: bytes | memoryview) -> dict[str, str]:
    """The metadata entries that tell the hashes of a safetensors file.

    ``modelspec.hash_sha256`` and ``sshs_model_hash`` are the SHA-256 of ``payload``, all that follows the
    header, so that they do not depend on what the file says about itself. ``sshs_legacy_hash`` is the older
    one of A1111's: 64 kB from the first megabyte on, of the same file with no metadata but ``ss_*``, its
    first 8 digits.
    """
    digest = hashlib.sha256(payload).hexdigest()
    training = {key: value for key, value in header["__metadata__"].items() if key.startswith("ss_")}
    start = encode_header({**header, "__metadata__": training})
    end = _LEGACY_START + _LEGACY_LENGTH
    piece = start[_LEGACY_START:end] + payload[max(0, _LEGACY_START - len(start)) : max(0, end - len(start))]
    return {
        "modelspec.hash_sha256": f"0x{digest}",
        "sshs_model_hash": digest,
        "sshs_legacy_hash": hashlib.sha256(piece).hexdigest()[:8],
    }


def encode_header(header: Mapping[str, Any]) -> bytes:
    """A safetensors header as it stands in the file: its length, then JSON padded to 8 bytes."""
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text
