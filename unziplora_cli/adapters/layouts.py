"""Layouts of LoRA files: how the tensors of a file are named.

=============  ====================================================================  =============
``kohya``      ``lora_unet_down_blocks_1_attentions_0_….lora_down.weight``, alpha     read, written
``ldm``        ``lora_unet_input_blocks_4_1_….lora_down.weight``, alpha               read, written
``diffusers``  ``unet.down_blocks.1.attentions.0.….lora.down.weight``                 read, written
``peft``       ``unet.down_blocks.1.attentions.0.….lora_A.weight``                    read, written
``comfyui``    ``diffusion_model.input_blocks.4.1.….lora_A.weight``, alpha            read
``paper``      ``unet.unet.down_blocks.1.attentions.0.….lora.down.weight``            read
=============  ====================================================================  =============

The update of a layer is ``alpha / rank * up @ down``, or ``up @ down`` without alpha. PEFT files carry alpha
in the ``lora_adapter_metadata`` entry of the header. A file holds no other tensors.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import isfinite
from typing import Literal

import torch
from torch import Tensor

from unziplora_cli.adapters.layer_names import diffusers_layer, ldm_layer, to_ldm
from unziplora_cli.adapters.tensors import DAMAGED, summarize
from unziplora_cli.errors import AdapterError, Remedy
from unziplora_cli.method.lora import LoRA, LoRAWeights

LayoutName = Literal["kohya", "ldm", "diffusers", "peft"]
"""The layouts that can be written."""

ADAPTER_METADATA = "lora_adapter_metadata"

_ORIGINAL_CODE = "https://github.com/Stability-AI/generative-models"
_KOHYA = {".lora_down.weight": "down", ".lora_up.weight": "up"}
_PEFT = {".lora_A.weight": "down", ".lora_B.weight": "up"}
_DIFFUSERS = {".lora.down.weight": "down", ".lora.up.weight": "up"}
_ALPHA = {".alpha": "alpha"}


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
        return key.startswith(self.prefix) and key.endswith(tuple(self.suffixes))

    def split(self, key: str) -> tuple[str, str] | None:
        """The layer of a key, and what it holds of it: "down", "up" or "alpha"; None in another layout."""
        if not self.recognizes(key):
            return None
        suffix = next(suffix for suffix in self.suffixes if key.endswith(suffix))
        name = key.removeprefix(self.prefix).removesuffix(suffix)
        if ("." in name) == self.prefix.endswith("_"):
            return None
        layer = ldm_layer(name) if self.ldm else diffusers_layer(name)
        return (layer, self.suffixes[suffix]) if layer else None


_FAMILIES = (
    (
        Layout("kohya", "lora_unet_", _KOHYA | _ALPHA),
        Layout("ldm", "lora_unet_", _KOHYA | _ALPHA, ldm=True),
    ),
    (Layout("comfyui", "diffusion_model.", _PEFT | _KOHYA | _DIFFUSERS | _ALPHA, ldm=True),),
    (
        Layout("diffusers", "unet.", _DIFFUSERS),
        Layout("peft", "unet.", _PEFT),
        Layout("paper", "unet.unet.", _DIFFUSERS | _PEFT),
    ),
)
"""Layouts that one file may mix stand together."""

LAYOUTS = {layout.name: layout for family in _FAMILIES for layout in family}


def parse(
    tensors: Mapping[str, Tensor], metadata: Mapping[str, str]
) -> tuple[tuple[str, ...], dict[str, LoRAWeights]]:
    """The names of the layouts of a file, and its LoRA in float32 at scale 1.

    No layout means that the file is no LoRA in a known layout. Raises AdapterError when the file holds
    anything but LoRAs of attention projections, or a layer is incomplete, has two names, mismatched shapes
    or numbers that are not finite.
    """
    family = next((family for family in _FAMILIES if _any_recognized(family, tensors)), None)
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
    if family[0].alpha:
        scales = {layer: float(alpha) for layer, alpha in alphas.items()}
    else:
        scales = _header_alphas(metadata, downs)
    return tuple(names), {layer: _weights(layer, down, ups[layer], scales) for layer, down in downs.items()}


def encode(lora: LoRA, name: LayoutName, dtype: torch.dtype) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors of a file and the metadata that its layout requires; layers with a zero update are omitted.

    All layers get the alpha of the largest rank, because diffusers misapplies files whose alphas differ; a
    layer of smaller rank gets a larger ``up`` in return.
    """
    layout = LAYOUTS[name]
    layers = nonzero_layers(lora)
    ranks = {layer: weights.rank for layer, weights in layers.items()}
    rank = max(ranks.values(), default=0)
    tensors: dict[str, Tensor] = {}
    for layer, weights in layers.items():
        module = layout.module(layer)
        down, up = (module + suffix for suffix in list(layout.suffixes)[:2])
        tensors[down] = weights.down.to(dtype)
        tensors[up] = (weights.up * (weights.rank / rank) if layout.alpha else weights.up).to(dtype)
        if layout.alpha:
            tensors[f"{module}.alpha"] = torch.tensor(float(rank), dtype=dtype)
    metadata = {"modelspec.implementation": _ORIGINAL_CODE if layout.ldm else "diffusers"}
    if layout.alpha:
        network = {"module": "networks.lora", "dim": str(rank), "alpha": str(rank)}
        metadata |= {f"ss_network_{key}": value for key, value in network.items()}
    if name == "peft":
        smaller = {layer: value for layer, value in ranks.items() if value != rank}
        adapter = {
            "r": rank,
            "lora_alpha": rank,
            "rank_pattern": smaller,
            "alpha_pattern": smaller,
            "target_modules": sorted(layers),
            "peft_type": "LORA",
        }
        prefixed = {layout.prefix + key: value for key, value in adapter.items()}
        metadata[ADAPTER_METADATA] = json.dumps(prefixed, sort_keys=True)
    return tensors, metadata


