"""The plan of a training against exact counts, what autograd really saves, and measurements."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from diffusers import UNet2DConditionModel
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from tests.tiny_base import unet_config
from unziplora_cli.accel import fused_lora as folding
from unziplora_cli.accel import fused_modules
from unziplora_cli.accel.fused_lora import fuse_lora
from unziplora_cli.adapters.lora_file import read_lora
from unziplora_cli.cli._errors import hint
from unziplora_cli.config import TrainConfig, resolve
from unziplora_cli.doctor.gpu_checks import LOW_VRAM_GPU_MEMORY, SDXL_GPU_MEMORY
from unziplora_cli.errors import OutOfMemory
from unziplora_cli.method.inject import inject
from unziplora_cli.sdxl.attention import separate_prompts
from unziplora_cli.sdxl.base import BaseRef
from unziplora_cli.sdxl.profile import profile_unet
from unziplora_cli.sdxl.text import Conditioning, predict_noise
from unziplora_cli.training import engine, estimate, inputs
from unziplora_cli.training.checkpoint import TrainingState, write_layers
from unziplora_cli.training.engine import _checkpoint_gradients, train
from unziplora_cli.training.estimate import CLASSES, count_flops, estimate_time, find_fitting_settings, line
from unziplora_cli.training.events import Finished, Notice, Phase
from unziplora_cli.training.memory import (
    GIB,
    Base,
    Target,
    checkpoint_bytes,
    checkpoints_bytes,
    estimate_memory,
    profile_base,
    project_bytes,
    required_memory,
    text_encoder_parameters,
    trained_parameters,
)
from unziplora_cli.training.optimizer import build_lr_scheduler, build_optimizer
from unziplora_cli.training.step import parameter_groups
from unziplora_cli.workflows.estimate import shipped_sdxl

BATCH, SIDE, TOKENS = 2, 16, 8
GPU = Target("cuda", "bf16", fused=True)


@pytest.fixture(scope="session")
def sdxl() -> Base:
    """SDXL, from the configurations that ship."""
    return profile_base(shipped_sdxl())


@pytest.fixture(scope="session")
def small() -> tuple[dict[str, Any], Base]:
    """The configuration of a U-Net with SDXL's blocks, and the base around it."""
    config = {**unet_config(), "block_out_channels": (32, 64, 96), "transformer_layers_per_block": (1, 2, 3)}
    text = {"hidden_size": 12, "num_hidden_layers": 1, "vocab_size": 9, "intermediate_size": 24}
    texts = ({**text, "max_position_embeddings": TOKENS},) * 2
    return config, Base(profile_unet(config), {"block_out_channels": [4]}, texts, 8)


def test_sdxl_is_counted_exactly(sdxl: Base) -> None:
    """The numbers are those of SDXL's paper and model files."""
    assert sdxl.unet.weights == 2_567_463_684
    assert len(list(sdxl.unet.projections())) == 560
    columns = sum(each.outputs for each in sdxl.unet.projections())
    assert columns == 665_600
    assert trained_parameters(sdxl.unet, 64) == 2 * (92_897_280 + columns)
    assert [text_encoder_parameters(each) for each in sdxl.texts] == pytest.approx(
        [123_060_480, 694_659_840], rel=0.01
    )


MEASURED = [
    ("paper", {}, 11.02, 57.3),
    ("fast", {}, 9.85, 54.9),
    ("low-vram", {}, 5.34, 104),
    ("destyle", {}, 11.29, 112),
    ("paper", {"rank": 4}, 8.82, 53.8),
    ("paper", {"rank": 16}, 9.26, 54.1),
    ("paper", {"rank": 128}, 13.40, 62.1),
    ("paper", {"resolution": 512}, 7.92, 31.1),
    ("paper", {"resolution": 768}, 9.20, 42.2),
    ("paper", {"batch_size": 2}, 15.32, 84.7),
    ("paper", {"batch_size": 4}, 23.93, 150),
]
"""Preset, changes, GiB and milliseconds on an H200 at 1024 px in bf16, torch 2.11."""


