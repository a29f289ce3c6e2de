"""How much memory a device has and a training takes.

:func:`estimate_memory` needs only the settings and the configuration files of the base. A training goes
through three phases; its peak is the largest of theirs (on the CPU, plus the process itself)::

    text encoders   their weights
    vae             weights in float32 + feature maps of the training image
    step            frozen weights + trained state + the largest of
                    - backward pass at module i of the U-Net: activations saved by autograd up to i,
                      gradients of the modules after i, fused weights of i's region with their gradients,
                      temporary tensors of i
                    - optimizer step: all gradients

    frozen weights  2 bytes per weight in bf16 and fp16, 4 in fp32, 1 in int8; on a GPU no text projections
    trained state   4 bytes per trained parameter + the optimizer's moments
    activations     values per image and pixel that autograd saves:
                    transformer block  11 width + 2 inner width (3 without fused GEGLU)
                    resnet             2 (in + out) (3 without fused group norm)
                    convolution        in

With gradient checkpointing, autograd saves the input of each transformer block and resnet, and everything
else for one of them at a time. A second CUDA graph (recorded only where it fits) and the activations of LoRAs
that are not fused are not counted.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import NamedTuple

import psutil
import torch

from unziplora_cli.config import TrainConfig
from unziplora_cli.sdxl.base import BaseRef, component_config, vae_scale_factor
from unziplora_cli.sdxl.folder import WEIGHTS, meta_module
from unziplora_cli.sdxl.profile import ModuleProfile, UNetProfile, profile_unet
from unziplora_cli.training.checkpoint import KEPT

GIB = 2**30

# Measured on NVIDIA H100 and H200 GPUs and on Linux CPUs.
WORKSPACES = int(0.2 * GIB)
"""Bytes of cuDNN, cuBLAS and attention workspaces and of CUDA graphs' own buffers."""
CUDA_CONTEXT = int(0.5 * GIB)
"""Bytes that CUDA itself takes, beside what torch allocates."""
FRAGMENTATION = int(1.0 * GIB)
"""Bytes that torch's allocator reserves and cannot use."""
GROWTH = 90_000_000
"""Bytes of main memory by which a process grows while it trains, beside what is counted."""
VAE_FEATURE_MAPS = 6.1
"""Feature maps [first block's channels, height, width] in memory at once while the VAE encodes an image."""
FUSED_COPIES = 3
"""Copies of a region's weights in its backward pass: fused, their gradients, the stacked gradients."""

BYTES = {"fp32": 4, "bf16": 2, "fp16": 2}
MOMENTS = {"adamw": 8, "adamw8bit": 2, "prodigy": 16}
"""Bytes of optimizer state per trained parameter."""
HEADER_BYTES = 1100
"""Bytes per projection in the headers of a project's three weight files."""


def peak_memory(device: torch.device) -> int:
    """The peak in bytes so far: of torch's allocator on a GPU, of the process on the CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if device.type == "mps":
        return torch.mps.driver_allocated_memory()
    if sys.platform == "win32":
        return int(psutil.Process().memory_info().peak_wset)
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # kilobytes; bytes on macOS
    return peak if sys.platform == "darwin" else peak * 1024


def free_memory(device: torch.device) -> int:
    """The bytes of ``device`` that this process can use, including those that it holds now."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return free + torch.cuda.memory_reserved(device) + CUDA_CONTEXT
    held = psutil.Process().memory_info().rss if device.type == "cpu" else 0
    return int(psutil.virtual_memory().available) + held


def process_memory() -> int:
    """The bytes of main memory that this process will need beside what is counted.

    It has imported torch and diffusers, whose size depends on their build: 0.4 GB for a CPU, more for CUDA.
    """
    return int(psutil.Process().memory_info().rss) + GROWTH


def total_memory(device: torch.device) -> int:
    return int(torch.cuda.mem_get_info(device)[1] if device.type == "cuda" else psutil.virtual_memory().total)