def nonzero_layers(lora: LoRA) -> dict[str, LoRAWeights]:
    """The layers whose update is not zero; the others need not be written."""
    return {layer: weights for layer, weights in lora.items() if bool(torch.any(weights.up != 0))}


def _any_recognized(family: Iterable[Layout], keys: Iterable[str]) -> bool:
    return any(layout.recognizes(key) for layout in family for key in keys)


def _checked(key: str, part: str, tensor: Tensor) -> Tensor:
    if part == "alpha":
        if tensor.numel() != 1 or tensor.is_complex() or not isfinite(float(tensor)):
            raise AdapterError(f"{key} is not one finite number.", DAMAGED)
    elif not tensor.is_floating_point():
        kind = str(tensor.dtype).removeprefix("torch.")
        raise AdapterError(f"{key} holds {kind} numbers instead of floating-point weights.", DAMAGED)
    return tensor


def _weights(layer: str, down: Tensor, up: Tensor, alphas: Mapping[str, float]) -> LoRAWeights:
    """``down`` [rank, in] and ``up`` [out, rank] in float32, with alpha / rank multiplied into ``up``."""
    if down.ndim != 2 or up.ndim != 2 or down.shape[0] != up.shape[1] or down.shape[0] == 0:
        raise AdapterError(
            f"The shapes of the LoRA for {layer} do not match: down is {tuple(down.shape)}, "
            f"up is {tuple(up.shape)}.",
            Remedy("The file is damaged, or it is not a LoRA of linear layers."),
        )
    down, up = down.float(), up.float()
    if not (torch.isfinite(down).all() and torch.isfinite(up).all()):
        raise AdapterError(
            f"The LoRA for {layer} holds infinite or undefined numbers.",
            Remedy("Its training diverged, or the file is damaged; use another file."),
        )
    scale = alphas.get(layer, float(down.shape[0])) / down.shape[0]
    return LoRAWeights(down=down, up=up if scale == 1 else up * scale)


def _header_alphas(metadata: Mapping[str, str], layers: Iterable[str]) -> dict[str, float]:
    """The alpha of every layer in the header of a PEFT file; empty without such an entry."""
    if ADAPTER_METADATA not in metadata:
        return {}
    try:
        adapter = json.loads(metadata[ADAPTER_METADATA])
        pattern = adapter.get("unet.alpha_pattern") or {}
        alpha = float(adapter["unet.lora_alpha"])
        alphas = {layer: float(pattern.get(layer, alpha)) for layer in layers}
        if not all(map(isfinite, alphas.values())):
            raise ValueError("an alpha is not finite")
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise AdapterError(f"The header's {ADAPTER_METADATA} cannot be read: {error!r}.") from error
    return alphas


# Files that are recognized, but cannot be used

_OTHER_METHOD = "Only plain LoRAs can be used: down and up weights for each layer."
_OTHER_MODEL = "Only LoRAs of SDXL and of models derived from it can be used."
_UNSUPPORTED = (
    (r"\.hada_w[12]", "a LoHa", _OTHER_METHOD),
    (r"\.lokr_w[12]", "a LoKr", _OTHER_METHOD),
    (r"\.(oft_|on_input|ia3)", "an OFT or IA3 adapter", _OTHER_METHOD),
    (r"\.(dora_scale|lora_magnitude_vector)", "a DoRA", _OTHER_METHOD),
    (r"\.(diff|diff_b|set_weight|lora_mid\.weight)$", "a LyCORIS of more than LoRAs", _OTHER_METHOD),
    (r"(double|single)_blocks[._]|single_transformer_blocks", "a LoRA for FLUX", _OTHER_MODEL),
    (
        r"^(transformer\.|lora_transformer_)|joint_blocks",
        "a LoRA for a diffusion transformer such as SD 3",
        _OTHER_MODEL,
    ),
    (
        r"down_blocks[._]0[._]attentions|up_blocks[._]3[._]attentions|input_blocks[._][12][._]1[._]"
        r"|output_blocks[._](9|1\d)[._]1[._]",
        "a LoRA for Stable Diffusion 1.5 or 2",
        _OTHER_MODEL,
    ),
    (
        r"^(lora_te\d?_|text_encoder)",
        "a LoRA that adapts the text encoders as well",
        "Train or extract it for the U-Net alone; the method does not adapt text encoders.",
    ),
)


def refuse_unsupported(name: str, keys: Iterable[str]) -> None:
    """Raise AdapterError when a file with these keys is an adapter of another method or model."""
    keys = list(keys)
    for pattern, kind, advice in _UNSUPPORTED:
        key = next((key for key in keys if re.search(pattern, key)), None)
        if key is not None:
            raise AdapterError(f"{name} is {kind} (it holds {key}).", Remedy(advice))
