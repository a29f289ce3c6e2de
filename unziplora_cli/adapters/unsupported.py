"""Files that are LoRAs of some kind, but none that this program can use: what they are, in words."""

from __future__ import annotations

import re
from collections.abc import Iterable

from unziplora_cli.errors import AdapterError

_OTHER_METHODS = "Only plain LoRAs can be used: up and down weights for each layer."
_OTHER_MODELS = "Only LoRAs of SDXL and of models made from it can be used."
_KINDS = (
    (r"\.hada_w[12]", "a LoHa", _OTHER_METHODS),
    (r"\.lokr_w[12]", "a LoKr", _OTHER_METHODS),
    (r"\.(oft_|on_input|ia3)", "an OFT or IA3 adapter", _OTHER_METHODS),
    (r"\.(dora_scale|lora_magnitude_vector)", "a DoRA", _OTHER_METHODS),
    (
        r"\.(diff|diff_b|set_weight|lora_mid\.weight)$",
        "a LyCORIS of more than LoRAs",
        _OTHER_METHODS,
    ),
    (r"(double|single)_blocks[._]|single_transformer_blocks", "a LoRA for FLUX", _OTHER_MODELS),
    (
        r"^(transformer\.|lora_transformer_)|joint_blocks",
        "a LoRA for a diffusion transformer such as SD 3",
        _OTHER_MODELS,
    ),
    (
        r"down_blocks[._]0[._]attentions|up_blocks[._]3[._]attentions|input_blocks[._][12][._]1[._]"
        r"|output_blocks[._](9|1\d)[._]1[._]",
        "a LoRA for Stable Diffusion 1.5 or 2",
        _OTHER_MODELS,
    ),
    (
        r"^(lora_te\d?_|text_encoder)",
        "a LoRA that adapts the text encoders as well",
        "Train or extract it for the U-Net alone: the method has no place for the text encoders.",
    ),
)


def refuse_unsupported(name: str, keys: Iterable[str]) -> None:
    """Raise AdapterError when a file with these keys is of a kind that is known and cannot be used."""
    keys = list(keys)
    for pattern, kind, hint in _KINDS:
        found = next((key for key in keys if re.search(pattern, key)), None)
        if found is not None:
            raise AdapterError(f"{name} is {kind} (it holds {found}).", hint=hint)
