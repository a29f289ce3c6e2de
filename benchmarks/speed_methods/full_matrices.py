"""The paper's step as its authors compute it: both updates are full matrices, built in every projection.

Written from the paper; contains only what a step needs, without the authors' logging and image encoding.
"""

from __future__ import annotations

import time

import torch
from diffusers.models.attention_processor import Attention
from torch import Tensor, nn

from benchmarks.speed_methods.measurement import Measurement, time_steps
from benchmarks.speed_methods.task import LEARNING_RATE, MAX_GRAD_NORM, Setting, Task
from unziplora_cli.method.inject import adapted_projections
from unziplora_cli.sdxl.attention import attend
from unziplora_cli.training.memory import peak_memory

WARM_UP = 2
MERGE_RATE = 5e-3
OVERLAP_WEIGHT = 0.5
OPEN_COLUMNS = 0.1


class NaiveBranch(nn.Module):
    """``down`` [rank, in], ``up`` [out, rank], the merge weight [out] and the column mask [out]."""

    mask: Tensor

    def __init__(self, linear: nn.Linear, rank: int) -> None:
        super().__init__()
        device = linear.weight.device
        self.down = nn.Parameter(torch.randn(rank, linear.in_features, device=device) / rank)
        self.up = nn.Parameter(torch.randn(linear.out_features, rank, device=device) / rank)
        self.merge = nn.Parameter(torch.ones(linear.out_features, device=device))
        self.register_buffer("mask", torch.rand(linear.out_features, device=device) < OPEN_COLUMNS)

    def delta(self) -> Tensor:
        """The update as a matrix with scaled columns, [in, out]."""
        return (self.down.T @ self.up.T) * (self.merge * self.mask)


class NaiveDualLinear(nn.Module):
    """A frozen projection with two branches, each a product with a full matrix."""

    def __init__(self, base: nn.Linear, rank: int) -> None:
        super().__init__()
        self.base = base
        self.content = NaiveBranch(base, rank)
        self.style = NaiveBranch(base, rank)

    def forward(self, x: Tensor, x_content: Tensor | None = None, x_style: Tensor | None = None) -> Tensor:
        """[..., in] -> [..., out]; a branch without its own text uses ``x``."""
        content = x if x_content is None else x_content
        style = x if x_style is None else x_style
        y: Tensor = self.base(x)
        return y + style @ self.style.delta() + content @ self.content.delta()

    def overlap(self) -> Tensor:
        """The overlap penalty, a scalar."""
        return (self.content.merge * self.content.mask * self.style.merge * self.style.mask).abs().mean()


class SeparatePrompts:
    """Attention with all three prompts in the keys and values of cross-attention."""

    def __call__(
        self,
        attn: Attention,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        temb: Tensor | None = None,
        content: Tensor | None = None,
        style: Tensor | None = None,
    ) -> Tensor:
        """[batch, pixels, width] and the texts [batch, tokens, text width] -> the shape of the first."""
        if encoder_hidden_states is None:
            texts: tuple[Tensor | None, ...] = (hidden_states,)
        else:
            texts = (encoder_hidden_states, content, style)
        attended = attend(attn.to_q(hidden_states), attn.to_k(*texts), attn.to_v(*texts), attn.heads)
        return attn.to_out[1](attn.to_out[0](attended))  # type: ignore[no-any-return]


def eager(setting: Setting) -> Measurement:
    """A step between two choices of columns: masks on, merge weights learning on shared columns."""
    began = time.perf_counter()
    task = Task(setting)
    layers = inject_naively(task.unet, setting.common_rank)
    branches = [branch for layer in layers for branch in (layer.content, layer.style)]
    loras = [weights for branch in branches for weights in (branch.down, branch.up)]
    merges = [branch.merge for branch in branches]
    optimizer = task.adamw(
        [{"params": loras, "lr": LEARNING_RATE}, {"params": merges, "lr": MERGE_RATE}],
    )

    def step() -> None:
        task.randomize()
        overlap = torch.stack([layer.overlap() for layer in layers]).mean()
        loss = task.loss(content=task.content, style=task.style) + OVERLAP_WEIGHT * overlap
        loss.backward()
        keep_shared_merges(layers)
        nn.utils.clip_grad_norm_([*loras, *merges], MAX_GRAD_NORM)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        for merge in merges:
            merge.data.clamp_(0.0, 1.0)

    watch = time_steps(step, setting.device, warm_up=WARM_UP, steps=setting.few)
    return Measurement(watch.median(), peak_memory(setting.device), watch.started - began)


def inject_naively(unet: nn.Module, rank: int) -> list[NaiveDualLinear]:
    """Put the branches into every attention projection and the prompts beside each other."""
    layers = []
    for name, linear in adapted_projections(unet).items():
        layer = NaiveDualLinear(linear, rank)
        unet.set_submodule(name, layer)
        layers.append(layer)
    unet.set_attn_processor(SeparatePrompts())  # type: ignore[operator]
    return layers


def keep_shared_merges(layers: list[NaiveDualLinear]) -> None:
    """Between two choices merge weights learn only on columns that both branches use."""
    for layer in layers:
        shared = layer.content.mask & layer.style.mask
        for branch in (layer.content, layer.style):
            assert branch.merge.grad is not None
            branch.merge.grad *= shared
