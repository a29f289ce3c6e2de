"""One training, from image files to two LoRAs; yields events and prints nothing."""

from __future__ import annotations

import time
from collections.abc import Generator
from dataclasses import replace
from functools import partial

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, is_initialized
from diffusers import UNet2DConditionModel
from torch import Tensor, nn

from unziplora_cli.accel.device import (
    PRECISION_NAMES,
    empty_cache,
    memory_guard,
    pick_device,
    pick_dtype,
    reset_threads,
)
from unziplora_cli.accel.fused_lora import fuse_lora, unfuse_lora
from unziplora_cli.config import TrainConfig
from unziplora_cli.errors import count
from unziplora_cli.method.inject import eject, inject
from unziplora_cli.method.layer import DualLoRALinear, LoRAStart
from unziplora_cli.method.schedule import Schedule
from unziplora_cli.method.separation import Separation, TrainedLayers
from unziplora_cli.packages import check_packages
from unziplora_cli.sdxl.attention import separate_prompts
from unziplora_cli.sdxl.latents import decode_latents
from unziplora_cli.sdxl.load import alphas_cumprod, load_vae
from unziplora_cli.training.batches import BatchSource
from unziplora_cli.training.callbacks import Validation
from unziplora_cli.training.checkpoint import TrainingState
from unziplora_cli.training.destyle import (
    generate_destyled,
    omission,
    plain_prompt,
    write_destyled,
    write_latents,
)
from unziplora_cli.training.estimate import memory_remedies, memory_warning, target_of
from unziplora_cli.training.events import Destyled, Event, Notice, Phase, TrainResult
from unziplora_cli.training.inputs import InputCache, Prior, TrainingInputs
from unziplora_cli.training.memory import free_memory
from unziplora_cli.training.optimizer import build_lr_scheduler, build_optimizer
from unziplora_cli.training.request import TrainRequest
from unziplora_cli.training.step import CapturedStep, Step, TrainingStep, capturable, parameter_groups
from unziplora_cli.training.trainer import Trainer


def train(
    request: TrainRequest, input_cache: InputCache | None = None
) -> Generator[Event, None, TrainResult]:
    """Run one training and return what it learned.

    An ``input_cache`` shared by several trainings loads models and encodes inputs only once. A signal to stop
    (Ctrl-C) ends the training after the current step: the result then has fewer steps than requested, and a
    checkpoint is written. Raises Interrupted if there is no result, UsageError, ModelError, ProjectError,
    OutOfMemory and Diverged; checkpoints and saved LoRAs stay.
    """
    started = time.monotonic()
    input_cache = input_cache or InputCache()
    check_packages(request.config)
    request.folder.mkdir(exist_ok=True)
    reset_threads()
    device = pick_device(request.job.device)
    dtype = pick_dtype(request.config.precision, device)
    accelerator = make_accelerator(request, device, dtype)
    precision = PRECISION_NAMES[dtype]
    target, free = target_of(device, dtype, fuse=request.config.fuse), free_memory(device)
    with memory_guard(partial(memory_remedies, request, target, free)):
        inputs = yield from input_cache.inputs(request, accelerator, dtype)
        if device.type == "cuda" and (warning := memory_warning(request, target, free)):
            yield Notice(warning)
        yield Phase("load U-Net", request.base.id)
        unet = input_cache.take_unet(request, accelerator.device, dtype)
        inputs = yield from with_destyled_images(inputs, unet, request, accelerator.device)
        trainer = _make_trainer(request, inputs, unet, accelerator, dtype, started)
        if request.resume:
            yield from trainer.resume()
        yield Phase("train", f"{count(request.config.steps, 'step')} on {accelerator.device}, {precision}")
        result = yield from trainer.run()
        yield Phase("finish")
        del trainer
        unfuse_lora(unet)
        eject(unet)
        input_cache.put_unet(unet)
        return result


def with_destyled_images(
    inputs: TrainingInputs, unet: UNet2DConditionModel, request: TrainRequest, device: torch.device
) -> Generator[Event, None, TrainingInputs]:
    """``inputs`` with destyled images, if requested, as the class images of the content branch.

    The branch learns their latents, which are kept for a replay; the files are what people look at.
    """
    if inputs.destyle is None:
        return inputs
    yield Phase("destyle", count(request.config.destyle_images, "image"))
    check, load = request.other_subject, partial(load_vae, request.base, device=device, vae=request.job.vae)
    checking_vae = load() if check else None  # of the small base; a large one waits for memory

    def other_subject(latents: Tensor) -> str:
        return check(decode_latents(checking_vae, latents)[0]) if check else ""

    latents, others = yield from generate_destyled(
        unet,
        inputs.latents,
        inputs.destyle,
        alphas_cumprod(request.base),
        request.config,
        device=device,
        velocity=inputs.velocity,
        other_subject=other_subject,
    )
    if others:
        yield omission(request.job, others, left=latents is not None)
    if latents is None:
        return inputs
    vae = checking_vae or load()
    images = decode_latents(vae, latents.mean.to(device))
    prompt = plain_prompt(
        request.config, request.job.prompts, request.job.words.subject, request.job.features
    )
    parameters = {"base": {"id": request.base.id}, "prompts": {"full": prompt}, "seed": request.config.seed}
    paths = write_destyled(request.folder, images, parameters)
    write_latents(request.folder, latents)
    del vae
    empty_cache(device)
    yield Destyled(paths)
    return replace(inputs, priors={**inputs.priors, "content": Prior(latents, inputs.destyle.content)})


