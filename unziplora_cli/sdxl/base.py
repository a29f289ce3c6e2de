"""Which base model is meant, where its files lie, and whether they are of SDXL's shape.

A base is ``mini`` (shipped), ``sdxl``, a Hugging Face id (``owner/name`` or ``owner/name@revision``), a
folder in diffusers' layout, or a single ``.safetensors`` checkpoint. Nothing is loaded, and only files on
this disk are looked at.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from unziplora_cli import resources
from unziplora_cli.errors import ModelError
from unziplora_cli.hub import find_snapshot
from unziplora_cli.sdxl.shape import (
    PREDICTIONS,
    check_scheduler,
    check_unet,
    check_vae,
    few_step_reason,
    read_json,
    sound,
    unsupported_model,
)
from unziplora_cli.sdxl.single_file import TOKENIZERS, check_file, find_tokenizers, scheduler_config

SDXL_ID = "stabilityai/stable-diffusion-xl-base-1.0"
SDXL_REVISION = "462165984030d82259a11f4367a4eed129e94a7b"
SDXL_CONFIG = Path(__file__).with_name("config")
"""Component configurations of SDXL, for single checkpoint files, which carry none."""

WEIGHTS = ("unet", "vae", "text_encoder", "text_encoder_2")

SCHEDULERS = {
    "euler": "EulerDiscreteScheduler",
    "ddim": "DDIMScheduler",
    "ddpm": "DDPMScheduler",
    "dpm++": "DPMSolverMultistepScheduler",
}
"""Short names of samplers, and diffusers' class of each."""

HUB_ID = re.compile(r"[\w.-]+/[\w.-]+(@[\w.-]+)?")
"""`owner/name`, or `owner/name@revision`."""

_FEW_STEPS = re.compile(r"(?i)turbo|lightning|lcm|hyper-?sd|dmd2")
_SAMPLES, _SAMPLE_BYTES = 64, 1 << 16


class BaseNotCached(ModelError):
    """The base is on the hub and not on this disk."""

    def __init__(self, spec: str, id: str, revision: str | None) -> None:
        super().__init__(f"The base {id} is not on this disk.", hint=f"unziplora models pull {spec}")
        self.id = id
        self.revision = revision


