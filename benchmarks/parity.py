"""Replay a recording of the authors' reference implementation and compare every number.

    python benchmarks/parity.py tests/golden/golden_a [--device cuda] [--no-fuse] [--no-capture]

DIR holds ``meta.json`` and the safetensors files that it describes. Three replays are made: a training in
float32, one in float64, and the selection of columns alone from recorded weights and gradients. Then the
trained and the imported LoRAs predict noise and sample four steps. Exit code 1 if a tolerance is exceeded.

By default the LoRAs are fused as in a training, and on a CUDA device ordinary steps are replayed from CUDA
graphs. ``--no-fuse`` and ``--no-capture``, or ``--no-accel`` for both, run the method as it is defined.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from diffusers import DDIMScheduler, EulerDiscreteScheduler, UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor2_0
from diffusers.optimization import get_scheduler
from safetensors.torch import load_file
from torch import Tensor, nn

from unziplora_cli.accel.fused_lora import cache_text, fuse_lora, fuse_pair, unfuse_lora, unfuse_pair
from unziplora_cli.method.blocks import policy
from unziplora_cli.method.inject import eject, extract, inject
from unziplora_cli.method.layer import BRANCHES, Branch, DualLoRALinear
from unziplora_cli.method.lora import LoRA, LoRAPair, LoRAWeights, MergeWeights
from unziplora_cli.method.schedule import Action, Schedule
from unziplora_cli.method.separation import Layers, Separation, TrainedLayers, projections, separate, set_mode
from unziplora_cli.sdxl.attention import separate_prompts
from unziplora_cli.sdxl.sampling import sample
from unziplora_cli.sdxl.text import (
    Conditioning,
    TextEmbeddings,
    concat_conditionings,
    predict_noise,
    predict_noise_merged,
    unconditional,
)
from unziplora_cli.training.step import Batch, CapturedStep, TrainingStep, parameter_groups

GUIDANCE = 5.0
SAMPLING_STEPS = 4


@dataclass
class Row:
    """One quantity: its worst difference and its tolerance."""

    quantity: str
    worst: float
    tolerance: float

    @property
    def passed(self) -> bool:
        return self.worst <= self.tolerance


@dataclass
class Table:
    """Rows by quantity; each keeps its worst difference."""

    rows: dict[str, Row] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def add(self, quantity: str, difference: Tensor | float, tolerance: float) -> None:
        worst = float(difference.max()) if isinstance(difference, Tensor) else float(difference)
        if math.isnan(worst):
            worst = math.inf
        row = self.rows.setdefault(quantity, Row(quantity, 0.0, tolerance))
        row.worst = max(row.worst, worst)

    @property
    def passed(self) -> bool:
        return bool(self.rows) and all(row.passed for row in self.rows.values())


@dataclass(frozen=True)
class Recording:
    """A folder in the layout of ``tests/golden/golden_a``."""

    folder: Path
    device: str = "cpu"

    @cached_property
    def meta(self) -> dict[str, Any]:
        return json.loads((self.folder / "meta.json").read_text())  # type: ignore[no-any-return]

    @property
    def settings(self) -> dict[str, Any]:
        return self.meta["hyper_parameters"]  # type: ignore[no-any-return]

    def tolerance(self, name: str, kind: str = "float32") -> float:
        """The tolerance called ``name``, or the first that starts with it (some end in a number of steps)."""
        allowed = self.meta["tolerance"][kind]
        return float(allowed[next(key for key in allowed if key.startswith(name))])

    def tensors(self, name: str) -> dict[str, Tensor]:
        """The tensors of one file; none if the recording does not have it."""
        path = self.folder / f"{name}.safetensors"
        return load_file(path, device=self.device) if path.is_file() else {}

    @cached_property
    def inputs(self) -> dict[str, Tensor]:
        return self.tensors("inputs")

    @property
    def schedule(self) -> Schedule:
        return Schedule(
            steps=self.settings["max_train_steps"],
            windows=self.settings["sample_times"],
            importance_steps=self.meta["steps_per_epoch_K"],
            enabled=self.settings["with_period_column_separation"],
        )

    @property
    def separation(self) -> Separation:
        return Separation(
            column_ratio=self.settings["column_ratio"],
            block_separation=self.settings["with_freeze_unet"],
            avoid_overlap=self.settings["with_no_overlap_first"],
            own_columns=self.settings["with_finetune_mask"],
            score="count",
            threshold=self.meta["threshold"],
            strict=True,
        )

    def unet(self, dtype: torch.dtype = torch.float32) -> UNet2DConditionModel:
        unet = UNet2DConditionModel.from_config(self.meta["unet_config"])
        unet.load_state_dict(self.tensors("unet"), strict=True)
        nn.Module.to(unet, self.device, dtype)
        return unet.eval()

    def conditioning(self, dtype: torch.dtype = torch.float32) -> Conditioning:
        return Conditioning(
            full=self.inputs["prompt_embeds"],
            content=self.inputs["prompt_embeds_content"],
            style=self.inputs["prompt_embeds_style"],
            pooled=self.inputs["pooled_prompt_embeds"],
            time_ids=self.inputs["time_ids"],
        ).to(dtype=dtype)

    def initial_layers(self, unet: UNet2DConditionModel) -> dict[str, DualLoRALinear]:
        """Injected layers holding the recorded start values."""
        layers = inject(unet, self.settings["rank"])
        start = self.tensors("lora_init")
        for name, branch, part in branches(layers):
            part.down.data.copy_(start[f"{name}.{branch}.down"])
            part.up.data.copy_(start[f"{name}.{branch}.up"])
        return layers


def branches(layers: TrainedLayers) -> Iterator[tuple[str, str, Branch]]:
    """(layer name, branch name, branch) of every branch."""
    for name, layer in projections(layers):
        for branch, part in zip(BRANCHES, layer.branches(), strict=True):
            yield name, branch, part


@dataclass
class Observer:
    """Replaces a ``Separation`` to compare gradients before, and columns after, the action of a step."""

    separation: Separation
    recording: Recording
    table: Table
    compare_gradients: bool
    step: int = 0

    @cached_property
    def gradients(self) -> dict[str, Tensor]:
        return self.recording.tensors("grads")

    @cached_property
    def events(self) -> dict[str, Tensor]:
        return self.recording.tensors("events")

    def apply(self, action: Action, layers: TrainedLayers) -> None:
        if self.recording.device != "cpu" and torch.cuda.is_current_stream_capturing():
            self.separation.apply(action, layers)
            return
        if self.compare_gradients:
            self._gradients("backward", layers, ("down", "up", "merge"))
        self.separation.apply(action, layers)
        if self.compare_gradients:
            self._gradients("masked", layers, ("merge",))
        if action is Action.SELECT:
            self._columns(layers)

    def _gradients(self, moment: str, layers: TrainedLayers, parts: tuple[str, ...]) -> None:
        relative, floor = (
            self.recording.tolerance("gradient_abs_over_tensor_max"),
            self.recording.tolerance("gradient_abs_floor"),
        )
        for name, branch, module in branches(layers):
            for part in parts:
                expected = self.gradients.get(f"step{self.step:02d}.{moment}.{name}.{branch}.{part}")
                if expected is None:
                    continue
                actual = module.get_parameter(part).grad
                actual = torch.zeros_like(expected) if actual is None else actual
                excess = (actual - expected).abs().max() / max(float(expected.abs().max()), floor / relative)
                self.table.add(f"gradient of {part} ({moment}), rel. to tensor max", excess, relative)

    def _columns(self, layers: TrainedLayers) -> None:
        """Compare scores and masks, then continue with the recorded masks, so that a flip counts only once.

        Scores are counts above a hard threshold and ties are cut strictly: in float32 an entry within
        rounding of the threshold may fall on either side and flip a column. Such a flip is noted if scores of
        its layer differ within their tolerance. A flip with equal scores, or any flip in float64, is an
        error.
        """
        suffix = "" if self.compare_gradients else " (float64)"
        entries = differing = unexplained = 0
        worst_score = 0.0
        for name, layer in projections(layers):
            truth = {
                b: (
                    self.events[f"step{self.step:02d}.{name}.{b}.score"],
                    self.events[f"step{self.step:02d}.{name}.{b}.mask"],
                )
                for b in BRANCHES
            }
            parts = dict(zip(BRANCHES, layer.branches(), strict=True))
            off = sum(int(((parts[b].score - truth[b][0]).abs() > 1e-6).sum()) for b in BRANCHES)
            flipped = sum(int((parts[b].mask != truth[b][1]).sum()) for b in BRANCHES)
            for b in BRANCHES:
                entries += truth[b][0].numel()
                worst_score = max(
                    worst_score, float((parts[b].score - truth[b][0]).abs().max()) * layer.in_features
                )
                parts[b].mask.copy_(truth[b][1])
                parts[b].close()
            differing += off
            if flipped and off and self.compare_gradients:
                self.table.notes.append(
                    f"step {self.step}, {name}: {flipped} column(s) flipped by {off} score entry(ies) at the "
                    "threshold; the replay continued with the recorded masks."
                )
            else:
                unexplained += flipped
        tolerance = self.recording.tolerance
        self.table.add(f"mask columns differing{suffix}", unexplained, tolerance("mask_columns_differing"))
        if self.compare_gradients:
            self.table.add(
                "score entries differing, share",
                differing / entries,
                tolerance("score_entries_differing_fraction"),
            )
            self.table.add(
                "score entry, in rows", worst_score, tolerance("score_entry_abs_times_in_features")
            )


def recorded_batches(recording: Recording, dtype: torch.dtype) -> Iterator[Batch]:
    """The batch of each step; all share one conditioning, which a CUDA graph reads where it was recorded."""
    inputs = recording.inputs
    conditioning = recording.conditioning(dtype).expand(inputs["noisy_latents"].shape[1])
    for step in range(recording.schedule.steps):
        yield Batch(
            noisy=inputs["noisy_latents"][step].to(dtype),
            target=inputs["noise"][step].to(dtype),
            timesteps=inputs["timesteps"][step],
            conditioning=conditioning,
        )


def replay_training(
    recording: Recording, table: Table, dtype: torch.dtype, *, fuse: bool, capture: bool
) -> tuple[UNet2DConditionModel, Layers]:
    """Train all recorded steps with the project's own training step and compare after each."""
    single = dtype == torch.float32
    settings = recording.settings
    unet = recording.unet(dtype)
    separate_prompts(unet)
    layers = recording.initial_layers(unet)
    for layer in layers.values():
        layer.to(dtype)
    trained: TrainedLayers = fuse_lora(unet, layers) if fuse else layers
    on_gpu = recording.device != "cpu"
    accelerator = Accelerator(cpu=not on_gpu, mixed_precision="no")
    optimizer = torch.optim.AdamW(
        parameter_groups(
            trained,
            content_lr=settings["content_learning_rate"],
            style_lr=settings["style_learning_rate"],
            merge_lr=settings["weight_learning_rate"],
        ),
        betas=(settings["adam_beta1"], settings["adam_beta2"]),
        eps=settings["adam_epsilon"],
        weight_decay=settings["adam_weight_decay"],
        capturable=on_gpu,
    )
    scheduler = get_scheduler(
        settings["lr_scheduler"],
        optimizer,
        num_warmup_steps=settings.get("lr_warmup_steps", 0),
        num_training_steps=settings["max_train_steps"],
    )
    observer = Observer(recording.separation, recording, table, compare_gradients=single)
    step = TrainingStep(
        unet=unet,
        layers=trained,
        optimizer=accelerator.prepare(optimizer),
        lr_scheduler=scheduler,
        accelerator=accelerator,
        schedule=recording.schedule,
        separation=observer,  # type: ignore[arg-type]
        overlap_weight=settings["similarity_lambda"],
        max_grad_norm=settings["max_grad_norm"],
    )
    run_step = CapturedStep(step) if on_gpu and capture else step
    # By whether separated: a replayed step writes its prediction where it was recorded.
    predictions: dict[bool, Tensor] = {}

    def keep(module: nn.Module, args: object, output: tuple[Tensor]) -> None:
        predictions[recording.schedule.separated(observer.step)] = output[0].detach()

    unet.register_forward_hook(keep)

    truth = recording.tensors("steps" if single else "replay64")
    states = recording.tensors("states")
    kind, suffix = ("float32", "") if single else ("float64_vs_replay64", " (float64)")
    for number, batch in enumerate(recorded_batches(recording, dtype)):
        observer.step = number
        result = run_step(number, [[batch]])
        table.add(
            f"loss, rel.{suffix}",
            relative(result.loss, truth["loss_total"][number]),
            recording.tolerance("loss_total_rel", kind),
        )
        table.add(
            f"prediction, abs.{suffix}",
            (predictions[recording.schedule.separated(number)] - truth["model_pred"][number]).abs(),
            recording.tolerance("model_pred_abs", kind),
        )
        table.add(
            f"gradient norm, rel.{suffix}",
            relative(result.grad_norm, truth["grad_norm"][number]),
            recording.tolerance("grad_norm_rel", kind),
        )
        overlap, expected = result.overlap, truth["similarity"][number]
        if (overlap is None) != bool(expected.isnan()):
            table.add(f"overlap penalty on the right steps{suffix}", math.inf, 0.0)
        if not single:
            continue
        table.add(
            "denoising loss, rel.",
            relative(result.reconstruction, truth["loss_reconstruction"][number]),
            recording.tolerance("loss_reconstruction_rel"),
        )
        if overlap is not None:
            table.add(
                "overlap penalty, rel.", relative(overlap, expected), recording.tolerance("similarity_rel")
            )
        compare_states(recording, table, layers, states, number)

    if recording.schedule.selects:
        separate(trained)
    if single:
        compare_update(recording, table, layers, states)
        if final := recording.tensors("final_masks"):
            flipped = sum(int((part.mask != final[f"{n}.{b}.mask"]).sum()) for n, b, part in branches(layers))
            table.add("mask columns differing", flipped, recording.tolerance("mask_columns_differing"))
    else:
        for name, branch, part in branches(layers):
            table.add(
                "final merge weights, abs. (float64)",
                (part.merge.detach() - truth[f"final.{name}.{branch}.merge"]).abs(),
                recording.tolerance("merger_state_abs", kind),
            )
    return unet, layers


