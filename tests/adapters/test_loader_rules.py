"""Which formats other programs take: what their own loading code did with such files, replayed."""

from pathlib import Path

import pytest
import torch

from tests.adapters.loras import FORMATS, SDXL_BLOCKS, change, sdxl_lora, write_as
from unziplora_cli.adapters.loader_rules import PROGRAMS, READERS, LoadResult, simulate_load
from unziplora_cli.adapters.lora_file import read_lora, write_lora
from unziplora_cli.errors import AdapterError
from unziplora_cli.method.inject import adapted_projections
from unziplora_cli.method.lora import LoRAWeights
from unziplora_cli.sdxl.base import SDXL_CONFIG
from unziplora_cli.sdxl.meta import compare, meta_unet
from unziplora_cli.sdxl.shape import read_json

LORA = sdxl_lora()
MODULE = "lora_unet_mid_block_attentions_0_transformer_blocks_3_attn1_to_out_0"


def load_results(path: Path) -> dict[str, LoadResult]:
    loaded = read_lora(path)
    return {each.name: simulate_load(each, loaded.keys, loaded.metadata) for each in PROGRAMS}


@pytest.mark.parametrize("layout", FORMATS)
def test_a_program_takes_all_560_projections_or_none(tmp_path: Path, layout: str) -> None:
    """As observed: ComfyUI takes none of the formats peft and diffusers, diffusers none of ComfyUI's own."""
    found = load_results(write_as(tmp_path / "a.safetensors", LORA, layout))
    for name, each in found.items():
        takes = name in READERS[layout]
        assert len(each.layers) == (560 if takes else 0)
        assert each.complete == takes
    assert READERS["kohya"] == tuple(found)


@pytest.mark.parametrize("layout", FORMATS)
def test_diffusers_itself_agrees(tmp_path: Path, layout: str) -> None:
    path = write_as(tmp_path / "a.safetensors", LORA, layout)
    if "diffusers" in READERS[layout]:
        found = compare(path, SDXL_BLOCKS, LORA)
        assert (found.projections, found.adapted, found.missing, found.extra) == (560, 560, (), ())
        assert found.error < 1e-6
    elif layout == "comfyui":
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
    found = compare(tmp_path / "a.safetensors", config, lora)
    assert (found.projections, found.adapted) == (560, 560)
    assert found.error < 2e-3


def test_an_output_projection_without_its_number_is_left_out(tmp_path: Path) -> None:
    path = write_as(tmp_path / "a.safetensors", LORA, "kohya")
    keys = [key.replace("to_out_0", "to_out") for key in read_lora(path).keys]
    for program in PROGRAMS:
        found = simulate_load(program, keys, {})
        assert len(found.layers) == 420
        assert len(found.left_out) == 3 * 140
        assert bool(found.refusal) == (program.unknown == "refused")


def test_one_foreign_key_makes_diffusers_refuse_and_comfyui_warn(tmp_path: Path) -> None:
    path = write_as(tmp_path / "a.safetensors", LORA, "kohya")
    keys = (*read_lora(path).keys, "merge_weight")
    found = {each.name: simulate_load(each, keys, {}) for each in PROGRAMS}
    assert found["diffusers"].refusal
    assert not found["ComfyUI"].refusal
    assert found["ComfyUI"].left_out == ("merge_weight",)
    with pytest.raises(AdapterError, match="refuses"):
        compare(change(path, merge_weight=torch.ones(1)), SDXL_BLOCKS, LORA)


def test_alphas_together_with_peft_metadata_are_refused(tmp_path: Path) -> None:
    keys = read_lora(write_as(tmp_path / "a.safetensors", LORA, "kohya")).keys
    (program,) = (each for each in PROGRAMS if each.name == "diffusers")
    assert "alphas" in simulate_load(program, keys, {"lora_adapter_metadata": "{}"}).refusal


def test_half_a_pair_is_no_layer(tmp_path: Path) -> None:
    keys = read_lora(write_as(tmp_path / "a.safetensors", LORA, "kohya")).keys
    keys = tuple(key for key in keys if key != f"{MODULE}.lora_up.weight")
    assert all(len(simulate_load(program, keys, {}).layers) == 559 for program in PROGRAMS)


def test_a_changed_number_is_noticed(tmp_path: Path) -> None:
    path = write_as(tmp_path / "a.safetensors", LORA, "kohya")
    layer = "mid_block.attentions.0.transformer_blocks.3.attn1.to_out.0"
    other = 2 * LORA[layer].up.half()
    found = compare(change(path, **{f"{MODULE}.lora_up.weight": other}), SDXL_BLOCKS, LORA)
    assert found.layer == layer
    assert found.error == pytest.approx(0.5)


def test_layers_too_few_and_too_many_are_noticed(tmp_path: Path) -> None:
    path = write_as(tmp_path / "a.safetensors", LORA, "kohya")
    gone = dict.fromkeys(f"{MODULE}.{part}" for part in ("lora_up.weight", "lora_down.weight", "alpha"))
    found = compare(change(path, **gone), SDXL_BLOCKS, LORA)
    assert len(found.missing) == 1
    first = next(iter(LORA))
    without = {layer: weights for layer, weights in LORA.items() if layer != first}
    path = write_as(tmp_path / "a.safetensors", LORA, "kohya")
    assert compare(path, SDXL_BLOCKS, without).extra == (first,)
