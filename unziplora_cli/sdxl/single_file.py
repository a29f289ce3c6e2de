"""A single checkpoint file in SDXL's original layout: what it holds, and what it has to borrow.

It carries no configuration and no tokenizers. Configurations ship in the folder `sdxl`; what a model predicts
is read from marks in the file.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from unziplora_cli.errors import ModelError
from unziplora_cli.hub import list_snapshots
from unziplora_cli.sdxl.shape import unsupported_model

TOKENIZERS = ("tokenizer", "tokenizer_2")
TOKENIZERS_VARIABLE = "UNZIPLORA_TOKENIZERS"


def check_file(path: Path) -> None:
    """Raise ModelError unless the file is an SDXL checkpoint in the original layout."""
    from safetensors import SafetensorError, safe_open

    if path.suffix != ".safetensors":
        raise ModelError(
            f"{path.name} is not a .safetensors file; other checkpoints can run code when they are opened.",
            hint="Convert it to safetensors, or give a folder or a Hugging Face id.",
        )
    try:
        with safe_open(path, framework="pt") as file:
            keys = set(file.keys())
            first = "model.diffusion_model.input_blocks.0.0.weight"
            channels = file.get_slice(first).get_shape()[1] if first in keys else None
    except (SafetensorError, OSError) as error:
        raise ModelError(f"{path} is damaged or cut short: {error}.", hint="Fetch the file again.") from error
    if any("lora" in key for key in keys):
        raise ModelError(f"{path.name} is a LoRA, not a base.", hint="unziplora import takes LoRAs.")
    parts = {
        "the U-Net": "model.diffusion_model.label_emb.0.0.weight",
        "the first text encoder": "conditioner.embedders.0.transformer.",
        "the second text encoder": "conditioner.embedders.1.model.",
        "the VAE": "first_stage_model.decoder.",
    }
    missing = [part for part, prefix in parts.items() if not any(key.startswith(prefix) for key in keys)]
    if missing:
        raise unsupported_model(path, f"it lacks {', '.join(missing)} of SDXL")
    if channels != 4:
        raise unsupported_model(path, f"its U-Net takes {channels} channels (an inpainting or edit model)")


def scheduler_config(path: Path, default: Mapping[str, Any]) -> dict[str, Any]:
    """SDXL's scheduler, changed as the file's marks say.

    Trainers mark a model that predicts the velocity by an empty tensor `v_pred` or in the ModelSpec metadata,
    and one whose last timestep is pure noise (Lin et al., arXiv 2305.08891) by `ztsnr`.
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


def find_tokenizers(path: Path, tokens: int) -> Path:
    """A folder with CLIP's tokenizers of `tokens` words: that in UNZIPLORA_TOKENIZERS, or any cached SDXL's.

    Raises ModelError when there is none.
    """
    given = os.environ.get(TOKENIZERS_VARIABLE)
    for folder in (
        [Path(given).expanduser()] if given else (each.path for each in list_snapshots() if each.is_supported)
    ):
        if all(_words(folder / name) == tokens for name in TOKENIZERS):
            return folder
    if given:
        raise ModelError(
            f"{given}, which {TOKENIZERS_VARIABLE} names, has no tokenizers of {tokens} words.",
            hint="It must hold the folders tokenizer and tokenizer_2 of SDXL, each with a vocab.json.",
        )
    raise ModelError(
        f"The checkpoint {path.name} carries no tokenizers, and SDXL's are not on this disk.",
        hint="unziplora models pull sdxl --only tokenizers"
        f"   (or set {TOKENIZERS_VARIABLE} to a folder that has them)",
    )


def _words(folder: Path) -> int:
    """How many words a tokenizer knows; 0 for none that can be read."""
    try:
        if not (folder / "tokenizer_config.json").is_file():
            return 0  # which token fills the rest of a text would be unknown
        if (folder / "vocab.json").is_file() and (folder / "merges.txt").is_file():
            return len(json.loads((folder / "vocab.json").read_text(encoding="utf-8")))
        if (folder / "tokenizer.json").is_file():
            text = (folder / "tokenizer.json").read_text(encoding="utf-8")
            return len(json.loads(text)["model"]["vocab"])
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        pass
    return 0