def compare_states(
    recording: Recording, table: Table, layers: Layers, states: dict[str, Tensor], step: int
) -> None:
    """Weights after the update of a recorded step."""
    for name, branch, part in branches(layers):
        for quantity in ("down", "up", "merge"):
            expected = states.get(f"step{step:02d}.{name}.{branch}.{quantity}")
            if expected is None:
                continue
            tolerance = "merger_state_abs" if quantity == "merge" else f"lora_state_abs_{branch}"
            difference = (part.get_parameter(quantity).detach() - expected).abs()
            label = (
                "merge weights after a step, abs."
                if quantity == "merge"
                else f"{branch} LoRA after a step, abs."
            )
            table.add(label, difference, recording.tolerance(tolerance))


def compare_update(recording: Recording, table: Table, layers: Layers, states: dict[str, Tensor]) -> None:
    """The error of the whole training, relative to its update: ||ours - theirs|| / ||theirs - start||."""
    start = recording.tensors("lora_init")
    last = max(key.split(".")[0] for key in states)
    for label, parts, tolerance in (
        ("LoRA update of the whole run, rel. L2", ("down", "up"), "update_rel_l2_lora"),
        ("merge update of the whole run, rel. L2", ("merge",), "update_rel_l2_mergers"),
    ):
        error = moved = 0.0
        for name, branch, module in branches(layers):
            for part in parts:
                expected = states[f"{last}.{name}.{branch}.{part}"]
                before = start.get(f"{name}.{branch}.{part}", torch.ones_like(expected))
                error += float((module.get_parameter(part).detach() - expected).square().sum())
                moved += float((expected - before).square().sum())
        if moved:
            table.add(label, math.sqrt(error / moved), recording.tolerance(tolerance))


