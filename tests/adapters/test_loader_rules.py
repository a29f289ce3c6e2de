"""Which programs load which layouts: our rules, against observations and against diffusers."""

from pathlib import Path

import pytest
import torch

from tests.adapters.loras import LAYOUT_NAMES, SDXL_BLOCKS, change, sdxl_lora, write_as
from tests.tiny_base import unet_config
from unziplora_cli.adapters.layouts import LAYOUTS
from unziplora_cli.adapters.loader_rules import PROGRAMS, LoadResult, expected_load
from unziplora_cli.adapters.lora_file import read_lora, write_lora
from unziplora_cli.errors import AdapterError
from unziplora_cli.method.inject import adapted_projections
from unziplora_cli.method.lora import LoRAWeights
from unziplora_cli.sdxl.base import SDXL_CONFIG, read_json
from unziplora_cli.sdxl.meta import compare, meta_unet

LORA = sdxl_lora()
LAYER = "mid_block.attentions.0.transformer_blocks.3.attn1.to_out.0"
MODULE = "lora_unet_mid_block_attentions_0_transformer_blocks_3_attn1_to_out_0"
PARTS = ("lora_up.weight", "lora_down.weight", "alpha")
FIRST = "down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q"
SMALL_BLOCKS = {**unet_config(), "transformer_layers_per_block": (1, 1, 1)}
SMALL = {layer: weights for layer, weights in LORA.items() if ".transformer_blocks.0." in layer}
"""The LoRA of a U-Net with one transformer block in each attention block, which is read faster."""
ALL = {"ComfyUI", "A1111", "Forge", "InvokeAI", "diffusers"}
OBSERVED = {
    "kohya-diffusers": ALL,
    "sd-scripts": ALL,
    "diffusers": {"diffusers"},
    "diffusers-old": {"ComfyUI", "Forge", "diffusers"},
    "attn-procs": set(),
    "peft": {"diffusers"},
    "comfyui": {"ComfyUI", "Forge"},
    "lycoris": {"ComfyUI", "Forge"},
    "onetrainer": set(),
    "peft-folder": set(),
    "paper": set(),
}
"""The programs whose own loading code adapted all 560 projections; the others adapted none."""


def load_results(path: Path) -> dict[str, LoadResult]:
    loaded = read_lora(path)
    return {program.name: expected_load(program, loaded) for program in PROGRAMS}


@pytest.mark.parametrize("layout", LAYOUT_NAMES)
def test_rules_agree_with_observations(tmp_path: Path, layout: str) -> None:
    results = load_results(write_as(tmp_path / "a.safetensors", LORA, layout))
    assert {name for name, result in results.items() if result.layers == 560} == OBSERVED[layout]
    for name, result in results.items():
        if name in OBSERVED[layout]:
            assert (result.ignored_keys, result.refusal, result.problem) == (0, "", False)
        else:
            assert result.layers == 0
            assert bool(result.refusal) != bool(result.ignored_keys)
            assert bool(result.refusal) == (name in ("InvokeAI", "diffusers"))


@pytest.mark.parametrize("layout", LAYOUT_NAMES)
def test_rules_agree_with_diffusers(tmp_path: Path, layout: str) -> None:
    path = write_as(tmp_path / "a.safetensors", LORA, layout)
    if "diffusers" in OBSERVED[layout]:
        comparison = compare(path, SDXL_BLOCKS, LORA)
        assert (comparison.projections, comparison.adapted) == (560, 560)
        assert (comparison.missing, comparison.extra) == ((), ())
        assert comparison.error < 1e-6
    elif layout in ("comfyui", "lycoris", "onetrainer", "peft-folder", "attn-procs"):
        assert compare(path, SDXL_BLOCKS, LORA).adapted == 0
    else:
        with pytest.raises(AdapterError, match=r"diffusers .* refuses"):
            compare(path, SDXL_BLOCKS, LORA)


@pytest.mark.slow
def test_all_560_projections_at_the_size_of_sdxl(tmp_path: Path) -> None:
    config = read_json(SDXL_CONFIG / "unet/config.json")
    generator = torch.Generator().manual_seed(0)
    lora = {
        name: LoRAWeights(
            torch.randn(4, linear.in_features, generator=generator),
            torch.randn(linear.out_features, 4, generator=generator),
        )
        for name, linear in adapted_projections(meta_unet(config)).items()
    }
    write_lora(tmp_path / "a.safetensors", lora)
    comparison = compare(tmp_path / "a.safetensors", config, lora)
    assert (comparison.projections, comparison.adapted) == (560, 560)
    assert comparison.error < 2e-3


def test_output_projection_without_its_number_is_refused(tmp_path: Path) -> None:
    """140 modules would be lost in most programs."""
    path = write_as(tmp_path / "a.safetensors", LORA, "kohya-diffusers")
    down = LORA[LAYER].down
    renamed = {f"{MODULE.removesuffix('_0')}.lora_down.weight": down, f"{MODULE}.lora_down.weight": None}
    with pytest.raises(AdapterError, match="attn1_to_out"):
        read_lora(change(path, **renamed))


