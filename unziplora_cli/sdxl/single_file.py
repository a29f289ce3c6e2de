"""A single checkpoint file in SDXL's original layout: what it contains, and what it has to borrow.

It contains no configurations and no tokenizers. The configurations of SDXL ship in the folder ``config``;
what the model predicts is read from marks in the file.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from unziplora_cli.errors import ModelError, Remedy
from unziplora_cli.hub import list_snapshots

TOKENIZERS = ("tokenizer", "tokenizer_2")
TOKENIZERS_VARIABLE = "UNZIPLORA_TOKENIZERS"

_COMPONENTS = {
    "the U-Net": "model.diffusion_model.label_emb.0.0.weight",
    "the first text encoder": "conditioner.embedders.0.transformer.",
    "the second text encoder": "conditioner.embedders.1.model.",
    "the VAE": "first_stage_model.decoder.",
}
"""Component -> the beginning of its keys in the original layout."""


def unsupported_reason(path: Path) -> str:
    """Why the file is not an SDXL checkpoint in the original layout; empty if it is one.

    Raises ModelError if it is damaged, a LoRA, or not a safetensors file.
    """
    from safetensors import SafetensorError, safe_open

    if path.suffix != ".safetensors":
        raise ModelError(
            f"{path.name} is not a .safetensors file; opening other checkpoints can run code.",
            Remedy("Convert it to safetensors, or give a folder or a Hugging Face id."),
        )
    try:
        with safe_open(path, framework="pt") as file:
            keys = set(file.keys())
            first = "model.diffusion_model.input_blocks.0.0.weight"
            channels = file.get_slice(first).get_shape()[1] if first in keys else None
    except (SafetensorError, OSError) as error:
        raise ModelError(f"{path} is damaged: {error}.", Remedy("Fetch the file again.")) from error
    if any("lora" in key for key in keys):
        raise ModelError(
            f"{path.name} is a LoRA, not a base.", Remedy("Import it as a project", command="import")
        )
    missing = [
        name for name, prefix in _COMPONENTS.items() if not any(key.startswith(prefix) for key in keys)
    ]
    if missing:
        return f"it lacks {', '.join(missing)} of SDXL"
    if channels != 4:
        return f"its U-Net takes {channels} channels (an inpainting or edit model)"
    return ""


def scheduler_config(path: Path, default: Mapping[str, Any]) -> dict[str, Any]:
    """The scheduler configuration ``default``, changed as the marks in the file say.

    Trainers mark a model that predicts the velocity by an empty tensor ``v_pred`` or in the ModelSpec
    metadata, and one whose last timestep is pure noise (Lin et al., arXiv 2305.08891) by ``ztsnr``.
    """
    from safetensors import safe_open

    with safe_open(path, framework="pt") as file:
        marks, metadata = {"v_pred", "ztsnr"} & set(file.keys()), file.metadata() or {}
    names = [metadata.get(f"modelspec.{key}") for key in ("prediction_type", "predict_key")]
    config = dict(default)
    if marks or "v" in names:
        config["prediction_type"] = "v_prediction"
    if "ztsnr" in marks:
        config |= {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
    return config


def find_tokenizers(path: Path, vocabulary: int) -> Path:
    """A folder with CLIP's two tokenizers: the one in UNZIPLORA_TOKENIZERS, or that of any cached SDXL.

    ``vocabulary`` is the number of tokens that they must have. Raises ModelError if there are none.
    """
    chosen = os.environ.get(TOKENIZERS_VARIABLE)
    cached = (snapshot.path for snapshot in list_snapshots() if snapshot.is_supported)
    for folder in [Path(chosen).expanduser()] if chosen else cached:
        if all(_vocabulary_size(folder / name) == vocabulary for name in TOKENIZERS):
            return folder
    if chosen:
        raise ModelError(
            f"{chosen}, which {TOKENIZERS_VARIABLE} names, has no tokenizers of {vocabulary} tokens.",
            Remedy("It must contain the folders tokenizer and tokenizer_2 of SDXL, each with a vocab.json."),
        )
    raise ModelError(
        f"The checkpoint {path.name} contains no tokenizers, and those of SDXL are not on this disk.",
        Remedy(command="models pull", arguments=("sdxl",), settings={"only": "tokenizers"}),
        Remedy(f"Or set {TOKENIZERS_VARIABLE} to a folder that has them."),
    )


def _vocabulary_size(folder: Path) -> int:
    """Number of tokens of a tokenizer; 0 if it cannot be read."""
    try:
        if not (folder / "tokenizer_config.json").is_file():
            return 0  # the padding token would be unknown
        if (folder / "vocab.json").is_file() and (folder / "merges.txt").is_file():
            return len(json.loads((folder / "vocab.json").read_text(encoding="utf-8")))
        if (folder / "tokenizer.json").is_file():
            text = (folder / "tokenizer.json").read_text(encoding="utf-8")
            return len(json.loads(text)["model"]["vocab"])
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        pass
    return 0