def compare_selection(recording: Recording, table: Table) -> None:
    """The selection of columns alone: recorded weights and gradients in, scores and masks out."""
    states, gradients, events = (recording.tensors(name) for name in ("states", "grads", "events"))
    layers = recording.initial_layers(recording.unet())
    masks_differing = scores_differing = 0
    for step in recording.meta["select_steps"]:
        before = f"step{step - 1:02d}"
        if not any(key.startswith(before) for key in states):
            continue
        for name, branch, part in branches(layers):
            for quantity in ("down", "up", "merge"):
                parameter = part.get_parameter(quantity)
                parameter.data.copy_(states[f"{before}.{name}.{branch}.{quantity}"])
                parameter.grad = gradients.get(f"step{step:02d}.backward.{name}.{branch}.{quantity}")
        recording.separation.apply(Action.SELECT, layers)
        for name, branch, part in branches(layers):
            key = f"step{step:02d}.{name}.{branch}"
            off = (part.score - events[f"{key}.score"]) * part.down.shape[1]  # in rows
            scores_differing += int((off.abs() > 0.5).sum())
            masks_differing += int((part.mask != events[f"{key}.mask"]).sum())
            part.mask.copy_(events[f"{key}.mask"])
    tolerance = recording.tolerance
    table.add(
        "selection alone: score entries differing",
        scores_differing,
        tolerance("teacher_forced_score_entries_differing"),
    )
    table.add(
        "selection alone: mask columns differing",
        masks_differing,
        tolerance("teacher_forced_mask_columns_differing"),
    )


