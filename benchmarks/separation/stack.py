"""Many trainings at once: K pairs of LoRAs in one U-Net, computed as one batch.

One training of a small base leaves a GPU idle between its thousand kernels. Here every adapted projection
holds the branches of K trainings, picture k goes through pair k, and one captured CUDA graph carries a step
of all. It is the training of `unziplora_cli.training` written again for K, and a test holds the two together:
same noise, same schedule, same scores, same choice of columns, same AdamW.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from unziplora_cli.config import Prompts, TrainConfig
from unziplora_cli.method.blocks import policy
from unziplora_cli.method.inject import adapted_projections
from unziplora_cli.method.layer import BRANCHES
from unziplora_cli.method.lora import LoRAWeights
from unziplora_cli.method.losses import min_snr_weight
from unziplora_cli.method.schedule import Action, Schedule
from unziplora_cli.sdxl.attention import separate_prompts
from unziplora_cli.sdxl.text import Conditioning, predict_noise
from unziplora_cli.training.noise import CONTENT_PRIOR_STREAM, add_noise, step_noise


@dataclass(frozen=True)
class Job:
    """One training: picture ``sample`` under ``prompts``.

    ``branches`` says which LoRAs learn; a lone ``content`` is a plain LoRA. ``blocks`` limits the layers that
    take part to names that begin with one of these.
    """

    sample: int
    config: TrainConfig
    prompts: Prompts
    branches: tuple[str, ...] = BRANCHES
    blocks: tuple[str, ...] = ()

    @property
    def heard(self) -> Prompts:
        """What base and branches read in training; without prompt separation all read the full prompt."""
        return self.prompts if self.config.prompt_separation else Prompts(*[self.prompts.full] * 3)

    @property
    def schedule(self) -> Schedule:
        c = self.config
        return Schedule(c.steps, c.recalibrations, c.importance_steps, c.column_separation)


@dataclass
class StackedBranch:
    """One branch of one layer in K trainings: ``down`` [K, rank, in], ``up`` [K, out, rank], the rest
    [K, out]."""

    down: nn.Parameter
    up: nn.Parameter
    merge: nn.Parameter
    mask: Tensor
    gate: Tensor
    score: Tensor


class StackedLinear(nn.Module):
    """A frozen linear layer with K pairs of branches; the first dimension of its input is K."""

    def __init__(self, base: nn.Linear) -> None:
        super().__init__()
        self.base = base
        self.branches: dict[str, StackedBranch] = {}
        self.mode = "both"

    def forward(self, x: Tensor, x_content: Tensor | None = None, x_style: Tensor | None = None) -> Tensor:
        """``x`` [K, tokens, in] -> [K, tokens, out]."""
        y = self.base(x)
        content, style = self.branches["content"], self.branches["style"]
        if self.mode == "content":
            return y + _update(x if x_content is None else x_content, content.down, content.up, content.gate)
        factors = [branch.merge * branch.gate for branch in (content, style)]
        if x_content is None and x_style is None:
            down = torch.cat([content.down, style.down], dim=1)  # [K, 2 rank, in]
            ups = (
                branch.up * factor[..., None]
                for branch, factor in zip((content, style), factors, strict=True)
            )
            return y + torch.bmm(torch.bmm(x, down.mT), torch.cat(list(ups), dim=2).mT)
        y = y + _update(x if x_content is None else x_content, content.down, content.up, factors[0])
        return y + _update(x if x_style is None else x_style, style.down, style.up, factors[1])


def _update(x: Tensor, down: Tensor, up: Tensor, factor: Tensor) -> Tensor:
    return torch.bmm(torch.bmm(x, down.mT), (up * factor[..., None]).mT)


@dataclass
class Flat:
    """All numbers of one kind (a branch's LoRA, or both branches' merge weights) in K trainings, [K, n]."""

    values: Tensor
    gradients: Tensor
    first: Tensor
    second: Tensor
    count: Tensor
    rates: Tensor

    @classmethod
    def zeros(cls, jobs: int, size: int, rates: Tensor) -> Flat:
        many = [torch.zeros(jobs, size, device=rates.device) for _ in range(4)]
        return cls(*many, torch.zeros_like(rates), rates)

    def adamw(self, active: Tensor, config: TrainConfig) -> None:
        """One AdamW step of the trainings that are ``active`` [K, 1]; the others rest, moments and all."""
        beta1, beta2 = config.adam_beta1, config.adam_beta2
        self.count += active
        first = torch.lerp(self.first, self.gradients, 1 - beta1)
        second = self.second * beta2 + self.gradients.square() * (1 - beta2)
        steps = self.count.clamp(min=1)
        root = second.sqrt().div_((1 - beta2**steps).sqrt()).add_(config.adam_eps)
        moved = (
            self.values * (1 - self.rates * config.weight_decay)
            - self.rates / (1 - beta1**steps) * first / root
        )
        acts = active > 0
        self.values.copy_(torch.where(acts, moved, self.values))
        self.first.copy_(torch.where(acts, first, self.first))
        self.second.copy_(torch.where(acts, second, self.second))


@dataclass
class Columns:
    """What is known of every column in K trainings: content's of all layers, then style's, [K, 2 n]."""

    mask: Tensor
    gate: Tensor
    score: Tensor

    @classmethod
    def opened(cls, jobs: int, size: int, device: torch.device) -> Columns:
        mask = torch.zeros(jobs, size, dtype=torch.bool, device=device)
        return cls(mask, torch.ones(jobs, size, device=device), torch.zeros(jobs, size, device=device))


@dataclass
class Stack:
    """K trainings of one rank in ``unet``, whose projections it replaces.

    ``latents`` is mean and spread of every picture, [samples, 2, channels, h, w]; ``echoes`` those of every
    training, [K, echoes, channels, h, w], or None when no training learns them. ``texts`` encodes a prompt.
    """

    unet: nn.Module
    jobs: Sequence[Job]
    latents: Tensor
    texts: Callable[[str], tuple[Tensor, Tensor]]
    time_ids: Tensor
    alphas_cumprod: Tensor
    dtype: torch.dtype
    echoes: Tensor | None = None

    def __post_init__(self) -> None:
        self.device = self.latents.device
        self.config = self.jobs[0].config
        self.rank = self.config.rank
        count = len(self.jobs)
        self.layers = {name: StackedLinear(base) for name, base in adapted_projections(self.unet).items()}
        for name, layer in self.layers.items():
            self.unet.set_submodule(name, layer)
        separate_prompts(self.unet)
        widths = [(each.base.in_features, each.base.out_features) for each in self.layers.values()]
        self.columns_in_all = sum(o for _, o in widths)
        sizes = {branch: sum((i + o) * self.rank for i, o in widths) for branch in BRANCHES}
        sizes["merge"] = 2 * self.columns_in_all
        self.flats = {
            kind: Flat.zeros(count, size, self._of(lambda job, kind=kind: _rate(job, kind))[:, None])
            for kind, size in sizes.items()
        }
        self.flats["merge"].values.fill_(1.0)
        self.columns = Columns.opened(count, sizes["merge"], self.device)
        self._bind()
        self._start()
        self.share = torch.cat([torch.full((o,), 1.0 / (o * len(widths))) for _, o in widths]).to(self.device)
        self.conditioning = self.told([job.heard for job in self.jobs])
        content = [Prompts(*[job.prompts.content] * 3) for job in self.jobs]
        self.echo_conditioning = self.told(content) if self.echoes is not None else None
        self.from_picture = self._of(
            lambda job: not (job.config.destyle_images and job.config.destyled_only)
        )[:, None]
        self.destyle_min_timestep = self._of(
            lambda job: job.config.destyle_min_timestep * len(self.alphas_cumprod)
        )
        self.samples = self._of(lambda job: job.sample).long()
        self.places = torch.arange(count, device=self.device)
        self.overlap_weight = self._of(lambda job: job.config.overlap_weight)[:, None]
        self.echo_weight = self._of(
            lambda job: job.config.prior_weight_content if job.config.destyle_images else 0.0
        )
        self.own_columns = self._of(lambda job: job.config.finetune_mask)[:, None] > 0

    def _of(self, pick: Callable[[Job], float]) -> Tensor:
        return torch.tensor([float(pick(job)) for job in self.jobs], device=self.device)

    def _bind(self) -> None:
        """Let the branches of every layer be views into the flat buffers."""
        count, offsets = len(self.jobs), dict.fromkeys(self.flats, 0)

        def view(kind: str, start: int, *shape: int) -> nn.Parameter:
            span = slice(start, start + torch.Size(shape).numel())
            parameter = nn.Parameter(self.flats[kind].values[:, span].view(count, *shape))
            parameter.grad = self.flats[kind].gradients[:, span].view(count, *shape)
            return parameter

        for layer in self.layers.values():
            inputs, outputs = layer.base.in_features, layer.base.out_features
            for number, branch in enumerate(BRANCHES):
                at = offsets["merge"] + number * self.columns_in_all
                span = slice(at, at + outputs)
                layer.branches[branch] = StackedBranch(
                    view(branch, offsets[branch], self.rank, inputs),
                    view(branch, offsets[branch] + self.rank * inputs, outputs, self.rank),
                    view("merge", at, outputs),
                    *(each[:, span] for each in (self.columns.mask, self.columns.gate, self.columns.score)),
                )
                offsets[branch] += self.rank * (inputs + outputs)
            offsets["merge"] += outputs

    @torch.no_grad()
    def _start(self) -> None:
        """The start values of :func:`unziplora_cli.method.inject.inject` for each training's own seed."""
        seeds = sorted({job.config.seed for job in self.jobs})
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        pick = self._of(lambda job: seeds.index(job.config.seed)).long()
        zero = self._of(lambda job: job.config.start == "zero") > 0
        for name, layer in self.layers.items():
            closed = self._of(lambda job, name=name: bool(job.blocks) and not name.startswith(job.blocks)) > 0
            for branch, part in layer.branches.items():
                for parameter in (part.down, part.up):
                    shape, std = parameter.shape[1:], 1.0 / self.rank
                    drawn = [torch.empty(shape).normal_(std=std, generator=g) for g in generators]
                    parameter.copy_(torch.stack(drawn).to(self.device)[pick])
                idle = self._of(lambda job, branch=branch: branch not in job.branches) > 0
                part.up[zero | idle | closed] = 0.0
                part.gate[closed] = 0.0

    def told(self, prompts: Sequence[Prompts]) -> Conditioning:
        """What base and branches are told, one row for each of ``prompts``."""
        known = {text: self.texts(text) for p in prompts for text in (p.full, p.content, p.style)}
        tokens = {
            part: torch.cat([known[getattr(p, part)][0] for p in prompts]) for part in ("full", *BRANCHES)
        }
        pooled = torch.cat([known[p.full][1] for p in prompts])
        ids = self.time_ids.expand(len(prompts), -1)
        return Conditioning(**tokens, pooled=pooled, time_ids=ids).to(device=self.device, dtype=self.dtype)

    def train(self) -> Iterator[tuple[int, Tensor]]:
        """Train all to the end; yields the number of steps done and the last losses [K]."""
        # Torch would like a gradient to lie in memory as its parameter does; here both are strided views.
        warnings.filterwarnings("ignore", "grad and param do not obey", UserWarning)
        count, shape = len(self.jobs), self.latents.shape[2:]
        self.noisy, self.noise, self.echo_noisy, self.echo_noise = (
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
            self._act(actions)
            update()
            yield step + 1, self.losses
        selects = self._of(lambda job: job.schedule.selects)[:, None] > 0
        self.columns.gate.copy_(torch.where(selects, self.columns.mask.float(), self.columns.gate))

    def _fill(self, step: int, actions: Sequence[Action]) -> None:
        """Put the inputs of ``step`` where the captured graphs read them."""
        keys = sorted({(job.config.seed, job.config.timestep_bias) for job in self.jobs})
        pick = torch.tensor([keys.index((job.config.seed, job.config.timestep_bias)) for job in self.jobs])
        shape, total = tuple(self.latents.shape[2:]), len(self.alphas_cumprod)
        main = [step_noise(seed, step, 0, 1, shape, 1, timesteps=total, bias=bias) for seed, bias in keys]
        times = torch.cat([each.timesteps for each in main])[pick]
        noise, posterior = (
            torch.cat([getattr(each, part) for each in main]).to(self.device)[pick.to(self.device)]
            for part in ("noise", "posterior")
        )
        self.times.copy_(times)
        self.noise.copy_(noise)
        pictures = self.latents[self.samples]
        self.noisy.copy_(self._noised(pictures[:, 0] + pictures[:, 1] * posterior, noise))
        if self.echoes is not None:
            crops = self.echoes.shape[1]
            prior = [
                step_noise(
                    seed, step, 0, 1, shape, crops, stream=CONTENT_PRIOR_STREAM, timesteps=total, bias=bias
                )
                for seed, bias in keys
            ]
            noise = torch.cat([each.noise for each in prior]).to(self.device)[pick.to(self.device)]
            which = torch.cat([each.crop for each in prior]).to(self.device)[pick.to(self.device)]
            self.echo_noise.copy_(noise)
            self.echo_noisy.copy_(self._noised(self.echoes[self.places, which], noise))
        for k, job in enumerate(self.jobs):
            if job.config.snr_gamma is not None:
                self.weights[k] = min_snr_weight(self.alphas_cumprod, times[k : k + 1], job.config.snr_gamma)[
                    0
                ]
        flags = {
            "running": [step < job.config.steps for job in self.jobs],
            "separated": [job.schedule.separated(step) for job in self.jobs],
            "gating": [action is Action.GATE for action in actions],
        }
        for name, values in flags.items():
            getattr(self, name).copy_(torch.tensor(values)[:, None])

    def _noised(self, clean: Tensor, noise: Tensor) -> Tensor:
        return add_noise(clean, noise, self.alphas_cumprod.to(self.device), self.times)

    def _forward_backward(self) -> None:
        """Fill the flat gradients and the losses."""
        for flat in self.flats.values():
            flat.gradients.zero_()
        loss = self._denoise(self.noisy, self.noise, self.conditioning)
        self.losses.copy_(loss.detach())
        (loss * self.weights).sum().backward()
        if self.echo_conditioning is not None:
            self.flats["content"].gradients.mul_(self.from_picture)
            self._mode("content")
            loss = self._denoise(self.echo_noisy, self.echo_noise, self.echo_conditioning)
            counts = self.echo_weight * (self.times >= self.destyle_min_timestep)
            (loss * self.weights * counts).sum().backward()
            self._mode("both")
        self._overlap_gradient()

    def _denoise(self, noisy: Tensor, noise: Tensor, told: Conditioning) -> Tensor:
        return (self.predict(noisy, self.times, told) - noise).square().flatten(1).mean(dim=1)  # [K]

    def predict(self, noisy: Tensor, timesteps: Tensor, told: Conditioning) -> Tensor:
        """The noise that the U-Net sees through the branches it holds, in float32."""
        mixed = self.dtype != torch.float32
        with torch.autocast(self.device.type, self.dtype, enabled=mixed, cache_enabled=False):
            return predict_noise(self.unet, noisy.to(self.dtype), timesteps, told).float()

    @torch.no_grad()
    def _overlap_gradient(self) -> None:
        """Add the gradient of :func:`unziplora_cli.method.losses.overlap_penalty`, which is known in full."""
        acting = self.flats["merge"].values * self.columns.gate
        content, style = acting.chunk(2, dim=1)  # [K, n] each
        factor = self.overlap_weight * self.separated * (content * style > 0) * self.share
        both = torch.cat([style * factor, content * factor], dim=1) * self.columns.gate
        self.flats["merge"].gradients.add_(both)

    def _mode(self, mode: str) -> None:
        for layer in self.layers.values():
            layer.mode = mode

    @torch.no_grad()
    def _update(self) -> None:
        """Gate, clip, step, clamp."""
        merge = self.flats["merge"]
        content, style = self.columns.mask.chunk(2, dim=1)
        shared = torch.cat([content & style] * 2, dim=1)
        free = torch.where(self.own_columns, self.columns.mask, shared) | (self.gating == 0)
        merge.gradients.mul_(free * self.separated)
        norm = sum(flat.gradients.square().sum(dim=1) for flat in self.flats.values()).sqrt()  # [K]
        scale = (self.config.max_grad_norm / (norm + 1e-6)).clamp(max=1.0)[:, None]
        for kind, flat in self.flats.items():
            flat.gradients.mul_(scale)
            flat.adamw(self.running * (self.separated if kind == "merge" else 1.0), self.config)
        merge.values.clamp_(0.0, 1.0)

    @torch.no_grad()
    def _act(self, actions: Sequence[Action]) -> None:
        """What the schedules say between backward and clipping, gating apart."""
        scores = [
            action is Action.SELECT or (action is Action.SCORE and job.config.accumulate_importance)
            for action, job in zip(actions, self.jobs, strict=True)
        ]
        opens, selects = ([action is which for action in actions] for which in (Action.OPEN, Action.SELECT))
        if any(scores):
            self._score(torch.tensor(scores, device=self.device)[:, None])
        if any(selects):
            acts = torch.tensor(selects, device=self.device)[:, None]
            self._choose(acts)
            self.columns.gate.copy_(torch.where(acts, self.columns.mask.float(), self.columns.gate))
        if any(opens):
            acts = torch.tensor(opens, device=self.device)[:, None]
            self.columns.gate.masked_fill_(acts, 1.0)
            self.columns.score.masked_fill_(acts, 0.0)

    def _score(self, acts: Tensor) -> None:
        """:func:`unziplora_cli.method.importance.column_scores` for all trainings."""
        magnitude = self._of(lambda job: job.config.importance_score == "magnitude")[:, None] > 0
        accumulate = self._of(lambda job: job.config.accumulate_importance)[:, None] > 0
        threshold = self._of(lambda job: job.config.importance_threshold / job.config.importance_loss_scale)
        for layer in self.layers.values():
            for part in layer.branches.values():
                down, up, down_grad, up_grad = part.down, part.up, part.down.grad, part.up.grad
                weight = torch.bmm(down.mT, up.mT)  # [K, in, out]
                change = torch.bmm(down_grad.mT, up.mT) + torch.bmm(down.mT, up_grad.mT)
                saliency = (weight * change * part.merge[:, None, :]).abs_()
                counts = (saliency > threshold[:, None, None]).float().mean(dim=1)
                scores = torch.where(magnitude, saliency.mean(dim=1), counts)
                scores = torch.where(accumulate, part.score + scores, scores)
                part.score.copy_(torch.where(acts, scores, part.score))

    def _choose(self, acts: Tensor) -> None:
        """:func:`unziplora_cli.method.importance.select_columns` for all trainings."""
        ratio = [job.config.column_ratio for job in self.jobs]
        strict, avoid, blocks = (
            self._of(lambda job, name=name: getattr(job.config, name))[:, None] > 0
            for name in ("strict_top", "avoid_overlap", "block_separation")
        )
        for name, layer in self.layers.items():
            content, style = layer.branches["content"], layer.branches["style"]
            all_content, all_style = (blocks & (policy(name) == limited) for limited in ("style", "content"))
            chosen = content.mask | _top(content.score, ratio, strict) | all_content
            content.mask.copy_(torch.where(acts, chosen, content.mask))
            hidden = avoid & ~all_content
            scores = torch.where(hidden, style.score.masked_fill(content.mask, -torch.inf), style.score)
            chosen = style.mask | _top(scores, ratio, strict) | all_style
            style.mask.copy_(torch.where(acts, chosen, style.mask))

    def lora(self, number: int, branch: str) -> dict[str, LoRAWeights]:
        """One branch of training ``number`` as it would be saved: closed columns zeroed, no merge weights."""
        found = {}
        for name, layer in self.layers.items():
            part = layer.branches[branch]
            up = part.up[number].detach() * part.gate[number, :, None]
            found[name] = LoRAWeights(part.down[number].detach().cpu().clone(), up.cpu())
        return found

    def merge(self, number: int, branch: str) -> dict[str, Tensor]:
        """The merge weights of one branch of training ``number``."""
        return {
            name: each.branches[branch].merge[number].detach().cpu().clone()
            for name, each in self.layers.items()
        }


def _rate(job: Job, kind: str) -> float:
    if kind == "merge":
        return job.config.merge_lr
    rate: float = getattr(job.config, f"{kind}_lr")
    return rate if kind in job.branches else 0.0


def _top(scores: Tensor, ratio: Sequence[float], strict: Tensor) -> Tensor:
    """:func:`unziplora_cli.method.importance.top_columns` by row: ``scores`` [K, out], ``strict`` [K, 1]."""
    n = torch.tensor([[int(scores.shape[1] * each)] for each in ratio], device=scores.device)
    order = scores.argsort(dim=1, descending=True, stable=True)
    place = order.argsort(dim=1)
    last = scores.gather(1, order.gather(1, (n - 1).clamp(min=0)))
    chosen = torch.where(strict, scores > last, place < n)
    return chosen & (n > 0) & (scores > -torch.inf)


def captured(work: Callable[[], None], device: torch.device, *, warm: int) -> Callable[[], None]:
    """``work`` as a CUDA graph, or itself on a CPU; before, it runs ``warm`` times, which must do no harm."""
    if device.type != "cuda":
        return work
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(warm):
            work()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        work()
    return graph.replay
