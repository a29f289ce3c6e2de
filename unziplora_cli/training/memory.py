"""How much memory a training has taken, and how much it could take."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from unziplora_cli.accel.int8 import MIN_WEIGHTS
from unziplora_cli.config import TrainConfig
from unziplora_cli.sdxl.base import BaseRef, component_config, vae_scale_factor
from unziplora_cli.sdxl.profile import Linear, ModuleProfile, UNetProfile, profile_unet
from unziplora_cli.training.checkpoint import KEPT


def peak_memory(device: torch.device) -> int:
    """The most bytes in use so far: torch's on a GPU, the whole process's on the CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if device.type == "mps":
        return torch.mps.driver_allocated_memory()
    if sys.platform == "win32":
        import psutil

        return int(psutil.Process().memory_info().peak_wset)
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # kilobytes; bytes on macOS
    return peak if sys.platform == "darwin" else peak * 1024


def free_memory(device: torch.device) -> int:
    """The bytes that a training could take of ``device``: what nobody else holds."""
    import psutil

    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return free + torch.cuda.memory_reserved(device) + int(CONTEXT)
    own = psutil.Process().memory_info().rss if device.type == "cpu" else 0
    return int(psutil.virtual_memory().available) + own


def total_memory(device: torch.device) -> int:
    """All bytes of ``device``."""
    import psutil

    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[1])
    return int(psutil.virtual_memory().total)


# How much memory a training will take, from its settings and the base's configurations alone.
#
# A training on a GPU goes through three phases, and its peak is the largest of theirs::
#
#   texts     the two text encoders
#   pictures  the VAE in float32 + PLANES feature maps of the picture's size
#   steps     frozen + state + the largest of
#             - backward pass at part i of the U-Net: what autograd saved of the parts up to i, the gradients
#               of those after i, the folded weights of i's region and their gradients, and what i works with
#             - update: all gradients
#
#   frozen    the base's weights: 2 bytes in bf16 and fp16, 4 in fp32, 1 in int8 where a layer is large; those
#             that read texts wait on the CPU
#   state     per trained number 4 bytes and the optimiser's own
#   saved     values that the backward pass needs, per picture and pixel of a part:
#             block 11 width + 2 inner (+ inner where GEGLU is not fused), resnet 2 (in + out) (3 where group
#             norm and SiLU are not fused), convolution in; low-precision copies of what is trained
#
# Where a second recording of the step fits, CUDA takes up to the size of all gradients more; that
# is not counted.
#
# With gradient checkpointing only the input of a block or resnet is saved, and all the rest for one part at a
# time. Bytes everywhere; a GiB is 2^30 of them.


GIB = 2**30

# What was measured, and not derived.
KERNELS = 0.2 * GIB
"""Workspaces of cuDNN, cuBLAS and of attention's backward pass on an NVIDIA GPU, and graphs' own buffers."""
CONTEXT = 0.5 * GIB
"""What CUDA itself takes of a card, beside torch's peak."""
FRAGMENTS = 1.0 * GIB
"""What torch's allocator cannot use of what it holds."""
PROCESS = 0.5e9
"""The program with its libraries in main memory."""
PLANES = 6.1
"""Feature maps [channels of the first block, height, width] that encoding a picture holds at once."""
FOLDED_COPIES = 3
"""Of a region's weights in its backward pass: folded, the gradient of each, and all gradients stacked."""

BYTES = {"fp32": 4, "bf16": 2, "fp16": 2}
CLIP = {
    **{"vocab_size": 49408, "max_position_embeddings": 77, "hidden_size": 512},
    **{"intermediate_size": 2048, "num_hidden_layers": 12},
}
"""What transformers takes where a text encoder's configuration says nothing."""
MOMENTS = {"adamw": 8, "adamw8bit": 2, "prodigy": 16}
"""What an optimiser keeps per trained number."""


@dataclass(frozen=True, slots=True)
class Target:
    """Where a training computes: ``device`` is cpu, cuda or mps; ``fused``: with the fused kernels."""

    device: str
    precision: str
    fused: bool = False

    @property
    def bytes(self) -> int:
        """Of one number of the base."""
        return BYTES[self.precision]


@dataclass(frozen=True, slots=True)
class Base:
    """What has to be known of a base: its U-Net's parts and the configurations of the rest."""

    unet: UNetProfile
    vae: Mapping[str, Any]
    texts: tuple[Mapping[str, Any], ...]
    factor: int
    """Pixels per latent pixel along one side."""

    @property
    def tokens(self) -> int:
        return int({**CLIP, **self.texts[0]}["max_position_embeddings"])


