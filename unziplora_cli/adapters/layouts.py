"""Layouts of LoRA files: how the tensors of a file are named.

===================  ======================================================================  =============
``sd-scripts``       ``lora_unet_input_blocks_4_1_….lora_down.weight``, alpha                  read, written
``kohya-diffusers``  ``lora_unet_down_blocks_1_attentions_0_….lora_down.weight``, alpha        read, written
``diffusers``        ``unet.down_blocks.1.attentions.0.….lora.down.weight``                    read, written
``diffusers-old``    ``unet.down_blocks.1.attentions.0.….processor.to_k_lora.down.weight``     read
``attn-procs``       ``down_blocks.1.attentions.0.….processor.to_k_lora.down.weight``          read
``peft``             ``unet.down_blocks.1.attentions.0.….lora_A.weight``                       read, written
``comfyui``          ``diffusion_model.input_blocks.4.1.….lora_A.weight``, alpha               read
``lycoris``          ``lycoris_down_blocks_1_attentions_0_….lora_down.weight``, alpha          read
``onetrainer``       ``input_blocks.4.1.….lora_down.weight``, alpha                            read
``peft-folder``      ``base_model.model.down_blocks.1.….lora_A.weight``                        read
``paper``            ``unet.unet.down_blocks.1.attentions.0.….lora.down.weight``               read
===================  ======================================================================  =============

The update of a layer is ``alpha / rank * up @ down``, or ``up @ down`` without alpha. PEFT files carry alpha
in the ``lora_adapter_metadata`` entry of the header, PEFT folders in ``adapter_config.json``. A file holds no
other tensors.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import pad

from unziplora_cli.adapters.adapter_config import ADAPTER_METADATA, folder_config, header_config, read_scales
from unziplora_cli.adapters.layer_names import diffusers_layer, ldm_layer, processor_layer, to_ldm
from unziplora_cli.adapters.tensors import DAMAGED, summarize
from unziplora_cli.errors import AdapterError, Remedy
from unziplora_cli.method.lora import LoRA, LoRAWeights

LayoutName = Literal["sd-scripts", "kohya-diffusers", "diffusers", "peft"]
"""The layouts that can be written."""

LARGEST_UPDATE = torch.finfo(torch.float16).max
"""Updates that may exceed this number can only produce noise, and overflow in half precision."""

_ORIGINAL_CODE = "https://github.com/Stability-AI/generative-models"
_KOHYA = {".lora_down.weight": "down", ".lora_up.weight": "up"}
_PEFT = {".lora_A.weight": "down", ".lora_B.weight": "up"}
_PEFT_NAMED = {".lora_A.default.weight": "down", ".lora_B.default.weight": "up"}
_DIFFUSERS = {".lora.down.weight": "down", ".lora.up.weight": "up"}
_PROCESSOR = {"_lora.down.weight": "down", "_lora.up.weight": "up"}
_ALPHA = {".alpha": "alpha"}
_LDM_BLOCKS = ("input_blocks.", "middle_block.", "output_blocks.")
_DIFFUSERS_BLOCKS = ("down_blocks.", "mid_block.", "up_blocks.")


@dataclass(frozen=True, slots=True)
class Layout:
    """One way to name tensors: prefix, name of the layer, and suffix.

    ``suffixes`` tells whether a tensor is "down", "up" or "alpha"; the first two are written. ``ldm`` uses
    the layer names of the original code. After a prefix that ends in an underscore, dots become underscores.
    """

    name: str
    prefix: str
    suffixes: Mapping[str, str]
    ldm: bool = False

    @property
    def alpha(self) -> bool:
        """Whether alphas are tensors of the file."""
        return ".alpha" in self.suffixes

    def module(self, layer: str) -> str:
        """The name of a layer in this layout, without a suffix."""
        name = to_ldm(layer) if self.ldm else layer
        return self.prefix + (name.replace(".", "_") if self.prefix.endswith("_") else name)

    def recognizes(self, key: str) -> bool:
        """Whether a key has the prefix and a suffix of this layout, whatever it names."""
        start = self.prefix or (_LDM_BLOCKS if self.ldm else _DIFFUSERS_BLOCKS)
        return key.startswith(start) and key.endswith(tuple(self.suffixes))

    def split(self, key: str) -> tuple[str, str] | None:
        """The layer of a key, and what it holds of it: "down", "up" or "alpha"; None in another layout."""
        if not self.recognizes(key):
            return None
        suffix = next(suffix for suffix in self.suffixes if key.endswith(suffix))
        name = key.removeprefix(self.prefix).removesuffix(suffix)
        if ("." in name) == self.prefix.endswith("_"):
            return None
        find = ldm_layer if self.ldm else processor_layer if suffix in _PROCESSOR else diffusers_layer
        layer = find(name)
        return (layer, self.suffixes[suffix]) if layer else None


_FAMILIES = (
    (
        Layout("sd-scripts", "lora_unet_", _KOHYA | _ALPHA, ldm=True),
        Layout("kohya-diffusers", "lora_unet_", _KOHYA | _ALPHA),
    ),
    (
        Layout("lycoris", "lycoris_", _KOHYA | _ALPHA),
        Layout("lycoris", "lycoris_", _KOHYA | _ALPHA, ldm=True),
    ),
    (Layout("comfyui", "diffusion_model.", _PEFT | _KOHYA | _DIFFUSERS | _ALPHA, ldm=True),),
    (
        Layout("paper", "unet.unet.", _DIFFUSERS | _PEFT),
        Layout("diffusers", "unet.", _DIFFUSERS),
        Layout("diffusers-old", "unet.", _PROCESSOR),
        Layout("attn-procs", "", _PROCESSOR),
        Layout("peft", "unet.", _PEFT),
    ),
    (
        Layout("peft-folder", "base_model.model.unet.", _PEFT | _PEFT_NAMED),
        Layout("peft-folder", "base_model.model.", _PEFT | _PEFT_NAMED),
        Layout("peft-folder", "", _PEFT | _PEFT_NAMED),
    ),
    (Layout("onetrainer", "", _PEFT | _KOHYA | _ALPHA, ldm=True),),
)
"""Layouts that one file may mix stand together."""

LAYOUTS = {layout.name: layout for family in _FAMILIES for layout in family}


def parse(
    tensors: Mapping[str, Tensor], metadata: Mapping[str, str], path: Path | None = None
) -> tuple[tuple[str, ...], dict[str, LoRAWeights]]:
    """The names of the layouts of a file, and its LoRA in float32 at scale 1.

    No layout means that the file is no LoRA in a known layout. ``path`` is where the configuration of a PEFT
    folder is looked for. Raises AdapterError when the file holds anything but LoRAs of attention projections,
    or a layer is incomplete, has two names, mismatched shapes or numbers that are not finite or too large.
    """
    recognized = (f for f in _FAMILIES if any(layout.recognizes(key) for layout in f for key in tensors))
    family = next(recognized, None)
    if family is None:
        return (), {}
    names: dict[str, None] = {}
    parts: dict[str, dict[str, Tensor]] = {"down": {}, "up": {}, "alpha": {}}
    unknown = []
    for key, tensor in tensors.items():
        matches = [(layout.name, *match) for layout in family if (match := layout.split(key))]
        if not matches:
            unknown.append(key)
            continue
        name, layer, part = matches[0]
        if layer in parts[part]:
            raise AdapterError(f"The file has two tensors for {layer} ({part}).", DAMAGED)
        names[name] = None
        parts[part][layer] = _checked(key, part, tensor)
    if unknown:
        raise AdapterError(
            f"The file adapts more than the attention of SDXL's U-Net: {summarize(unknown)}.",
            Remedy("Only LoRAs of SDXL's attention projections can be used."),
        )
    downs, ups, alphas = parts.values()
    incomplete = sorted((downs.keys() | ups.keys() | alphas.keys()) - (downs.keys() & ups.keys()))
    if incomplete:
        raise AdapterError(f"The file holds only one half of the LoRA for {summarize(incomplete)}.", DAMAGED)
    for layer, down in downs.items():
        _check_shapes(layer, down, ups[layer])
    ranks = {layer: down.shape[0] for layer, down in downs.items()}
    if family[0].alpha:
        scales = {layer: float(alpha) / ranks[layer] for layer, alpha in alphas.items()}
    else:
        config = header_config(metadata)
        if config is None and "peft-folder" in names and path is not None:
            config = folder_config(path)
        scales = read_scales(config, ranks)
    return tuple(names), {
        layer: _weights(layer, down, ups[layer], scales.get(layer, 1.0)) for layer, down in downs.items()
    }


def encode(lora: LoRA, name: LayoutName, dtype: torch.dtype) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors of a file and the metadata that its layout requires; layers with a zero update are omitted.

    Programs misapply files whose alphas differ (diffusers 0.42), or whose ranks differ without alphas
    (diffusers 0.37). So all layers get the alpha of the largest rank, and a layer of smaller rank gets a
    larger ``up`` in return; where the layout has no alphas, it is padded with zeros to the largest rank.
    """
    layout = LAYOUTS[name]
    layers = nonzero_layers(lora)
    if layout.ldm and any(ldm_layer(to_ldm(layer)) != layer for layer in layers):
        layout = LAYOUTS["kohya-diffusers"]  # a U-Net whose blocks have no unique names in the original code
    rank = max((weights.rank for weights in layers.values()), default=0)
    tensors: dict[str, Tensor] = {}
    for layer, weights in layers.items():
        module = layout.module(layer)
        down, up = (module + suffix for suffix in list(layout.suffixes)[:2])
        if layout.alpha:
            tensors[down] = weights.down.to(dtype)
            tensors[up] = (weights.up * (weights.rank / rank)).to(dtype)
            tensors[f"{module}.alpha"] = torch.tensor(float(rank))  # bfloat16 would round it
        else:
            missing = rank - weights.rank
            tensors[down] = pad(weights.down, (0, 0, 0, missing)).to(dtype)
            tensors[up] = pad(weights.up, (0, missing)).to(dtype)
    metadata = {"modelspec.implementation": _ORIGINAL_CODE if layout.ldm else "diffusers"}
    if layout.alpha:
        network = {"module": "networks.lora", "dim": str(rank), "alpha": str(float(rank))}
        metadata |= {f"ss_network_{key}": value for key, value in network.items()}
    if name == "peft":
        adapter = {
            "r": rank,
            "lora_alpha": rank,
            "rank_pattern": {},  # diffusers 0.37 requires both patterns
            "alpha_pattern": {},
            "target_modules": sorted(layers),
            "peft_type": "LORA",
        }
        prefixed = {layout.prefix + key: value for key, value in adapter.items()}
        metadata[ADAPTER_METADATA] = json.dumps(prefixed, sort_keys=True)
    return tensors, metadata