@dataclass(frozen=True, slots=True)
class BaseRef:
    """A base model on this disk.

    ``spec`` is what the user typed; ``path`` the folder or file; ``variant`` the weight files to prefer
    (``fp16``). ``fingerprint`` tells two bases apart: the hub's commit, or ``sha256:`` of the U-Net's
    configuration and of samples of its weights.
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
) -> tuple[BaseRef, str | None]:
    """Find the base that ``spec`` names, and a line to tell the user when the choice was not theirs.

    Without a spec: ``sdxl`` when it is on this disk or this machine could use it (online, with a GPU), else
    ``mini``. Raises ModelError when the base is missing, incomplete or not of SDXL's shape, BaseNotCached
    when it would have to be downloaded.
    """
    if spec is not None:
        found = _find(spec)
        return found, _few_steps_note(found)
    cached = find_snapshot(SDXL_ID, SDXL_REVISION)
    if cached is not None and any(weight_files(cached.path / "unet")):
        return _find("sdxl"), None
    if not offline and (_gpu_present() if has_gpu is None else has_gpu):
        return _find("sdxl"), None
    reason = "offline" if offline else "no GPU"
    return _find("mini"), (
        f"Using the built-in base mini ({reason}, and SDXL is not on this disk; "
        "`unziplora models pull sdxl` fetches it)."
    )


def check(folder: Path, *, mend: str = "Fetch or export the base again, with all its parts.") -> None:
    """Raise ModelError unless ``folder`` holds all parts of an SDXL-class pipeline, as safetensors.

    ``mend`` is the hint for parts that are missing.
    """
    index = read_json(folder / "model_index.json") if (folder / "model_index.json").is_file() else {}
    kind = index.get("_class_name", "StableDiffusionXLPipeline")
    if not str(kind).startswith("StableDiffusionXL"):
        raise unsupported_model(folder, f"its model_index.json says {kind}")
    if not any((folder / part).is_dir() for part in WEIGHTS):
        raise ModelError(
            f"The folder {folder} is not a base: it has no {', '.join(WEIGHTS)} folders.",
            hint=mend,
        )
    missing = [part for part in _required_files(folder) if not (folder / part).is_file()]
    missing += [f"{part}/*.safetensors" for part in WEIGHTS if not weight_files(folder / part)]
    if missing:
        pickled = any(any((folder / part).glob("*.bin")) for part in WEIGHTS)
        hint = (
            "Weights in .bin files can run code when they are opened: convert the base to safetensors."
            if pickled and not any(weight_files(folder / part) for part in WEIGHTS)
            else mend
        )
        raise ModelError(f"The base {folder} lacks {', '.join(missing)}.", hint=hint)
    unet = read_json(folder / "unet/config.json")
    scheduler, vae = (
        read_json(folder / file) for file in ("scheduler/scheduler_config.json", "vae/config.json")
    )
    with sound(folder):
        check_unet(folder, unet)
        check_scheduler(folder, scheduler)
        check_vae(folder / "vae", vae, unet["in_channels"])


def check_trainable(base: BaseRef) -> None:
    """Raise ModelError for a base that was distilled to draw in a few steps: training would undo that."""
    reason = few_step_reason(component_config(base, "unet"), component_config(base, "scheduler"))
    if reason:
        raise ModelError(
            f"The base {base.spec} cannot be trained on: {reason}, and training would make it forget to draw "
            "in a few steps.",
            hint="Train on the model that it was made from, as --base sdxl; "
            f"then draw with --base {base.spec} --steps 4 --guidance 1.",
        )


def weight_files(part: Path) -> list[Path]:
    """The safetensors of one part of a base, all variants."""
    return sorted(part.glob("*.safetensors")) if part.is_dir() else []


def part_variant(part: Path, preferred: str | None) -> str | None:
    """The variant to load from one part's folder: the preferred if it is there, else the plain, else fp16."""
    names = [file.name for file in weight_files(part)]
    plain = any(re.fullmatch(r"\w+(-\d+-of-\d+)?\.safetensors", name) for name in names)
    for variant in (preferred, None if plain else "fp16"):
        if variant and any(f".{variant}." in name or f".{variant}-" in name for name in names):
            return variant
    return None


def component_config(base: BaseRef, part: str) -> Mapping[str, Any]:
    """The configuration of one part: ``unet``, ``vae``, ``scheduler``, ``text_encoder``, ..."""
    name = "scheduler_config.json" if part == "scheduler" else "config.json"
    values = read_json(config_folder(base) / part / name)
    return scheduler_config(base.path, values) if (base.kind, part) == ("file", "scheduler") else values


def config_folder(base: BaseRef) -> Path:
    """The folder with the configuration of every part."""
    return SDXL_CONFIG if base.kind == "file" else base.path


def tokenizer_folder(base: BaseRef) -> Path:
    """The folder that holds ``tokenizer`` and ``tokenizer_2``; a single file borrows SDXL's.

    Raises ModelError when they are not there.
    """
    if base.kind != "file":
        return base.path
    return find_tokenizers(base.path, component_config(base, "text_encoder")["vocab_size"])


def find_vae(spec: str) -> Path:
    """The folder of an autoencoder, from a folder (also a whole base's) or a cached Hugging Face id."""
    folder = Path(spec).expanduser()
    if not folder.is_dir():
        id, _, revision = spec.partition("@")
        snapshot = find_snapshot(id, revision or None) if HUB_ID.fullmatch(spec) else None
        if snapshot is None:
            raise ModelError(f"The VAE {spec} is not on this disk.", hint=f"unziplora models pull {spec}")
        folder = snapshot.path
    if (folder / "vae/config.json").is_file():
        folder /= "vae"
    if not (folder / "config.json").is_file() or not weight_files(folder):
        raise ModelError(
            f"The VAE {spec} lacks a config.json or a .safetensors file.",
            hint="Give a folder in diffusers' layout or a Hugging Face id.",
        )
    return folder


def predicts_velocity(base: BaseRef) -> bool:
    """Whether the U-Net predicts the velocity, sqrt(a) noise - sqrt(1 - a) picture, and not the noise."""
    return bool(component_config(base, "scheduler").get("prediction_type", PREDICTIONS[0]) == "v_prediction")


