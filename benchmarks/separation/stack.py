"""Many trainings at once: K pairs of LoRAs in one U-Net, computed as one batch.

A single training of a small base leaves a GPU idle between its thousand kernels. Here every adapted
projection holds the branches of K trainings, image k passes through pair k, and one CUDA graph runs a step of
all. Only the driver of `unziplora_cli.training` is repeated; branches, scores and formulas are the method's.
A test compares it with single trainings: same noise, schedule, scores, columns and AdamW.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from unziplora_cli.accel.cuda_graph import Recording
from unziplora_cli.accel.fused_lora import fused_text, join_factors
from unziplora_cli.config import Prompts, TrainConfig
from unziplora_cli.method.blocks import policy
from unziplora_cli.method.importance import column_scores
from unziplora_cli.method.inject import adapted_projections
from unziplora_cli.method.layer import BRANCHES, Branch
from unziplora_cli.method.lora import LoRAWeights
from unziplora_cli.method.losses import min_snr_weight
from unziplora_cli.method.schedule import Action, Schedule
from unziplora_cli.sdxl.attention import separate_prompts
from unziplora_cli.sdxl.text import Conditioning, predict_noise
from unziplora_cli.training.noise import CONTENT_PRIOR_STREAM, add_noise, step_noise

Source = Literal["inversion", "destyler", "checked", "photo"]
"""Where destyled images come from: the base, the small destyler, the one of both in which the reader sees the
subject, or a drawn photo of the individual."""


@dataclass(frozen=True)
class StackedJob:
    """One training of the stack: image ``sample`` with ``prompts``.

    ``branches`` are the LoRAs that learn; ``content`` alone is a plain LoRA. ``blocks`` limits the training
    to layers whose names start with one of these. ``features`` are the colours and the marking given to the
    destyler.
    """

    sample: int
    config: TrainConfig
    prompts: Prompts
    branches: tuple[str, ...] = BRANCHES
    blocks: tuple[str, ...] = ()
    source: Source = "inversion"
    features: tuple[str, str | None, str] | None = None

    @property
    def training_prompts(self) -> Prompts:
        """The prompts of base and branches; without prompt separation all have the full prompt."""
        return self.prompts if self.config.prompt_separation else Prompts(*[self.prompts.full] * 3)

    @property
    def schedule(self) -> Schedule:
        c = self.config
        return Schedule(c.steps, c.recalibrations, c.importance_steps, c.column_separation)


class StackedLinear(nn.Module):
    """A frozen linear layer with K pairs of branches; the first dimension of its input is K.

    The branches have a leading dimension: ``down`` [K, rank, in], ``up`` [K, out, rank], the rest [K, out].
    """

    def __init__(self, base: nn.Linear) -> None:
        super().__init__()
        self.base = base
        self.branches: dict[str, Branch] = {}  # not submodules: they are replaced for generation
        self.mode = "both"

    def forward(self, x: Tensor, x_content: Tensor | None = None, x_style: Tensor | None = None) -> Tensor:
        """``x`` [K, tokens, in] -> [K, tokens, out]."""
        y = self.base(x)
        if self.mode == "content":
            factors = self.branches["content"].factors(x.dtype, merged=False)
            return fused_text(y, [(x if x_content is None else x_content, factors)])
        content, style = (self.branches[name].factors(x.dtype, merged=True) for name in BRANCHES)
        if x_content is None and x_style is None:
            return fused_text(y, [(x, join_factors([content, style]))])
        return fused_text(
            y, [(x if x_content is None else x_content, content), (x if x_style is None else x_style, style)]
        )


@dataclass
class FlatParameters:
    """All parameters of one kind (the LoRA of a branch, or the merge weights of both) in K trainings, [K, n].

    With their gradients, AdamW moments and number of updates, and learning ``rates`` [K, 1].
    """

    values: Tensor
    gradients: Tensor
    first: Tensor
    second: Tensor
    count: Tensor
    rates: Tensor

    @classmethod
    def zeros(cls, jobs: int, size: int, rates: Tensor) -> FlatParameters:
        tensors = [torch.zeros(jobs, size, device=rates.device) for _ in range(4)]
        return cls(*tensors, torch.zeros_like(rates), rates)

    def adamw(self, active: Tensor, config: TrainConfig) -> None:
        """One AdamW step of the trainings that are ``active`` [K, 1]; nothing of the others changes."""
        beta1, beta2 = config.adam_beta1, config.adam_beta2
        self.count += active
        first = torch.lerp(self.first, self.gradients, 1 - beta1)
        second = self.second * beta2 + self.gradients.square() * (1 - beta2)
        steps = self.count.clamp(min=1)
        root = second.sqrt().div_((1 - beta2**steps).sqrt()).add_(config.adam_eps)
        updated = (
            self.values * (1 - self.rates * config.weight_decay)
            - self.rates / (1 - beta1**steps) * first / root
        )
        for old, new in ((self.values, updated), (self.first, first), (self.second, second)):
            old.copy_(torch.where(active > 0, new, old))


@dataclass
class Columns:
    """Mask, gate and score of every column in K trainings: content of all layers, then style, [K, 2 n]."""

    mask: Tensor
    gate: Tensor
    score: Tensor

    @classmethod
    def all_open(cls, jobs: int, size: int, device: torch.device) -> Columns:
        mask = torch.zeros(jobs, size, dtype=torch.bool, device=device)
        return cls(mask, torch.ones(jobs, size, device=device), torch.zeros(jobs, size, device=device))


@dataclass
class Stack:
    """K trainings of one rank in ``unet``, whose projections it replaces.

    ``latents`` are mean and standard deviation of every image, [samples, 2, channels, h, w]; ``destyled`` the
    destyled images of every training, [K, images, channels, h, w], or None if no training uses them.
    ``encode`` maps a prompt to its token and pooled embeddings.
    """

    unet: nn.Module
    jobs: Sequence[StackedJob]
    latents: Tensor
    encode: Callable[[str], tuple[Tensor, Tensor]]
    time_ids: Tensor
    alphas_cumprod: Tensor
    dtype: torch.dtype
    destyled: Tensor | None = None

    def __post_init__(self) -> None:
        self.device = self.latents.device
        self.config = self.jobs[0].config
        self.rank = self.config.rank
        count = len(self.jobs)
        self.layers = {name: StackedLinear(base) for name, base in adapted_projections(self.unet).items()}
        for name, layer in self.layers.items():
            self.unet.set_submodule(name, layer)
        separate_prompts(self.unet)
        widths = [(layer.base.in_features, layer.base.out_features) for layer in self.layers.values()]
        self.total_columns = sum(o for _, o in widths)
        sizes = {branch: sum((i + o) * self.rank for i, o in widths) for branch in BRANCHES}
        sizes["merge"] = 2 * self.total_columns
        self.parameters = {
            kind: FlatParameters.zeros(
                count, size, self._per_job(lambda job, kind=kind: _rate(job, kind))[:, None]
            )
            for kind, size in sizes.items()
        }
        self.parameters["merge"].values.fill_(1.0)
        self.columns = Columns.all_open(count, sizes["merge"], self.device)
        self._bind_branches()
        self._initialize()
        self.share = torch.cat([torch.full((o,), 1.0 / (o * len(widths))) for _, o in widths]).to(self.device)
        self.conditioning = self.conditioning_of([job.training_prompts for job in self.jobs])
        content = [Prompts(*[job.prompts.content] * 3) for job in self.jobs]
        self.destyled_conditioning = self.conditioning_of(content) if self.destyled is not None else None
        self.from_image = self._per_job(
            lambda job: not (job.config.destyle_images and job.config.destyled_only)
        )[:, None]
        self.destyle_min_timestep = self._per_job(
            lambda job: job.config.destyle_min_timestep * len(self.alphas_cumprod)
        )
        self.samples = self._per_job(lambda job: job.sample).long()
        self.indices = torch.arange(count, device=self.device)
        self.overlap_weight = self._per_job(lambda job: job.config.overlap_weight)[:, None]
        self.destyled_weight = self._per_job(
            lambda job: job.config.prior_weight_content if job.config.destyle_images else 0.0
        )
        self.own_columns = self._per_job(lambda job: job.config.finetune_mask)[:, None] > 0

    def _per_job(self, pick: Callable[[StackedJob], float]) -> Tensor:
        return torch.tensor([float(pick(job)) for job in self.jobs], device=self.device)

    def _bind_branches(self) -> None:
        """Make the branches of every layer views of the flat buffers."""
        count, offsets = len(self.jobs), dict.fromkeys(self.parameters, 0)

        def view(kind: str, first: int, *shape: int) -> nn.Parameter:
            span = slice(first, first + torch.Size(shape).numel())
            parameter = nn.Parameter(self.parameters[kind].values[:, span].view(count, *shape))
            parameter.grad = self.parameters[kind].gradients[:, span].view(count, *shape)
            return parameter

        for layer in self.layers.values():
            inputs, outputs = layer.base.in_features, layer.base.out_features
            for number, branch in enumerate(BRANCHES):
                start = offsets["merge"] + number * self.total_columns
                down = view(branch, offsets[branch], self.rank, inputs)
                up = view(branch, offsets[branch] + self.rank * inputs, outputs, self.rank)
                part = Branch(down.data, up.data)
                part.down, part.up, part.merge = down, up, view("merge", start, outputs)
                for buffer in ("mask", "gate", "score"):
                    setattr(part, buffer, getattr(self.columns, buffer)[:, start : start + outputs])
                layer.branches[branch] = part
                offsets[branch] += self.rank * (inputs + outputs)
            offsets["merge"] += outputs

    @torch.no_grad()
    def _initialize(self) -> None:
        """The start values of :func:`unziplora_cli.method.inject.inject` for the seed of each training."""
        seeds = sorted({job.config.seed for job in self.jobs})
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        pick = self._per_job(lambda job: seeds.index(job.config.seed)).long()
        zero = self._per_job(lambda job: job.config.start == "zero") > 0
        for name, layer in self.layers.items():
            closed = (
                self._per_job(lambda job, name=name: bool(job.blocks) and not name.startswith(job.blocks)) > 0
            )
            for branch, part in layer.branches.items():
                for parameter in (part.down, part.up):
                    shape, std = parameter.shape[1:], 1.0 / self.rank
                    values = [torch.empty(shape).normal_(std=std, generator=g) for g in generators]
                    parameter.copy_(torch.stack(values).to(self.device)[pick])
                idle = self._per_job(lambda job, branch=branch: branch not in job.branches) > 0
                part.up[zero | idle | closed] = 0.0
                part.gate[closed] = 0.0

    def conditioning_of(self, prompts: Sequence[Prompts]) -> Conditioning:
        """The conditioning of base and branches, one row for each of ``prompts``."""
        texts = {text: self.encode(text) for p in prompts for text in (p.full, p.content, p.style)}
        tokens = {
            part: torch.cat([texts[getattr(p, part)][0] for p in prompts]) for part in ("full", *BRANCHES)
        }
        pooled = torch.cat([texts[p.full][1] for p in prompts])
        ids = self.time_ids.expand(len(prompts), -1)
        return Conditioning(**tokens, pooled=pooled, time_ids=ids).to(device=self.device, dtype=self.dtype)

    def train(self) -> Iterator[tuple[int, Tensor]]:
        """Run all steps; yields the number of finished steps and the last losses [K]."""
        # torch expects contiguous gradients; here parameters and gradients are strided views.
        warnings.filterwarnings("ignore", "grad and param do not obey", UserWarning)
        count, shape = len(self.jobs), self.latents.shape[2:]
        self.noisy, self.noise, self.destyled_noisy, self.destyled_noise = (
            torch.zeros(count, *shape, device=self.device) for _ in range(4)
        )
        self.times = torch.zeros(count, dtype=torch.long, device=self.device)
        self.weights, self.losses = (torch.ones(count, device=self.device) for _ in range(2))
        self.separated, self.running, self.gating = (
            torch.zeros(count, 1, device=self.device) for _ in range(3)
        )
        forward = captured(self._forward_backward, self.device, warm=3)
        update = captured(self._update, self.device, warm=0)
        for step in range(max(job.config.steps for job in self.jobs)):
            actions = [
                job.schedule.action(step) if step < job.config.steps else Action.NONE for job in self.jobs
            ]
            self._fill(step, actions)
            forward()
            self._apply_actions(actions)
            update()
            yield step + 1, self.losses
        selects = self._per_job(lambda job: job.schedule.selects)[:, None] > 0
        self.columns.gate.copy_(torch.where(selects, self.columns.mask.float(), self.columns.gate))

    def _fill(self, step: int, actions: Sequence[Action]) -> None:
        """Write the inputs of ``step`` where the CUDA graphs read them."""
        keys = sorted({(job.config.seed, job.config.timestep_bias) for job in self.jobs})
        pick = torch.tensor([keys.index((job.config.seed, job.config.timestep_bias)) for job in self.jobs])
        shape, total = tuple(self.latents.shape[2:]), len(self.alphas_cumprod)
        draws = [step_noise(seed, step, 0, 1, shape, 1, timesteps=total, bias=bias) for seed, bias in keys]
        times = torch.cat([draw.timesteps for draw in draws])[pick]
        noise, posterior = (
            torch.cat([getattr(draw, part) for draw in draws]).to(self.device)[pick.to(self.device)]
            for part in ("noise", "posterior")
        )
        self.times.copy_(times)
        self.noise.copy_(noise)
        images = self.latents[self.samples]
        self.noisy.copy_(self._add_noise(images[:, 0] + images[:, 1] * posterior, noise))
        if self.destyled is not None:
            crops = self.destyled.shape[1]
            draws = [
                step_noise(
                    seed, step, 0, 1, shape, crops, stream=CONTENT_PRIOR_STREAM, timesteps=total, bias=bias
                )
                for seed, bias in keys
            ]
            noise = torch.cat([draw.noise for draw in draws]).to(self.device)[pick.to(self.device)]
            crop = torch.cat([draw.crop for draw in draws]).to(self.device)[pick.to(self.device)]
            self.destyled_noise.copy_(noise)
            self.destyled_noisy.copy_(self._add_noise(self.destyled[self.indices, crop], noise))
        for k, job in enumerate(self.jobs):
            if job.config.snr_gamma is not None:
                (weight,) = min_snr_weight(self.alphas_cumprod, times[k : k + 1], job.config.snr_gamma)
                self.weights[k] = weight
        flags = {
            "running": [step < job.config.steps for job in self.jobs],
            "separated": [job.schedule.separated(step) for job in self.jobs],
            "gating": [action is Action.GATE for action in actions],
        }
        for name, values in flags.items():
            getattr(self, name).copy_(torch.tensor(values)[:, None])

    def _add_noise(self, clean: Tensor, noise: Tensor) -> Tensor:
        return add_noise(clean, noise, self.alphas_cumprod.to(self.device), self.times)

    def _forward_backward(self) -> None:
        """Fill the flat gradients and the losses."""
        for flat in self.parameters.values():
            flat.gradients.zero_()
        loss = self._denoise(self.noisy, self.noise, self.conditioning)
        self.losses.copy_(loss.detach())
        (loss * self.weights).sum().backward()
        if self.destyled_conditioning is not None:
            self.parameters["content"].gradients.mul_(self.from_image)
            self._set_mode("content")
            loss = self._denoise(self.destyled_noisy, self.destyled_noise, self.destyled_conditioning)
            counts = self.destyled_weight * (self.times >= self.destyle_min_timestep)
            (loss * self.weights * counts).sum().backward()
            self._set_mode("both")
        self._overlap_gradient()

    def _denoise(self, noisy: Tensor, noise: Tensor, conditioning: Conditioning) -> Tensor:
        return (self.predict(noisy, self.times, conditioning) - noise).square().flatten(1).mean(dim=1)  # [K]

    def predict(self, noisy: Tensor, timesteps: Tensor, conditioning: Conditioning) -> Tensor:
        """The noise predicted by the U-Net with its current branches, float32."""
        mixed = self.dtype != torch.float32
        with torch.autocast(self.device.type, self.dtype, enabled=mixed, cache_enabled=False):
            return predict_noise(self.unet, noisy.to(self.dtype), timesteps, conditioning).float()

    @torch.no_grad()
    def _overlap_gradient(self) -> None:
        """Add the gradient of :func:`unziplora_cli.method.losses.overlap_penalty`, in closed form."""
        open_merge = self.parameters["merge"].values * self.columns.gate
        content, style = open_merge.chunk(2, dim=1)  # [K, n] each
        factor = self.overlap_weight * self.separated * (content * style > 0) * self.share
        both = torch.cat([style * factor, content * factor], dim=1) * self.columns.gate
        self.parameters["merge"].gradients.add_(both)

    def _set_mode(self, mode: str) -> None:
        for layer in self.layers.values():
            layer.mode = mode

    @torch.no_grad()
    def _update(self) -> None:
        """Gate the merge weights, clip, step the optimizer, clamp."""
        merge = self.parameters["merge"]
        content, style = self.columns.mask.chunk(2, dim=1)
        shared = torch.cat([content & style] * 2, dim=1)
        trainable = torch.where(self.own_columns, self.columns.mask, shared) | (self.gating == 0)
        merge.gradients.mul_(trainable * self.separated)
        norm = sum(flat.gradients.square().sum(dim=1) for flat in self.parameters.values()).sqrt()  # [K]
        scale = (self.config.max_grad_norm / (norm + 1e-6)).clamp(max=1.0)[:, None]
        for kind, flat in self.parameters.items():
            flat.gradients.mul_(scale)
            flat.adamw(self.running * (self.separated if kind == "merge" else 1.0), self.config)
        merge.values.clamp_(0.0, 1.0)

    @torch.no_grad()
    def _apply_actions(self, actions: Sequence[Action]) -> None:
        """Perform the actions between backward pass and clipping, except for gating."""
        scores = [
            action is Action.SELECT or (action is Action.SCORE and job.config.accumulate_importance)
            for action, job in zip(actions, self.jobs, strict=True)
        ]
        opens, selects = ([action is which for action in actions] for which in (Action.OPEN, Action.SELECT))
        if any(scores):
            self._score(torch.tensor(scores, device=self.device)[:, None])
        if any(selects):
            active = torch.tensor(selects, device=self.device)[:, None]
            self._select(active)
            self.columns.gate.copy_(torch.where(active, self.columns.mask.float(), self.columns.gate))
        if any(opens):
            active = torch.tensor(opens, device=self.device)[:, None]
            self.columns.gate.masked_fill_(active, 1.0)
            self.columns.score.masked_fill_(active, 0.0)

    def _score(self, active: Tensor) -> None:
        """Score the columns of the ``active`` [K, 1] trainings."""
        magnitude = self._per_job(lambda job: job.config.importance_score == "magnitude")[:, None] > 0
        accumulate = self._per_job(lambda job: job.config.accumulate_importance)[:, None] > 0
        threshold = self._per_job(
            lambda job: job.config.importance_threshold / job.config.importance_loss_scale
        )
        for layer in self.layers.values():
            for part in layer.branches.values():
                counts = column_scores(part, "count", threshold=threshold[:, None, None])
                scores = torch.where(magnitude, column_scores(part, "magnitude"), counts)
                scores = torch.where(accumulate, part.score + scores, scores)
                part.score.copy_(torch.where(active, scores, part.score))

    def _select(self, active: Tensor) -> None:
        """:func:`unziplora_cli.method.importance.select_columns` for all trainings."""
        ratio = [job.config.column_ratio for job in self.jobs]
        strict, avoid, blocks = (
            self._per_job(lambda job, name=name: getattr(job.config, name))[:, None] > 0
            for name in ("strict_top", "avoid_overlap", "block_separation")
        )
        for name, layer in self.layers.items():
            content, style = layer.branches["content"], layer.branches["style"]
            all_content, all_style = (blocks & (policy(name) == limited) for limited in ("style", "content"))
            selected = content.mask | _top_columns(content.score, ratio, strict) | all_content
            content.mask.copy_(torch.where(active, selected, content.mask))
            avoided = avoid & ~all_content
            scores = torch.where(avoided, style.score.masked_fill(content.mask, -torch.inf), style.score)
            selected = style.mask | _top_columns(scores, ratio, strict) | all_style
            style.mask.copy_(torch.where(active, selected, style.mask))

    def lora(self, number: int, branch: str) -> dict[str, LoRAWeights]:
        """One branch of training ``number`` as it is saved: closed columns zeroed, no merge weights."""
        lora = {}
        for name, layer in self.layers.items():
            part = layer.branches[branch]
            up = part.up[number].detach() * part.gate[number, :, None]
            lora[name] = LoRAWeights(part.down[number].detach().cpu().clone(), up.cpu())
        return lora

    def merge(self, number: int, branch: str) -> dict[str, Tensor]:
        """The merge weights of one branch of training ``number``."""
        return {
            name: layer.branches[branch].merge[number].detach().cpu().clone()
            for name, layer in self.layers.items()
        }


def _rate(job: StackedJob, kind: str) -> float:
    if kind == "merge":
        return job.config.merge_lr
    rate: float = getattr(job.config, f"{kind}_lr")
    return rate if kind in job.branches else 0.0


def _top_columns(scores: Tensor, ratio: Sequence[float], strict: Tensor) -> Tensor:
    """:func:`unziplora_cli.method.importance.top_columns` by row: ``scores`` [K, out], ``strict`` [K, 1]."""
    n = torch.tensor([[int(scores.shape[1] * share)] for share in ratio], device=scores.device)
    order = scores.argsort(dim=1, descending=True, stable=True)
    rank = order.argsort(dim=1)
    last = scores.gather(1, order.gather(1, (n - 1).clamp(min=0)))
    selected = torch.where(strict, scores > last, rank < n)
    return selected & (n > 0) & (scores > -torch.inf)


def captured(work: Callable[[], None], device: torch.device, *, warm: int) -> Callable[[], None]:
    """``work`` as a CUDA graph after ``warm`` warm-up runs, which must have no effect; itself on a CPU."""
    if device.type != "cuda":
        return work
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(warm):
            work()
    torch.cuda.current_stream().wait_stream(stream)
    recording = Recording(work)
    return lambda: recording.replay()
