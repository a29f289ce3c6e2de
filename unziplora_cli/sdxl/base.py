"""Base models: which one is meant, where its files are, and whether the method can train it.

A base is ``mini`` (built in), ``sdxl``, a Hugging Face id (``owner/name`` or ``owner/name@revision``), a
folder in diffusers' layout, or a single ``.safetensors`` checkpoint. Nothing is loaded here, and the network
is not used.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from unziplora_cli import resources
from unziplora_cli.errors import ModelError, Remedy
from unziplora_cli.events import Notice
from unziplora_cli.hub import find_snapshot
from unziplora_cli.method.blocks import SELECTIVE
from unziplora_cli.sdxl.single_file import TOKENIZERS, find_tokenizers, scheduler_config, unsupported_reason

SDXL_ID = "stabilityai/stable-diffusion-xl-base-1.0"
SDXL_REVISION = "462165984030d82259a11f4367a4eed129e94a7b"
SDXL_CONFIG = Path(__file__).with_name("config")
"""Component configurations of SDXL, for single checkpoint files, which contain none."""

WEIGHTS = ("unet", "vae", "text_encoder", "text_encoder_2")

SCHEDULERS = {
    "euler": "EulerDiscreteScheduler",
    "ddim": "DDIMScheduler",
    "ddpm": "DDPMScheduler",
    "dpm++": "DPMSolverMultistepScheduler",
}
"""Short name of a sampler -> its class in diffusers."""

PREDICTIONS = ("epsilon", "v_prediction")
"""What a U-Net may predict: the noise, or the velocity of Salimans and Ho (arXiv 2202.00512)."""

HUB_ID = re.compile(r"[\w.-]+/[\w.-]+(@[\w.-]+)?")
"""`owner/name`, or `owner/name@revision`."""

_FEW_STEP_NAME = re.compile(r"(?i)turbo|lightning|lcm|hyper-?sd|dmd2")
_FEW_STEP_SETTINGS = {"steps": 4, "guidance": 1}
_SAMPLES, _SAMPLE_BYTES = 64, 1 << 16
_MAX_LAYERS = 100
"""Layers of a block that are checked, whatever number a configuration claims."""

_FETCH_AGAIN = Remedy("The base is damaged; fetch or export it again.")


class BaseNotCached(ModelError):
    """The base is on the hub but not on this disk."""

    def __init__(self, spec: str, id: str, revision: str | None) -> None:
        super().__init__(f"The base {id} is not on this disk.", _pull(spec))
        self.id = id
        self.revision = revision


@dataclass(frozen=True, slots=True)
class BaseRef:
    """A base model on this disk.

    ``spec`` is what the user typed; ``path`` the folder or file; ``variant`` the weight files to prefer
    (``fp16``). Two bases are equal if their ``fingerprint`` is: the hub's commit, or ``sha256:`` of the
    U-Net's configuration and of samples of its weights.
    """

    spec: str
    kind: Literal["builtin", "hub", "folder", "file"]
    id: str
    path: Path
    revision: str | None
    variant: str | None
    fingerprint: str


def resolve_base(
    spec: str | None, *, offline: bool, has_gpu: bool | None = None
) -> tuple[BaseRef, Notice | None]:
    """Find the base that ``spec`` names, and a notice if the user should know more about the choice.

    Without a spec: ``sdxl`` if it is on this disk or this machine could use it (online, with a GPU), else
    ``mini``. Raises ModelError if the base is missing, incomplete or unsupported, BaseNotCached if it would
    have to be downloaded.
    """
    if spec is not None:
        base = _find(spec)
        return base, _few_step_notice(base)
    cached = find_snapshot(SDXL_ID, SDXL_REVISION)
    if cached is not None and weight_files(cached.path / "unet"):
        return _find("sdxl"), None
    if not offline and (_gpu_present() if has_gpu is None else has_gpu):
        return _find("sdxl"), None
    reason = "offline" if offline else "no GPU"
    return _find("mini"), Notice(
        f"Using the built-in base mini ({reason}, and SDXL is not on this disk).",
        (_pull("sdxl", "Download SDXL"),),
    )


def check_folder(folder: Path, *remedies: Remedy) -> None:
    """Raise ModelError unless ``folder`` has all components of an SDXL-class pipeline, as safetensors.

    ``remedies`` are those for missing components.
    """
    remedies = remedies or (Remedy("Fetch or export the base again, with all its components."),)
    index = read_json(folder / "model_index.json") if (folder / "model_index.json").is_file() else {}
    pipeline = index.get("_class_name", "StableDiffusionXLPipeline")
    if not str(pipeline).startswith("StableDiffusionXL"):
        raise unsupported_model(folder, f"its model_index.json says {pipeline}")
    if not any((folder / component).is_dir() for component in WEIGHTS):
        raise ModelError(
            f"The folder {folder} is not a base: it has no {', '.join(WEIGHTS)} folders.", *remedies
        )
    missing = [file for file in _required_files(folder) if not (folder / file).is_file()]
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


def check_trainable(base: BaseRef) -> None:
    """Raise ModelError for a base that was distilled to a few steps: training would undo that."""
    reason = few_step_reason(component_config(base, "unet"), component_config(base, "scheduler"))
    if reason:
        raise ModelError(
            f"The base {base.spec} cannot be trained: {reason}, and training would undo its distillation.",
            Remedy("Train on the model that it was distilled from, such as SDXL", settings={"base": "sdxl"}),
            Remedy(
                "Then generate with the distilled model",
                settings={"base": base.spec, **_FEW_STEP_SETTINGS},
            ),
        )


def check_vae(path: Path, vae: Mapping[str, Any], channels: int) -> None:
    """Raise ModelError unless an autoencoder has as many latent channels as the U-Net."""
    latent_channels = vae.get("latent_channels", 4)
    if latent_channels != channels:
        raise ModelError(
            f"The VAE {path} has {latent_channels} latent channels, but the U-Net takes {channels}.",
            Remedy("Use the base's own VAE, or one that was made for SDXL."),
        )


def few_step_reason(unet: Mapping[str, Any], scheduler: Mapping[str, Any]) -> str:
    """Why a model must be one that was distilled to a few steps; empty if it need not be.

    Signs are LCM's guidance embedding or sampler, TCD's sampler, and the trailing timesteps of SDXL-Turbo and
    SDXL-Lightning. A model that predicts the velocity may use these too, to start at pure noise.
    """
    kind = scheduler.get("_class_name")
    if unet.get("time_cond_proj_dim") or kind in ("LCMScheduler", "TCDScheduler"):
        return "it is a consistency model (LCM or TCD)"
    trailing = scheduler.get("timestep_spacing") == "trailing"
    if trailing and scheduler.get("prediction_type", PREDICTIONS[0]) == PREDICTIONS[0]:
        return "its sampler has the trailing timesteps of SDXL-Turbo and SDXL-Lightning"
    return ""


def unsupported_model(path: Path, reason: str) -> ModelError:
    """The error for a base that the method cannot train."""
    return ModelError(
        f"The base {path} is not an SDXL-class model: {reason}.",
        Remedy("Use SDXL or a model made from it", settings={"base": "sdxl"}),
        Remedy("Or try the built-in one", settings={"base": "mini"}),
    )


# Files and configurations


def weight_files(component: Path) -> list[Path]:
    """The safetensors in the folder of a component, all variants."""
    return sorted(component.glob("*.safetensors")) if component.is_dir() else []


def component_variant(component: Path, preferred: str | None) -> str | None:
    """The variant to load from a component's folder: ``preferred`` if present, else plain, else fp16."""
    names = [file.name for file in weight_files(component)]
    plain = any(re.fullmatch(r"\w+(-\d+-of-\d+)?\.safetensors", name) for name in names)
    for variant in (preferred, None if plain else "fp16"):
        if variant and any(f".{variant}." in name or f".{variant}-" in name for name in names):
            return variant
    return None


