"""Time generation with both LoRAs, and diffusers' pipeline without any at equal settings."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import StableDiffusionXLPipeline

from benchmarks.speed_methods.measurement import Measurement, Stopwatch
from benchmarks.speed_methods.task import PROMPTS, TOKENS, Setting, meta_unet, pooled_width, random_unet
from unziplora_cli.config import GenerateConfig
from unziplora_cli.events import Progress
from unziplora_cli.method.inject import adapted_projections
from unziplora_cli.method.lora import LoRA, LoRAPair, LoRAWeights
from unziplora_cli.sdxl.generate import ImageRequest, generate
from unziplora_cli.sdxl.load import load_scheduler, load_vae
from unziplora_cli.training.memory import peak_memory

GUIDANCE = 5.0
READ_EVERY = 2
WARM_READINGS = 2


class GenerationTimer:
    """Measures the time and the memory of the steps of one image."""

    def __init__(self, setting: Setting) -> None:
        self.device = setting.device
        self.watch = Stopwatch(setting.device, READ_EVERY)
        self.memory = 0

    def step(self) -> None:
        """Record the end of a denoising step."""
        self.watch.tick()
        self.memory = peak_memory(self.device)

    def result(self) -> Measurement:
        """The row; the first readings are warm-up."""
        return Measurement(self.watch.median(WARM_READINGS), self.memory)


def pipeline_without_lora(setting: Setting) -> Measurement:
    """StableDiffusionXLPipeline without a LoRA, with prompt embeddings as input."""
    base, device, dtype = setting.base, setting.device, setting.dtype
    unet = random_unet(setting)
    pipeline = StableDiffusionXLPipeline(
        vae=load_vae(base, device=device, dtype=dtype),
        text_encoder=None,
        text_encoder_2=None,
        tokenizer=None,
        tokenizer_2=None,
        unet=unet,
        scheduler=load_scheduler(base),
        add_watermarker=False,
    )
    pipeline.set_progress_bar_config(disable=True)
    watch = GenerationTimer(setting)

    def on_step(_pipeline: Any, _number: int, _timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        watch.step()
        return tensors

    tokens = torch.randn(2, 1, TOKENS, unet.config.cross_attention_dim, device=device, dtype=dtype)
    texts = torch.randn(2, 1, pooled_width(unet), device=device, dtype=dtype)
    pipeline(
        prompt_embeds=tokens[0],
        negative_prompt_embeds=tokens[1],
        pooled_prompt_embeds=texts[0],
        negative_pooled_prompt_embeds=texts[1],
        width=setting.resolution,
        height=setting.resolution,
        num_inference_steps=setting.steps,
        guidance_scale=GUIDANCE,
        output_type="latent",
        callback_on_step_end=on_step,
    )
    return watch.result()


def combine(setting: Setting) -> Measurement:
    """The generation of `unziplora combine`, with two random LoRAs and random merge weights."""
    watch = GenerationTimer(setting)

    side = setting.resolution
    config = GenerateConfig(steps=setting.steps, guidance=GUIDANCE, width=side, height=side)
    request = ImageRequest(PROMPTS, random_branches(setting), config)
    for event in generate(setting.base, [request], device=setting.device, dtype=setting.dtype):
        if isinstance(event, Progress):
            watch.step()
    return watch.result()


VARIANTS = {"diffusers' pipeline, no LoRA": pipeline_without_lora, "ours, combine": combine}
"""The rows by name; the others are compared with the first."""


def random_branches(setting: Setting) -> LoRAPair:
    """Two random LoRAs for every adapted projection of the base, scaled as at the start of a training."""
    projections = adapted_projections(meta_unet(setting.base))
    rank = setting.common_rank

    def lora() -> LoRA:
        return {
            name: LoRAWeights(
                down=torch.randn(rank, linear.in_features) / rank,
                up=torch.randn(linear.out_features, rank) / rank,
            )
            for name, linear in projections.items()
        }

    def merge() -> dict[str, torch.Tensor]:
        return {name: torch.rand(linear.out_features) for name, linear in projections.items()}

    return LoRAPair(content=lora(), style=lora(), content_merge=merge(), style_merge=merge())