def compare_layers(recording: Recording, table: Table) -> None:
    """Which projections are adapted, how wide they are, and who selects columns in them."""
    expected = recording.meta["layers"]
    layers = recording.initial_layers(recording.unet())
    actual = {
        name: {
            "in_features": layer.in_features,
            "out_features": layer.out_features,
            "policy": policy(name, block_separation=recording.settings["with_freeze_unet"]),
        }
        for name, layer in layers.items()
    }
    wrong = set(actual) ^ set(expected)
    wrong |= {
        n for n in set(actual) & set(expected) if any(actual[n][k] != expected[n][k] for k in actual[n])
    }
    table.add("layers adapted wrongly", len(wrong), 0)


@torch.no_grad()
def compare_predictions(
    recording: Recording, table: Table, unet: UNet2DConditionModel, layers: Layers, *, fuse: bool
) -> None:
    """Predictions of the trained layers, of LoRAs imported from the reference's files, and of the base."""
    expected = recording.tensors("outputs")
    noisy, timestep = recording.inputs["eval_noisy"], recording.inputs["eval_timestep"]
    prompts = recording.conditioning()
    single_prompt = {
        branch: replace(prompts, full=(text := getattr(prompts, branch)), content=text, style=text)
        for branch in BRANCHES
    }

    def check(key: str, label: str, conditioning: Conditioning, tolerance: str) -> None:
        if key in expected:
            difference = (predict_noise(unet, noisy, timestep, conditioning) - expected[key]).abs()
            table.add(label, difference, recording.tolerance(tolerance))

    check("train_both", "finished layers, both branches, abs.", prompts, "model_pred_abs")
    for branch in BRANCHES:
        set_mode(layers, branch)  # type: ignore[arg-type]
        label = "finished layers, one branch, abs."
        check(f"train_{branch}", label, prompts, "model_pred_abs")
        check(f"train_{branch}_single_prompt", label, single_prompt[branch], "model_pred_abs")
    set_mode(layers, "both")

    saved = {branch: reference_lora(recording, branch) for branch in BRANCHES}
    for branch in BRANCHES:
        for name, weights in extract(layers, branch).items():
            table.add(
                "saved up-weights, abs.",
                (weights.up - saved[branch][name].up).abs(),
                recording.tolerance(f"lora_state_abs_{branch}"),
            )
    merges = {branch: reference_merge(recording, branch) for branch in BRANCHES}
    for branch in BRANCHES:
        load_branch(layers, branch, saved[branch], merges[branch])
    check("infer_both", "imported, both branches, abs.", prompts, "imported_forward_abs")
    compare_guidance(recording, table, unet, prompts, expected)
    for branch in BRANCHES:
        set_mode(layers, branch)  # type: ignore[arg-type]
        text = single_prompt[branch]
        check(f"infer_{branch}_single_prompt", "imported, one branch, abs.", text, "imported_forward_abs")
        label = "imported, one branch, against diffusers, abs."
        check(f"diffusers_{branch}_lora", label, text, "imported_forward_abs")
    set_mode(layers, "both")
    for branch in BRANCHES:
        load_branch(layers, branch, saved[branch])
    check("infer_both_no_merger", "imported, without merge weights, abs.", prompts, "imported_forward_abs")

    unfuse_lora(unet)
    eject(unet)
    unet.set_attn_processor(AttnProcessor2_0())
    for key, conditioning in (("plain", prompts), ("plain_content_prompt", single_prompt["content"])):
        if key in expected:
            difference = (predict_noise_merged(unet, noisy, timestep, conditioning) - expected[key]).abs()
            table.add("U-Net after ejection, abs.", difference, recording.tolerance("plain_unet_abs"))
    if fuse:
        pairs = {
            "infer_both": (LoRAPair(*saved.values(), *merges.values()), prompts),
            "infer_both_no_merger": (LoRAPair(*saved.values()), prompts),
            **{
                f"infer_{branch}_single_prompt": (LoRAPair(**{branch: saved[branch]}), single_prompt[branch])
                for branch in BRANCHES
            },
        }
        for key, (pair, conditioning) in pairs.items():
            if key in expected:
                originals = fuse_pair(unet, pair)
                cache_text(unet, pair, conditioning.full, conditioning.content, conditioning.style)
                prediction = predict_noise_merged(unet, noisy, timestep, conditioning)
                unfuse_pair(unet, originals)
                difference = (prediction - expected[key]).abs()
                tolerance = recording.tolerance("imported_forward_abs")
                table.add("imported, fused for generation, abs.", difference, tolerance)


