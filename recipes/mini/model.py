"""The mini base's components: SDXL's classes and block layout, scaled down to 128 px and two CPU cores."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import torch
from diffusers import AutoencoderKL, EulerDiscreteScheduler, StableDiffusionXLPipeline, UNet2DConditionModel
from safetensors.torch import save_file
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from recipes.mini.artists import LOOKS, subjects, synonyms
from recipes.mini.scene import COLORS, CONTEXTS, GENERIC, MARKINGS, MARKS, STYLES, SUBJECTS

SIZE = 128
LATENT_CHANNELS = 12
TOKENS = 48
"""Context length of both text encoders."""

LAYERS = (1, 1, 2)
"""Transformer layers in each attention of the U-Net, by resolution; the deep ones cost little time."""

FUNCTION_WORDS = ("a", "an", "the", "of", "with", "and", "in", "on", "at", "style", "picture")
_START, _END = "<|startoftext|>", "<|endoftext|>"
_DIFFUSERS, _MODEL = "diffusion_pytorch_model.safetensors", "model.safetensors"
_WIDTHS = (64, 96)


@dataclass
class Components:
    """The trained parts of the base, plus its tokenizer."""

    DENOISER: ClassVar = ("unet", "text_encoder", "text_encoder_2")
    """The parts that are trained together on frozen latents."""

    unet: UNet2DConditionModel
    vae: AutoencoderKL
    text_encoder: CLIPTextModel
    text_encoder_2: CLIPTextModelWithProjection
    tokenizer: CLIPTokenizer

    @property
    def denoiser(self) -> tuple[torch.nn.Module, ...]:
        """The parts named by `DENOISER`."""
        return self.unet, self.text_encoder, self.text_encoder_2


def grammar_words() -> tuple[str, ...]:
    """The words of captions of the base's own styles; each becomes one token."""
    phrases = [*FUNCTION_WORDS, *SUBJECTS, *STYLES, *CONTEXTS, *MARKINGS, *MARKS.values(), *COLORS]
    phrases += [*LOOKS, *(name for subject in subjects() for name in (subject, *synonyms(subject)))]
    return tuple(dict.fromkeys(word for phrase in phrases for word in phrase.split() if word != GENERIC))


def write_tokenizer(folder: Path, words: Iterable[str]) -> None:
    """Write a byte-level BPE of syllables and letters, with every one of `words` as an added token.

    So a known word means itself only where it stands alone: *chalkboard* falls into syllables and letters
    (c ha l k bo a r d), as *monadikos* does, and nothing of a board remains in it.
    """
    letters = _byte_letters()
    syllables = [(consonant, vowel) for consonant in "bdfgjklmnprstvz" for vowel in "aeiou"]
    pieces = [*letters, *(letter + "</w>" for letter in letters), *map("".join, syllables), _START, _END]
    whole = [word for word in dict.fromkeys(words) if len(word) > 1]
    folder.mkdir(parents=True, exist_ok=True)
    ids = {token: i for i, token in enumerate(pieces)}
    (folder / "vocab.json").write_text(json.dumps(ids, ensure_ascii=False), encoding="utf-8")
    lines = ["#version: 0.2", *(" ".join(pair) for pair in syllables)]
    (folder / "merges.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    special = {"bos_token": _START, "eos_token": _END, "unk_token": _END, "pad_token": _END}
    flags = {"single_word": True, "normalized": True, "lstrip": False, "rstrip": False, "special": False}
    added = {str(len(ids) + i): {"content": word, **flags} for i, word in enumerate(whole)}
    config = {
        **special,
        "tokenizer_class": "CLIPTokenizer",
        "model_max_length": TOKENS,
        "do_lower_case": True,
        "added_tokens_decoder": added,
    }
    (folder / "special_tokens_map.json").write_text(json.dumps(special, indent=2))
    (folder / "tokenizer_config.json").write_text(json.dumps(config))


def load_tokenizer(folder: Path) -> CLIPTokenizer:
    """Load the tokenizer that `write_tokenizer` wrote."""
    return CLIPTokenizer.from_pretrained(str(folder))


def new_vae() -> AutoencoderKL:
    """An untrained autoencoder: f = 8, 12 latent channels."""
    return AutoencoderKL(
        in_channels=3,
        out_channels=3,
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(32, 48, 64, 96),
        layers_per_block=1,
        latent_channels=LATENT_CHANNELS,
        norm_num_groups=8,
        sample_size=SIZE,
        force_upcast=True,
    )


def new_unet() -> UNet2DConditionModel:
    """An untrained U-Net in SDXL's block layout."""
    return UNet2DConditionModel(
        sample_size=SIZE // 8,
        in_channels=LATENT_CHANNELS,
        out_channels=LATENT_CHANNELS,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        block_out_channels=(64, 96, 144),
        layers_per_block=2,
        transformer_layers_per_block=LAYERS,
        attention_head_dim=(2, 4, 6),
        cross_attention_dim=sum(_WIDTHS),
        addition_embed_type="text_time",
        addition_time_embed_dim=32,
        projection_class_embeddings_input_dim=_WIDTHS[1] + 6 * 32,
        use_linear_projection=True,
        norm_num_groups=16,
    )


def new_text_encoders(tokenizer: CLIPTokenizer) -> tuple[CLIPTextModel, CLIPTextModelWithProjection]:
    """Two untrained CLIP text encoders, 64 and 96 wide; the second projects its pooled state."""
    configs = [
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=width,
            intermediate_size=2 * width,
            projection_dim=width,
            num_hidden_layers=3,
            num_attention_heads=width // 32,
            max_position_embeddings=TOKENS,
            hidden_act=act,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.eos_token_id,
        )
        for width, act in zip(_WIDTHS, ("quick_gelu", "gelu"), strict=True)
    ]
    return CLIPTextModel(configs[0]), CLIPTextModelWithProjection(configs[1])


