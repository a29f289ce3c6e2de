"""A base's parts, loaded one by one, so that the text encoders leave memory before the U-Net arrives.

Nothing is ever fetched from the network here, and nothing is printed.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers
from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
from safetensors import SafetensorError
from torch import Tensor
from transformers import CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from unziplora_cli.accel.fused_modules import fuse_modules
from unziplora_cli.accel.int8 import quantize
from unziplora_cli.errors import ModelError
from unziplora_cli.sdxl.base import (
    SCHEDULERS,
    TOKENIZERS,
    BaseNotCached,
    BaseRef,
    check_vae,
    component_config,
    config_folder,
    find_vae,
    native_resolution,
    part_variant,
    read_json,
    resolve_base,
    scheduler_name,
    tokenizer_folder,
    vae_scale_factor,
)
from unziplora_cli.sdxl.text import TextEncoders

__all__ = [
    "BaseNotCached",
    "BaseRef",
    "alphas_cumprod",
    "load_scheduler",
    "load_text_encoders",
    "load_unet",
    "load_vae",
    "native_resolution",
    "resolve_base",
    "vae_scale_factor",
]

_LATENTS = {"clip_sample": False, "set_alpha_to_one": False}
"""What a sampler of latents needs where the base's own scheduler has no such setting."""


def load_text_encoders(base: BaseRef, *, device: torch.device | str, dtype: torch.dtype) -> TextEncoders:
    """Both tokenizers and text encoders, frozen; raises ModelError."""
    with _loading(base, "text encoders"):
        folder = tokenizer_folder(base)
        first, second = (
            CLIPTokenizer.from_pretrained(folder / name, local_files_only=True) for name in TOKENIZERS
        )
        if base.kind == "file":
            pipeline = _from_file(base, dtype, tokenizer=first, tokenizer_2=second, unet=None, vae=None)
            models = (_whole(pipeline.text_encoder), _whole(pipeline.text_encoder_2))
        else:
            models = (
                _from_folder(CLIPTextModel, base, "text_encoder", dtype=dtype),
                _from_folder(CLIPTextModelWithProjection, base, "text_encoder_2", dtype=dtype),
            )
    return TextEncoders(
        (first, second), tuple(_frozen(model, device) for model in models), _zeros_for_empty(base)
    )


def load_vae(
    base: BaseRef, *, device: torch.device | str, dtype: torch.dtype = torch.float32, vae: str | None = None
) -> AutoencoderKL:
    """The autoencoder, frozen; raises ModelError.

    ``vae`` names another one than the base's own: a folder or a cached Hugging Face id.
    """
    with _loading(base, "VAE"):
        if vae is not None:
            folder = find_vae(vae)
            check_vae(
                folder, read_json(folder / "config.json"), component_config(base, "unet")["in_channels"]
            )
            model = _pretrained(AutoencoderKL, folder, None, torch_dtype=dtype)
        elif base.kind == "file":
            model = _model_from_file(AutoencoderKL, base, "vae", dtype)
        else:
            model = _from_folder(AutoencoderKL, base, "vae", torch_dtype=dtype)
    return _frozen(model, device)


def load_unet(
    base: BaseRef, *, device: torch.device | str, dtype: torch.dtype, eight_bits: bool = False
) -> UNet2DConditionModel:
    """The U-Net, frozen, on a GPU with its fused kernels; raises ModelError.

    With ``eight_bits`` its large weights take one byte each.
    """
    with _loading(base, "U-Net"):
        if base.kind == "file":
            model = _model_from_file(UNet2DConditionModel, base, "unet", dtype)
        else:
            model = _from_folder(UNet2DConditionModel, base, "unet", torch_dtype=dtype)
    if eight_bits:
        quantize(model, torch.device(device))
    unet = _frozen(model, device)
    fuse_modules(unet)
    return unet


def load_scheduler(base: BaseRef, name: str | None = None) -> Any:
    """A sampler on the base's noise schedule: the base's own, ``euler``, ``ddim``, ``ddpm`` or ``dpm++``."""
    values = component_config(base, "scheduler")
    name = scheduler_name(base, name)
    with _loading(base, "scheduler"):
        return getattr(diffusers, SCHEDULERS.get(name, name)).from_config({**_LATENTS, **values})


def alphas_cumprod(base: BaseRef) -> Tensor:
    """The share of the picture's variance that is left at each timestep, [1000], float32."""
    with _loading(base, "scheduler"):
        return DDPMScheduler.from_config(component_config(base, "scheduler")).alphas_cumprod.float()


def _from_folder(cls: Any, base: BaseRef, part: str, **dtype: torch.dtype) -> Any:
    return _pretrained(cls, base.path / part, base.variant, **dtype)


def _pretrained(cls: Any, folder: Path, preferred: str | None, **dtype: torch.dtype) -> Any:
    model, found = cls.from_pretrained(
        folder,
        variant=part_variant(folder, preferred),
        use_safetensors=True,
        local_files_only=True,
        output_loading_info=True,
        **dtype,
    )
    return _whole(model, found["missing_keys"])


def _model_from_file(cls: Any, base: BaseRef, part: str, dtype: torch.dtype) -> Any:
    model = cls.from_single_file(
        str(base.path),
        config=str(config_folder(base)),
        subfolder=part,
        torch_dtype=dtype,
        local_files_only=True,
    )
    return _whole(model)


def _from_file(base: BaseRef, dtype: torch.dtype, **parts: Any) -> Any:
    from diffusers import StableDiffusionXLPipeline

    return StableDiffusionXLPipeline.from_single_file(
        str(base.path), config=str(config_folder(base)), torch_dtype=dtype, local_files_only=True, **parts
    )


def _whole(model: Any, missing: Iterable[str] = ()) -> Any:
    """The model itself; raises ValueError when the files lack weights, which would be random or not there."""
    lacking = sorted({*missing, *(name for name, weights in model.named_parameters() if weights.is_meta)})
    if lacking:
        raise ValueError(f"its files lack {len(lacking)} of its weights, such as {lacking[0]}")
    return model


def _frozen(model: Any, device: torch.device | str) -> Any:
    return model.to(device).eval().requires_grad_(False)


def _zeros_for_empty(base: BaseRef) -> bool:
    index = config_folder(base) / "model_index.json"
    return bool(read_json(index).get("force_zeros_for_empty_prompt", True)) if index.is_file() else True


@contextmanager
def _loading(base: BaseRef, part: str) -> Iterator[None]:
    """Keep the libraries quiet, and turn their complaints about files into a ModelError."""
    for library in (diffusers, transformers):
        library.utils.logging.set_verbosity_error()
        library.utils.logging.disable_progress_bar()
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except (OSError, SafetensorError, ValueError, KeyError, RuntimeError, AttributeError) as error:
        reason = str(error).strip().split("\n")[0]
        if "meta tensor" in reason:  # how torch puts it that weights never came
            reason = "its files lack some of its weights"
        raise ModelError(
            f"Cannot load the {part} of the base {base.id}: {reason}",
            hint="The files are damaged or of another kind; fetch the base again.",
        ) from error