@dataclass(frozen=True, slots=True)
class Target:
    """Where a training runs: the device type (cpu, cuda, mps), the base's precision, fused modules or not."""

    device: str
    precision: str
    fused: bool = False

    @property
    def bytes(self) -> int:
        """Bytes of one weight of the base."""
        return BYTES[self.precision]


@dataclass(frozen=True, slots=True)
class BaseProfile:
    """What the estimate needs of a base.

    ``vae_width``: channels of the VAE's first block; ``vae_scale_factor``: pixels per latent pixel along one
    side; ``tokens``: those of a prompt.
    """

    unet: UNetProfile
    text_parameters: int
    vae_parameters: int
    vae_width: int
    vae_scale_factor: int
    tokens: int


def profile_base(ref: BaseRef) -> BaseProfile:
    """The profile of a base, from its configuration files."""
    unet, vae, *text_encoders = (meta_module(name, component_config(ref, name)) for name in WEIGHTS)
    return BaseProfile(
        unet=profile_unet(unet),
        text_parameters=sum(encoder.num_parameters() for encoder in text_encoders),
        vae_parameters=vae.num_parameters(),
        vae_width=vae.config.block_out_channels[0],
        vae_scale_factor=vae_scale_factor(ref),
        tokens=text_encoders[0].config.max_position_embeddings,
    )


@dataclass(frozen=True, slots=True)
class MemoryEstimate:
    """Bytes: the peaks of encoding prompts and images, and the parts of a training step's peak.

    ``temporary`` is what a step needs beside weights, state and activations at its worst moment: gradients,
    fused weights and workspaces. ``process`` is the program itself where it shares the device's memory.
    """

    text_encoders: int
    vae: int
    frozen_weights: int
    trained_state: int
    activations: int
    temporary: int
    process: int = 0

    @property
    def step(self) -> int:
        """The peak of a training step."""
        return self.frozen_weights + self.trained_state + self.activations + self.temporary

    @property
    def peak(self) -> int:
        """The peak of the training, as the manifest records it."""
        return self.process + max(self.text_encoders, self.vae, self.step)


def estimate_memory(
    base: BaseProfile, config: TrainConfig, target: Target, process: int = 0
) -> MemoryEstimate:
    """The memory of a training on ``base`` with ``config``; ``process`` is that of the program itself."""
    trained = trained_parameters(base.unet, config.rank)
    activations, worst = _step_bytes(base, config, target, trained)
    return MemoryEstimate(
        text_encoders=base.text_parameters * target.bytes,
        # the float32 VAE while it encodes one crop
        vae=int(4 * (base.vae_parameters + VAE_FEATURE_MAPS * base.vae_width * config.resolution**2)),
        frozen_weights=_frozen_bytes(base.unet, config, target),
        trained_state=trained * (4 + MOMENTS[config.optimizer]),
        activations=activations,
        temporary=worst - activations,
        process=process,
    )


def required_memory(memory: MemoryEstimate, target: Target) -> int:
    """The bytes that must be free on the device before the training."""
    return memory.peak + (CUDA_CONTEXT + FRAGMENTATION if target.device == "cuda" else 0)


def trained_parameters(unet: UNetProfile, rank: int) -> int:
    """The number of LoRA parameters and merge weights of both branches."""
    return 2 * (rank * unet.total("sides") + unet.total("columns"))