def compare_guidance(
    recording: Recording,
    table: Table,
    unet: UNet2DConditionModel,
    prompts: Conditioning,
    expected: dict[str, Tensor],
) -> None:
    """A batch of unconditional and conditional prediction, and samples with guidance."""
    negative = TextEmbeddings(
        recording.inputs["eval_negative_prompt_embeds"], recording.inputs["eval_negative_pooled"]
    )
    if "infer_both_cfg_batch" in expected:
        noisy, timestep = recording.inputs["eval_noisy"], recording.inputs["eval_timestep"]
        guided = concat_conditionings(unconditional(prompts, negative), prompts)
        prediction = predict_noise(unet, noisy.repeat(2, 1, 1, 1), timestep.repeat(2), guided)
        table.add(
            "imported, guidance batch, abs.",
            (prediction - expected["infer_both_cfg_batch"]).abs(),
            recording.tolerance("imported_forward_abs"),
        )
    for key, scheduler in (("ddim", DDIMScheduler), ("euler", EulerDiscreteScheduler)):
        for case, negative_prompt in (("zeroneg", None), ("neg", negative)):
            if f"pipe_{key}_{case}" not in expected:
                continue
            guided = concat_conditionings(unconditional(prompts, negative_prompt), prompts)
            latents = sample(
                lambda x, t, guided=guided: predict_noise(unet, x, t, guided),  # type: ignore[misc]
                scheduler.from_config(recording.meta["eval_scheduler_configs"][key]),
                recording.inputs["eval_init_latents"],
                steps=SAMPLING_STEPS,
                guidance=GUIDANCE,
            )
            difference = (latents - expected[f"pipe_{key}_{case}"]).abs()
            tolerance = recording.tolerance("imported_pipeline_4_steps_abs")
            table.add("imported, 4 steps of sampling, abs.", difference, tolerance)