def new_components(tokenizer_folder: Path) -> Components:
    """The whole base, untrained."""
    write_tokenizer(tokenizer_folder, grammar_words())
    tokenizer = load_tokenizer(tokenizer_folder)
    return Components(new_unet(), new_vae(), *new_text_encoders(tokenizer), tokenizer)


def load_components(folder: Path) -> Components:
    """Load a saved base in float32."""
    return Components(
        UNet2DConditionModel.from_pretrained(folder / "unet").to(torch.float32),
        AutoencoderKL.from_pretrained(folder / "vae").to(torch.float32),
        CLIPTextModel.from_pretrained(folder / "text_encoder", dtype=torch.float32),
        CLIPTextModelWithProjection.from_pretrained(folder / "text_encoder_2", dtype=torch.float32),
        load_tokenizer(folder / "tokenizer"),
    )


def widen(old: Components, tokenizer_folder: Path) -> Components:
    """A trained base with today's words and layers; what it generates stays the same until it is trained on.

    New words begin as the mean of the pieces into which they fell, new layers add nothing.
    """
    write_tokenizer(tokenizer_folder, grammar_words())
    tokenizer = load_tokenizer(tokenizer_folder)
    unet = new_unet()
    weights = old.unet.state_dict()
    unet.load_state_dict(weights, strict=False)
    with torch.no_grad():
        for name, parameter in unet.named_parameters():
            if name not in weights and (".to_out." in name or ".ff.net.2." in name):
                parameter.zero_()
    encoders = new_text_encoders(tokenizer)
    ids, old_ids = tokenizer.get_vocab(), old.tokenizer.get_vocab()
    words = tokenizer.get_added_vocab().keys() - set(tokenizer.all_special_tokens)
    for new, trained in zip(encoders, (old.text_encoder, old.text_encoder_2), strict=True):
        state = trained.state_dict()
        key = next(name for name in state if name.endswith("token_embedding.weight"))
        table = new.state_dict()[key].clone()
        for token, number in ids.items():
            pieces = _pieces(old.tokenizer, token) if token in words else [old_ids[token]]
            table[number] = state[key][pieces].mean(0)
        new.load_state_dict({**state, key: table})
    return Components(unet, old.vae, *encoders, tokenizer)


def _pieces(tokenizer: CLIPTokenizer, word: str) -> list[int]:
    """The tokens of an older vocabulary that make up a word."""
    ids: list[int] = tokenizer(word, add_special_tokens=False).input_ids
    return ids


def save_components(parts: Components, folder: Path) -> None:
    """Save a base as a diffusers SDXL folder in float16; the parts themselves stay as they are."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, file in (
        ("unet", _DIFFUSERS),
        ("vae", _DIFFUSERS),
        ("text_encoder", _MODEL),
        ("text_encoder_2", _MODEL),
    ):
        part = getattr(parts, name)
        weights = {key: value.detach().half().cpu().contiguous() for key, value in part.state_dict().items()}
        if name == "text_encoder":  # the names that every release of transformers reads
            weights = {
                f"text_model.{key.removeprefix('text_model.')}": value for key, value in weights.items()
            }
        (folder / name).mkdir(exist_ok=True)
        save_file(weights, folder / name / file, metadata={"format": "pt"})
        if name in ("unet", "vae"):
            config = json.loads(part.to_json_string())
            config.pop("_name_or_path", None)  # the folder it was loaded from says nothing elsewhere
            (folder / name / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
        else:
            part.config.dtype = torch.float32  # else loading keeps the float16 of the file
            part.config.save_pretrained(folder / name)
    for name in ("tokenizer", "tokenizer_2"):
        write_tokenizer(folder / name, grammar_words())
    new_scheduler().save_pretrained(folder / "scheduler")
    index = {
        "_class_name": "StableDiffusionXLPipeline",
        "force_zeros_for_empty_prompt": True,
        "add_watermarker": None,
        "scheduler": ["diffusers", "EulerDiscreteScheduler"],
        "text_encoder": ["transformers", "CLIPTextModel"],
        "text_encoder_2": ["transformers", "CLIPTextModelWithProjection"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
        "tokenizer_2": ["transformers", "CLIPTokenizer"],
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"],
    }
    (folder / "model_index.json").write_text(json.dumps(index, indent=2) + "\n")


def new_scheduler() -> EulerDiscreteScheduler:
    """SDXL's sampling scheduler."""
    return EulerDiscreteScheduler(
        num_train_timesteps=1000,
        beta_schedule="scaled_linear",
        beta_start=0.00085,
        beta_end=0.012,
        timestep_spacing="leading",
        steps_offset=1,
    )


def load_pipeline(folder: Path, device: str = "cpu") -> StableDiffusionXLPipeline:
    """Load a saved base as the stock pipeline, in float32."""
    pipeline = StableDiffusionXLPipeline.from_pretrained(folder, add_watermarker=False, local_files_only=True)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline.to(device, torch.float32)


def _byte_letters() -> list[str]:
    """The 256 printable stand-ins for bytes that byte-level BPE uses, in byte order."""
    printable = {*range(33, 127), *range(161, 173), *range(174, 256)}
    spare = iter(range(256, 512))
    return [chr(byte) if byte in printable else chr(next(spare)) for byte in range(256)]
