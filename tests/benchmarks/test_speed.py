"""The speed benchmark times the correct computation, counts operations correctly and formats its tables."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from benchmarks.speed_methods import full_matrices, generation, ours, peft_lora, tables
from benchmarks.speed_methods.floor import step_operations
from benchmarks.speed_methods.measurement import Measurement
from benchmarks.speed_methods.task import TOKENS, Setting, Task, meta_unet, pooled_width
from unziplora_cli.config import resolve
from unziplora_cli.method.inject import inject
from unziplora_cli.method.layer import DualLoRALinear
from unziplora_cli.sdxl.base import resolve_base

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def setting(tiny_base: Path) -> Setting:
    return Setting(resolve_base(str(tiny_base), offline=True)[0], CPU, rank=4, resolution=64, steps=8)


@pytest.fixture
def both_layers() -> tuple[DualLoRALinear, full_matrices.NaiveDualLinear]:
    """The program's layer and one with full matrices, with equal weights, in float64."""
    torch.manual_seed(3)
    network = nn.ModuleDict({"attn1": nn.ModuleDict({"to_q": nn.Linear(6, 10)})})
    container = nn.ModuleDict({"block": network})
    product = inject(container, 4, seed=5)["block.attn1.to_q"].double()
    naive = full_matrices.NaiveDualLinear(product.base, 4).double()
    for name in ("content", "style"):
        branch, counterpart = getattr(product, name), getattr(naive, name)
        branch.merge.data.uniform_()
        branch.merge.requires_grad_()
        branch.mask.copy_(torch.rand(10) < 0.6)
        branch.gate.copy_(branch.mask)
        for part in ("down", "up", "merge", "mask"):
            getattr(counterpart, part).data.copy_(getattr(branch, part).data)
    return product, naive