@torch.no_grad()
def load_branch(layers: Layers, branch: str, lora: LoRA, merge: MergeWeights | None = None) -> None:
    """Fill one branch with saved weights and open all columns; a layer missing from ``lora`` becomes zero."""
    for name, layer in layers.items():
        part = layer.content if branch == "content" else layer.style
        part.open()
        part.merge.copy_((merge or {}).get(name, torch.ones_like(part.merge)))
        if name not in lora:
            part.up.zero_()
            continue
        part.down.copy_(lora[name].down)
        part.up.copy_(lora[name].up)


def reference_lora(recording: Recording, branch: str) -> dict[str, LoRAWeights]:
    """The LoRA of one branch as the reference implementation saved it."""
    from unziplora_cli.adapters.lora_file import read_lora

    return dict(
        read_lora(recording.folder / "saved" / f"m_{branch}" / "pytorch_lora_weights.safetensors").lora
    )


def reference_merge(recording: Recording, branch: str) -> dict[str, Tensor]:
    """The merge weights of one branch as the reference implementation saved them."""
    from unziplora_cli.adapters.merge_weights import read_pickled_merge

    return dict(read_pickled_merge(recording.folder / "saved" / f"m_merger_{branch}.pth")[1])


def relative(actual: Tensor, expected: Tensor) -> float:
    """|actual - expected| / |expected|, or the absolute difference if ``expected`` is 0."""
    return abs(float(actual) - float(expected)) / (abs(float(expected)) or 1.0)


