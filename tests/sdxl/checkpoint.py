"""A diffusers folder as one checkpoint file in SDXL's original layout."""

import re
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

Rule = tuple[str, str | Callable[[re.Match[str]], str]]

RESNET: list[Rule] = [
    ("norm1", "in_layers.0"),
    ("conv1", "in_layers.2"),
    ("time_emb_proj", "emb_layers.1"),
    ("norm2", "out_layers.0"),
    ("conv2", "out_layers.3"),
    ("conv_shortcut", "skip_connection"),
]

UNET: list[Rule] = [
    (r"^time_embedding\.linear_(\d)", lambda m: f"time_embed.{2 * int(m[1]) - 2}"),
    (r"^add_embedding\.linear_(\d)", lambda m: f"label_emb.0.{2 * int(m[1]) - 2}"),
    (r"^conv_in", "input_blocks.0.0"),
    (r"^conv_norm_out", "out.0"),
    (r"^conv_out", "out.2"),
    (r"^mid_block\.resnets\.(\d)", lambda m: f"middle_block.{2 * int(m[1])}"),
    (r"^mid_block\.attentions\.0", "middle_block.1"),
    (r"^down_blocks\.(\d)\.downsamplers\.0\.conv", lambda m: f"input_blocks.{3 * int(m[1]) + 3}.0.op"),
    (r"^down_blocks\.(\d)\.resnets\.(\d)", lambda m: f"input_blocks.{3 * int(m[1]) + int(m[2]) + 1}.0"),
    (r"^down_blocks\.(\d)\.attentions\.(\d)", lambda m: f"input_blocks.{3 * int(m[1]) + int(m[2]) + 1}.1"),
    (r"^up_blocks\.(\d)\.upsamplers\.0", lambda m: f"output_blocks.{3 * int(m[1]) + 2}.2"),
    (r"^up_blocks\.(\d)\.resnets\.(\d)", lambda m: f"output_blocks.{3 * int(m[1]) + int(m[2])}.0"),
    (r"^up_blocks\.(\d)\.attentions\.(\d)", lambda m: f"output_blocks.{3 * int(m[1]) + int(m[2])}.1"),
]

VAE: list[Rule] = [
    (r"mid_block\.resnets\.(\d)", lambda m: f"mid.block_{int(m[1]) + 1}"),
    (r"mid_block\.attentions\.0", "mid.attn_1"),
    (r"down_blocks\.(\d)\.downsamplers\.0", r"down.\1.downsample"),
    (r"down_blocks\.(\d)\.resnets", r"down.\1.block"),
    (r"up_blocks\.(\d)\.upsamplers\.0", lambda m: f"up.{3 - int(m[1])}.upsample"),
    (r"up_blocks\.(\d)\.resnets", lambda m: f"up.{3 - int(m[1])}.block"),
    ("conv_norm_out", "norm_out"),
    ("conv_shortcut", "nin_shortcut"),
    ("group_norm", "norm"),
    (r"to_([qkv])\b", r"\1"),
    (r"to_out\.0", "proj_out"),
]

OPEN_CLIP: list[Rule] = [
    (r"^embeddings\.token_embedding", "token_embedding"),
    (r"^embeddings\.position_embedding\.weight", "positional_embedding"),
    (r"^final_layer_norm", "ln_final"),
    (r"^encoder\.layers", "transformer.resblocks"),
    (r"layer_norm(\d)", r"ln_\1"),
    (r"mlp\.fc1", "mlp.c_fc"),
    (r"mlp\.fc2", "mlp.c_proj"),
    ("self_attn", "attn"),
]


def write_checkpoint(folder: Path, path: Path) -> Path:
    """Write the base in ``folder`` as one file."""
    unet = {
        rename(key, UNET + (RESNET if ".resnets." in key else [])): tensor
        for key, tensor in weights(folder / "unet").items()
    }
    vae = {rename(key, VAE): as_convolution(key, tensor) for key, tensor in weights(folder / "vae").items()}
    clip = {f"text_model.{key}": tensor for key, tensor in weights(folder / "text_encoder").items()}
    save_file(
        {
            **prefixed("model.diffusion_model.", unet),
            **prefixed("first_stage_model.", vae),
            **prefixed("conditioner.embedders.0.transformer.", clip),
            **prefixed("conditioner.embedders.1.model.", open_clip(weights(folder / "text_encoder_2"))),
        },
        path,
    )
    return path


def altered(source: Path, path: Path, without: str = "^$", **added: Tensor) -> Path:
    """A copy of a checkpoint without the keys that match, and with other tensors (``a__b`` is ``a.b``)."""
    kept = {key: tensor for key, tensor in load_file(source).items() if not re.search(without, key)}
    save_file(kept | {key.replace("__", "."): tensor for key, tensor in added.items()}, path)
    return path


def open_clip(clip: dict[str, Tensor]) -> dict[str, Tensor]:
    """CLIP with joined query, key and value, and a transposed projection."""
    joined: dict[str, Tensor] = {}
    for key, tensor in clip.items():
        name = rename(key, OPEN_CLIP)
        if key == "text_projection.weight":
            joined["text_projection"] = tensor.T.contiguous()
        elif ".q_proj." in name:
            parts = [clip[key.replace("q_proj", f"{part}_proj")] for part in "qkv"]
            joined[name.replace("q_proj.", "in_proj_")] = torch.cat(parts)
        elif ".k_proj." not in name and ".v_proj." not in name:
            joined[name] = tensor
    return joined


def weights(part: Path) -> dict[str, Tensor]:
    tensors = load_file(next(part.glob("*.safetensors")))
    return {key.removeprefix("text_model."): tensor for key, tensor in tensors.items()}


def rename(key: str, rules: list[Rule]) -> str:
    for pattern, replacement in rules:
        key = re.sub(pattern, replacement, key)
    return key


def as_convolution(key: str, tensor: Tensor) -> Tensor:
    """The VAE's attention is made of 1 x 1 convolutions."""
    return tensor[:, :, None, None] if ".to_" in key and key.endswith("weight") else tensor


def prefixed(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {prefix + key: tensor for key, tensor in tensors.items()}
