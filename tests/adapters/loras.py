"""Random LoRAs for a narrow U-Net with SDXL's blocks, and files of them in every layout."""

import re
from functools import cache
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from tests.tiny_base import unet_config
from unziplora_cli.adapters.layer_names import to_ldm
from unziplora_cli.adapters.lora_file import write_lora
from unziplora_cli.method.inject import adapted_projections
from unziplora_cli.method.lora import LoRAWeights
from unziplora_cli.sdxl.meta import meta_unet

SDXL_BLOCKS = {**unet_config(), "transformer_layers_per_block": (1, 2, 10)}
"""SDXL's 70 transformer blocks with 560 projections, 40 times narrower."""

LAYOUT_NAMES = (
    "sd-scripts",
    "kohya-diffusers",
    "diffusers",
    "diffusers-old",
    "attn-procs",
    "peft",
    "comfyui",
    "lycoris",
    "onetrainer",
    "peft-folder",
    "paper",
)


@cache
def _projection_sizes() -> dict[str, tuple[int, int]]:
    """Input and output features of every projection."""
    projections = adapted_projections(meta_unet(SDXL_BLOCKS))
    return {name: (linear.in_features, linear.out_features) for name, linear in projections.items()}


def sdxl_lora(seed: int = 0, rank: int = 2) -> dict[str, LoRAWeights]:
    """A LoRA on every projection, exact in float16."""
    generator = torch.Generator().manual_seed(seed)

    def random(*shape: int) -> torch.Tensor:
        return (torch.randn(*shape, generator=generator) * 0.25).half().float()

    return {
        name: LoRAWeights(down=random(rank, inputs), up=random(outputs, rank))
        for name, (inputs, outputs) in _projection_sizes().items()
    }


def write_as(path: Path, lora: dict[str, LoRAWeights], layout: str) -> Path:
    """Write a LoRA in any layout, also in those that we only read."""
    if layout in ("sd-scripts", "kohya-diffusers", "diffusers", "peft"):
        write_lora(path, lora, layout=layout)  # type: ignore[arg-type]
        return path
    tensors = {}
    for layer, weights in lora.items():
        attention, projection = re.fullmatch(r"(.*\.attn[12])\.(to_\w+)(?:\.0)?", layer).groups()  # type: ignore[union-attr]
        down, up = {
            "comfyui": ("lora_A", "lora_B"),
            "peft-folder": ("lora_A", "lora_B"),
            "paper": ("lora.down", "lora.up"),
            "diffusers-old": ("down", "up"),
            "attn-procs": ("down", "up"),
        }.get(layout, ("lora_down", "lora_up"))
        module = {
            "comfyui": f"diffusion_model.{to_ldm(layer)}",
            "lycoris": f"lycoris_{layer.replace('.', '_')}",
            "onetrainer": to_ldm(layer),
            "peft-folder": f"base_model.model.{layer}",
            "paper": f"unet.unet.{layer}",
            "attn-procs": f"{attention}.processor.{projection}_lora",
            "diffusers-old": f"unet.{attention}.processor.{projection}_lora",
        }[layout]
        tensors[f"{module}.{down}.weight"], tensors[f"{module}.{up}.weight"] = weights.down, weights.up
    if layout == "peft-folder":
        rank = next(iter(lora.values())).rank
        path.with_name("adapter_config.json").write_text(f'{{"r": {rank}, "lora_alpha": {rank}}}')
    save_file(tensors, path)
    return path


def change(path: Path, **changes: torch.Tensor | None) -> Path:
    """The same file with some tensors replaced, added or (None) removed."""
    tensors = {**load_file(path), **changes}
    save_file({key: tensor for key, tensor in tensors.items() if tensor is not None}, path)
    return path
