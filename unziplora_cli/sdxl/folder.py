"""The files and configurations of a base, and whether the method supports them.

No weights are loaded. The headers of the files are compared with modules on torch's ``meta`` device; the
tensors of a single file are converted by diffusers' own functions, as when it is loaded, but without memory.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from unziplora_cli.errors import ModelError, Remedy
from unziplora_cli.files import read_text
from unziplora_cli.method.blocks import SELECTIVE
from unziplora_cli.sdxl.single_file import PREFIXES, TOKENIZERS, Header, read_header, unreadable, vae_prefix

if TYPE_CHECKING:
    from torch import Tensor

WEIGHTS = ("unet", "vae", "text_encoder", "text_encoder_2")

PREDICTIONS = ("epsilon", "v_prediction")
"""What a U-Net may predict: the noise, or the velocity of Salimans and Ho (arXiv 2202.00512)."""

_MAX_LAYERS = 100
"""Layers of a block that are checked, whatever number a configuration claims."""

_FETCH_AGAIN = Remedy("The base is damaged; fetch or export it again.")


Shapes = Mapping[str, tuple[int, ...]]

_NAMES = {
    "unet": "U-Net",
    "vae": "VAE",
    "text_encoder": "first text encoder",
    "text_encoder_2": "second text encoder",
}
_LEGACY = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
"""Former names of the VAE's attention in diffusers, which it still reads."""


def check_folder(folder: Path, *remedies: Remedy) -> None:
    """Raise ModelError unless ``folder`` has all components of an SDXL-class pipeline, as safetensors.

    ``remedies`` are those for missing components.
    """
    remedies = remedies or (Remedy("Fetch or export the base again, with all its components."),)
    index = read_json(folder / "model_index.json") if (folder / "model_index.json").is_file() else {}
    pipeline = index.get("_class_name", "StableDiffusionXLPipeline")
    if not str(pipeline).startswith("StableDiffusionXL"):
        raise unsupported_model(folder, f"its model_index.json says {pipeline}")
    if index.get("requires_aesthetics_score"):
        raise unsupported_model(folder, "it is the refiner of SDXL")
    if not any((folder / component).is_dir() for component in WEIGHTS):
        raise ModelError(
            f"The folder {folder} is not a base: it has no {', '.join(WEIGHTS)} folders.", *remedies
        )
    required = [*(f"{name}/config.json" for name in WEIGHTS), "scheduler/scheduler_config.json"]
    for tokenizer in TOKENIZERS:
        if not (folder / tokenizer / "tokenizer.json").is_file():
            required += [f"{tokenizer}/vocab.json", f"{tokenizer}/merges.txt"]
    missing = [file for file in required if not (folder / file).is_file()]
    missing += [f"{name}/*.safetensors" for name in WEIGHTS if not weight_files(folder / name)]
    if missing:
        if any(any((folder / name).glob("*.bin")) for name in WEIGHTS) and not any(
            weight_files(folder / name) for name in WEIGHTS
        ):
            remedies = (Remedy("Opening .bin weights can run code: convert the base to safetensors."),)
        raise ModelError(f"The base {folder} lacks {', '.join(missing)}.", *remedies)
    unet = read_json(folder / "unet/config.json")
    scheduler = read_json(folder / "scheduler/scheduler_config.json")
    vae = read_json(folder / "vae/config.json")
    with valid_config(folder):
        check_unet(folder, unet)
        _check_scheduler(folder, scheduler)
        check_vae(folder / "vae", vae, unet["in_channels"])


def check_vae(path: Path, vae: Mapping[str, Any], channels: int) -> None:
    """Raise ModelError unless an autoencoder has as many latent channels as the U-Net."""
    latent_channels = vae.get("latent_channels", 4)
    if latent_channels != channels:
        raise ModelError(
            f"The VAE {path} has {latent_channels} latent channels, but the U-Net takes {channels}.",
            Remedy("Use the base's own VAE, or one that was made for SDXL."),
        )


def unsupported_model(path: Path, reason: str) -> ModelError:
    """The error for a base that the method cannot train."""
    return ModelError(
        f"The base {path} is not an SDXL-class model: {reason}.",
        Remedy("Use SDXL or a model made from it", settings={"base": "sdxl"}),
        Remedy("Or try the built-in one", settings={"base": "mini"}),
    )