def nonzero_layers(lora: LoRA) -> dict[str, LoRAWeights]:
    """The layers whose update is not zero; the others need not be written."""
    return {layer: weights for layer, weights in lora.items() if bool(torch.any(weights.up != 0))}


def _checked(key: str, part: str, tensor: Tensor) -> Tensor:
    if part == "alpha":
        if tensor.numel() != 1 or tensor.is_complex() or not isfinite(float(tensor)):
            raise AdapterError(f"{key} is not one finite number.", DAMAGED)
    elif not tensor.is_floating_point():
        kind = str(tensor.dtype).removeprefix("torch.")
        raise AdapterError(f"{key} holds {kind} numbers instead of floating-point weights.", DAMAGED)
    return tensor


def _check_shapes(layer: str, down: Tensor, up: Tensor) -> None:
    if down.ndim != 2 or up.ndim != 2 or down.shape[0] != up.shape[1] or down.shape[0] == 0:
        raise AdapterError(
            f"The shapes of the LoRA for {layer} do not match: down is {tuple(down.shape)}, "
            f"up is {tuple(up.shape)}.",
            Remedy("The file is damaged, or it is not a LoRA of linear layers."),
        )


def _weights(layer: str, down: Tensor, up: Tensor, scale: float) -> LoRAWeights:
    """``down`` [rank, in] and ``up`` [out, rank] in float32, with the scale multiplied into ``up``."""
    down, up = down.float(), up.float()
    if not (torch.isfinite(down).all() and torch.isfinite(up).all()):
        raise AdapterError(
            f"The LoRA for {layer} holds infinite or undefined numbers.",
            Remedy("Its training diverged, or the file is damaged; use another file."),
        )
    largest = abs(scale) * float(up.abs().amax()) * float(down.abs().amax())
    if largest > LARGEST_UPDATE:
        raise AdapterError(
            f"The LoRA for {layer} changes weights by up to {largest:.0e}, which leaves only noise.",
            Remedy("Its training diverged, or the file is damaged; use another file."),
        )
    return LoRAWeights(down=down, up=up if scale == 1 else up * scale)