def destyle(request: TrainRequest) -> Generator[Event, None, None]:
    """Write the destyled images of a training by inversion into its folder, without training."""
    device = pick_device(request.job.device)
    dtype = pick_dtype(request.config.precision, device)
    input_cache = InputCache()
    with memory_guard("Use a smaller resolution, or another way to destyle."):
        inputs = yield from input_cache.inputs(request, make_accelerator(request, device, dtype), dtype)
        yield Phase("load U-Net", request.base.id)
        unet = input_cache.take_unet(request, device, dtype)
        yield from with_destyled_images(inputs, unet, request, device)


def _make_trainer(
    request: TrainRequest,
    inputs: TrainingInputs,
    unet: UNet2DConditionModel,
    accelerator: Accelerator,
    dtype: torch.dtype,
    started: float,
) -> Trainer:
    """Inject the two branches into the U-Net, and create the optimizer and everything else of a training."""
    config = request.config
    layers = inject_branches(unet, config)
    trained: TrainedLayers = layers
    if config.fuse:
        trained = fuse_lora(unet, layers, by_block=config.gradient_checkpointing)
    step, run, state = make_step(request, inputs, unet, trained, accelerator)
    return Trainer(
        request=request,
        accelerator=accelerator,
        layers=layers,
        batches=batch_source(request, inputs, accelerator, dtype),
        step=step,
        run_step=run,
        state=state,
        validation=Validation(request, inputs, unet, layers),
        precision=PRECISION_NAMES[dtype],
        started=started,
    )


def inject_branches(unet: UNet2DConditionModel, config: TrainConfig) -> dict[str, DualLoRALinear]:
    """The layers of a training, with their start values."""
    separate_prompts(unet)
    if config.gradient_checkpointing:
        _enable_gradient_checkpointing(unet)
    start: LoRAStart = "zero" if config.start == "zero" else "noise"
    return inject(unet, config.rank, seed=config.seed, start=start)


def make_step(
    request: TrainRequest,
    inputs: TrainingInputs,
    unet: UNet2DConditionModel,
    trained: TrainedLayers,
    accelerator: Accelerator,
    trainings: int | None = None,
) -> tuple[TrainingStep, Step, TrainingState]:
    """The step of one or several trainings, what runs it (recorded, where possible), and what it changes."""
    config = request.config
    groups = parameter_groups(
        trained, content_lr=config.content_lr, style_lr=config.style_lr, merge_lr=config.merge_lr
    )
    optimizer = build_optimizer(config, groups)
    lr_scheduler = build_lr_scheduler(config, optimizer)
    step = TrainingStep(
        unet=unet,
        layers=trained,
        optimizer=accelerator.prepare_optimizer(optimizer),
        lr_scheduler=lr_scheduler,
        accelerator=accelerator,
        schedule=Schedule(
            config.steps, config.recalibrations, config.importance_steps, config.column_separation
        ),
        separation=_separation(config),
        overlap_weight=config.overlap_weight,
        max_grad_norm=config.max_grad_norm,
        content_from_picture="content" not in inputs.priors
        or not (config.destyle_images and config.destyled_only),
        trainings=trainings,
    )
    state = TrainingState(trained, optimizer, lr_scheduler, accelerator.scaler)
    return step, CapturedStep(step) if config.capture and capturable(step) else step, state


def batch_source(
    request: TrainRequest, inputs: TrainingInputs, accelerator: Accelerator, dtype: torch.dtype
) -> BatchSource:
    """The batches of a training in this process."""
    return BatchSource(
        request.config,
        inputs,
        alphas_cumprod(request.base),
        accelerator.device,
        dtype,
        accelerator.process_index,
        accelerator.num_processes,
    )


def make_accelerator(request: TrainRequest, device: torch.device, dtype: torch.dtype) -> Accelerator:
    if is_initialized():
        # accelerate keeps device and precision for the whole process; this training may need others. There is
        # no public way to reset them.
        AcceleratorState._reset_state(reset_partial_state=True)
    if device.type == "cuda" and device.index is not None:
        torch.cuda.set_device(device)
    tracker = request.config.tracker
    return Accelerator(
        cpu=device.type == "cpu",
        mixed_precision="no" if dtype is torch.float32 else PRECISION_NAMES[dtype],
        log_with=None if tracker == "none" else tracker,
        project_dir=request.folder / "logs",
    )


def _separation(config: TrainConfig) -> Separation:
    return Separation(
        column_ratio=config.column_ratio,
        block_separation=config.block_separation,
        avoid_overlap=config.avoid_overlap,
        own_columns=config.finetune_mask,
        score="magnitude" if config.importance_score == "magnitude" else "count",
        threshold=config.importance_threshold,
        loss_scale=config.importance_loss_scale,
        accumulate=config.accumulate_importance,
        strict=config.strict_top,
    )


def _enable_gradient_checkpointing(unet: UNet2DConditionModel) -> None:
    """Recompute activations in the backward pass; diffusers does so in training mode only."""
    unet.enable_gradient_checkpointing()
    unet.train()
    for module in unet.modules():
        if isinstance(module, nn.Dropout):
            module.eval()
