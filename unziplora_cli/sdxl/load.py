"""Loading a base component by component, so that the text encoders can be freed before the U-Net is loaded.

Nothing is downloaded and nothing is printed.
"""

from __future__ import annotations

import os
import traceback
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers
from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
from diffusers.loaders.single_file_utils import create_diffusers_clip_model_from_ldm
from torch import Tensor
from transformers import CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from unziplora_cli.accel.fused_modules import fuse_modules
from unziplora_cli.accel.int8 import quantize
from unziplora_cli.errors import ModelError, Remedy, UnziploraError, disk_advice, system_errno
from unziplora_cli.files import open_safetensors
from unziplora_cli.sdxl import base as bases
from unziplora_cli.sdxl.base import (
    SCHEDULERS,
    BaseRef,
    component_config,
    config_folder,
    find_vae,
    scheduler_name,
    tokenizer_folder,
)
from unziplora_cli.sdxl.folder import check_vae, component_variant, read_json, valid_config
from unziplora_cli.sdxl.single_file import PREFIXES, TOKENIZERS, read_header, vae_prefix
from unziplora_cli.sdxl.text import TextEncoders

_OF_CODE = (TypeError, AttributeError, AssertionError, NameError, LookupError)
"""What faults of a program raise; damaged files cause them within a library alone."""
_PACKAGES = ("diffusers", "transformers", "unziplora_cli")

_LATENT_SAMPLER = {"clip_sample": False, "set_alpha_to_one": False}
"""Settings that a sampler of latents needs if the base's own scheduler has no such settings."""


def load_text_encoders(base: BaseRef, *, device: torch.device | str, dtype: torch.dtype) -> TextEncoders:
    """Both tokenizers and text encoders, frozen; raises ModelError."""
    with _loading(base, "text encoders"):
        folder = tokenizer_folder(base)
        first, second = (
            CLIPTokenizer.from_pretrained(folder / name, local_files_only=True) for name in TOKENIZERS
        )
        models = (
            _component(CLIPTextModel, base, "text_encoder", dtype),
            _component(CLIPTextModelWithProjection, base, "text_encoder_2", dtype),
        )
    return TextEncoders(
        (first, second), (_frozen(models[0], device), _frozen(models[1], device)), _zeros_for_empty(base)
    )


def load_vae(
    base: BaseRef, *, device: torch.device | str, dtype: torch.dtype = torch.float32, vae: str | None = None
) -> AutoencoderKL:
    """The autoencoder, frozen; raises ModelError.

    ``vae`` replaces the base's own: a file, a folder or a cached Hugging Face id.
    """
    with _loading(base, "VAE"):
        if vae is None:
            model = _component(AutoencoderKL, base, "vae", dtype)
        elif (path := find_vae(vae)).is_file():
            model = _from_file(AutoencoderKL, path, "vae", dtype)
        else:
            check_vae(path, read_json(path / "config.json"), component_config(base, "unet")["in_channels"])
            model = _pretrained(AutoencoderKL, path, None, dtype)
    return _frozen(model, device)


def load_vae_decoder(
    base: BaseRef, *, device: torch.device, dtype: torch.dtype, vae: str | None = None
) -> AutoencoderKL:
    """The autoencoder in float32, or in ``dtype`` if its configuration allows half precision."""
    model = load_vae(base, device=device, vae=vae)
    return model if model.config.force_upcast else model.to(dtype)


def load_unet(
    base: BaseRef,
    *,
    device: torch.device | str,
    dtype: torch.dtype,
    eight_bits: bool = False,
    fuse: bool = True,
) -> UNet2DConditionModel:
    """The U-Net, frozen, with fused kernels on a GPU; raises ModelError.

    With ``eight_bits`` its large weights are stored as int8; without ``fuse`` it has no fused kernels.
    """
    with _loading(base, "U-Net"):
        model = _component(UNet2DConditionModel, base, "unet", dtype)
    if eight_bits:
        quantize(model, torch.device(device))
    unet = _frozen(model, device)
    if fuse:
        fuse_modules(unet)
    return unet


def load_scheduler(base: BaseRef, name: str | None = None) -> Any:
    """A sampler on the base's noise schedule: the base's own, ``euler``, ``ddim``, ``ddpm`` or ``dpm++``."""
    config = component_config(base, "scheduler")
    name = scheduler_name(base, name)
    with valid_config(base.path):
        return getattr(diffusers, SCHEDULERS.get(name, name)).from_config({**_LATENT_SAMPLER, **config})