def weight_files(component: Path) -> list[Path]:
    """The safetensors in the folder of a component, all variants."""
    return sorted(file for file in component.glob("*.safetensors") if file.is_file())


def component_variant(component: Path, preferred: str | None) -> str | None:
    """The variant to load from a component's folder: ``preferred`` if present, else plain, else fp16."""
    names = [file.name for file in weight_files(component)]
    plain = any(re.fullmatch(r"\w+(-\d+-of-\d+)?\.safetensors", name) for name in names)
    for variant in (preferred, None if plain else "fp16"):
        if variant and any(f".{variant}." in name or f".{variant}-" in name for name in names):
            return variant
    return None


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object; raises ModelError."""
    try:
        value = json.loads(read_text(path))
    except OSError as error:
        raise unreadable(path, error) from error
    except (ValueError, RecursionError) as error:
        raise ModelError(f"{path} is not valid JSON.", _FETCH_AGAIN) from error
    if not isinstance(value, dict):
        raise ModelError(f"{path} does not contain a configuration.", _FETCH_AGAIN)
    return value


@contextmanager
def valid_config(path: Path) -> Iterator[None]:
    """Turn the errors that a wrongly typed value of a configuration causes into ModelError."""
    try:
        yield
    except (TypeError, ValueError, LookupError, AttributeError, OverflowError, RuntimeError) as error:
        raise ModelError(
            f"A configuration of the base {path} is damaged: {type(error).__name__}: {error}.", _FETCH_AGAIN
        ) from error


def check_unet(folder: Path, unet: Mapping[str, Any]) -> None:
    if unet.get("_class_name") != "UNet2DConditionModel":
        raise unsupported_model(
            folder, f"its denoiser is a {unet.get('_class_name')}, not a UNet2DConditionModel"
        )
    if unet.get("addition_embed_type") != "text_time":
        raise unsupported_model(folder, "its U-Net takes no pooled text and image size")
    if unet.get("in_channels") != unet.get("out_channels"):
        raise unsupported_model(
            folder, "its U-Net takes a mask or an image beside the noise (an inpainting or edit model)"
        )
    attentions = list(_attentions(unet))
    missing = [block for block in SELECTIVE if not any(name.startswith(block) for name in attentions)]
    if missing:
        raise unsupported_model(folder, f"its U-Net has no attention at {', '.join(missing)}")


def _attentions(unet: Mapping[str, Any]) -> Iterator[str]:
    """The names of the attention groups of a U-Net, from its configuration."""
    layers = unet.get("layers_per_block", 2)
    for side, extra in (("down", 0), ("up", 1)):
        for i, block in enumerate(unet.get(f"{side}_block_types", ())):
            if "CrossAttn" in block:
                count = (layers if isinstance(layers, int) else layers[i]) + extra
                yield from (f"{side}_blocks.{i}.attentions.{j}." for j in range(min(count, _MAX_LAYERS)))


def _check_scheduler(path: Path, scheduler: Mapping[str, Any]) -> None:
    kind = str(scheduler.get("_class_name", ""))
    if kind.startswith("FlowMatch") or scheduler.get("prediction_type") == "flow_prediction":
        raise unsupported_model(path, "it is a flow-matching model")
    if kind.startswith("EDM"):
        raise unsupported_model(path, "its U-Net expects the noise levels of EDM")
    prediction = scheduler.get("prediction_type", PREDICTIONS[0])
    if prediction not in PREDICTIONS:
        raise unsupported_model(path, f"its U-Net predicts {prediction!r}, not the noise or the velocity")


# Names and shapes of weights


def check_weights(
    what: str, component: str, config: Mapping[str, Any], header: Header, *, file: bool
) -> None:
    """Raise ModelError unless a component has all its weights in the right shapes.

    ``file``: the header is that of a single file in the original layout, else of diffusers' files.
    """
    expected = _expected(component, json.dumps(config, sort_keys=True))
    shapes = converted_shapes(component, config, header) if file else header.shapes
    actual = {_plain(name): shape for name, shape in shapes.items()}
    missing = [name for name in expected if name not in actual]
    name = _NAMES[component]
    if missing:
        kind = ": an incomplete file, or a pruned model such as SSD-1B" if component == "unet" else ""
        raise ModelError(
            f"The {name} of {what} lacks {len(missing)} of its {len(expected)} weights, such as "
            f"{missing[0]}{kind}.",
            Remedy("Download it again, or use SDXL or a model made from it."),
        )
    for weight, shape in expected.items():
        if actual[weight] != shape:
            raise ModelError(
                f"The {name} of {what} does not fit: {weight} has the shape {list(actual[weight])}, "
                f"not {list(shape)}.",
                Remedy("Use SDXL or a model made from it."),
            )


def folder_header(component: Path, preferred: str | None) -> Header:
    """The header of the weight files that are loaded from the folder of a component in diffusers' layout."""
    variant = component_variant(component, preferred)
    pattern = rf".*\.{re.escape(variant)}[.-].*" if variant else r"\w+(-\d+-of-\d+)?\.safetensors"
    files = (file for file in weight_files(component) if re.fullmatch(pattern, file.name))
    headers = [read_header(file) for file in files]
    return Header(
        {name: shape for header in headers for name, shape in header.shapes.items()},
        {name: kind for header in headers for name, kind in header.formats.items()},
        {},
    )


