"""Base models: which one is meant, where its files are, and whether the method can train it.

A base is ``mini`` (built in), ``sdxl``, a Hugging Face id (``owner/name`` or ``owner/name@revision``), a
folder in diffusers' layout, or a single checkpoint file in safetensors. No weights are loaded here, only the
headers of their files are read, and the network is not used.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

from unziplora_cli import resources
from unziplora_cli.errors import ModelError, Remedy
from unziplora_cli.events import Notice
from unziplora_cli.hub import find_snapshot
from unziplora_cli.paths import expand_user
from unziplora_cli.sdxl.folder import (
    PREDICTIONS,
    WEIGHTS,
    check_folder,
    check_vae,
    check_weights,
    folder_header,
    read_json,
    unsupported_model,
    valid_config,
    weight_files,
)
from unziplora_cli.sdxl.single_file import (
    few_step_name,
    find_tokenizers,
    is_vae,
    marked_prediction,
    read_header,
    scheduler_config,
    unreadable,
    unsupported_reason,
    vae_prefix,
)

if TYPE_CHECKING:
    from unziplora_cli.config import GenerateConfig
    from unziplora_cli.job import BaseRecord

SDXL_ID = "stabilityai/stable-diffusion-xl-base-1.0"
SDXL_REVISION = "462165984030d82259a11f4367a4eed129e94a7b"
SDXL_CONFIG = Path(__file__).with_name("config")
"""Component configurations of SDXL, for single checkpoint files, which contain none."""

SCHEDULERS = {
    "euler": "EulerDiscreteScheduler",
    "ddim": "DDIMScheduler",
    "ddpm": "DDPMScheduler",
    "dpm++": "DPMSolverMultistepScheduler",
}
"""Short name of a sampler -> its class in diffusers."""

VAE_FIX = "madebyollin/sdxl-vae-fp16-fix"
"""SDXL's VAE, modified to work in fp16."""

HUB_ID = re.compile(r"[\w.-]+/[\w.-]+(@[\w.-]+)?")
"""`owner/name`, or `owner/name@revision`."""

_FEW_STEP_NAME = re.compile(r"(?i)turbo|lightning|lcm|hyper-?(sd|xl)|dmd2")
_FEW_STEP_SETTINGS = {"steps": 4, "guidance": 1}
_SAMPLES, _SAMPLE_BYTES = 64, 1 << 16


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
    U-Net's configuration and of samples of its weights. ``prediction`` is what the user says that the U-Net
    predicts, instead of what its files say.
    """

    spec: str
    kind: Literal["builtin", "hub", "folder", "file"]
    id: str
    path: Path
    revision: str | None
    variant: str | None
    fingerprint: str
    prediction: str | None = None

    def identity(self) -> tuple[str, str]:
        """The fingerprint, and the hash of samples of the U-Net's weights, whatever the revision says."""
        hashed = _fingerprint(self.path) if self.kind == "file" else _fingerprint_folder(self.path)
        return self.fingerprint, hashed

    def record(self) -> BaseRecord:
        """What a job keeps of this base."""
        from unziplora_cli.job import BaseRecord, Prediction  # imports pydantic

        prediction = cast(Prediction | None, self.prediction)
        return BaseRecord(self.spec, self.kind, self.id, self.revision, self.fingerprint, prediction)


def resolve_base(
    spec: str | None,
    *,
    offline: bool,
    has_gpu: bool | None = None,
    vae: str | None = None,
    prediction: str | None = None,
) -> tuple[BaseRef, Notice | None]:
    """Find the base that ``spec`` names, and a notice if the user should know more about the choice.

    Without a spec: ``sdxl`` if it is on this disk or this machine could use it (online, with a GPU), else
    ``mini``. ``vae`` replaces its autoencoder. The names and shapes of all weights are compared with the
    configuration. Raises ModelError if the base or the VAE is missing, incomplete or unsupported,
    BaseNotCached if it would have to be downloaded.
    """
    base, notice = _choose_base(spec, offline, has_gpu)
    base = replace(base, prediction=prediction)
    if base.kind != "builtin" or vae is not None:
        _check_weights(base, vae)
    return base, notice if spec is None else _notice(base)


def _choose_base(spec: str | None, offline: bool, has_gpu: bool | None) -> tuple[BaseRef, Notice | None]:
    if spec is not None:
        return _find(spec), None
    cached = find_snapshot(SDXL_ID, SDXL_REVISION)
    if cached is not None and weight_files(cached.path / "unet"):
        return _find("sdxl"), None
    if has_gpu is None and not offline:
        import torch

        has_gpu = torch.cuda.is_available() or torch.backends.mps.is_available()
    if has_gpu and not offline:
        return _find("sdxl"), None
    reason = "offline" if offline else "no GPU"
    return _find("mini"), Notice(
        f"Using the built-in base mini ({reason}, and SDXL is not on this disk).",
        (_pull("sdxl", "Download SDXL"),),
    )


