"""The estimated memory against exact counts, what autograd saves, file sizes and measurements."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from diffusers import UNet2DConditionModel
from torch import Tensor

from tests.training.small_unet import BATCH, CONFIG, SIDE, predict, small_base
from unziplora_cli.accel import fused_lora, fused_modules
from unziplora_cli.accel.fused_lora import FusedLoRA, fuse_lora
from unziplora_cli.adapters.lora_file import read_lora
from unziplora_cli.config import TrainConfig, resolve
from unziplora_cli.doctor.checks import LOW_VRAM_GPU_MEMORY, SDXL_GPU_MEMORY
from unziplora_cli.method.inject import extract, extract_merge, inject
from unziplora_cli.sdxl.attention import separate_prompts
from unziplora_cli.sdxl.base import BaseRef
from unziplora_cli.training import memory
from unziplora_cli.training.checkpoint import TrainingState, write_adapters
from unziplora_cli.training.engine import _enable_gradient_checkpointing
from unziplora_cli.training.estimate import shipped_sdxl
from unziplora_cli.training.events import TrainResult
from unziplora_cli.training.memory import (
    GIB,
    BaseProfile,
    Target,
    checkpoint_bytes,
    checkpoints_bytes,
    estimate_memory,
    profile_base,
    project_bytes,
    required_memory,
    trained_parameters,
)
from unziplora_cli.training.optimizer import build_lr_scheduler, build_optimizer
from unziplora_cli.training.step import parameter_groups

GPU = Target("cuda", "bf16", fused=True)


@pytest.fixture(scope="module")
def sdxl() -> BaseProfile:
    """SDXL, from the configuration files that ship with the package."""
    return profile_base(shipped_sdxl())


def test_sdxl_is_counted_exactly(sdxl: BaseProfile) -> None:
    """The numbers are those of SDXL's paper and model files."""
    assert sdxl.unet.parameters == 2_567_463_684
    assert sdxl.unet.total("projections") == 560
    columns = sdxl.unet.total("columns")
    assert columns == 665_600
    assert trained_parameters(sdxl.unet, 64) == 2 * (92_897_280 + columns)
    assert sdxl.text_parameters == 123_060_480 + 694_659_840
    assert sdxl.vae_parameters == 83_653_863


H200 = {"paper": ({}, 11.02)}
"""GiB of ``paper`` on an H200 at 1024 px in bf16 with torch 2.11; memory.WORKSPACES was fitted to it."""
HELD_OUT = [
    ("fast", {}, 9.85),
    ("low-vram", {}, 5.34),
    ("destyle", {}, 11.29),
    ("paper", {"rank": 4}, 8.82),
    ("paper", {"rank": 16}, 9.26),
    ("paper", {"rank": 128}, 13.40),
    ("paper", {"resolution": 512}, 7.92),
    ("paper", {"resolution": 768}, 9.20),
    ("paper", {"batch_size": 2}, 15.32),
    ("paper", {"batch_size": 4}, 23.93),
]
"""Preset, changes and GiB on the same GPU; no constant was fitted to them."""