def alphas_cumprod(base: BaseRef) -> Tensor:
    """The share of the image's variance that is left at each timestep, [1000], float32."""
    with valid_config(base.path):
        alphas: Tensor = DDPMScheduler.from_config(component_config(base, "scheduler")).alphas_cumprod
        return alphas.float()


def _component(cls: Any, base: BaseRef, component: str, dtype: torch.dtype) -> Any:
    if base.kind != "file":
        return _pretrained(cls, base.path / component, base.variant, dtype)
    return _from_file(cls, base.path, component, dtype)


def _from_file(cls: Any, path: Path, component: str, dtype: torch.dtype) -> Any:
    """A component of a single checkpoint file, of which only its own tensors are read."""
    prefix = vae_prefix(read_header(path)) if component == "vae" else PREFIXES[component]
    with open_safetensors(path) as file:
        tensors = {key: file.get_tensor(key) for key in file.keys() if key.startswith(prefix or "")}  # noqa: SIM118
    options = {
        "config": str(bases.SDXL_CONFIG),
        "subfolder": component,
        "torch_dtype": dtype,
        "local_files_only": True,
    }
    if component.startswith("text_encoder"):
        return _complete(create_diffusers_clip_model_from_ldm(cls, tensors, **options))
    return _complete(cls.from_single_file(tensors, **options))


def _pretrained(cls: Any, folder: Path, variant: str | None, dtype: torch.dtype) -> Any:
    name = "dtype" if issubclass(cls, transformers.PreTrainedModel) else "torch_dtype"
    model, info = cls.from_pretrained(
        folder,
        variant=component_variant(folder, variant),
        use_safetensors=True,
        local_files_only=True,
        output_loading_info=True,
        **{name: dtype},
    )
    return _complete(model, info["missing_keys"])


def _complete(model: Any, missing: Iterable[str] = ()) -> Any:
    """The model itself; raises ValueError if weights are missing, which would be random or on meta."""
    missing = sorted({*missing, *(name for name, weights in model.named_parameters() if weights.is_meta)})
    if missing:
        raise ValueError(f"its files lack {len(missing)} of its weights, such as {missing[0]}")
    return model


def _frozen(model: Any, device: torch.device | str) -> Any:
    return model.to(device).eval().requires_grad_(False)


def _zeros_for_empty(base: BaseRef) -> bool:
    index = config_folder(base) / "model_index.json"
    return bool(read_json(index).get("force_zeros_for_empty_prompt", True)) if index.is_file() else True


def _loading(base: BaseRef, what: str) -> AbstractContextManager[None]:
    damaged = Remedy("The files are damaged or of another kind; fetch the base again.")
    return loading(f"the {what} of the base {base.id}", damaged)


@contextmanager
def loading(what: str, *remedies: Remedy) -> Iterator[None]:
    """Silence the libraries, and turn whatever damaged files cause in them into ModelError."""
    for library in (diffusers, transformers):
        library.utils.logging.set_verbosity_error()
        library.utils.logging.disable_progress_bar()
    try:
        yield
    except (torch.OutOfMemoryError, MemoryError, ImportError, UnziploraError):
        raise
    except Exception as error:  # wrong values in configurations make the libraries raise anything
        if isinstance(error, _OF_CODE) and not _is_of_library(error):
            raise
        reason = str(error).strip().split("\n")[0]
        if "meta tensor" in reason:  # torch's message for weights that were never loaded
            reason = "its files lack some of its weights"
        if (number := system_errno(error)) and os.strerror(number) not in reason:
            reason += f" {os.strerror(number)}."
        advice = disk_advice(error)
        if isinstance(error, FileNotFoundError) and not error.errno:  # what safetensors says for any reason
            reason = reason.replace("No such file or directory", "the system does not open")
            advice = Remedy("Check the disk, the permissions of the file, and the limit of open files.")
        raise ModelError(f"Cannot load {what}: {reason}", *((advice,) if advice else remedies)) from error


def _is_of_library(error: Exception) -> bool:
    callers = (frame for frame, _ in traceback.walk_tb(error.__traceback__))
    names = [str(f.f_globals["__name__"]) for f in callers if f.f_code.co_name != "__getattr__"]
    packages = [name.partition(".")[0] for name in names]
    return next(package for package in reversed(packages) if package in _PACKAGES) != "unziplora_cli"
