"""Random DINOv2 and CLIP models of their exact classes and files, small enough for every test."""

from pathlib import Path

from tests.sdxl.cached import put_in_cache
from tests.tiny_base import write_tokenizer

PIXELS = 28


def make_dino(folder: Path) -> Path:
    """Write a DINOv2 as `facebook/dinov2-base` has it."""
    import torch
    from transformers import BitImageProcessor, Dinov2Config, Dinov2Model

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        config = Dinov2Config(
            hidden_size=16, num_hidden_layers=2, num_attention_heads=2, image_size=PIXELS, patch_size=14
        )
        Dinov2Model(config).save_pretrained(folder)
    BitImageProcessor(
        size={"shortest_edge": 32}, crop_size={"height": PIXELS, "width": PIXELS}
    ).save_pretrained(folder)
    return folder


def make_clip(folder: Path) -> Path:
    """Write a CLIP as `openai/clip-vit-large-patch14` has it."""
    import torch
    from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel

    words = write_tokenizer(folder)
    text = {
        "vocab_size": words,
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "max_position_embeddings": 32,
        "bos_token_id": words - 2,
        "eos_token_id": words - 1,
        "pad_token_id": words - 1,
    }
    vision = {
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "image_size": PIXELS,
        "patch_size": 14,
    }
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        config = CLIPConfig(text_config=text, vision_config=vision, projection_dim=8)
        CLIPModel(config).save_pretrained(folder)
    CLIPImageProcessor(
        size={"shortest_edge": PIXELS}, crop_size={"height": PIXELS, "width": PIXELS}
    ).save_pretrained(folder)
    return folder


def put_encoders_in_cache(folder: Path) -> None:
    """Place both in the test's Hugging Face cache; ``folder`` is for building them."""
    from unziplora_cli.evaluation.scorers import CLIP, DINO

    put_in_cache(make_dino(folder / "dino"), DINO, "d" * 40)
    put_in_cache(make_clip(folder / "clip"), CLIP, "c" * 40)