def profile_base(ref: BaseRef) -> Base:
    """What the configurations of ``ref`` say; none of its weights is read."""
    texts = tuple(component_config(ref, name) for name in ("text_encoder", "text_encoder_2"))
    return Base(
        profile_unet(component_config(ref, "unet")),
        component_config(ref, "vae"),
        texts,
        vae_scale_factor(ref),
    )


@dataclass(frozen=True, slots=True)
class Memory:
    """The peak of each phase in bytes, and what the steps' is made of."""

    texts: int
    pictures: int
    frozen: int
    state: int
    saved: int
    """By autograd for the backward pass."""
    working: int
    """What comes on top at the worst moment: gradients, folded weights, workspaces."""
    process: int = 0
    """The program itself, where its memory is the device's."""

    @property
    def steps(self) -> int:
        return self.frozen + self.state + self.saved + self.working

    @property
    def peak(self) -> int:
        """As the manifest records it."""
        return self.process + max(self.texts, self.pictures, self.steps)


def estimate_memory(base: Base, config: TrainConfig, target: Target) -> Memory:
    """What training on ``base`` with ``config`` takes of ``target``."""
    frozen, trained = frozen_bytes(base.unet, config, target), trained_parameters(base.unet, config.rank)
    state = trained * (4 + MOMENTS[config.optimizer])
    saved, worst = _steps(base, config, target, trained)
    return Memory(
        texts=sum(map(text_encoder_parameters, base.texts)) * target.bytes,
        pictures=_encoding(base, config),
        frozen=frozen,
        state=state,
        saved=saved,
        working=worst - saved,
        process=int(PROCESS) if target.device == "cpu" else 0,
    )


def required_memory(memory: Memory, target: Target) -> int:
    """What must be free on the device."""
    extra = CONTEXT + FRAGMENTS if target.device == "cuda" else 0
    return memory.peak + int(extra)


def trained_parameters(unet: UNetProfile, rank: int) -> int:
    """LoRA and merge weights of both branches."""
    return 2 * sum(rank * (each.inputs + each.outputs) + each.outputs for each in unet.projections())


def frozen_bytes(unet: UNetProfile, config: TrainConfig, target: Target) -> int:
    """The base's weights on the device while steps are made."""
    total = unet.weights * target.bytes
    for layer in unet.layers():
        if target.device != "cpu" and layer.reads == "text":
            total -= layer.weights * target.bytes
        elif _quantized(layer, config):
            total -= layer.weights * (target.bytes - 1)
    return total


def saved_activations(part: ModuleProfile, pixels: int, tokens: int, *, fused: bool) -> int:
    """Numbers that autograd saves of one picture with ``pixels`` at the part's level."""
    match part.kind:
        case "convolution":
            return part.inputs * pixels * (4 if part.halves else 1)
        case "resnet":
            return (2 if fused else 3) * (part.inputs + part.outputs) * pixels
        case "entry":
            return part.inputs * pixels
        case "block":
            inner = (2 if fused else 3) * part.inner
            return (11 * part.inputs + inner) * pixels + 2 * part.inputs * tokens
        case "end":
            return (2 if fused else 3) * part.inputs * pixels
    return 0


def statistics(part: ModuleProfile, pixels: int) -> int:
    """Float32 numbers beside them: mean and spread of three layer norms, the log-sum of each attention."""
    return (6 + 2 * part.heads) * pixels if part.kind == "block" else 0


