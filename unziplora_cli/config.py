"""Documented, range-checked fields for the frozen dataclasses of a configuration."""

import math
import re
import types
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from difflib import get_close_matches
from functools import partial
from pathlib import Path
from typing import Any, Union, get_args, get_origin, get_type_hints

from unziplora_cli import resources
from unziplora_cli.errors import Remedy, UsageError

_LARGEST = 2**64
_NO_TEXT = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff]")
_KINDS = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}


def option(default: Any, help: str, *, group: str = "Options", **limits: Any) -> Any:
    """A documented field; limits are `min`, `max`, `above` (exclusive), `multiple` and `choices`.

    `group` is the heading under which the command line shows it.
    """
    return field(default=default, metadata={"help": help, "group": group, **limits})


class Checked:
    """Checks every field's type and range when an instance is made; raises UsageError."""

    def __post_init__(self) -> None:
        hints = get_type_hints(type(self))
        for each in fields(self):  # type: ignore[arg-type]
            value = check_value(each.name, getattr(self, each.name), hints[each.name], each.metadata)
            object.__setattr__(self, each.name, value)


def check_settings(config: type, given: Mapping[str, Any]) -> None:
    """Check some fields of a configuration alone, before what completes them is known; raises UsageError."""
    hints = get_type_hints(config)
    for each in fields(config):
        if given.get(each.name) is not None:
            check_value(each.name, given[each.name], hints[each.name], each.metadata)


def field_names(config: type) -> tuple[str, ...]:
    """The names of a configuration's fields."""
    return tuple(each.name for each in fields(config))


def check_value(name: str, value: Any, hint: Any, limits: Mapping[str, Any]) -> Any:
    """The value, converted to its type when that loses nothing; raises UsageError naming field and range."""
    label = name.replace("_", "-")
    kind = plain_type(hint)
    if value is None and kind is not hint:
        return None
    if isinstance(value, int) and abs(value) > _LARGEST:
        raise UsageError(f"{label} is far too large.")
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise UsageError(f"{label} must be {_KINDS[kind]}, not {_shown(value)}.")
    if kind is str:
        check_text(label, value)
    if "choices" in limits and value not in limits["choices"]:
        listed = ", ".join(limits["choices"])
        raise UsageError(
            f"{label} is {value!r}, but must be one of {listed}.{nearest(value, limits['choices'])}"
        )
    if kind in (int, float) and not _within(value, limits):
        raise UsageError(f"{label} is {value}, but must be {describe_range(limits)}.")
    return value


def check_text(label: str, text: str) -> str:
    """The text itself; raises UsageError when :func:`control_character` finds something in it."""
    if found := control_character(text):
        raise UsageError(f"The {label} contains the control character {found!a}.", Remedy("Type it again."))
    return text


def control_character(text: str) -> str | None:
    """The first control character or lone surrogate of a text; tabs and ends of lines are fine.

    Escape sequences could act on the terminal that shows the text, and surrogates, which stand for bytes that
    are no UTF-8, cannot be written to a file.
    """
    found = _NO_TEXT.search(text)
    return found.group() if found else None


def plain_type(hint: Any) -> Any:
    """The type of a field without its `| None`."""
    if get_origin(hint) in (Union, types.UnionType):
        (hint,) = (arm for arm in get_args(hint) if arm is not type(None))
    return hint


def describe_range(limits: Mapping[str, Any]) -> str:
    """A range in words: `from 1 to 1024`, `above 0, at most 10`."""
    if "above" in limits:
        text = f"above {limits['above']:g}, at most {limits['max']:g}"
    else:
        text = f"from {limits['min']} to {limits['max']}"
    return text + (f", a multiple of {limits['multiple']}" if "multiple" in limits else "")


def refuse_unknown(given: Mapping[str, Any], known: Sequence[str], where: str) -> None:
    """Raise UsageError for the first key that is not known, with the nearest one that is."""
    for key in given:
        if key not in known:
            listed = ", ".join(sorted(known))
            raise UsageError(
                f"Unknown key {key!r} in {where}.{nearest(key, known)}", hint=f"Known: {listed}."
            )


def nearest(word: str, known: Sequence[str]) -> str:
    """` Did you mean 'rank'?` when one of the known words is close, else nothing."""
    near = get_close_matches(word, known, n=1)
    return f" Did you mean {near[0]!r}?" if near else ""


def _shown(value: object) -> str:
    """A wrong value in a message; only its kind where a list or table could hold anything."""
    return repr(value) if isinstance(value, str | int | float) else f"a {type(value).__name__}"