def check_trainable(base: BaseRef) -> None:
    """Raise ModelError for a base that was distilled to a few steps: training would undo that."""
    reason = _few_step_reason(base)
    if reason:
        raise ModelError(
            f"The base {base.spec} cannot be trained: {reason}, and training would undo its distillation.",
            Remedy("Train on the model that it was distilled from, such as SDXL", settings={"base": "sdxl"}),
            Remedy(
                "Then generate with the distilled model", settings={"base": base.spec, **_FEW_STEP_SETTINGS}
            ),
        )


def _few_step_reason(base: BaseRef) -> str:
    """Why a model must be one that was distilled to a few steps; empty if it need not be.

    Signs are LCM's guidance embedding or sampler, TCD's sampler, and the trailing timesteps of SDXL-Turbo and
    SDXL-Lightning. A model that predicts the velocity may use these too, to start at pure noise. A single
    file has no configuration, so its name or title counts.
    """
    if base.kind == "file":
        word = few_step_name(read_header(base.path), base.path, _FEW_STEP_NAME)
        return f"its name says {word}" if word else ""
    unet, scheduler = component_config(base, "unet"), component_config(base, "scheduler")
    kind = scheduler.get("_class_name")
    if unet.get("time_cond_proj_dim") or kind in ("LCMScheduler", "TCDScheduler"):
        return "it is a consistency model (LCM or TCD)"
    trailing = scheduler.get("timestep_spacing") == "trailing"
    if trailing and scheduler.get("prediction_type", PREDICTIONS[0]) == PREDICTIONS[0]:
        return "its sampler has the trailing timesteps of SDXL-Turbo and SDXL-Lightning"
    return ""


# Files and configurations


def component_config(base: BaseRef, component: str) -> Mapping[str, Any]:
    """The configuration of a component: ``unet``, ``vae``, ``scheduler``, ``text_encoder``, ..."""
    name = "scheduler_config.json" if component == "scheduler" else "config.json"
    config = read_json(config_folder(base) / component / name)
    if component == "scheduler" and base.kind == "file":
        config = scheduler_config(read_header(base.path), config)
    if component == "scheduler" and base.prediction:
        config["prediction_type"] = base.prediction
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


def locate(spec: str, what: str, *remedies: Remedy) -> Path:
    """The folder that ``spec`` names, or a cached commit: of ``owner/name`` or ``owner/name@revision``.

    Raises ModelError with ``remedies`` if the ``what`` of that name is not on this disk.
    """
    folder = expand_user(spec)
    if folder.is_dir():
        return folder
    id, _, revision = spec.partition("@")
    snapshot = find_snapshot(id, revision or None) if HUB_ID.fullmatch(spec) else None
    if snapshot is None:
        raise ModelError(f"The {what} {spec} is not on this disk.", *remedies)
    return snapshot.path


def find_vae(spec: str) -> Path:
    """An autoencoder: a file, or a folder in diffusers' layout.

    ``spec`` is a safetensors file or a folder, also of a whole base, or a cached
    Hugging Face id. Raises ModelError.
    """
    path = expand_user(spec)
    if path.is_file():
        return path.resolve()
    is_file = path.suffix.lower() in (".safetensors", ".sft")
    if not path.is_dir() and (is_file or not HUB_ID.fullmatch(spec)):
        raise ModelError(f"There is no VAE {spec!r}.", Remedy("Give a file, a folder or owner/name."))
    path = locate(spec, "VAE", _pull(spec))
    if (path / "vae/config.json").is_file():
        path /= "vae"
    if not (path / "config.json").is_file() or not weight_files(path):
        raise ModelError(
            f"The VAE {spec} lacks a config.json or a .safetensors file.",
            Remedy("Give a folder in diffusers' layout, a single file or a Hugging Face id."),
        )
    return path


def absolute_spec(spec: str) -> str:
    """The spec of a base or a VAE, as one that is valid in any working folder."""
    path = expand_user(spec)
    return str(path.resolve()) if spec and path.exists() else spec


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


def image_size(base: BaseRef, config: GenerateConfig) -> tuple[int, int]:
    """Height and width of generated images in pixels; one that is not given equals the other."""
    native = native_resolution(base)
    return config.height or config.width or native, config.width or config.height or native