def component_config(base: BaseRef, component: str) -> Mapping[str, Any]:
    """The configuration of a component: ``unet``, ``vae``, ``scheduler``, ``text_encoder``, ..."""
    name = "scheduler_config.json" if component == "scheduler" else "config.json"
    config = read_json(config_folder(base) / component / name)
    if base.kind == "file" and component == "scheduler":
        return scheduler_config(base.path, config)
    return config


def config_folder(base: BaseRef) -> Path:
    """The folder with the configuration of every component."""
    return SDXL_CONFIG if base.kind == "file" else base.path


def tokenizer_folder(base: BaseRef) -> Path:
    """The folder that holds ``tokenizer`` and ``tokenizer_2``; a single file borrows SDXL's.

    Raises ModelError if there is none.
    """
    if base.kind != "file":
        return base.path
    return find_tokenizers(base.path, component_config(base, "text_encoder")["vocab_size"])


def find_vae(spec: str) -> Path:
    """The folder of an autoencoder, from a folder (also that of a whole base) or a cached Hugging Face id."""
    folder = Path(spec).expanduser()
    if not folder.is_dir():
        id, _, revision = spec.partition("@")
        snapshot = find_snapshot(id, revision or None) if HUB_ID.fullmatch(spec) else None
        if snapshot is None:
            raise ModelError(f"The VAE {spec} is not on this disk.", _pull(spec))
        folder = snapshot.path
    if (folder / "vae/config.json").is_file():
        folder /= "vae"
    if not (folder / "config.json").is_file() or not weight_files(folder):
        raise ModelError(
            f"The VAE {spec} lacks a config.json or a .safetensors file.",
            Remedy("Give a folder in diffusers' layout or a Hugging Face id."),
        )
    return folder


