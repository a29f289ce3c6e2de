"""All settings, each declared once with its range and help text, and the presets."""

import math
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from unziplora_cli import resources
from unziplora_cli.checks import (
    Checked,
    check_settings,
    check_text,
    field_names,
    nearest,
    option,
    refuse_unknown,
)
from unziplora_cli.errors import Remedy, UsageError, count

# Presets override the defaults of these dataclasses, and options override presets.


SEED_MAX = 2**63 - 1
SCHEDULERS = ("constant", "constant_with_warmup", "linear", "cosine", "cosine_with_restarts", "polynomial")

training = partial(option, group="Training")
optimization = partial(option, group="Optimizer")
separation = partial(option, group="Separation")
importance = partial(option, group="Column importance")
images = partial(option, group="Images and class images")
destyling = partial(option, group="Destyling")
monitoring = partial(option, group="Validation and checkpoints")
compute = partial(option, group="Compute")


DESTYLED_IMAGES = 8
"""Destyled images of a training that names a way to make them, but no number."""


@dataclass(frozen=True)
class TrainConfig(Checked):
    """One training. The defaults are the paper's."""

    rank: int = training(64, "Rank of both LoRAs.", min=1, max=1024)
    steps: int = training(600, "Training steps.", min=1, max=1_000_000)
    content_lr: float = training(5e-5, "Learning rate of the content LoRA.", above=0.0, max=1.0)
    style_lr: float = training(5e-5, "Learning rate of the style LoRA.", above=0.0, max=1.0)
    merge_lr: float = training(5e-3, "Learning rate of the merge weights.", min=0.0, max=1.0)
    resolution: int = training(
        1024, "Size of the square training image in pixels.", min=32, max=4096, multiple=8
    )
    batch_size: int = training(1, "Noise samples per step.", min=1, max=256)
    grad_accumulation: int = training(1, "Batches whose gradients are accumulated per step.", min=1, max=1024)
    precision: str = training(
        "auto", "Number format of the base model.", choices=("auto", "fp32", "bf16", "fp16")
    )
    gradient_checkpointing: bool = training(False, "Recompute activations to save memory.")
    quantize: str = training(
        "none",
        "Quantize the frozen base to save memory; int8 uses one byte per weight.",
        choices=("none", "int8"),
    )
    capture: bool = training(
        True, "Record training steps as CUDA graphs on NVIDIA GPUs; off: launch every kernel separately."
    )
    fuse: bool = training(
        True,
        "Fuse the LoRAs into the weights of the base and, on a GPU, use fused kernels; off: compute every "
        "layer as the method defines it, which is slower.",
    )
    seed: int = training(0, "Random seed.", min=0, max=SEED_MAX)

    max_grad_norm: float = optimization(1.0, "Maximum norm of all gradients.", above=0.0, max=1e6)
    optimizer: str = optimization(
        "adamw",
        "Optimizer; adamw8bit needs the extra `bnb`, prodigy the extra `prodigy`.",
        choices=("adamw", "adamw8bit", "prodigy"),
    )
    adam_beta1: float = optimization(0.9, "First Adam decay rate.", min=0.0, max=0.999999)
    adam_beta2: float = optimization(0.999, "Second Adam decay rate.", min=0.0, max=0.999999)
    adam_eps: float = optimization(1e-8, "Adam epsilon.", above=0.0, max=1.0)
    weight_decay: float = optimization(1e-4, "Decoupled weight decay.", min=0.0, max=1.0)
    lr_scheduler: str = optimization(
        "constant", "Learning-rate schedule, by its diffusers name.", choices=SCHEDULERS
    )
    lr_warmup_steps: int = optimization(0, "Warm-up steps of the schedule.", min=0, max=1_000_000)
    snr_gamma: float | None = optimization(
        None, "Weight the loss by min(SNR, this value); 5 is usual.", above=0.0, max=1000.0
    )
    timestep_bias: float = optimization(
        0.0,
        "Sample timesteps t with density t to this power: 0 = uniform, 1 = favour noise, where shapes form.",
        min=0.0,
        max=10.0,
    )
    start: str = optimization(
        "noise",
        "Initialization of the LoRAs: noise = both matrices random, as in the paper; zero = no effect.",
        choices=("noise", "zero"),
    )

    recalibrations: int = separation(
        3, "Number of windows of the training; every window chooses the columns again.", min=1, max=1000
    )
    column_ratio: float = separation(
        0.1, "Share of the columns of a projection that a window gives to a branch.", above=0.0, max=1.0
    )
    overlap_weight: float = separation(
        0.5, "Weight of the penalty on columns that both branches use.", min=0.0, max=1000.0
    )
    prompt_separation: bool = separation(True, "Use a separate prompt for each branch.")
    column_separation: bool = separation(
        True, "Use separate output columns for each branch; off: two plain LoRAs without merge weights."
    )
    block_separation: bool = separation(True, "Reserve some U-Net blocks for one branch.")
    avoid_overlap: bool = separation(True, "Style chooses only among columns that content has not chosen.")
    finetune_mask: bool = separation(
        False, "Train merge weights on all columns of their branch; off: only on columns of both branches."
    )

    importance_score: str = importance(
        "count",
        "Column importance from |W * dW|: count = share of rows above the threshold, magnitude = mean.",
        choices=("count", "magnitude"),
    )
    importance_threshold: float = importance(1e-5, "Threshold of the count score.", above=0.0, max=1.0)
    importance_loss_scale: float = importance(
        65536.0,
        "Factor of the gradients before the threshold, which imitates the loss scaling of the authors.",
        above=0.0,
        max=2.0**40,
    )
    importance_steps: int = importance(
        1, "Unmasked steps at the start of every window, which measure the importance.", min=1, max=1000
    )
    accumulate_importance: bool = importance(
        False, "Sum the scores of these steps; off: use only the last step."
    )
    strict_top: bool = importance(
        True, "Choose the columns strictly above the n-th score, as in the paper; off: exactly n columns."
    )

    crop: str = images("random", "How to crop an image that is not square.", choices=("center", "random"))
    crops: int = images(8, "Number of random crops, which are encoded once.", min=1, max=1000)
    prior_content: str | None = images(None, "Folder of class images for the content branch.")
    prior_style: str | None = images(None, "Folder of class images for the style branch.")
    prior_content_prompt: str | None = images(None, "Prompt of the content class images.")
    prior_style_prompt: str | None = images(None, "Prompt of the style class images.")
    prior_weight_content: float = images(
        1.0, "Weight of the content prior loss, and of destyled images.", min=0.0, max=1000.0
    )
    prior_weight_style: float = images(1.0, "Weight of the style prior loss.", min=0.0, max=1000.0)
    prior_images: int = images(
        100, "Class images per folder; missing ones are generated with the base.", min=1, max=100_000
    )

    destyle: str | None = destyling(
        None,
        "How to make destyled images: inversion = by the base itself, model = by the small destyler of mini, "
        "edit = by an editing model (destyler), none, or a folder of images of it without the style; "
        "default: model on mini if the style is not photo, otherwise inversion.",
    )
    destyler: str | None = destyling(
        None, "Editing model for destyle edit: a folder or a Hugging Face id in the cache."
    )
    destyle_images: int = destyling(
        0,
        "Number of destyled images: the base generates the training image without its style, and the content "
        "LoRA learns the results too.",
        min=0,
        max=1000,
    )
    destyle_strength: float = destyling(
        0.65, "How far a destyled image may differ from the training image, from 0 to 1.", above=0.0, max=1.0
    )
    destyle_fresh_noise: float = destyling(
        0.15, "Share of new noise in a destyled image; 0 = only the noise of the inversion.", min=0.0, max=1.0
    )
    destyle_min_timestep: float = destyling(
        0.0, "Share of the lowest timesteps at which destyled images are not learned.", min=0.0, max=0.99
    )
    destyled_only: bool = destyling(
        False, "The content LoRA learns only destyled images, if there are any; off: the training image too."
    )
    destyle_contrast: bool = destyling(
        True,
        "Invert the image with the full prompt and guide away from it, so that only the style changes; off: "
        "invert it with the content prompt and guide away from the empty prompt.",
    )
    destyle_guidance: float = destyling(
        5.0,
        "Guidance scale of destyled images; higher values keep less of the style, and less of the image.",
        min=1.0,
        max=100.0,
    )
    destyle_prompt: str = destyling(
        "a photo of {content}", "Prompt of destyled images; {content} is the content prompt."
    )

    validate_every: int = monitoring(
        0, "Generate validation images every N steps; 0 = never.", min=0, max=1_000_000
    )
    validation_images: int = monitoring(4, "Images per validation prompt.", min=1, max=64)
    save_every: int = monitoring(
        0, "Save the LoRAs every N steps; 0 = only at the end.", min=0, max=1_000_000
    )
    checkpoint_every: int | None = monitoring(
        None,
        "Save a checkpoint every N steps; 0 = only when interrupted; default: about 2% of the time.",
        min=0,
        max=1_000_000,
    )
    tracker: str = monitoring(
        "none",
        "Where to log curves; tensorboard and wandb need the extra of that name.",
        choices=("none", "tensorboard", "wandb"),
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.column_separation and self.window <= self.importance_steps + 1:
            needed = (self.importance_steps + 1) * self.recalibrations + 1
            raise UsageError(
                f"{count(self.steps, 'step')} in {count(self.recalibrations, 'window')}: a window has "
                f"{self.window}, but needs more than {self.importance_steps + 1} (importance-steps + 1): "
                "the columns would be chosen and never trained.",
                Remedy("Use more steps, or fewer recalibrations", settings={"steps": needed}),
            )
        if self.destyle == "none":
            object.__setattr__(self, "destyle_images", 0)
        elif self.destyle is not None and not self.destyle_images:
            object.__setattr__(self, "destyle_images", DESTYLED_IMAGES)
        if self.destyle_images and self.prior_content:
            raise UsageError(
                "destyle-images and prior-content are both given, but the content branch takes one of them.",
                Remedy("Remove prior-content, or turn destyling off", settings={"destyle_images": 0}),
            )
        if self.lr_warmup_steps > self.steps:
            raise UsageError(
                f"lr-warmup-steps is {self.lr_warmup_steps}, more than {count(self.steps, 'step')}."
            )
        for branch in ("content", "style"):
            if getattr(self, f"prior_{branch}_prompt") and not getattr(self, f"prior_{branch}"):
                raise UsageError(
                    f"prior-{branch}-prompt is given, but no folder of class images.",
                    Remedy("Name a folder; an empty one is filled", settings={f"prior_{branch}": "FOLDER"}),
                )

    @property
    def window(self) -> int:
        """Steps per window: ceil(steps / recalibrations)."""
        return math.ceil(self.steps / self.recalibrations)


MUTABLE_ON_RESUME = (
    *("content_lr", "style_lr", "merge_lr", "max_grad_norm"),
    *("checkpoint_every", "save_every", "validate_every", "validation_images", "tracker"),
)
"""Settings that may change when a training is resumed. Beside them, only the device may."""


@dataclass(frozen=True)
class GenerateConfig(Checked):
    """Settings of image generation."""

    steps: int = option(30, "Denoising steps.", min=1, max=1000)
    guidance: float = option(5.0, "Classifier-free guidance; 1 turns it off.", min=0.0, max=100.0)
    width: int | None = option(
        None, "Width in pixels; default: the base's own.", min=32, max=8192, multiple=8
    )
    height: int | None = option(
        None, "Height in pixels; default: the base's own.", min=32, max=8192, multiple=8
    )
    count: int = option(1, "Number of images.", min=1, max=10_000)
    seed: int = option(
        0,
        "Seed of the first image; every further image adds 1.",
        min=0,
        max=SEED_MAX,
        default_text="a new one",
    )
    negative_prompt: str = option("", "Negative prompt.")
    scheduler: str | None = option(
        None, "Sampler; default: the base's own.", choices=("euler", "ddim", "ddpm", "dpm++")
    )
    content_strength: float = option(1.0, "Strength of the content LoRA.", min=-4.0, max=4.0)
    style_strength: float = option(1.0, "Strength of the style LoRA.", min=-4.0, max=4.0)


def new_seed() -> int:
    """A seed that nobody has chosen, so that every run generates something new."""
    return secrets.randbelow(2**32)


@dataclass(frozen=True)
class ComputeConfig(Checked):
    """Base model, device and precision of generation and evaluation."""

    base: str | None = compute(
        None,
        "Base model: sdxl, mini, a Hugging Face id, a folder or a .safetensors file; default: the project's.",
    )
    vae: str | None = compute(None, "Another VAE: a file, a folder or a Hugging Face id.")
    prediction: str | None = compute(None, "What the U-Net predicts.", choices=("epsilon", "v_prediction"))
    device: str = compute("auto", "Device: auto, cpu, cuda, cuda:N or mps.")
    precision: str = compute(
        "auto", "Number format of the base model.", choices=("auto", "fp32", "bf16", "fp16")
    )
    batch_size: int = compute(1, "Images generated at once; more is faster on a large GPU.", min=1, max=64)
    fuse: bool = compute(
        True,
        "Fuse the LoRAs into the weights of the base and, on a GPU, use fused kernels and CUDA graphs; off: "
        "compute every layer as the method defines it, which is slower.",
    )


@dataclass(frozen=True)
class Words:
    """The words for an image: its subject, its style, and the rare token for this subject."""

    subject: str
    style: str
    trigger: str = "monadikos"

    def __post_init__(self) -> None:
        for name in ("subject", "style", "trigger"):
            text = " ".join(getattr(self, name).split())
            if not text:
                raise UsageError(
                    f"The {name} is empty.", Remedy("Use one or two words", settings={name: "WORD"})
                )
            object.__setattr__(self, name, check_text(name, text))


@dataclass(frozen=True)
class Prompts:
    """The three prompts of one training or one generation."""

    full: str
    content: str
    style: str

    def __post_init__(self) -> None:
        for name in ("full", "content", "style"):
            check_text(f"{name} prompt", getattr(self, name))


@dataclass(frozen=True)
class Preset:
    """The values of a preset file, before the defaults are added."""

    name: str
    description: str
    train: Mapping[str, Any]
    generate: Mapping[str, Any]


def load_preset(spec: str | Path) -> Preset:
    """Read a shipped preset by name or a preset file by path; raises UsageError."""
    import tomllib

    from unziplora_cli.files import read_text

    path = Path(spec)
    if path.suffix != ".toml":
        names = resources.preset_names()
        if str(spec) not in names:
            raise UsageError(
                f"There is no preset {str(spec)!r}.{nearest(str(spec), names)}",
                Remedy(f"Use one of {', '.join(names)}, or the path of a .toml file."),
            )
        path = resources.template(f"presets/{spec}.toml")
    try:
        data = tomllib.loads(read_text(path))
    except OSError as error:
        raise UsageError(f"Cannot read the preset {path}: {error.strerror}.") from error
    except (ValueError, RecursionError) as error:  # TOMLDecodeError, invalid UTF-8, huge numbers
        raise UsageError(f"The preset {path} is not valid TOML: {error}.") from error

    refuse_unknown(data, ("description", "train", "generate"), f"the preset {path.name}")
    tables = {}
    for table, config in (("train", TrainConfig), ("generate", GenerateConfig)):
        tables[table] = data.get(table, {})
        if not isinstance(tables[table], dict):
            raise UsageError(f"[{table}] in the preset {path.name} must be a table.")
        refuse_unknown(tables[table], field_names(config), f"[{table}] of the preset {path.name}")
        try:
            check_settings(config, tables[table])
        except UsageError as error:
            example = Remedy("Correct it; a preset as an example", "presets show", ("paper",))
            text = f"{error.message} It stands in the preset {path.name}."
            raise UsageError(text, *error.remedies, example) from error
    description = data.get("description", "")
    if not isinstance(description, str):
        raise UsageError(f"The description in the preset {path.name} must be text.")
    return Preset(path.stem, description, tables["train"], tables["generate"])


def resolve(preset: str | Path | Preset, overrides: Mapping[str, Any]) -> TrainConfig:
    """The training settings: defaults, then the preset, then every override that is not None."""
    preset = preset if isinstance(preset, Preset) else load_preset(preset)
    way, count = overrides.get("destyle"), overrides.get("destyle_images")
    if way is not None and count is not None and (way == "none") != (count == 0):
        raise UsageError(
            f"destyle is {way!r}, but destyle-images is {count}.",
            Remedy("Give one of them, or let them agree."),
        )
    return TrainConfig(**_joined(TrainConfig, preset.train, overrides))


def resolve_generate(preset: str | Path | Preset, overrides: Mapping[str, Any]) -> GenerateConfig:
    """The generation settings, with the same precedence."""
    preset = preset if isinstance(preset, Preset) else load_preset(preset)
    return GenerateConfig(**_joined(GenerateConfig, preset.generate, overrides))


def _joined(config: type, preset: Mapping[str, Any], overrides: Mapping[str, Any]) -> dict[str, Any]:
    refuse_unknown(overrides, field_names(config), "the settings")
    return {**preset, **{key: value for key, value in overrides.items() if value is not None}}