def parity(folder: Path, device: str = "cpu", *, fuse: bool = True, capture: bool = True) -> Table:
    """All comparisons for one recording, with or without fused LoRAs and CUDA graphs."""
    torch.set_num_threads(1)
    torch.backends.cudnn.allow_tf32 = False
    recording, table = Recording(folder, device), Table()
    if recording.settings.get("gradient_accumulation_steps", 1) != 1:
        raise SystemExit(
            "A recording with gradient accumulation cannot be replayed: its parts are not recorded."
        )
    compare_layers(recording, table)
    compare_selection(recording, table)
    unet, layers = replay_training(recording, table, torch.float32, fuse=fuse, capture=capture)
    compare_predictions(recording, table, unet, layers, fuse=fuse)
    if recording.tensors("replay64") and device == "cpu":  # on a GPU the optimizer counts steps in float32
        replay_training(recording, table, torch.float64, fuse=fuse, capture=capture)
    return table


def main() -> int:
    from rich.console import Console
    from rich.table import Table as RichTable

    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", metavar="DIR", type=Path, help="holds meta.json and its recordings")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    for name, text in (("fuse", "fuse the LoRAs"), ("capture", "replay steps from CUDA graphs")):
        parser.add_argument(f"--{name}", action=argparse.BooleanOptionalAction, default=True, help=text)
    parser.add_argument("--no-accel", action="store_true", help="--no-fuse and --no-capture")
    arguments = parser.parse_args()
    if not (arguments.folder / "meta.json").is_file():
        parser.error(f"{arguments.folder} has no meta.json")
    fuse, capture = (on and not arguments.no_accel for on in (arguments.fuse, arguments.capture))
    table = parity(arguments.folder, arguments.device, fuse=fuse, capture=capture)
    view = RichTable(
        "quantity",
        "worst difference",
        "tolerance",
        "",
        title=f"Parity with {arguments.folder} on {arguments.device}",
    )
    for row in table.rows.values():
        view.add_row(
            row.quantity, f"{row.worst:.3g}", f"{row.tolerance:.3g}", "ok" if row.passed else "EXCEEDED"
        )
    console = Console(width=110)
    console.print(view)
    for note in table.notes:
        console.print(f"note: {note}")
    return 0 if table.passed else 1


if __name__ == "__main__":
    raise SystemExit(main())