# Files that are recognized, but cannot be used

_OTHER_METHODS = {
    r"\.hada_w[12]": "a LoHa",
    r"\.lokr_w[12]": "a LoKr",
    r"\.[ab][12]\.weight$": "a GLoRA",
    r"\.(oft_|on_input|ia3)": "an OFT or IA3 adapter",
    r"\.(dora_scale|lora_magnitude_vector)": "a DoRA",
    r"\.(diff|diff_b|set_weight|lora_mid\.weight)$": "a LyCORIS of more than LoRAs",
    r"^(emb_params|clip_[lg]|string_to_param)$": "a textual inversion",
}
_CHECKPOINT = r"^(model\.diffusion_model|conditioner|first_stage_model|cond_stage_model)\."
_CONTROLNET = r"^(control_model|controlnet_|input_hint_block)"
_OTHER_MODELS = {
    r"blocks[._]\d+[._](self_attn|cross_attn)[._][qkvo]\b|blocks_\d+_(self|cross)_attn_[qkvo]": "Wan",
    r"(^|[._])layers[._]\d+[._]attention[._](to_[qkv]|to_out)": "Z-Image",
    r"(^|[._])layers[._]\d+[._](attention|feed_forward|adaLN)|(noise|context)_refiner[._]": (
        "Lumina or Z-Image"
    ),
    r"transformer_blocks[._]\d+[._](img|txt)_m|[._]attn[._]add_q_proj": (
        "Qwen-Image or another diffusion transformer"
    ),
    r"(double|single)_blocks[._]|single_transformer_blocks": "FLUX",
    r"^lora_(prior_)?unet_.*prior|^lora_prior": "Stable Cascade",
    r"^(transformer\.|lora_transformer_)|joint_blocks|^lora_unet_(transformer_)?blocks_": (
        "a diffusion transformer such as SD 3"
    ),
    r"down_blocks[._]0[._]attentions|up_blocks[._]3[._]attentions|input_blocks[._][12][._]1[._]"
    r"|output_blocks[._](9|1\d)[._]1[._]": "Stable Diffusion 1.5 or 2",
}
_TEXT_ENCODERS = r"^(lora_te\d?_|text_encoder|lycoris_text_model|base_model\.model\.text_)"

_PLAIN = "Only plain LoRAs can be used: down and up weights for each layer."
_SDXL = "Only LoRAs of SDXL and of models derived from it can be used."
_UNSUPPORTED = (
    *((pattern, kind, _PLAIN) for pattern, kind in _OTHER_METHODS.items()),
    (_CHECKPOINT, "a whole checkpoint", "Use it as the base of a training instead."),
    (_CONTROLNET, "a ControlNet", _PLAIN),
    *((pattern, f"a LoRA for {model}", _SDXL) for pattern, model in _OTHER_MODELS.items()),
    (
        _TEXT_ENCODERS,
        "a LoRA that adapts the text encoders as well",
        "Train or extract it for the U-Net alone; the method does not adapt text encoders.",
    ),
)
"""Patterns of keys, what a file with such a key is, and what to do; the first one counts."""


def refuse_unsupported(name: str, keys: Iterable[str]) -> None:
    """Raise AdapterError when a file with these keys is an adapter of another method or model."""
    keys = list(keys)
    for pattern, kind, advice in _UNSUPPORTED:
        key = next((key for key in keys if re.search(pattern, key)), None)
        if key is not None:
            raise AdapterError(f"{name} is {kind} (it holds {key}).", Remedy(advice))