@pytest.mark.parametrize(("preset", "changes", "gibibytes", "milliseconds"), MEASURED)
def test_the_plan_tells_what_was_measured(
    sdxl: Base, preset: str, changes: dict[str, int], gibibytes: float, milliseconds: float
) -> None:
    """790 TFLOP/s is what large products reach on that card."""
    config = resolve(preset, changes)
    memory = estimate_memory(sdxl, config, GPU)
    assert memory.peak / GIB == pytest.approx(gibibytes, rel=0.05)
    assert memory.texts / GIB == pytest.approx(1.45, rel=0.1)
    pace = estimate_time(sdxl, config, GPU, 790e12)
    assert pace.step == pytest.approx(milliseconds / 1000, rel=0.1)
    assert pace.step_class == ("under 0.1 s" if milliseconds < 100 else "0.1 to 0.3 s")


@pytest.mark.parametrize(
    ("preset", "gibibytes", "seconds"), [("paper", 11.05, 0.062), ("low-vram", 5.35, 0.112)]
)
def test_the_plan_holds_on_an_h100(sdxl: Base, preset: str, gibibytes: float, seconds: float) -> None:
    """Its large products are as fast, its memory is slower."""
    memory = estimate_memory(sdxl, resolve(preset, {}), GPU)
    assert memory.peak / GIB == pytest.approx(gibibytes, rel=0.15)
    assert memory.pictures / GIB == pytest.approx(3.36, rel=0.05)
    pace = estimate_time(sdxl, resolve(preset, {}), GPU, 790e12)
    assert pace.step == pytest.approx(seconds, rel=0.2)


