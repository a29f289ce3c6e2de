"""The training of one project, from picture files to two LoRAs, told as events; nothing is printed."""

from __future__ import annotations

import time
from collections.abc import Iterator

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from diffusers import UNet2DConditionModel
from torch import nn

from unziplora_cli.accel.device import PRECISION_NAMES, memory_guard, pick_device, pick_dtype, reset_threads
from unziplora_cli.accel.fused_lora import fuse_lora, unfuse_lora
from unziplora_cli.config import TrainConfig
from unziplora_cli.method.inject import eject, inject
from unziplora_cli.method.layer import LoRAStart
from unziplora_cli.method.schedule import Schedule
from unziplora_cli.method.separation import Separation, TrainedLayers
from unziplora_cli.projects.unfinished import CHECKPOINTS
from unziplora_cli.sdxl.attention import separate_prompts
from unziplora_cli.sdxl.load import alphas_cumprod
from unziplora_cli.training.batches import BatchSource
from unziplora_cli.training.callbacks import DivergenceMonitor, MetricLogger, Validation, check_tracker
from unziplora_cli.training.checkpoint import Checkpoints, TrainingState
from unziplora_cli.training.destyle import add_destyled_images
from unziplora_cli.training.estimate import MemoryAdvisor, target_of
from unziplora_cli.training.events import Event, Finished, Notice, Phase
from unziplora_cli.training.inputs import InputCache, TrainingInputs
from unziplora_cli.training.memory import free_memory
from unziplora_cli.training.optimizer import build_lr_scheduler, build_optimizer
from unziplora_cli.training.request import TrainRequest
from unziplora_cli.training.step import CapturedStep, TrainingStep, capturable, parameter_groups
from unziplora_cli.training.trainer import Run


def train(request: TrainRequest, input_cache: InputCache | None = None) -> Iterator[Event]:
    """Train, and tell about it; the last event is Finished.

    An ``input_cache`` shared by several trainings loads and encodes only once. Ctrl-C lets the current step
    finish, writes a checkpoint, yields Stopped and raises Interrupted. Raises UsageError, ModelError,
    ProjectError, OutOfMemory, Diverged; what was saved before stays.
    """
    started = time.monotonic()
    input_cache = input_cache or InputCache()
    check_tracker(request.config.tracker)
    request.folder.mkdir(parents=True, exist_ok=True)
    reset_threads()
    device = pick_device(request.job.device)
    dtype = pick_dtype(request.config.precision, device)
    accelerator = _accelerator(request, device, dtype)
    precision = PRECISION_NAMES[dtype]
    advisor = MemoryAdvisor(
        base=request.base,
        config=request.config,
        target=target_of(device, dtype, fuse=request.config.fuse),
        free=free_memory(device),
        checkpoints=request.checkpoints or request.folder / CHECKPOINTS,
        resume=request.job.name if request.resume else "",
    )
    with memory_guard(advisor.remedies):
        inputs = None
        for event in input_cache.inputs(request, accelerator, dtype):
            if isinstance(event, TrainingInputs):
                inputs = event
            else:
                yield event
        assert inputs is not None

        if device.type == "cuda" and (warning := advisor.warning()):
            yield Notice(warning)
        yield Phase("load U-Net", request.base.id)
        unet = input_cache.unet(request, accelerator.device, dtype)
        run = _prepare(request, inputs, unet, accelerator, dtype, started)
        if request.resume:
            yield from map(Notice, run.resume_from_checkpoint())
        yield Phase("train", f"{request.config.steps} steps on {accelerator.device}, {precision}")
        yield from run.steps()

        yield Phase("finish")
        run.metric_logger.close()
        result = run.result()
        del run
        unfuse_lora(unet)
        eject(unet)
        input_cache.keep(unet)
        yield Finished(result)


def _prepare(
    request: TrainRequest,
    inputs: TrainingInputs,
    unet: UNet2DConditionModel,
    accelerator: Accelerator,
    dtype: torch.dtype,
    started: float,
) -> Run:
    """Put the two branches into the U-Net, and make optimiser and schedule."""
    config = request.config
    inputs = add_destyled_images(inputs, unet, request.base, config, accelerator.device)
    separate_prompts(unet)
    if config.gradient_checkpointing:
        _checkpoint_gradients(unet)
    start: LoRAStart = "zero" if config.start == "zero" else "noise"
    layers = inject(unet, config.rank, seed=config.seed, start=start)
    trained: TrainedLayers = layers
    if config.fuse:
        trained = fuse_lora(unet, layers, by_block=config.gradient_checkpointing)
    optimizer = build_optimizer(
        config,
        parameter_groups(
            trained, content_lr=config.content_lr, style_lr=config.style_lr, merge_lr=config.merge_lr
        ),
    )
    lr_scheduler = build_lr_scheduler(config, optimizer)
    schedule = Schedule(
        config.steps, config.recalibrations, config.importance_steps, config.column_separation
    )
    step = TrainingStep(
        unet=unet,
        layers=trained,
        optimizer=accelerator.prepare_optimizer(optimizer),
        lr_scheduler=lr_scheduler,
        accelerator=accelerator,
        schedule=schedule,
        separation=_separation(config),
        overlap_weight=config.overlap_weight,
        max_grad_norm=config.max_grad_norm,
        content_from_picture=not (config.destyle_images and config.destyled_only),
    )
    metric_logger = MetricLogger(accelerator, config, request.folder / "logs")
    metric_logger.open()
    return Run(
        request=request,
        accelerator=accelerator,
        layers=layers,
        schedule=schedule,
        batches=BatchSource(
            config,
            inputs,
            alphas_cumprod(request.base),
            accelerator.device,
            dtype,
            accelerator.process_index,
            accelerator.num_processes,
        ),
        step=CapturedStep(step) if config.capture and capturable(step) else step,
        state=TrainingState(trained, optimizer, lr_scheduler, accelerator.scaler),
        validation=Validation(request, inputs, unet, layers),
        metric_logger=metric_logger,
        checkpoints=Checkpoints(request.checkpoints or request.folder / CHECKPOINTS, config.checkpoint_every),
        identity={
            **request.job.identity(),
            "precision": PRECISION_NAMES[dtype],
            "processes": accelerator.num_processes,
        },
        precision=PRECISION_NAMES[dtype],
        started=started,
        watch=DivergenceMonitor(scaled=accelerator.scaler is not None),
    )


def _accelerator(request: TrainRequest, device: torch.device, dtype: torch.dtype) -> Accelerator:
    """A fresh accelerator: an earlier training in this process may have had another precision."""
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


def _checkpoint_gradients(unet: UNet2DConditionModel) -> None:
    """Recompute activations in the backward pass; diffusers does so in training mode only."""
    unet.enable_gradient_checkpointing()
    unet.train()
    for module in unet.modules():
        if isinstance(module, nn.Dropout):
            module.eval()
