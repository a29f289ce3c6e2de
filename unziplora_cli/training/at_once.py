"""Several trainings as one batch, in which each image ends with the numbers that it gets alone.

They share the U-Net, the settings and the steps; each has its own LoRAs, merge weights, columns, clipping and
history. A step runs when the first of them asks for it, and the others receive their part of its result.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

import torch
from torch import Tensor

from unziplora_cli.accel.device import PRECISION_NAMES, memory_guard, pick_device, pick_dtype, reset_threads
from unziplora_cli.accel.stacked_lora import stack_lora
from unziplora_cli.config import TrainConfig
from unziplora_cli.errors import Interrupted, Remedy, UnziploraError, UsageError, count
from unziplora_cli.events import translate
from unziplora_cli.method.inject import eject
from unziplora_cli.sdxl.text import Conditioning, concat_conditionings
from unziplora_cli.training.callbacks import Validation
from unziplora_cli.training.checkpoint import Checkpoints
from unziplora_cli.training.engine import (
    batch_source,
    inject_branches,
    make_accelerator,
    make_step,
    with_destyled_images,
)
from unziplora_cli.training.events import Event, Phase, TrainResult
from unziplora_cli.training.inputs import InputCache, TrainingInputs
from unziplora_cli.training.request import TrainRequest
from unziplora_cli.training.step import Batch, Batches, Step, StepResult
from unziplora_cli.training.trainer import Trainer

Outcome = TrainResult | UnziploraError | OSError
"""What a training learned, or the error that ended it while the others went on."""

PER_IMAGE = ("seed", "destyle_prompt")
"""Settings that may differ between trainings of one batch."""


def check_at_once(config: TrainConfig) -> None:
    """Raise UsageError for settings with which trainings are no single batch."""
    for name, value, possible in (
        ("optimizer", config.optimizer, config.optimizer == "adamw"),
        ("precision", config.precision, config.precision != "fp16"),
        ("tracker", config.tracker, config.tracker == "none"),
        ("validate-every", config.validate_every, not config.validate_every),
    ):
        if not possible:
            raise UsageError(
                f"Images that are trained at once cannot use {name} {value}.",
                Remedy("Train them one after the other", settings={"at_once": 1}),
            )


def train_at_once(
    requests: Sequence[TrainRequest], input_cache: InputCache
) -> Generator[tuple[int, Event], None, list[Outcome]]:
    """Run trainings of the same base and settings; yields events with the number of their training.

    No checkpoints are written. Ctrl-C ends all after the current step. Raises what concerns all of them:
    OutOfMemory, ModelError and UsageError.
    """
    first, started = requests[0], time.monotonic()
    check_at_once(first.config)
    reset_threads()
    device = pick_device(first.job.device)
    dtype = pick_dtype(first.config.precision, device)
    accelerator = make_accelerator(first, device, dtype)
    with memory_guard("Train fewer images at once, or with settings that need less memory."):
        inputs: list[TrainingInputs] = []
        for number, request in enumerate(requests):
            request.folder.mkdir(exist_ok=True)
            preparing = input_cache.inputs(request, accelerator, dtype)
            inputs.append((yield from translate(preparing, partial(_numbered, number))))
        yield 0, Phase("load U-Net", first.base.id)
        unet = input_cache.take_unet(first, accelerator.device, dtype)
        for number, request in enumerate(requests):
            destyled = with_destyled_images(inputs[number], unet, request, accelerator.device)
            inputs[number] = yield from translate(destyled, partial(_numbered, number))
        outcomes: list[Outcome | None] = [None] * len(requests)
        for members in _alike(inputs):
            layers = []
            for number in members:
                layers.append(inject_branches(unet, requests[number].config))
                eject(unet)
            stacked = stack_lora(unet, layers)
            step, run, state = make_step(
                first, inputs[members[0]], unet, stacked, accelerator, trainings=len(members)
            )
            sources = [batch_source(requests[n], inputs[n], accelerator, dtype) for n in members]
            shared, runs = SharedStep(run, sources), []
            for part, number in enumerate(members):
                trainer = Trainer(
                    request=requests[number],
                    accelerator=accelerator,
                    layers=layers[part],
                    batches=lambda step: (),  # the shared step makes those of all trainings
                    step=step,
                    run_step=partial(shared.result, part),
                    state=state,
                    validation=Validation(requests[number], inputs[number], unet, layers[part]),
                    precision=PRECISION_NAMES[dtype],
                    started=started,
                    clock=partial(shared.clock, part),
                )
                trainer.checkpoints = _NoCheckpoints(trainer.checkpoints.folder, 0)
                runs.append(trainer.run())
            text = f"{count(len(members), 'image')} at once, {count(first.config.steps, 'step')}"
            yield members[0], Phase("train", f"{text} on {device}, {PRECISION_NAMES[dtype]}")
            results = yield from _in_step(runs, members, shared, first.config.steps)
            for number, result in zip(members, results, strict=True):
                if isinstance(result, TrainResult):  # the share of one image
                    result = replace(result, seconds=result.seconds / len(requests))
                outcomes[number] = result
            del layers, stacked, step, run, state, shared, runs, trainer
            eject(unet)
        yield 0, Phase("finish")
        input_cache.put_unet(unet)
    return [outcome for outcome in outcomes if outcome is not None]


def _numbered(number: int, event: Event) -> list[tuple[int, Event]]:
    return [(number, event)]


def _alike(inputs: Sequence[TrainingInputs]) -> list[list[int]]:
    """The numbers of trainings whose batches have the same shapes: one may have got no destyled image."""
    groups: dict[tuple[str, ...], list[int]] = {}
    for number, single in enumerate(inputs):
        groups.setdefault(tuple(single.priors), []).append(number)
    return list(groups.values())


def _in_step(
    runs: Sequence[Generator[Event, None, TrainResult]],
    numbers: Sequence[int],
    shared: SharedStep,
    steps: int,
) -> Generator[tuple[int, Event], None, list[Outcome]]:
    """Advance all ``runs`` alike; when one of them is stopped, all end after the same step.

    Signal handlers are nested: the run that began last ends first.
    """
    outcomes: dict[int, Outcome] = {}
    order = list(range(len(runs)))
    while len(outcomes) < len(runs):
        for part in order:
            if part in outcomes:
                continue
            try:
                yield numbers[part], next(runs[part])
            except StopIteration as end:
                outcomes[part] = end.value
                if end.value.steps < steps:
                    shared.stopped = True
            except (UnziploraError, OSError) as error:
                outcomes[part] = error
                if isinstance(error, Interrupted):
                    shared.stopped = True
            except KeyboardInterrupt:
                shared.stopped = True
        order = list(reversed(range(len(runs))))
    return [outcomes[part] for part in range(len(runs))]


@dataclass
class SharedStep:
    """The steps of all trainings, each computed once; ``seconds`` is how long a training took in each."""

    step: Step
    sources: Sequence[Callable[[int], Batches]]
    results: list[StepResult] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    taken: dict[int, int] = field(default_factory=dict)
    conditionings: dict[tuple[int, ...], Conditioning] = field(default_factory=dict)
    stopped: bool = False
    """No other step is computed: trainings that have received all results are interrupted."""

    def result(self, part: int, step: int, _: Batches = ()) -> StepResult:
        """What training ``part`` gets of ``step``, whose batches are those of ``sources``."""
        if step == len(self.results):
            if self.stopped:
                raise KeyboardInterrupt
            began = time.monotonic()
            parts = zip(*(source(step) for source in self.sources), strict=True)
            batches = [[self._join(batch) for batch in zip(*part, strict=True)] for part in parts]
            result = self.step(step, batches)
            # copies: a recorded step writes every result to the same place
            self.results.append(_every(result, lambda value: value.detach().clone()))
            self.seconds.append((time.monotonic() - began) / len(self.sources))
        self.taken[part] = step + 1
        return _every(self.results[step], lambda value: value[part])

    def clock(self, part: int) -> float:
        """Seconds that training ``part`` took so far: its share of the steps."""
        return sum(self.seconds[: self.taken.get(part, 0)])

    def _join(self, batches: Sequence[Batch]) -> Batch:
        """One batch of all trainings, one after the other; its conditioning is the same in every step."""
        key = tuple(id(batch.conditioning) for batch in batches)
        if key not in self.conditionings:
            self.conditionings[key] = concat_conditionings(*(batch.conditioning for batch in batches))
        weights = [batch.weight for batch in batches if batch.weight is not None]
        return replace(
            batches[0],
            noisy=torch.cat([batch.noisy for batch in batches]),
            target=torch.cat([batch.target for batch in batches]),
            timesteps=torch.cat([batch.timesteps for batch in batches]),
            conditioning=self.conditionings[key],
            weight=torch.cat(weights) if weights else None,
        )


def _every(result: StepResult, change: Callable[[Tensor], Tensor]) -> StepResult:
    """``result`` with ``change`` of every value."""
    overlap = None if result.overlap is None else change(result.overlap)
    return StepResult(change(result.loss), change(result.reconstruction), overlap, change(result.grad_norm))


class _NoCheckpoints(Checkpoints):
    """A training at once with others begins anew after an interruption."""

    def save(self, *state: object) -> None:
        """Write nothing."""
