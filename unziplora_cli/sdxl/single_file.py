"""A single checkpoint file in SDXL's original layout: what it is, what it contains, and what it borrows.

It contains no configurations and no tokenizers. The configurations of SDXL ship in the folder ``config``;
what the model predicts is read from marks in the file. Only the header of the file is read.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from unziplora_cli.errors import ModelError, Remedy, disk_advice
from unziplora_cli.files import identify, open_safetensors
from unziplora_cli.hub import list_snapshots
from unziplora_cli.paths import expand_user

TOKENIZERS = ("tokenizer", "tokenizer_2")
TOKENIZERS_VARIABLE = "UNZIPLORA_TOKENIZERS"

PREFIXES = {
    "unet": "model.diffusion_model.",
    "text_encoder": "conditioner.embedders.0.transformer.",
    "text_encoder_2": "conditioner.embedders.1.model.",
    "vae": "first_stage_model.",
}
"""Component -> the beginning of its keys in the original layout."""

_MODELS = {
    r"(double_blocks|single_transformer_blocks)\.0\.": "FLUX",
    r"(joint_blocks\.0|transformer_blocks\.0\.attn\.add_q_proj)\.": "Stable Diffusion 3",
    r"cond_stage_model\.transformer\.": "Stable Diffusion 1",
    r"cond_stage_model\.model\.": "Stable Diffusion 2",
    r"conditioner\.embedders\.0\.model\.": "the refiner of SDXL",
    r"edm_vpred\.sigma_max$": "CosXL: its U-Net expects the noise levels of EDM",
    r"edm_(mean|std)$": "Playground 2.5: its U-Net expects the noise levels of EDM",
    r"time_embed(ding)?\.cond_proj\.": "a consistency model (LCM)",
    r"(control_model|controlnet_\w+|input_hint_block)\.": "a ControlNet",
    r"(ip_adapter|image_proj)\.": "an IP-Adapter",
    r"(emb_params|string_to_param|clip_[gl])$": "a textual inversion",
}
"""What the beginning of a key, after the U-Net's prefix, says about the model."""

_QUANTIZED = {
    r"\.(absmax|quant_map|nested_absmax)$|\.quant_state\.": "4-bit weights of bitsandbytes (NF4 or FP4)",
    r"^scaled_fp8$|\.(scale_weight|weight_scale|scale_input|input_scale)$": "fp8 weights with scales",
    r"\.(qweight|qzeros|weight_packed|comfy_quant)$": "quantized weights",
}
_INTEGERS = {"I8", "U8", "I16", "I32", "I64", "BOOL"}
_LORA = re.compile(r"lora_|\.lora|hada_|lokr_|\.oft_|dora_scale")


@dataclass(frozen=True, slots=True)
class Header:
    """The tensors of a safetensors file, name -> shape and number format (``F16``), and its metadata."""

    shapes: Mapping[str, tuple[int, ...]]
    formats: Mapping[str, str]
    metadata: Mapping[str, str]

    def has(self, component: str) -> bool:
        """Whether there are tensors of a component."""
        return any(key.startswith(PREFIXES[component]) for key in self.shapes)


def read_header(path: Path) -> Header:
    """The header of a safetensors file, whatever its name ends with; raises ModelError."""
    from safetensors import SafetensorError

    try:
        with open_safetensors(path, "np") as file:  # "pt" imports torch
            slices = {key: file.get_slice(key) for key in file.keys()}  # noqa: SIM118
            return Header(
                {key: tuple(part.get_shape()) for key, part in slices.items()},
                {key: part.get_dtype() for key, part in slices.items()},
                file.metadata() or {},
            )
    except OSError as error:
        raise unreadable(path, error) from error
    except (SafetensorError, ValueError, TypeError, AttributeError) as error:
        if identified := identify(path):
            kind, remedy = identified
            raise ModelError(f"{path} is not a safetensors file: {kind}.", remedy) from error
        raise ModelError(f"{path} is damaged: {error}.", Remedy("Download the file again.")) from error


def unreadable(path: Path, error: OSError) -> ModelError:
    """The error for a file of a model that the system cannot read."""
    advice = disk_advice(error) or Remedy("Check the permissions of the file.")
    return ModelError(f"Cannot read {path}: {error.strerror or error}.", advice)


