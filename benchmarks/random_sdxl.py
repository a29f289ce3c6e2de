"""Write a base with SDXL's architecture and random weights, to measure speed and memory without a download.

    python benchmarks/random_sdxl.py DIR

DIR becomes a diffusers folder of about 7 GB in fp16 that every command accepts as ``--base DIR``. It
generates noise; its sizes, speed and memory are those of SDXL. The tokenizers are those of the built-in base.
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from unziplora_cli import resources

UNET = {
    "sample_size": 128,
    "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
    "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
    "block_out_channels": [320, 640, 1280],
    "transformer_layers_per_block": [1, 2, 10],
    "attention_head_dim": [5, 10, 20],
    "cross_attention_dim": 2048,
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816,
}
VAE = {
    "down_block_types": ["DownEncoderBlock2D"] * 4,
    "up_block_types": ["UpDecoderBlock2D"] * 4,
    "block_out_channels": [128, 256, 512, 512],
    "layers_per_block": 2,
    "latent_channels": 4,
    "sample_size": 1024,
    "scaling_factor": 0.13025,
    "force_upcast": True,
}
CLIP_L = {"hidden_size": 768, "intermediate_size": 3072, "num_attention_heads": 12, "num_hidden_layers": 12}
CLIP_BIGG = {
    "hidden_size": 1280,
    "intermediate_size": 5120,
    "num_attention_heads": 20,
    "num_hidden_layers": 32,
    "projection_dim": 1280,
    "hidden_act": "gelu",
}


def random_weights(module: nn.Module, device: str) -> nn.Module:
    """Give a meta module small random half-precision weights, created on ``device``.

    Biases are zero, norms one, matrices scaled by their fan-in.
    """
    module = module.to_empty(device=device).half()
    for name, parameter in module.named_parameters():
        if parameter.ndim > 1:
            parameter.data.normal_(std=parameter[0].numel() ** -0.5)
        else:
            parameter.data.fill_(0.0 if name.endswith("bias") else 1.0)
    for buffer_name, buffer in module.named_buffers():
        if buffer_name.endswith("position_ids"):
            buffer.copy_(torch.arange(buffer.shape[-1], device=device).expand_as(buffer))
    return module


def write(folder: Path, device: str = "cuda" if torch.cuda.is_available() else "cpu") -> None:
    """Write all parts of the base into ``folder``."""
    folder.mkdir(parents=True, exist_ok=True)
    mini = resources.mini_base()
    for part in ("tokenizer", "tokenizer_2", "scheduler"):
        shutil.copytree(mini / part, folder / part, dirs_exist_ok=True)
    shutil.copy(mini / "model_index.json", folder / "model_index.json")
    small = json.loads((mini / "text_encoder" / "config.json").read_text())
    shared = {
        key: small[key]
        for key in ("vocab_size", "bos_token_id", "eos_token_id", "pad_token_id")
        if small.get(key) is not None
    } | {"max_position_embeddings": 77}
    for part in ("tokenizer", "tokenizer_2"):
        path = folder / part / "tokenizer_config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"model_max_length": 77}, indent=2))
    torch.manual_seed(0)
    with torch.device("meta"):
        parts = {
            "unet": UNet2DConditionModel(**UNET),
            "vae": AutoencoderKL(**VAE),
            "text_encoder": CLIPTextModel(CLIPTextConfig(**CLIP_L, **shared)),
            "text_encoder_2": CLIPTextModelWithProjection(CLIPTextConfig(**CLIP_BIGG, **shared)),
        }
    for name, part in parts.items():
        random_weights(part, device).save_pretrained(folder / name, max_shard_size="20GB")
        parts[name].to("meta")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("dir", type=Path)
    write(parser.parse_args().dir)