def test_the_doctor_asks_for_what_the_plan_does(sdxl: Base) -> None:
    for preset, told in (("paper", SDXL_GPU_MEMORY), ("low-vram", LOW_VRAM_GPU_MEMORY)):
        assert required_memory(estimate_memory(sdxl, resolve(preset, {}), GPU), GPU) == pytest.approx(
            told, rel=0.03
        )


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("again", [False, True])
def test_what_autograd_saves_is_counted(
    small: tuple[dict[str, Any], Base], again: bool, fused: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, base = small
    torch.manual_seed(0)
    unet = UNet2DConditionModel(**config).eval().requires_grad_(False)
    if fused:
        fuse(unet, monkeypatch)
    separate_prompts(unet)
    if again:
        _checkpoint_gradients(unet)
    fuse_lora(unet, inject(unet, 4), by_block=again)
    settings = TrainConfig(rank=4, resolution=8 * SIDE, batch_size=BATCH, gradient_checkpointing=again)
    expected = estimate_memory(base, settings, Target("cpu", "fp32", fused)).saved
    assert saved_bytes(unet, monkeypatch) == pytest.approx(expected, rel=0.15)


def test_operations_are_those_that_torch_counts(small: tuple[dict[str, Any], Base]) -> None:
    """Folding is made by hand here; what the base makes of a text is found out once, and not counted."""
    config, base = small
    unet = UNet2DConditionModel(**config).eval().requires_grad_(False)
    separate_prompts(unet)
    fuse_lora(unet, inject(unet, 4))
    counter = FlopCounterMode(display=False)
    predict(unet)
    with counter:
        predict(unet).sum().backward()
    settings = TrainConfig(rank=4, resolution=8 * SIDE, batch_size=BATCH)
    assert count_flops(base, settings) == pytest.approx(counter.get_total_flops(), rel=0.15)


def test_files_have_the_sizes_that_are_planned(small: tuple[dict[str, Any], Base], tmp_path: Path) -> None:
    config, base = small
    unet = UNet2DConditionModel(**config).requires_grad_(False)
    layers = inject(unet, 8)
    settings = TrainConfig(rank=8)
    write_layers(tmp_path, layers, {}, chosen=False)
    written = sum(file.stat().st_size for file in tmp_path.iterdir())
    assert project_bytes(base.unet, settings) == pytest.approx(written, rel=0.15)
    saving = replace(settings, save_every=200)
    assert project_bytes(base.unet, saving) == 4 * project_bytes(base.unet, settings)
    assert read_lora(tmp_path / "content.safetensors").lora.keys() == layers.keys()
    optimizer = build_optimizer(settings, parameter_groups(layers, content_lr=1, style_lr=1, merge_lr=1))
    state = TrainingState(layers, optimizer, build_lr_scheduler(settings, optimizer))
    assert checkpoint_bytes(base.unet, settings) == state.size()
    assert checkpoints_bytes(base.unet, settings) == 3 * state.size()
    assert checkpoints_bytes(base.unet, replace(settings, checkpoint_every=0)) == state.size()


def test_more_takes_more(sdxl: Base) -> None:
    def peak(**settings: Any) -> int:
        return estimate_memory(sdxl, TrainConfig(**settings), GPU).peak

    whole = peak()
    assert peak(resolution=512) < peak(resolution=768) < whole < peak(batch_size=2) < peak(batch_size=4)
    assert peak(rank=16) < whole < peak(rank=128)
    assert peak(gradient_checkpointing=True, quantize="int8") < peak(gradient_checkpointing=True) < whole
    assert peak(quantize="int8") > whole, "without checkpointing autograd keeps the unpacked copies"
    assert peak(destyle_images=8) > whole, "gradients of the first pass wait while the second computes"
    assert peak(optimizer="adamw8bit") < whole < peak(optimizer="prodigy")


def test_presets_are_proposed_in_their_order(sdxl: Base) -> None:
    def proposed(free_gib: float, **given: Any) -> Any:
        return find_fitting_settings(sdxl, resolve("paper", given), GPU, int(free_gib * GIB), given)

    assert proposed(12) == {"preset": "fast"}
    assert proposed(8) == {"preset": "low-vram"}
    assert proposed(12, rank=64) == {"preset": "low-vram"}, "the rank stays, so fast saves nothing"
    small = proposed(5)
    assert small["preset"] == "low-vram"
    assert small["resolution"] < 1024
    assert proposed(8, batch_size=16) == {"preset": "low-vram", "batch_size": 1}
    assert proposed(1) is None


def test_a_proposal_is_a_line_to_type() -> None:
    typed = ["train", "my fox.png", "--preset", "paper", "--rank=8", "--subject", "fox"]
    changes = {"preset": "low-vram", "batch_size": 1}
    assert line(typed, changes) == (
        "unziplora train 'my fox.png' --rank=8 --subject fox --preset low-vram --batch-size 1"
    )
    assert line(["train", "a.png", "--force", "--preset=x"], {"preset": "fast"}, "--force") == (
        "unziplora train a.png --preset fast --force"
    )


def test_running_out_of_memory_says_the_line_to_type(
    make_request: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inputs, "load_unet", out_of_memory)
    typed = {"typed": ("train", "fox.png", "--batch-size=8"), "given": {"batch_size": 8}}
    monkeypatch.setattr(estimate, "find_fitting_settings", lambda *_: {"preset": "low-vram"})
    with pytest.raises(OutOfMemory) as caught:
        list(train(make_request(tmp_path, request=typed, batch_size=8)))
    assert hint(caught.value).startswith("unziplora train fox.png --batch-size=8 --preset low-vram   ")
    assert "--resolution 32" in hint(caught.value)


def test_after_a_checkpoint_the_line_begins_anew(
    make_request: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Other settings cannot go on with it, so that without --force the line would be refused."""
    request = make_request(tmp_path, request={"typed": ("train", "fox.png")})
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints/step-000004.safetensors").touch()
    monkeypatch.setattr(inputs, "load_unet", out_of_memory)
    with pytest.raises(OutOfMemory) as caught:
        list(train(request))
    assert " --force   If" in hint(caught.value)


def test_a_training_that_goes_on_keeps_its_settings(
    make_request: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inputs, "load_unet", out_of_memory)
    with pytest.raises(OutOfMemory) as caught:
        list(train(make_request(tmp_path, request={"resume": True, "name": "fox"})))
    assert "then: unziplora train --resume fox" in hint(caught.value)
    assert "anew with --force --preset low-vram" in hint(caught.value)


def test_a_training_that_may_not_fit_says_so_before_its_unet_comes(
    make_request: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A GPU in name alone: what computes is the CPU."""
    monkeypatch.setattr(engine, "pick_device", lambda _: torch.device("cuda"))
    monkeypatch.setattr(estimate, "find_fitting_settings", lambda *_: {"preset": "low-vram"})
    events: dict[int, list[Any]] = {}
    for free in (10**8, 10**10):
        monkeypatch.setattr(estimate, "free_memory", lambda _, free=free: free)
        request = make_request(tmp_path / str(free), request={"typed": ("train", "fox.png")})
        events[free] = list(train(request))
        assert isinstance(events[free][-1], Finished)
    enough = [each for each in events[10**10] if isinstance(each, Notice) and "GPU" in each.text]
    short = [each for each in events[10**8] if isinstance(each, Notice) and "GPU" in each.text]
    assert enough == []
    assert len(short) == 1
    assert "of which 0.1 GB are free: it may not fit." in short[0].text
    assert short[0].text.endswith("This would: unziplora train fox.png --preset low-vram")
    loads = next(each for each in events[10**8] if isinstance(each, Phase) and each.name == "load U-Net")
    assert events[10**8].index(short[0]) < events[10**8].index(loads)


def test_every_pace_has_a_class(small: tuple[dict[str, Any], Base]) -> None:
    _, base = small
    found = [
        estimate_time(base, TrainConfig(rank=4, resolution=128), Target("cpu", "fp32"), rate).step_class
        for rate in (1e4, 1e13)
    ]
    assert found == ["over 10 s", CLASSES[0][1]]
    schema = json.loads((Path(__file__).parents[2] / "templates/envelope.schema.json").read_text())
    words = schema["$defs"]["plan"]["properties"]["plan"]["properties"]["step_class"]["enum"]
    assert words == [*(name for _, name in CLASSES), "over 10 s"]


def test_any_base_of_sdxls_shape_is_planned(base: BaseRef) -> None:
    memory = estimate_memory(profile_base(base), TrainConfig(rank=4, resolution=64), Target("cpu", "fp32"))
    assert memory.peak < 0.6e9


def out_of_memory(*_: object, **__: object) -> None:
    raise torch.OutOfMemoryError("CUDA out of memory")


def predict(unet: torch.nn.Module) -> Tensor:
    torch.manual_seed(1)
    text = torch.randn(BATCH, TOKENS, 24)
    told = Conditioning(text, text + 1, text + 2, torch.randn(BATCH, 16), torch.zeros(BATCH, 6))
    return predict_noise(unet, torch.randn(BATCH, 4, SIDE, SIDE), torch.tensor([3, 3]), told)


def saved_bytes(unet: torch.nn.Module, monkeypatch: pytest.MonkeyPatch) -> int:
    """The bytes that autograd holds after a forward pass, beside weights, folded ones included."""
    tensors = [*unet.parameters(), *unet.buffers()]
    for region in {
        id(hook.__self__): hook.__self__
        for module in unet.modules()
        for hook in module._forward_hooks.values()
        if isinstance(getattr(hook, "__self__", None), folding._Region)
    }.values():
        tensors += [each for one in region.folds.values() for each in (*one.parameters(), one._frozen)]
    own = {each.untyped_storage().data_ptr() for each in tensors if each is not None}
    held: dict[int, Tensor] = {}

    def hold(tensor: Tensor) -> Tensor:
        pointer = tensor.untyped_storage().data_ptr()
        if pointer not in own:
            held[pointer] = tensor
        return tensor

    pack = folding.RecomputedWeight.pack

    def hold_in_region(self: Any, tensor: Tensor) -> Any:
        packed = pack(self, tensor)
        return hold(packed) if isinstance(packed, Tensor) else packed

    monkeypatch.setattr(folding.RecomputedWeight, "pack", hold_in_region)
    with torch.autograd.graph.saved_tensors_hooks(hold, lambda tensor: tensor):
        predict(unet)
    return sum(each.untyped_storage().nbytes() for each in held.values())


class InputOnly(torch.autograd.Function):
    """A function of a tensor that saves nothing else, as the fused kernels do."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, function: Callable[[Tensor], Tensor]) -> Tensor:
        ctx.save_for_backward(x)
        ctx.function = function
        return function(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        raise NotImplementedError


def fuse(unet: UNet2DConditionModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """Put the fused modules into ``unet``, with kernels that run anywhere."""
    import torch.nn.functional as F

    def geglu(hidden: Tensor) -> Tensor:
        return InputOnly.apply(hidden, lambda x: x.chunk(2, -1)[0] * F.gelu(x.chunk(2, -1)[1]))

    def group_norm(x: Tensor, groups: int, weight: Tensor, bias: Tensor, eps: float, *, silu: bool) -> Tensor:
        def function(x: Tensor) -> Tensor:
            found = F.group_norm(x, groups, weight, bias, eps)
            return F.silu(found) if silu else found

        return InputOnly.apply(x, function)

    kernels = "unziplora_cli.accel.kernels."
    monkeypatch.setitem(sys.modules, kernels + "geglu", SimpleNamespace(geglu=geglu))
    monkeypatch.setitem(sys.modules, kernels + "group_norm", SimpleNamespace(group_norm=group_norm))
    monkeypatch.setattr(fused_modules, "kernels_available", lambda device: True)
    assert fused_modules.fuse_modules(unet)