def converted_shapes(component: str, config: Mapping[str, Any], header: Header) -> Shapes:
    """The shapes of a component of a single file, by the names that diffusers uses."""
    import torch

    prefix = vae_prefix(header) if component == "vae" else PREFIXES[component]
    if prefix is None:
        return {}
    try:
        tensors = {
            key: torch.empty(shape, device="meta")
            for key, shape in header.shapes.items()
            if key.startswith(prefix)
        }
        return {
            name: tuple(tensor.shape)
            for name, tensor in convert(component, config, tensors).items()
            if tensor is not None
        }
    except (KeyError, IndexError, ValueError, RuntimeError, AttributeError):
        return {}  # so little is there that diffusers cannot convert it


def convert(component: str, config: Mapping[str, Any], tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of a component of a single file by the names that diffusers uses."""
    from diffusers.loaders import single_file_utils

    diffusers: Any = single_file_utils
    converted: dict[str, Tensor]
    match component:
        case "unet":
            converted = diffusers.convert_ldm_unet_checkpoint(tensors, config)
        case "vae" if any(".mid_block." in key for key in tensors):
            converted = tensors  # in diffusers' layout
        case "vae":
            converted = diffusers.convert_ldm_vae_checkpoint(tensors, config)
        case "text_encoder":
            converted = diffusers.convert_ldm_clip_checkpoint(tensors)
        case _:
            model = meta_module(component, config)
            converted = diffusers.convert_open_clip_checkpoint(model, tensors, prefix=PREFIXES[component])
    return converted


@cache
def _expected(component: str, config: str) -> Shapes:
    from huggingface_hub.errors import StrictDataclassError

    try:
        state = meta_module(component, json.loads(config)).state_dict()
    except (RuntimeError, ArithmeticError, AssertionError, StrictDataclassError) as error:  # impossible sizes
        raise ValueError(" ".join(str(error).split())[:200]) from error
    return {_plain(name): tuple(tensor.shape) for name, tensor in state.items()}


def meta_module(component: str, config: Mapping[str, Any]) -> Any:
    """The module of a component without memory for its weights; raises ValueError for too many layers."""
    import torch

    for name, value in config.items():
        counts = value if isinstance(value, list) else [value]
        if "layers" in name and any(isinstance(count, int) and count > _MAX_LAYERS for count in counts):
            raise ValueError(f"{name} is {str(value)[:40]}")
    with torch.device("meta"):
        if component in ("unet", "vae"):
            from diffusers import AutoencoderKL, UNet2DConditionModel

            cls: Any = UNet2DConditionModel if component == "unet" else AutoencoderKL
            return cls.from_config(dict(config))
        from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

        text = CLIPTextModel if component == "text_encoder" else CLIPTextModelWithProjection
        return text(CLIPTextConfig.from_dict(dict(config)))


def _plain(name: str) -> str:
    """A name without what differs between versions of diffusers and transformers."""
    name = name.removeprefix("text_model.")
    pattern = r"(?<=\.)({})(?=\.(?:weight|bias)$)".format("|".join(_LEGACY))
    return re.sub(pattern, lambda match: _LEGACY[match[1]], name)