def pixels(module: ModuleProfile, config: TrainConfig, base: BaseProfile) -> int:
    """Latent pixels of one image at the resolution of ``module``."""
    side = config.resolution // base.vae_scale_factor
    return int(-(-side // 2**module.level)) ** 2


def passes(config: TrainConfig) -> int:
    """Forward passes per step: one per batch, and one for the class images of each branch."""
    class_images = bool(config.destyle_images or config.prior_content) + bool(config.prior_style)
    return config.grad_accumulation * (1 + class_images)


def _frozen_bytes(unet: UNetProfile, config: TrainConfig, target: Target) -> int:
    total = unet.parameters * target.bytes
    text_on_cpu = config.fuse and target.device != "cpu"
    if config.quantize == "int8":
        large = unet.large_embeddings + unet.total("large")
        large += 0 if text_on_cpu else unet.total("large_text")
        total -= large * (target.bytes - 1)
    return total - (unet.total("text") * target.bytes if text_on_cpu else 0)


def _step_bytes(base: BaseProfile, config: TrainConfig, target: Target, trained: int) -> tuple[int, int]:
    """The activations when the backward pass begins; the most that a step needs beside weights and state."""
    first = base.unet.first_adapted()
    modules = base.unet.modules[first:]
    checkpointed = config.gradient_checkpointing
    sizes = [_module_bytes(module, base, config, target) for module in modules]
    recomputed = [checkpointed and module.recomputed for module in modules]
    saved = [size.inputs if again else size.saved for size, again in zip(sizes, recomputed, strict=True)]
    total = sum(saved)
    if checkpointed:  # diffusers checkpoints the modules before the first adapted one, too
        before = (module for module in base.unet.modules[:first] if module.recomputed)
        total += sum(_module_bytes(module, base, config, target).inputs for module in before)
    else:  # copies of the LoRA parameters in the precision of the base
        total += 2 * config.rank * base.unet.total("sides") * target.bytes
    accumulates = passes(config) > 1  # the gradients of the first pass stay while the next pass computes
    gradients = 4 * trained if accumulates else 0
    remaining = total
    worst = 4 * trained
    for i, module in reversed(list(enumerate(modules))):
        region = [module]
        if module.region and not checkpointed:
            region = [other for other in modules if other.region == module.region]
        fused = FUSED_COPIES * sum(other.adapted for other in region) * target.bytes
        temporary = fused + (sizes[i].saved if recomputed[i] else 0) + sizes[i].temporary
        worst = max(worst, remaining + gradients + temporary)
        remaining -= saved[i]
        if not accumulates:
            gradients += 8 * config.rank * module.sides
    return total, worst + (WORKSPACES if target.device == "cuda" else 0)


class _ModuleBytes(NamedTuple):
    """Activations of a module: what autograd saves, the module's input, and temporary gradients."""

    saved: int
    inputs: int
    temporary: int


def _module_bytes(
    module: ModuleProfile, base: BaseProfile, config: TrainConfig, target: Target
) -> _ModuleBytes:
    area = pixels(module, config, base)
    values = (module.saved + (2 if target.fused else 3) * module.copied) * area
    values += 2 * module.attention * base.tokens
    unpacked = module.large if config.quantize == "int8" else 0
    saved = config.batch_size * (values * target.bytes + 4 * module.statistics * area)
    return _ModuleBytes(
        saved + unpacked * target.bytes,
        config.batch_size * module.inputs * area * target.bytes,
        config.batch_size * module.gradients * area * target.bytes,
    )


# Disk space


def project_bytes(unet: UNetProfile, config: TrainConfig) -> int:
    """All weight files of a project and of ``save_every``: LoRAs in fp16, merge weights in fp32."""
    saves = config.steps // config.save_every if config.save_every else 0
    lora_parameters, columns = 2 * config.rank * unet.total("sides"), unet.total("columns")
    headers = HEADER_BYTES * unet.total("projections")
    return (2 * lora_parameters + 8 * columns + headers) * (1 + saves)


def checkpoint_bytes(unet: UNetProfile, config: TrainConfig) -> int:
    """One checkpoint: each trained parameter with two moments; per column a gate, a score and a mask."""
    columns = 2 * unet.total("columns")
    return 12 * (trained_parameters(unet, config.rank) + 2 * columns) + columns


def checkpoints_bytes(unet: UNetProfile, config: TrainConfig) -> int:
    """All checkpoints on disk at once: the ones that are kept, and the next while it is written.

    With ``checkpoint_every`` 0 there is only the one that an interruption writes.
    """
    return (1 if config.checkpoint_every == 0 else 1 + KEPT) * checkpoint_bytes(unet, config)
