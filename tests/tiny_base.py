"""A random base with SDXL's classes and block names, small enough for every test: 64 px, under 2 MB."""

import json
from pathlib import Path

import pytest

TOKENS = 32
PIXELS = 64
WORDS = (
    "monadikos",
    "watercolor",
    "picture",
    "style",
    "sketch",
    "house",
    "beach",
    "the",
    "cat",
    "fox",
    "dog",
)
_START, _END = "<|startoftext|>", "<|endoftext|>"
_WIDTHS = (8, 16)


def write_tokenizer(folder: Path) -> int:
    """Write a byte-level BPE with one token per word of WORDS and per other letter; returns its size."""
    letters = [chr(i) for i in range(33, 127)]
    merges = []
    for word in WORDS:
        head = word[0]
        for letter in [*word[1:-1], word[-1] + "</w>"]:
            merges.append((head, letter))
            head += letter
    vocabulary = [*letters, *(letter + "</w>" for letter in letters), *map("".join, merges), _START, _END]
    ids = {token: i for i, token in enumerate(dict.fromkeys(vocabulary))}
    folder.mkdir(parents=True)
    (folder / "vocab.json").write_text(json.dumps(ids))
    lines = dict.fromkeys(" ".join(pair) for pair in merges)
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *lines]) + "\n")
    special = {"bos_token": _START, "eos_token": _END, "unk_token": _END, "pad_token": _END}
    (folder / "special_tokens_map.json").write_text(json.dumps(special))
    settings = {
        **special,
        "tokenizer_class": "CLIPTokenizer",
        "model_max_length": TOKENS,
        "do_lower_case": True,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return len(ids)


def unet_config() -> dict[str, object]:
    """SDXL's block list, 88 times narrower."""
    return {
        "sample_size": PIXELS // 8,
        "in_channels": 4,
        "out_channels": 4,
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        "block_out_channels": (8, 16, 32),
        "layers_per_block": 2,
        "transformer_layers_per_block": (1, 1, 2),
        "attention_head_dim": (1, 2, 4),
        "cross_attention_dim": sum(_WIDTHS),
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 8,
        "projection_class_embeddings_input_dim": _WIDTHS[1] + 6 * 8,
        "use_linear_projection": True,
        "norm_num_groups": 4,
    }


def make_tiny_base(folder: Path, seed: int = 0) -> Path:
    """Write the base into ``folder`` as a diffusers SDXL folder, weights in float16; returns ``folder``."""
    import torch
    from diffusers import AutoencoderKL, EulerDiscreteScheduler, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        unet = UNet2DConditionModel(**unet_config())
        vae = AutoencoderKL(
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            block_out_channels=(4, 8, 8, 16),
            layers_per_block=1,
            norm_num_groups=4,
            sample_size=PIXELS,
            scaling_factor=0.13025,
        )
        vocabulary = min(write_tokenizer(folder / name) for name in ("tokenizer", "tokenizer_2"))
        texts = [
            CLIPTextConfig(
                vocab_size=vocabulary,
                hidden_size=width,
                intermediate_size=2 * width,
                projection_dim=width,
                num_hidden_layers=3,
                num_attention_heads=2,
                max_position_embeddings=TOKENS,
                hidden_act=act,
                bos_token_id=vocabulary - 2,
                eos_token_id=vocabulary - 1,
                pad_token_id=vocabulary - 1,
            )
            for width, act in zip(_WIDTHS, ("quick_gelu", "gelu"), strict=True)
        ]
        parts = {
            "unet": unet,
            "vae": vae,
            "text_encoder": CLIPTextModel(texts[0]),
            "text_encoder_2": CLIPTextModelWithProjection(texts[1]),
        }
    for name, part in parts.items():
        part.half().save_pretrained(folder / name)
    scheduler = EulerDiscreteScheduler(
        beta_schedule="scaled_linear",
        beta_start=0.00085,
        beta_end=0.012,
        timestep_spacing="leading",
        steps_offset=1,
    )
    scheduler.save_pretrained(folder / "scheduler")
    index: dict[str, object] = {
        "_class_name": "StableDiffusionXLPipeline",
        "force_zeros_for_empty_prompt": True,
    }
    for name in ("tokenizer", "tokenizer_2"):
        index[name] = ["transformers", "CLIPTokenizer"]
    for name, part in {**parts, "scheduler": scheduler}.items():
        index[name] = [type(part).__module__.split(".")[0], type(part).__name__]
    (folder / "model_index.json").write_text(json.dumps(index, indent=2))
    return folder


@pytest.fixture(scope="session")
def tiny_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the tiny base; read-only."""
    return make_tiny_base(tmp_path_factory.mktemp("tiny") / "base")