def vae_scale_factor(base: BaseRef) -> int:
    """Pixels per latent pixel along one side; 8 for SDXL."""
    vae = component_config(base, "vae")
    with sound(base.path):
        return int(2 ** (len(vae["block_out_channels"]) - 1))


def native_resolution(base: BaseRef) -> int:
    """The side in pixels of the pictures that the base was trained on; 1024 for SDXL."""
    unet = component_config(base, "unet")
    with sound(base.path):
        return int(unet["sample_size"]) * vae_scale_factor(base)


def scheduler_name(base: BaseRef, chosen: str | None = None) -> str:
    """The sampler's short name; without a choice the base's own, by its class name if it has no short one."""
    kind = str(component_config(base, "scheduler").get("_class_name", SCHEDULERS["euler"]))
    return chosen or next((name for name, known in SCHEDULERS.items() if known == kind), kind)


def _few_steps_note(base: BaseRef) -> str | None:
    """What to tell about a base that draws in a few steps, by its configuration or its name."""
    why = few_step_reason(component_config(base, "unet"), component_config(base, "scheduler"))
    if named := _FEW_STEPS.search(Path(base.id).name):
        why = why or f"its name says {named[0]}"
    if not why:
        return None
    return (
        f"{base.spec} seems to be made for drawing in a few steps ({why}): draw with --steps 4 --guidance 1, "
        "and train on the model that it was made from."
    )


def _find(spec: str) -> BaseRef:
    if spec == "mini":
        folder = resources.mini_base()
        check(folder)
        return BaseRef(spec, "builtin", "mini", folder, None, None, _fingerprint_folder(folder))
    if spec == "sdxl":
        return _find_hub(spec, SDXL_ID, SDXL_REVISION, "fp16")
    path = Path(spec).expanduser()
    if spec and path.is_dir():
        path = path.resolve()
        check(path)
        return BaseRef(spec, "folder", str(path), path, None, None, _fingerprint_folder(path))
    if path.is_file():
        path = path.resolve()
        check_file(path)
        return BaseRef(spec, "file", str(path), path, None, None, _fingerprint(path))
    if HUB_ID.fullmatch(spec) and not spec.startswith("."):
        id, _, revision = spec.partition("@")
        return _find_hub(spec, id, revision or None, None)
    raise ModelError(
        f"There is no base {spec!r}: no such folder or file, and not a Hugging Face id.",
        hint="Give --base mini, sdxl, owner/name, a diffusers folder or a .safetensors file.",
    )


def _find_hub(spec: str, id: str, revision: str | None, variant: str | None) -> BaseRef:
    snapshot = find_snapshot(id, revision)
    if snapshot is None:
        raise BaseNotCached(spec, id, revision)
    check(snapshot.path, mend=f"unziplora models pull {spec}")
    return BaseRef(spec, "hub", id, snapshot.path, snapshot.revision, variant, snapshot.revision)


def _gpu_present() -> bool:
    import torch

    return torch.cuda.is_available() or torch.backends.mps.is_available()


def _required_files(folder: Path) -> Iterator[str]:
    yield from (f"{part}/config.json" for part in WEIGHTS)
    yield "scheduler/scheduler_config.json"
    for part in TOKENIZERS:
        if not (folder / part / "tokenizer.json").is_file():
            yield f"{part}/vocab.json"
            yield f"{part}/merges.txt"


def _fingerprint_folder(folder: Path) -> str:
    return _fingerprint(folder / "unet/config.json", *weight_files(folder / "unet"))


def _fingerprint(*files: Path) -> str:
    """sha256 of each file's size and of evenly spread samples (small files: of everything)."""
    digest = hashlib.sha256()
    for file in files:
        size = file.stat().st_size
        digest.update(size.to_bytes(8, "little"))
        with file.open("rb") as stream:
            for i in range(_SAMPLES):
                stream.seek(max(0, size - _SAMPLE_BYTES) * i // (_SAMPLES - 1))
                digest.update(stream.read(_SAMPLE_BYTES))
    return f"sha256:{digest.hexdigest()}"