@pytest.mark.parametrize(("preset", "changes", "gibibytes"), HELD_OUT)
def test_one_measurement_predicts_the_peak_of_other_settings(
    sdxl: BaseProfile,
    preset: str,
    changes: dict[str, int],
    gibibytes: float,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    fitted = estimate_memory(sdxl, resolve("paper", {}), GPU).peak / GIB
    assert fitted == pytest.approx(H200["paper"][1], rel=0.02)
    workspaces = memory.WORKSPACES + int((H200["paper"][1] - fitted) * GIB)
    monkeypatch.setattr(memory, "WORKSPACES", workspaces)
    estimate = estimate_memory(sdxl, resolve(preset, changes), GPU)
    assert estimate.peak / GIB == pytest.approx(gibibytes, rel=0.05)
    assert estimate.text_encoders / GIB == pytest.approx(1.45, rel=0.1)


@pytest.mark.parametrize(("preset", "gibibytes"), [("paper", 11.05), ("low-vram", 5.35)])
def test_the_estimate_holds_on_an_h100(sdxl: BaseProfile, preset: str, gibibytes: float) -> None:
    estimate = estimate_memory(sdxl, resolve(preset, {}), GPU)
    assert estimate.peak / GIB == pytest.approx(gibibytes, rel=0.05)
    assert estimate.vae / GIB == pytest.approx(3.36, rel=0.05)


def test_doctor_requires_what_the_estimate_requires(sdxl: BaseProfile) -> None:
    for preset, required in (("paper", SDXL_GPU_MEMORY), ("low-vram", LOW_VRAM_GPU_MEMORY)):
        estimate = estimate_memory(sdxl, resolve(preset, {}), GPU)
        assert required_memory(estimate, GPU) == pytest.approx(required, rel=0.03)


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("checkpointed", [False, True])
def test_activations_are_those_that_autograd_saves(
    checkpointed: bool, fused: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    unet = UNet2DConditionModel(**CONFIG).eval().requires_grad_(False)
    if fused:
        fuse_with_cpu_kernels(unet, monkeypatch)
    separate_prompts(unet)
    if checkpointed:
        _enable_gradient_checkpointing(unet)
    groups = fuse_lora(unet, inject(unet, 4), by_block=checkpointed)
    settings = TrainConfig(rank=4, resolution=8 * SIDE, batch_size=BATCH, gradient_checkpointing=checkpointed)
    expected = estimate_memory(small_base(), settings, Target("cpu", "fp32", fused)).activations
    assert saved_bytes(unet, groups, monkeypatch) == pytest.approx(expected, rel=0.15)


def test_files_have_the_estimated_sizes(tmp_path: Path) -> None:
    profile = small_base().unet
    layers = inject(UNet2DConditionModel(**CONFIG).requires_grad_(False), 8)
    settings = TrainConfig(rank=8)
    loras = extract(layers, "content"), extract(layers, "style")
    merges = extract_merge(layers, "content"), extract_merge(layers, "style")
    write_adapters(tmp_path, TrainResult(*loras, *merges, 0, (), 0.0, 0, "cpu", "fp32"), {})
    written = sum(file.stat().st_size for file in tmp_path.iterdir())
    assert project_bytes(profile, settings) == pytest.approx(written, rel=0.15)
    assert project_bytes(profile, replace(settings, save_every=200)) == 4 * project_bytes(profile, settings)
    assert read_lora(tmp_path / "content.safetensors").lora.keys() == layers.keys()
    optimizer = build_optimizer(settings, parameter_groups(layers, content_lr=1, style_lr=1, merge_lr=1))
    state = TrainingState(layers, optimizer, build_lr_scheduler(settings, optimizer))
    assert checkpoint_bytes(profile, settings) == state.size()
    assert checkpoints_bytes(profile, settings) == 3 * state.size()
    assert checkpoints_bytes(profile, replace(settings, checkpoint_every=0)) == state.size()


def test_larger_settings_need_more_memory(sdxl: BaseProfile) -> None:
    def peak(**settings: Any) -> int:
        return estimate_memory(sdxl, TrainConfig(**settings), GPU).peak

    default = peak()
    assert peak(resolution=512) < peak(resolution=768) < default < peak(batch_size=2) < peak(batch_size=4)
    assert peak(rank=16) < default < peak(rank=128)
    assert peak(gradient_checkpointing=True, quantize="int8") < peak(gradient_checkpointing=True) < default
    assert peak(quantize="int8") > default, "without checkpointing, autograd saves the unpacked weights"
    assert peak(destyle_images=8) > default, "the gradients of the first pass stay during the second"
    assert peak(fuse=False) > default, "text projections stay on the GPU"
    assert peak(optimizer="adamw8bit") < default < peak(optimizer="prodigy")


def test_any_base_of_sdxls_shape_has_an_estimate(base: BaseRef) -> None:
    settings = TrainConfig(rank=4, resolution=64)
    assert estimate_memory(profile_base(base), settings, Target("cpu", "fp32")).peak < 0.1e9


def saved_bytes(
    unet: torch.nn.Module, groups: Mapping[str, FusedLoRA], monkeypatch: pytest.MonkeyPatch
) -> int:
    """The bytes that autograd holds after a forward pass, without the weights that exist anyway."""
    weights = [*unet.parameters(), *unet.buffers()]
    weights += [tensor for group in groups.values() for tensor in (*group.parameters(), group._frozen)]
    existing = {tensor.untyped_storage().data_ptr() for tensor in weights if tensor is not None}
    saved: dict[int, Tensor] = {}

    def save(tensor: Tensor) -> Tensor:
        pointer = tensor.untyped_storage().data_ptr()
        if pointer not in existing:
            saved[pointer] = tensor
        return tensor

    pack = fused_lora.RecomputedWeight.pack

    def save_in_region(self: Any, tensor: Tensor) -> Any:
        packed = pack(self, tensor)
        return save(packed) if isinstance(packed, Tensor) else packed

    monkeypatch.setattr(fused_lora.RecomputedWeight, "pack", save_in_region)
    with torch.autograd.graph.saved_tensors_hooks(save, lambda tensor: tensor):
        predict(unet)
    return sum(tensor.untyped_storage().nbytes() for tensor in saved.values())


class SavesInputOnly(torch.autograd.Function):
    """A function of a tensor that saves nothing else, as the fused kernels do."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, function: Callable[[Tensor], Tensor]) -> Tensor:
        ctx.save_for_backward(x)
        return function(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        raise NotImplementedError


def fuse_with_cpu_kernels(unet: UNet2DConditionModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """Put the fused modules into ``unet``, with kernels that run on the CPU."""

    def geglu(hidden: Tensor) -> Tensor:
        return SavesInputOnly.apply(hidden, lambda x: x.chunk(2, -1)[0] * F.gelu(x.chunk(2, -1)[1]))

    def group_norm(x: Tensor, groups: int, weight: Tensor, bias: Tensor, eps: float, *, silu: bool) -> Tensor:
        def function(x: Tensor) -> Tensor:
            normed = F.group_norm(x, groups, weight, bias, eps)
            return F.silu(normed) if silu else normed

        return SavesInputOnly.apply(x, function)

    kernels = "unziplora_cli.accel.kernels."
    monkeypatch.setitem(sys.modules, kernels + "geglu", SimpleNamespace(geglu=geglu))
    monkeypatch.setitem(sys.modules, kernels + "group_norm", SimpleNamespace(group_norm=group_norm))
    monkeypatch.setattr(fused_modules, "kernels_available", lambda device: True)
    assert fused_modules.fuse_modules(unet)