@pytest.mark.parametrize("separate", [False, True])
def test_full_matrices_compute_the_same_as_low_rank_products(
    separate: bool, both_layers: tuple[DualLoRALinear, full_matrices.NaiveDualLinear]
) -> None:
    texts = torch.randn(3, 2, 7, 6, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(2, 7, 10, dtype=torch.float64)
    results = []
    for layer in both_layers:
        y = layer(*texts) if separate else layer(texts[0])
        learned = [
            part for branch in (layer.content, layer.style) for part in (branch.down, branch.up, branch.merge)
        ]
        results.append([y, *torch.autograd.grad((y * weight).sum(), [texts, *learned])])
    for product, naive in zip(*results, strict=True):
        torch.testing.assert_close(naive, product, rtol=1e-12, atol=1e-12)


def test_full_matrices_train_merge_weights_only_on_shared_columns(
    both_layers: tuple[DualLoRALinear, full_matrices.NaiveDualLinear],
) -> None:
    _, layer = both_layers
    layer(torch.randn(2, 6, dtype=torch.float64)).sum().backward()
    full_matrices.keep_shared_merges([layer])
    shared = layer.content.mask & layer.style.mask
    assert shared.any()
    assert not shared.all()
    for branch in (layer.content, layer.style):
        assert torch.equal(branch.merge.grad != 0, shared)


@pytest.mark.parametrize("prompt", ["full", "content", "style"])
def test_full_matrices_use_every_prompt(prompt: str, setting: Setting) -> None:
    torch.manual_seed(0)
    task = Task(setting)
    for layer in full_matrices.inject_naively(task.unet, 4):
        for branch in (layer.content, layer.style):
            branch.mask.fill_(True)
    task.randomize()
    losses = []
    for _ in range(2):
        losses.append(task.loss(content=task.content, style=task.style).item())
        getattr(task, prompt).normal_()
    assert losses[0] != pytest.approx(losses[1], rel=1e-6)


def test_the_operation_count_of_a_step_equals_a_count_by_layer(setting: Setting) -> None:
    """The products of the shapes at every layer, twice where the input needs a gradient."""
    network = Task(setting).unet
    counted = 0

    def count(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        nonlocal counted
        weight = module.weight
        per_output = weight[0].numel()  # products for every output value
        passes = 1 if module.no_way_back else 2
        counted += 2 * output.numel() * per_output * passes

    for name, module in network.named_modules():
        if isinstance(module, (nn.Linear, nn.Conv2d)):
            module.no_way_back = _frozen_below(name)
            module.register_forward_hook(count)
        elif name.endswith((".attn1", ".attn2")):
            module.register_forward_hook(lambda m, inputs, output: seen.append((m, inputs[0].shape)))
    seen: list[tuple[nn.Module, torch.Size]] = []
    shape = network.config
    with torch.no_grad():
        network(
            torch.zeros(1, shape.in_channels, 8, 8),
            torch.zeros(1),
            encoder_hidden_states=torch.zeros(1, TOKENS, shape.cross_attention_dim),
            added_cond_kwargs={
                "text_embeds": torch.zeros(1, pooled_width(network)),
                "time_ids": torch.zeros(1, 6),
            },
        )
    for attention, (batch, pixels, width) in seen:
        keys = TOKENS if attention.is_cross_attention else pixels
        counted += 2 * 2 * batch * pixels * keys * width * 3  # scores and sums: once forward, twice backward
    assert step_operations(meta_unet(setting.base), 8) == counted


def _frozen_below(name: str) -> bool:
    """Whether no trained layer comes before this layer."""
    first = "down_blocks.1.attentions.0"
    return (
        name.startswith(("conv_in", "down_blocks.0.", "down_blocks.1.resnets.0.", f"{first}.proj_in"))
        or "time" in name
        or "add_embedding" in name
        or name.endswith(("attn2.to_k", "attn2.to_v"))
        or name in {f"{first}.transformer_blocks.0.attn1.to_{part}" for part in "qkv"}
    )


@pytest.mark.parametrize("measure", [peft_lora.eager, full_matrices.eager, *generation.VARIANTS.values()])
def test_every_row_measures_a_step_on_any_base(measure: object, setting: Setting) -> None:
    results = measure(setting)
    assert 0 < results.seconds < 10
    assert results.memory > 0


def test_our_row_computes_the_time_of_a_whole_training(setting: Setting) -> None:
    results = ours.trained(setting, "paper")
    assert 0 < results.seconds < 10
    assert results.whole > 600 * results.seconds
    assert results.note == ""
    assert ours._differences(setting, resolve("paper", {"rank": 2})) == "rank 2"


def test_the_tables_show_shares_and_dashes_for_missing_measurements() -> None:
    text = tables.training(
        {
            "floor": Measurement(0.02, note="14 TFLOP"),
            "ours": Measurement(0.08, 12 * 2**30, 30.0, 90.0),
            "naive": Measurement(note="RuntimeError: a|b"),
        }
    )
    assert [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines()[2:]] == [
        ["floor", "20.0", "-", "-", "-", "100%", "14 TFLOP"],
        ["ours", "80.0", "12.0", "30.0", "1.5", "25%", "-"],
        ["naive", "-", "-", "-", "-", "-", "RuntimeError: a/b"],
    ]
    rows = tables.generation({"plain": Measurement(0.2, 2**30), "ours": Measurement(0.1, 2**30)})
    assert rows.splitlines()[-1] == "| ours | 100 | 0.50 | 1.0 | - |"


@pytest.mark.slow
def test_a_row_that_fails_says_why_and_the_others_go_on(tiny_base: Path, tmp_path: Path) -> None:
    script = Path(__file__).parents[2] / "benchmarks" / "speed.py"
    place = ["--base", str(tiny_base), "--device", "cpu", "--out", str(tmp_path)]
    size = ["--presets", "nosuch,paper", "--only", "ours,", "--rank", "4", "--steps", "8"]
    subprocess.run([sys.executable, str(script), *place, *size], check=True, capture_output=True)
    lines = [line.split(" | ") for line in (tmp_path / "speed.md").read_text().splitlines()]
    rows = {cells[0].removeprefix("| "): cells for cells in lines}
    assert "There is no preset 'nosuch'" in rows["ours, nosuch"][-1]
    assert float(rows["ours, paper"][1]) > 0