def test_foreign_tensor_is_refused_by_diffusers_and_by_us(tmp_path: Path) -> None:
    path = change(write_as(tmp_path / "a.safetensors", LORA, "kohya-diffusers"), merge_weight=torch.ones(1))
    with pytest.raises(AdapterError, match="merge_weight"):
        read_lora(path)
    with pytest.raises(AdapterError, match="refuses"):
        compare(path, SDXL_BLOCKS, LORA)


def test_file_with_two_namings_is_refused_by_strict_programs(tmp_path: Path) -> None:
    path = write_as(tmp_path / "a.safetensors", LORA, "kohya-diffusers")
    module = LAYOUTS["sd-scripts"].module(LAYER)
    renamed = {f"{module}.lora_down.weight": LORA[LAYER].down, f"{module}.lora_up.weight": LORA[LAYER].up}
    path = change(path, **renamed, **dict.fromkeys(f"{MODULE}.{part}" for part in PARTS))
    results = load_results(path)
    assert {name for name, result in results.items() if result.problem} == {"InvokeAI", "diffusers"}
    assert results["ComfyUI"].layers == 560


def test_invokeai_needs_a_text_projection(tmp_path: Path) -> None:
    lora = {layer: weights for layer, weights in LORA.items() if ".attn1." in layer}
    write_lora(tmp_path / "a.safetensors", lora)
    assert {name for name, result in load_results(tmp_path / "a.safetensors").items() if result.problem} == {
        "InvokeAI"
    }


def test_alphas_together_with_peft_metadata_are_refused(tmp_path: Path) -> None:
    write_lora(tmp_path / "a.safetensors", LORA, {"lora_adapter_metadata": "{}"})
    results = load_results(tmp_path / "a.safetensors")
    assert "alphas" in results["diffusers"].refusal
    assert {name for name, result in results.items() if result.problem} == {"diffusers"}


def test_changed_weight_is_noticed(tmp_path: Path) -> None:
    path = write_as(tmp_path / "a.safetensors", SMALL, "kohya-diffusers")
    other, module = 2 * SMALL[FIRST].up.half(), f"lora_unet_{FIRST.replace('.', '_')}"
    comparison = compare(change(path, **{f"{module}.lora_up.weight": other}), SMALL_BLOCKS, SMALL)
    assert comparison.layer == FIRST
    assert comparison.error == pytest.approx(0.5)


def test_missing_and_extra_layers_are_noticed(tmp_path: Path) -> None:
    path = write_as(tmp_path / "a.safetensors", SMALL, "kohya-diffusers")
    without = {layer: weights for layer, weights in SMALL.items() if layer != FIRST}
    assert compare(path, SMALL_BLOCKS, without).extra == (FIRST,)
    removed = dict.fromkeys(f"lora_unet_{FIRST.replace('.', '_')}.{part}" for part in PARTS)
    assert compare(change(path, **removed), SMALL_BLOCKS, SMALL).missing == (FIRST,)


def test_other_programs_have_no_base_for_other_shapes(tmp_path: Path) -> None:
    loaded = read_lora(write_as(tmp_path / "a.safetensors", LORA, "sd-scripts"))
    layers = {program.name: expected_load(program, loaded, fits_sdxl=False).layers for program in PROGRAMS}
    assert layers == dict.fromkeys(ALL, 0) | {"diffusers": 560}


@pytest.mark.parametrize("layout", ["diffusers", "peft", "sd-scripts", "kohya-diffusers"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_mixed_ranks_are_exact_in_diffusers(tmp_path: Path, layout: str, dtype: torch.dtype) -> None:
    """Ranks 2 and 259, as a reduced or combined LoRA has them; bfloat16 has no 259."""
    lora = {layer: LORA[layer] for layer in list(LORA)[:9]}
    lora[LAYER] = sdxl_lora(1, rank=259)[LAYER]
    exact = {
        layer: LoRAWeights(weights.down.bfloat16().float(), weights.up.bfloat16().float())
        for layer, weights in lora.items()
    }
    write_lora(tmp_path / "a.safetensors", exact, layout=layout, dtype=dtype)  # type: ignore[arg-type]
    comparison = compare(tmp_path / "a.safetensors", SDXL_BLOCKS, exact)
    assert (comparison.adapted, comparison.missing, comparison.extra) == (10, (), ())
    assert comparison.error < (5e-3 if dtype == torch.bfloat16 else 1e-6)
    for layer, weights in read_lora(tmp_path / "a.safetensors").lora.items():
        expected = exact[layer].up @ exact[layer].down
        assert float((weights.up @ weights.down - expected).norm() / expected.norm()) < 5e-3


def test_files_without_alphas_have_one_rank(tmp_path: Path) -> None:
    """diffusers 0.37 scales every layer by the alpha of one rank when ranks differ."""
    lora = {**LORA, LAYER: sdxl_lora(1, rank=8)[LAYER]}
    for layout in ("diffusers", "peft"):
        write_lora(tmp_path / "a.safetensors", lora, layout=layout)  # type: ignore[arg-type]
        assert {weights.rank for weights in read_lora(tmp_path / "a.safetensors").lora.values()} == {8}


def test_sft_file_is_loaded_by_diffusers(tmp_path: Path) -> None:
    path = write_as(tmp_path / "a.sft", SMALL, "sd-scripts")
    assert compare(path, SMALL_BLOCKS, SMALL).adapted == len(SMALL) == 88
    assert [file.name for file in tmp_path.iterdir()] == ["a.sft"]
