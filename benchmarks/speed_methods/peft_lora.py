"""The DreamBooth-LoRA step of diffusers and peft: one LoRA, one prompt, a frozen U-Net."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch
from peft import LoraConfig
from torch import nn

from benchmarks.speed_methods.measurement import Measurement, time_steps
from benchmarks.speed_methods.task import MAX_GRAD_NORM, Setting, Task
from unziplora_cli.training.memory import peak_memory

TARGETS = ["to_q", "to_k", "to_v", "to_out.0"]
WARM_UP = 3


def eager(setting: Setting) -> Measurement:
    """The step launched kernel by kernel, as in diffusers' training script."""
    began = time.perf_counter()
    task = Task(setting)
    optimizer, compute = _training(task, setting.common_rank)

    def step() -> None:
        task.randomize()
        compute()
        optimizer.zero_grad(set_to_none=True)

    watch = time_steps(step, setting.device, warm_up=WARM_UP, steps=setting.few)
    return Measurement(watch.median(), peak_memory(setting.device), watch.started - began)


def captured(setting: Setting) -> Measurement:
    """The same step recorded once as a CUDA graph and replayed."""
    began = time.perf_counter()
    task = Task(setting)
    optimizer, compute = _training(task, setting.common_rank)
    graph = _capture(task, compute, optimizer)

    def step() -> None:
        task.randomize()
        graph.replay()

    watch = time_steps(step, setting.device, warm_up=WARM_UP, steps=4 * setting.few)
    return Measurement(watch.median(), peak_memory(setting.device), watch.started - began)


def _training(task: Task, rank: int) -> tuple[torch.optim.Optimizer, Callable[[], None]]:
    """Add a LoRA to the U-Net; returns its optimizer and a step that keeps the gradients."""
    task.unet.add_adapter(
        LoraConfig(r=rank, lora_alpha=rank, init_lora_weights="gaussian", target_modules=TARGETS)
    )
    weights = [parameter for parameter in task.unet.parameters() if parameter.requires_grad]
    for parameter in weights:
        parameter.data = parameter.data.float()
    optimizer = task.adamw(weights)

    def compute() -> None:
        task.loss().backward()
        nn.utils.clip_grad_norm_(weights, MAX_GRAD_NORM)
        optimizer.step()

    return optimizer, compute


def _capture(
    task: Task, compute: Callable[[], None], optimizer: torch.optim.Optimizer
) -> torch.cuda.CUDAGraph:
    """Record ``compute`` as a CUDA graph.

    Warm-up steps on the same stream let libraries choose kernels and the optimizer create its state. The
    gradients are None at the start, so that the graph owns them and writes instead of accumulating.
    """
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(WARM_UP):
            task.randomize()
            compute()
            optimizer.zero_grad(set_to_none=True)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream):
        compute()
    return graph