def pixels_of(part: ModuleProfile, config: TrainConfig, base: Base) -> int:
    """Latent pixels of one picture at the level of ``part``."""
    side = config.resolution // base.factor
    return (-(-side // 2**part.level)) ** 2


def passes(config: TrainConfig) -> int:
    """How often a step goes through the U-Net: for the picture, and for each branch's class pictures."""
    classes = bool(config.destyle_images or config.prior_content) + bool(config.prior_style)
    return config.grad_accumulation * (1 + classes)


def text_encoder_parameters(config: Mapping[str, Any]) -> int:
    """Parameters of a CLIP text encoder: its vocabulary, and per layer four projections and a network."""
    values = {**CLIP, **config}
    width, inner, layers = values["hidden_size"], values["intermediate_size"], values["num_hidden_layers"]
    vocabulary = values["vocab_size"] + values["max_position_embeddings"]
    return int(width * (vocabulary + layers * (4 * width + 2 * inner)))


def _steps(base: Base, config: TrainConfig, target: Target, trained: int) -> tuple[int, int]:
    """What autograd holds when the backward pass begins; the most that there is beside weights and state."""
    parts = base.unet.learning()
    again = config.gradient_checkpointing
    whole = [_saved(part, base, config, target) for part in parts]
    kept = [
        _input(part, base, config, target) if again and part.kind in ("block", "resnet") else saved
        for part, saved in zip(parts, whole, strict=True)
    ]
    numbers = [config.rank * 2 * sum(p.inputs + p.outputs for p in part.projections) for part in parts]
    copies = 0 if again else sum(numbers) * target.bytes
    several = passes(config) > 1  # the gradients of the first are there while the next computes
    gradients = 4 * trained if several else 0
    workspace = int(KERNELS) if target.device == "cuda" else 0
    before = [part for part in base.unet.parts[: -len(parts)] if again and part.kind == "resnet"]
    saved = sum(kept) + copies + sum(_input(part, base, config, target) for part in before)
    worst = 4 * trained
    left = saved
    for part, full, held, count in reversed(list(zip(parts, whole, kept, numbers, strict=True))):
        region = [part] if again or not part.region else [p for p in parts if p.region == part.region]
        folded = sum(p.weights for each in region for p in each.projections if p.reads != "text")
        moment = left + gradients + FOLDED_COPIES * folded * target.bytes + _work(part, base, config, target)
        worst = max(worst, moment + (full if full != held else 0))
        left -= held
        if not several:
            gradients += 4 * count
    return saved, worst + workspace


def _saved(part: ModuleProfile, base: Base, config: TrainConfig, target: Target) -> int:
    pixels = pixels_of(part, config, base)
    values = saved_activations(part, pixels, base.tokens, fused=target.fused)
    found = config.batch_size * (values * target.bytes + 4 * statistics(part, pixels))
    eight = [each for each in (*part.layers, *part.projections) if _quantized(each, config)]
    return found + sum(each.weights for each in eight if each.reads != "text") * target.bytes


def _input(part: ModuleProfile, base: Base, config: TrainConfig, target: Target) -> int:
    return config.batch_size * part.inputs * pixels_of(part, config, base) * target.bytes


def _work(part: ModuleProfile, base: Base, config: TrainConfig, target: Target) -> int:
    """Gradients on their way: in a block of the feed-forward layer's input, elsewhere of in- and output."""
    values = part.inputs + 3 * part.inner if part.kind == "block" else 2 * (part.inputs + part.outputs)
    return config.batch_size * values * pixels_of(part, config, base) * target.bytes


def _encoding(base: Base, config: TrainConfig) -> int:
    """The VAE at work on one crop, in float32."""
    widths = [int(width) for width in base.vae["block_out_channels"]]
    weights = 65 * int(base.vae.get("layers_per_block", 2)) * sum(width**2 for width in widths)
    return int(4 * (weights + PLANES * widths[0] * config.resolution**2))


def _quantized(layer: Linear, config: TrainConfig) -> bool:
    return config.quantize == "int8" and layer.weights >= MIN_WEIGHTS


# How much disk a training will take, from its settings and the U-Net's configuration alone.


NAMES = 1100
"""Bytes per projection in the headers of a project's three files."""


def project_bytes(unet: UNetProfile, config: TrainConfig) -> int:
    """The files of the finished project, LoRAs in fp16, merge weights in fp32; those saved on the way too."""
    saved = config.steps // config.save_every if config.save_every else 0
    columns, layers = sum(each.outputs for each in unet.projections()), len(list(unet.projections()))
    files = 2 * (trained_parameters(unet, config.rank) - 2 * columns) + 8 * columns + NAMES * layers
    return files * (1 + saved)


def checkpoint_bytes(unet: UNetProfile, config: TrainConfig) -> int:
    """One checkpoint: every trained number with two moments, and per column gate, score and mask."""
    columns = 2 * sum(each.outputs for each in unet.projections())
    return 12 * (trained_parameters(unet, config.rank) + 2 * columns) + columns


def checkpoints_bytes(unet: UNetProfile, config: TrainConfig) -> int:
    """All that lie on the disk at once: the last two, and the next while it is written; none on the way with
    ``checkpoint_every`` 0."""
    return (1 if config.checkpoint_every == 0 else 1 + KEPT) * checkpoint_bytes(unet, config)