def scheduler_name(base: BaseRef, name: str | None = None) -> str:
    """``name``, or without one the base's own sampler: its short name, else its class name."""
    own_class = str(component_config(base, "scheduler").get("_class_name", SCHEDULERS["euler"]))
    return name or next((short for short, cls in SCHEDULERS.items() if cls == own_class), own_class)


def check_file(path: Path) -> None:
    """Raise ModelError unless a file is a checkpoint of SDXL or a VAE with all weights."""
    if is_vae(read_header(path)):
        _check_vae(str(path), read_json(SDXL_CONFIG / "unet/config.json")["in_channels"])
    else:
        resolve_base(str(path), offline=True)


def _check_weights(base: BaseRef, vae: str | None) -> None:
    """Compare the weights of all components with their configurations, from the headers of the files."""
    file = read_header(base.path) if base.kind == "file" else None
    with valid_config(base.path):
        if vae is not None:
            _check_vae(vae, component_config(base, "unet")["in_channels"])
        elif file and vae_prefix(file) is None:
            raise ModelError(
                f"The checkpoint {base.path.name} contains no VAE.",
                Remedy("Give one", settings={"vae": VAE_FIX}),
            )
        if base.kind == "builtin" or base.revision == SDXL_REVISION:
            return
        for component in WEIGHTS:
            if component != "vae" or vae is None:
                header = file or folder_header(base.path / component, base.variant)
                config = component_config(base, component)
                check_weights(base.path.name, component, config, header, file=file is not None)


def _check_vae(spec: str, channels: int) -> None:
    """Raise ModelError unless ``spec`` is an autoencoder of this many latent channels, with all weights."""
    path = find_vae(spec)
    if not path.is_file():
        config = read_json(path / "config.json")
        check_vae(path, config, channels)
        check_weights(path.name, "vae", config, folder_header(path, None), file=False)
        return
    header, config = read_header(path), read_json(SDXL_CONFIG / "vae/config.json")
    prefix = vae_prefix(header)
    if prefix is None:
        raise ModelError(f"{path.name} contains no VAE.", Remedy("Give the file of a VAE of SDXL."))
    shape = header.shapes[f"{prefix}decoder.conv_in.weight"]
    check_vae(path, {"latent_channels": shape[1] if len(shape) > 1 else 0}, channels)
    check_weights(path.name, "vae", config, header, file=True)


def _notice(base: BaseRef) -> Notice | None:
    """What the user should know of a base that cannot be read from its files for certain."""
    notes, remedies = [], []
    reason = _few_step_reason(base)
    if match := _FEW_STEP_NAME.search(Path(base.id).name):
        reason = reason or f"its name says {match[0]}"
    if reason:
        notes.append(
            f"{base.spec} seems to be distilled to a few steps ({reason}): train on the model that it was "
            "distilled from."
        )
        remedies.append(Remedy("Generate with", settings=_FEW_STEP_SETTINGS))
    if base.kind == "file" and not base.prediction and not marked_prediction(read_header(base.path)):
        notes.append(f"{base.path.name} does not say what it predicts; training assumes the noise (epsilon).")
        remedies.append(Remedy("For a v-prediction model, add", settings={"prediction": "v_prediction"}))
    return Notice(" ".join(notes), tuple(remedies)) if notes else None


def _find(spec: str) -> BaseRef:
    if spec == "mini":
        folder = resources.mini_base()
        check_folder(folder)
        return BaseRef(spec, "builtin", "mini", folder, None, None, _fingerprint_folder(folder))
    if spec == "sdxl":
        return _find_on_hub(spec, SDXL_ID, SDXL_REVISION, "fp16")
    path = expand_user(spec)
    if spec and path.is_dir():
        path = path.resolve()
        check_folder(path)
        return BaseRef(spec, "folder", str(path), path, None, None, _fingerprint_folder(path))
    if path.is_file():
        path = path.resolve()
        if reason := unsupported_reason(read_header(path), path.name):
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


def _fingerprint_folder(folder: Path) -> str:
    return _fingerprint(folder / "unet/config.json", *weight_files(folder / "unet"))


def _fingerprint(*files: Path) -> str:
    """sha256 of each file's size and of evenly spaced samples, which cover small files completely."""
    digest = hashlib.sha256()
    for file in files:
        try:
            size = file.stat().st_size
            digest.update(size.to_bytes(8, "little"))
            with file.open("rb") as stream:
                for i in range(_SAMPLES):
                    stream.seek(max(0, size - _SAMPLE_BYTES) * i // (_SAMPLES - 1))
                    digest.update(stream.read(_SAMPLE_BYTES))
        except OSError as error:
            raise unreadable(file, error) from error
    return f"sha256:{digest.hexdigest()}"