def unsupported_reason(header: Header, name: str) -> str:
    """Why the file ``name`` is not an SDXL checkpoint in the original layout; it may lack the VAE.

    Raises ModelError for a LoRA, a VAE and quantized weights.
    """
    keys = list(header.shapes)
    if sum(bool(_LORA.search(key)) for key in keys) > len(keys) / 2:
        raise ModelError(f"{name} is a LoRA, not a base.", Remedy("Import it as a project", command="import"))
    if is_vae(header):
        raise ModelError(
            f"{name} is a VAE, not a base.",
            Remedy("Use it together with a base", settings={"base": "sdxl", "vae": "FILE"}),
        )
    for pattern, model in _MODELS.items():
        if any(re.match(rf"(model\.diffusion_model\.)?{pattern}", key) for key in keys):
            return f"it is {model}"
    formats = (header.formats[key] for key in keys if key.startswith(PREFIXES["unet"]))
    reasons = [what for pattern, what in _QUANTIZED.items() if any(re.search(pattern, key) for key in keys)]
    if reasons or _INTEGERS.intersection(formats):
        raise ModelError(
            f"{name} has {(reasons or ['integer weights'])[0]}, which cannot be used.",
            Remedy("Use its version in fp16, bf16 or plain fp8."),
        )
    names = {"unet": "the U-Net", "text_encoder": "CLIP-L", "text_encoder_2": "OpenCLIP-bigG"}
    missing = [name for component, name in names.items() if not header.has(component)]
    if missing:
        return f"it lacks {', '.join(missing)} of SDXL's original layout"
    shape = header.shapes.get(PREFIXES["unet"] + "input_blocks.0.0.weight", (0, 4))
    if len(shape) < 2 or shape[1] != 4:
        return f"its U-Net takes {shape[1] if len(shape) > 1 else 0} channels (an inpainting or edit model)"
    return ""


def vae_prefix(header: Header) -> str | None:
    """What the keys of the VAE in a file begin with; None if there is none."""
    prefixes = (PREFIXES["vae"], "vae.", "")
    return next((prefix for prefix in prefixes if f"{prefix}decoder.conv_in.weight" in header.shapes), None)


def is_vae(header: Header) -> bool:
    """Whether a file contains a VAE and nothing else of a base."""
    others = ("unet", "text_encoder", "text_encoder_2")
    return vae_prefix(header) is not None and not any(map(header.has, others))


def few_step_name(header: Header, path: Path, pattern: re.Pattern[str]) -> str:
    """The word in a file's name or title that says that it was distilled to a few steps."""
    for text in (path.name, header.metadata.get("modelspec.title", "")):
        if match := pattern.search(text):
            return match[0]
    return ""


def marked_prediction(header: Header) -> str | None:
    """What the U-Net predicts, as the file says; None if it does not.

    Trainers mark a model that predicts the velocity by an empty tensor ``v_pred`` or in the ModelSpec
    metadata, and one whose last timestep is pure noise (Lin et al., arXiv 2305.08891) by ``ztsnr``.
    """
    if {"v_pred", "ztsnr"} & header.shapes.keys():
        return "v_prediction"
    names = [header.metadata.get(f"modelspec.{key}") for key in ("prediction_type", "predict_key")]
    if any(name in ("v", "v_prediction") for name in names):
        return "v_prediction"
    return "epsilon" if any(names) else None


def scheduler_config(header: Header, default: Mapping[str, Any]) -> dict[str, Any]:
    """The scheduler configuration ``default``, changed as the marks in the file say."""
    config = dict(default)
    if prediction := marked_prediction(header):
        config["prediction_type"] = prediction
    if "ztsnr" in header.shapes:
        config |= {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
    return config


def find_tokenizers(path: Path, vocabulary: int) -> Path:
    """A folder with CLIP's two tokenizers: the one in UNZIPLORA_TOKENIZERS, or that of any cached SDXL.

    ``vocabulary`` is the number of tokens that they must have. Raises ModelError if there are none.
    """
    chosen = os.environ.get(TOKENIZERS_VARIABLE)
    cached = (snapshot.path for snapshot in list_snapshots() if snapshot.is_supported)
    for folder in [expand_user(chosen)] if chosen else cached:
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