def predicts_velocity(base: BaseRef) -> bool:
    """Whether the U-Net predicts the velocity, sqrt(a) noise - sqrt(1 - a) image, instead of the noise."""
    return bool(component_config(base, "scheduler").get("prediction_type", PREDICTIONS[0]) == "v_prediction")


def vae_scale_factor(base: BaseRef) -> int:
    """Pixels per latent pixel along one side; 8 for SDXL."""
    vae = component_config(base, "vae")
    with valid_config(base.path):
        return int(2 ** (len(vae["block_out_channels"]) - 1))


def native_resolution(base: BaseRef) -> int:
    """Side in pixels of the images that the base was trained on; 1024 for SDXL."""
    unet = component_config(base, "unet")
    with valid_config(base.path):
        return int(unet["sample_size"]) * vae_scale_factor(base)


def scheduler_name(base: BaseRef, name: str | None = None) -> str:
    """``name``, or without one the base's own sampler: its short name, else its class name."""
    own_class = str(component_config(base, "scheduler").get("_class_name", SCHEDULERS["euler"]))
    return name or next((short for short, cls in SCHEDULERS.items() if cls == own_class), own_class)


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object; raises ModelError."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ModelError(f"Cannot read {path}: {error.strerror}.") from error
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
    except (TypeError, ValueError, KeyError, IndexError, AttributeError, OverflowError) as error:
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


def _few_step_notice(base: BaseRef) -> Notice | None:
    """A notice for a base that needs few steps, by its configuration or its name."""
    reason = few_step_reason(component_config(base, "unet"), component_config(base, "scheduler"))
    if match := _FEW_STEP_NAME.search(Path(base.id).name):
        reason = reason or f"its name says {match[0]}"
    if not reason:
        return None
    return Notice(
        f"{base.spec} seems to be distilled to a few steps ({reason}): train on the model that it was "
        "distilled from.",
        (Remedy("Generate with", settings=_FEW_STEP_SETTINGS),),
    )


def _find(spec: str) -> BaseRef:
    if spec == "mini":
        folder = resources.mini_base()
        check_folder(folder)
        return BaseRef(spec, "builtin", "mini", folder, None, None, _fingerprint_folder(folder))
    if spec == "sdxl":
        return _find_on_hub(spec, SDXL_ID, SDXL_REVISION, "fp16")
    path = Path(spec).expanduser()
    if spec and path.is_dir():
        path = path.resolve()
        check_folder(path)
        return BaseRef(spec, "folder", str(path), path, None, None, _fingerprint_folder(path))
    if path.is_file():
        path = path.resolve()
        if reason := unsupported_reason(path):
            raise unsupported_model(path, reason)
        return BaseRef(spec, "file", str(path), path, None, None, _fingerprint(path))
    if HUB_ID.fullmatch(spec) and not spec.startswith("."):
        id, _, revision = spec.partition("@")
        return _find_on_hub(spec, id, revision or None, None)
    raise ModelError(
        f"There is no base {spec!r}: no such folder or file, and not a Hugging Face id.",
        Remedy("Give mini, sdxl, owner/name, a diffusers folder or a .safetensors file."),
    )


def _find_on_hub(spec: str, id: str, revision: str | None, variant: str | None) -> BaseRef:
    snapshot = find_snapshot(id, revision)
    if snapshot is None:
        raise BaseNotCached(spec, id, revision)
    check_folder(snapshot.path, _pull(spec))
    return BaseRef(spec, "hub", id, snapshot.path, snapshot.revision, variant, snapshot.revision)


def _pull(spec: str, advice: str = "") -> Remedy:
    return Remedy(advice, command="models pull", arguments=(spec,))


def _gpu_present() -> bool:
    import torch

    return torch.cuda.is_available() or torch.backends.mps.is_available()


def _required_files(folder: Path) -> Iterator[str]:
    yield from (f"{component}/config.json" for component in WEIGHTS)
    yield "scheduler/scheduler_config.json"
    for tokenizer in TOKENIZERS:
        if not (folder / tokenizer / "tokenizer.json").is_file():
            yield f"{tokenizer}/vocab.json"
            yield f"{tokenizer}/merges.txt"


def _fingerprint_folder(folder: Path) -> str:
    return _fingerprint(folder / "unet/config.json", *weight_files(folder / "unet"))


def _fingerprint(*files: Path) -> str:
    """sha256 of each file's size and of evenly spaced samples, which cover small files completely."""
    digest = hashlib.sha256()
    for file in files:
        size = file.stat().st_size
        digest.update(size.to_bytes(8, "little"))
        with file.open("rb") as stream:
            for i in range(_SAMPLES):
                stream.seek(max(0, size - _SAMPLE_BYTES) * i // (_SAMPLES - 1))
                digest.update(stream.read(_SAMPLE_BYTES))
    return f"sha256:{digest.hexdigest()}"
