"""Lower bound of the time of a training step on this device, from its arithmetic alone."""

from __future__ import annotations

import time

import torch
from diffusers import UNet2DConditionModel
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.speed_methods.measurement import Measurement, synchronize
from benchmarks.speed_methods.task import TOKENS, Setting, meta_unet, pooled_width
from unziplora_cli.accel.device import limit_threads
from unziplora_cli.method.inject import adapted_projections
from unziplora_cli.sdxl.base import vae_scale_factor


def floor(setting: Setting) -> Measurement:
    """The operations of a step at the rate of a large matrix product in the training dtype."""
    unet = meta_unet(setting.base)
    limit_threads(unet)
    operations = step_operations(unet, setting.resolution // vae_scale_factor(setting.base))
    rate = product_rate(setting.device, setting.dtype)
    note = f"{operations / 1e12:.3g} TFLOP at {rate / 1e12:.3g} TFLOP/s"
    return Measurement(seconds=operations / rate, note=note)


def step_operations(unet: UNet2DConditionModel, side: int) -> int:
    """Floating-point operations of one training step on one image of ``side`` x ``side`` latents.

    ``unet`` is frozen and on the meta device. Counts the forward pass and the part of the backward pass that
    every training of the attention projections needs, but no gradients of frozen weights, no products of the
    LoRAs, and no recomputation inside attention kernels.
    """
    shape = unet.config
    handles = [layer.register_forward_hook(_require_gradient) for layer in adapted_projections(unet).values()]
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH), torch.device("meta"):
        prediction = unet(
            torch.empty(1, shape.in_channels, side, side),
            torch.empty(1),
            encoder_hidden_states=torch.empty(1, TOKENS, shape.cross_attention_dim),
            added_cond_kwargs={
                "text_embeds": torch.empty(1, pooled_width(unet)),
                "time_ids": torch.empty(1, 6),
            },
            return_dict=False,
        )[0]
        prediction.sum().backward()
    for handle in handles:
        handle.remove()
    return int(counter.get_total_flops())


def product_rate(device: torch.device, dtype: torch.dtype) -> float:
    """Operations per second of a large square matrix product of random numbers."""
    side, products = (8192, 200) if device.type == "cuda" else (1024, 20)
    left, right = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
    for _ in range(3):
        left @ right
    synchronize(device)
    began = time.perf_counter()
    for _ in range(products):
        left @ right
    synchronize(device)
    return 2 * side**3 * products / (time.perf_counter() - began)


def _require_gradient(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
    """Require the gradient of the output of ``module``, as a LoRA on it would."""
    return output if output.requires_grad else output.requires_grad_()