def _within(value: float, limits: Mapping[str, Any]) -> bool:
    above_lowest = value > limits["above"] if "above" in limits else value >= limits["min"]
    on_grid = "multiple" not in limits or value % limits["multiple"] == 0
    return above_lowest and value <= limits["max"] and on_grid


# What a run is made of: frozen dataclasses, TOML presets and their precedence.
#
# The order is: defaults of the dataclass, then the preset, then what the user gave. Every field carries its
# documentation and its range; the command line builds its options from them.


SEED_MAX = 2**63 - 1
SCHEDULERS = (
    "constant",
    "constant_with_warmup",
    "linear",
    "cosine",
    "cosine_with_restarts",
    "polynomial",
)

training = partial(option, group="Training")
optimization = partial(option, group="Optimizer")
separation = partial(option, group="Separation")
importance = partial(option, group="Column importance")
pictures = partial(option, group="Pictures and class pictures")
destyle = partial(option, group="Destyling")
watching = partial(option, group="Watching")
computing = partial(option, group="Computing")


@dataclass(frozen=True)
class TrainConfig(Checked):
    """One training. The defaults are the paper's."""

    rank: int = training(64, "Rank of both LoRAs.", min=1, max=1024)
    steps: int = training(600, "Training steps.", min=1, max=1_000_000)
    content_lr: float = training(5e-5, "Learning rate of the content LoRA.", above=0.0, max=1.0)
    style_lr: float = training(5e-5, "Learning rate of the style LoRA.", above=0.0, max=1.0)
    merge_lr: float = training(5e-3, "Learning rate of the merge weights.", min=0.0, max=1.0)
    resolution: int = training(1024, "Side of the training picture in pixels.", min=32, max=4096, multiple=8)
    batch_size: int = training(1, "Noise draws per step.", min=1, max=256)
    grad_accumulation: int = training(1, "Batches whose gradients are added up per step.", min=1, max=1024)
    precision: str = training(
        "auto", "Number format of the base model.", choices=("auto", "fp32", "bf16", "fp16")
    )
    gradient_checkpointing: bool = training(False, "Recompute activations to save memory.")
    quantize: str = training(
        "none",
        "Keep the frozen base in fewer bits to save memory: int8 = one byte per weight.",
        choices=("none", "int8"),
    )
    capture: bool = training(
        True, "On an NVIDIA GPU, record steps and echoes once and replay them; off: launch every kernel anew."
    )
    fuse: bool = training(
        True,
        "Fuse the LoRAs into the weights of the base and, on a GPU, use fused kernels; off: compute every "
        "layer as the method defines it, which is slower.",
    )
    seed: int = training(0, "Seed of everything random.", min=0, max=SEED_MAX)

    max_grad_norm: float = optimization(1.0, "Largest joint norm of all gradients.", above=0.0, max=1e6)
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
        "Draw timesteps with a density of t to this power: 0 = all alike, 1 = more noise, where shapes form.",
        min=0.0,
        max=10.0,
    )
    start: str = optimization(
        "noise",
        "How the LoRAs start: noise = both matrices random, as the authors do; zero = without any effect.",
        choices=("noise", "zero"),
    )

    recalibrations: int = separation(
        3, "Windows of the training; the columns are chosen anew in each.", min=1, max=1000
    )
    column_ratio: float = separation(
        0.1, "Share of a projection's columns that one window gives to a branch.", above=0.0, max=1.0
    )
    overlap_weight: float = separation(
        0.5, "Weight of the penalty on columns that both branches use.", min=0.0, max=1000.0
    )
    prompt_separation: bool = separation(True, "Give each branch its own prompt.")
    column_separation: bool = separation(
        True, "Give each branch its own output columns; off trains two plain LoRAs without merge weights."
    )
    block_separation: bool = separation(True, "Give some U-Net blocks wholly to one branch.")
    avoid_overlap: bool = separation(True, "Let style choose among the columns that content left.")
    finetune_mask: bool = separation(
        False,
        "Merge weights learn on all columns of their branch; off: only on columns that both branches use.",
    )

    importance_score: str = importance(
        "count",
        "Column importance from |W * dW|: count = share of rows above the threshold, magnitude = mean.",
        choices=("count", "magnitude"),
    )
    importance_threshold: float = importance(1e-5, "Threshold of the count score.", above=0.0, max=1.0)
    importance_loss_scale: float = importance(
        65536.0,
        "Gradients are multiplied by this before the threshold, as loss scaling does in the authors' runs.",
        above=0.0,
        max=2.0**40,
    )
    importance_steps: int = importance(
        1, "Unmasked steps at the start of each window from which the importance is taken.", min=1, max=1000
    )
    accumulate_importance: bool = importance(
        False, "Sum the scores of those steps; off: only the last one counts."
    )
    strict_top: bool = importance(
        True, "Take columns strictly above the n-th score, as the authors do; off: exactly n columns."
    )

    crop: str = pictures("random", "How a picture that is not square is cut.", choices=("center", "random"))
    crops: int = pictures(8, "Random crops that are encoded once and then drawn from.", min=1, max=1000)
    prior_content: str | None = pictures(None, "Folder of class pictures for the content branch.")
    prior_style: str | None = pictures(None, "Folder of class pictures for the style branch.")
    prior_content_prompt: str | None = pictures(None, "Prompt of the content class pictures.")
    prior_style_prompt: str | None = pictures(None, "Prompt of the style class pictures.")
    prior_weight_content: float = pictures(
        1.0, "Weight of the content prior loss, and of echoes.", min=0.0, max=1000.0
    )
    prior_weight_style: float = pictures(1.0, "Weight of the style prior loss.", min=0.0, max=1000.0)
    prior_images: int = pictures(
        100, "Class pictures per folder; missing ones are drawn with the base.", min=1, max=100_000
    )

    destyle_images: int = destyle(
        0,
        "Pictures of the subject in the base's own look, which the base makes from the training picture and "
        "the content LoRA learns beside it; 0 = none.",
        min=0,
        max=1000,
    )
    destyle_strength: float = destyle(
        0.65,
        "How far an echo may leave the training picture: 0 = not at all, 1 = freely.",
        above=0.0,
        max=1.0,
    )
    destyle_fresh_noise: float = destyle(
        0.15, "Share of fresh noise in an echo; at 0 it keeps the picture's own.", min=0.0, max=1.0
    )
    destyle_min_timestep: float = destyle(
        0.0, "Share of the timesteps, from the clean end, at which echoes are not learned.", min=0.0, max=0.99
    )
    destyled_only: bool = destyle(
        False, "The content LoRA learns from the echoes alone, if there are any; off: from the picture too."
    )
    destyle_contrast: bool = destyle(
        True,
        "Follow the picture into noise under the full prompt and guide its echo away from that, so that only "
        "the style changes; off: follow it under the content prompt and guide away from no text.",
    )
    destyle_guidance: float = destyle(
        5.0,
        "How strongly an echo is drawn to its prompt: more is less of the picture's style, and less of the "
        "picture.",
        min=1.0,
        max=100.0,
    )
    destyle_prompt: str = destyle(
        "a photo of {content}", "What an echo shows; {content} is the content prompt."
    )

    validate_every: int = watching(
        0, "Draw validation pictures every N steps; 0 = never.", min=0, max=1_000_000
    )
    validation_images: int = watching(4, "Pictures per validation prompt.", min=1, max=64)
    save_every: int = watching(0, "Save the LoRAs every N steps; 0 = only at the end.", min=0, max=1_000_000)
    checkpoint_every: int | None = watching(
        None,
        "Keep the whole state every N steps, so that a training that was cut off can go on; 0 = only when "
        "it is interrupted; left out: as often as costs about 2% of the time.",
        min=0,
        max=1_000_000,
    )
    tracker: str = watching(
        "none",
        "Where curves are logged; each needs the extra of its name.",
        choices=("none", "tensorboard", "wandb"),
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.column_separation and self.window <= self.importance_steps + 1:
            needed = (self.importance_steps + 1) * self.recalibrations + 1
            raise UsageError(
                f"{self.steps} steps in {self.recalibrations} windows are {self.window} steps each, "
                f"but a window needs more than {self.importance_steps + 1} (importance-steps + 1): "
                "the columns would be chosen and never trained.",
                hint=f"Use --steps {needed} or more, or lower --recalibrations.",
            )
        if self.destyle_images and self.prior_content:
            raise UsageError(
                "destyle-images and prior-content are both given, but the content branch takes one of them.",
                hint="Leave out --prior-content, or add --destyle-images 0.",
            )
        if self.lr_warmup_steps > self.steps:
            raise UsageError(f"lr-warmup-steps is {self.lr_warmup_steps}, more than the {self.steps} steps.")
        for branch in ("content", "style"):
            if getattr(self, f"prior_{branch}_prompt") and not getattr(self, f"prior_{branch}"):
                raise UsageError(
                    f"prior-{branch}-prompt is given, but no folder of class pictures.",
                    hint=f"Add --prior-{branch} FOLDER; it is filled when it is empty.",
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
    """How pictures are drawn."""

    steps: int = option(30, "Denoising steps.", min=1, max=1000)
    guidance: float = option(5.0, "Classifier-free guidance; 1 turns it off.", min=0.0, max=100.0)
    width: int | None = option(
        None, "Width in pixels; left out: the base's own.", min=32, max=8192, multiple=8
    )
    height: int | None = option(
        None, "Height in pixels; left out: the base's own.", min=32, max=8192, multiple=8
    )
    count: int = option(1, "Pictures to draw.", min=1, max=10_000)
    seed: int = option(0, "Seed of the first picture; each next one adds 1.", min=0, max=SEED_MAX)
    negative_prompt: str = option("", "What the pictures should not show.")
    scheduler: str | None = option(
        None, "Sampler; left out: the base's own.", choices=("euler", "ddim", "ddpm", "dpm++")
    )
    content_strength: float = option(1.0, "Strength of the content LoRA.", min=-4.0, max=4.0)
    style_strength: float = option(1.0, "Strength of the style LoRA.", min=-4.0, max=4.0)


@dataclass(frozen=True)
class ComputeConfig(Checked):
    """Where and how pictures are computed."""

    base: str | None = computing(
        None, "sdxl, mini (built in), a Hugging Face id, a folder or a .safetensors file; else the project's."
    )
    vae: str | None = computing(
        None, "Another autoencoder: a folder or an id, as madebyollin/sdxl-vae-fp16-fix."
    )
    device: str = computing("auto", "auto, cpu, cuda, cuda:N or mps.")
    precision: str = computing(
        "auto", "Number format of the base model.", choices=("auto", "fp32", "bf16", "fp16")
    )
    batch_size: int = computing(1, "Pictures drawn together; more is faster on a large GPU.", min=1, max=64)


@dataclass(frozen=True)
class Words:
    """What the user calls the picture: its subject, its style and the rare token that names this subject."""

    subject: str
    style: str
    trigger: str = "monadikos"

    def __post_init__(self) -> None:
        for name in ("subject", "style", "trigger"):
            text = " ".join(getattr(self, name).split())
            if not text:
                raise UsageError(f"The {name} is empty.", hint=f"Name it in a word or two: --{name} WORD.")
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
    """The values of a preset file, not yet joined with the defaults."""

    name: str
    description: str
    train: Mapping[str, Any]
    generate: Mapping[str, Any]


def load_preset(spec: str | Path) -> Preset:
    """Read a shipped preset by name or a preset file by path; raises UsageError."""
    import tomllib

    path = Path(spec)
    if path.suffix != ".toml":
        names = resources.preset_names()
        if str(spec) not in names:
            raise UsageError(
                f"There is no preset {str(spec)!r}.{nearest(str(spec), names)}",
                hint=f"Presets: {', '.join(names)}; or give the path of a .toml file.",
            )
        path = resources.template(f"presets/{spec}.toml")
    try:
        data = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"Cannot read the preset {path}: {error.strerror}.") from error
    except (ValueError, RecursionError) as error:  # TOMLDecodeError, bytes that are no text, huge numbers
        raise UsageError(f"The preset {path} is not valid TOML: {error}.") from error

    refuse_unknown(data, ("description", "train", "generate"), f"the preset {path.name}")
    tables = {}
    for table, config in (("train", TrainConfig), ("generate", GenerateConfig)):
        tables[table] = data.get(table, {})
        if not isinstance(tables[table], dict):
            raise UsageError(f"[{table}] in the preset {path.name} must be a table.")
        refuse_unknown(tables[table], field_names(config), f"[{table}] of the preset {path.name}")
    description = data.get("description", "")
    if not isinstance(description, str):
        raise UsageError(f"The description in the preset {path.name} must be text.")
    return Preset(path.stem, description, tables["train"], tables["generate"])


def resolve(preset: str | Path | Preset, overrides: Mapping[str, Any]) -> TrainConfig:
    """Defaults, then the preset, then every override that is not None."""
    preset = preset if isinstance(preset, Preset) else load_preset(preset)
    return TrainConfig(**_joined(TrainConfig, preset.train, overrides))


def resolve_generate(preset: str | Path | Preset, overrides: Mapping[str, Any]) -> GenerateConfig:
    """The same for generation."""
    preset = preset if isinstance(preset, Preset) else load_preset(preset)
    return GenerateConfig(**_joined(GenerateConfig, preset.generate, overrides))


def _joined(config: type, preset: Mapping[str, Any], overrides: Mapping[str, Any]) -> dict[str, Any]:
    refuse_unknown(overrides, field_names(config), "the settings")
    return {**preset, **{key: value for key, value in overrides.items() if value is not None}}
