import json
from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusionXLPipeline, UNet2DConditionModel
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from tests.sdxl.adapters import random_lora
from unziplora_cli.adapters.layouts import LAYOUTS
from unziplora_cli.adapters.lora_file import read_lora, write_lora
from unziplora_cli.errors import AdapterError
from unziplora_cli.method.inject import adapted_projections
from unziplora_cli.method.lora import LoRAWeights

GOLDEN = Path(__file__).parents[1] / "golden/golden_a"
KOHYA = LAYOUTS["sd-scripts"]
Q = "down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q"
OUT = "mid_block.attentions.0.transformer_blocks.1.attn2.to_out.0"


@pytest.fixture(scope="module")
def unet(tiny_base: Path) -> UNet2DConditionModel:
    return UNet2DConditionModel.from_pretrained(tiny_base / "unet", torch_dtype=torch.float32)


def small_lora(rank: int = 2) -> dict[str, LoRAWeights]:
    return {name: LoRAWeights(torch.ones(rank, 3), torch.full((5, rank), 0.5)) for name in (Q, OUT)}


def delta(weights: LoRAWeights) -> torch.Tensor:
    return weights.up @ weights.down


@pytest.mark.parametrize("layout", ["sd-scripts", "kohya-diffusers", "diffusers", "peft"])
def test_lora_round_trips(unet: UNet2DConditionModel, tmp_path: Path, layout: str) -> None:
    lora = random_lora(unet, seed=1)
    path = tmp_path / "a.safetensors"
    write_lora(path, lora, {"ss_output_name": "fox"}, layout=layout)  # type: ignore[arg-type]
    loaded = read_lora(path)
    assert (loaded.layout, loaded.rank, loaded.metadata["ss_output_name"]) == (layout, 4, "fox")
    assert loaded.lora.keys() == lora.keys()
    for name, weights in lora.items():
        assert torch.equal(loaded.lora[name].down, weights.down)
        assert torch.equal(loaded.lora[name].up, weights.up)
    assert [file.name for file in tmp_path.iterdir()] == ["a.safetensors"]


def applied_by_diffusers(tiny_base: Path, path: Path) -> dict[str, torch.Tensor]:
    """What diffusers adds to each projection's weight when it loads and fuses the file."""
    pipeline = StableDiffusionXLPipeline.from_pretrained(
        tiny_base, add_watermarker=False, local_files_only=True
    ).to(torch.float32)
    before = {name: p.weight.clone() for name, p in adapted_projections(pipeline.unet).items()}
    pipeline.load_lora_weights(path.parent, weight_name=path.name)
    pipeline.fuse_lora()
    pipeline.unload_lora_weights()
    after = adapted_projections(pipeline.unet)
    return {name: after[name].weight - weight for name, weight in before.items()}


@pytest.mark.parametrize("layout", ["sd-scripts", "kohya-diffusers", "diffusers", "peft"])
def test_diffusers_applies_every_layer_exactly(
    unet: UNet2DConditionModel, tiny_base: Path, tmp_path: Path, layout: str
) -> None:
    lora = random_lora(unet, seed=2)
    other_rank = random_lora(unet, seed=3, rank=2)
    lora[Q] = other_rank[Q]
    silent = next(name for name in lora if name.startswith("up_blocks.1"))
    lora[silent] = LoRAWeights(lora[silent].down, torch.zeros_like(lora[silent].up))
    path = tmp_path / "a.safetensors"
    write_lora(path, lora, layout=layout)  # type: ignore[arg-type]
    assert not any(silent.replace(".", "_") in key or silent in key for key in load_file(path))

    applied = applied_by_diffusers(tiny_base, path)
    assert len(applied) == 136
    for name, weights in lora.items():
        torch.testing.assert_close(applied[name], delta(weights), rtol=1e-4, atol=1e-5)


def test_alpha_scales_the_update_as_in_diffusers(
    unet: UNet2DConditionModel, tiny_base: Path, tmp_path: Path
) -> None:
    path = tmp_path / "a.safetensors"
    write_lora(path, random_lora(unet, seed=4))
    tensors = {key: torch.tensor(3) if key.endswith(".alpha") else t for key, t in load_file(path).items()}
    save_file(tensors, path)
    applied = applied_by_diffusers(tiny_base, path)
    for name, weights in read_lora(path).lora.items():
        torch.testing.assert_close(applied[name], delta(weights), rtol=1e-4, atol=1e-5)


def test_alpha_is_read_per_layer(tmp_path: Path) -> None:
    """The update is alpha / rank * up @ down; without alpha, up @ down."""
    path = damaged(tmp_path, **{f"{KOHYA.module(Q)}.alpha": torch.tensor([6.0])})
    q, out = read_lora(path).lora[Q], read_lora(path).lora[OUT]
    assert torch.equal(delta(q), 3 * delta(small_lora()[Q]))
    assert torch.equal(delta(out), delta(small_lora()[OUT]))
    path = damaged(tmp_path, **{f"{KOHYA.module(Q)}.alpha": None})
    assert torch.equal(delta(read_lora(path).lora[Q]), delta(small_lora()[Q]))


def test_files_written_by_diffusers_are_read(
    unet: UNet2DConditionModel, tiny_base: Path, tmp_path: Path
) -> None:
    """PEFT names with an alpha in the header, as save_lora_weights writes them."""
    from peft import LoraConfig
    from peft.utils import get_peft_model_state_dict

    adapted = UNet2DConditionModel.from_pretrained(tiny_base / "unet", torch_dtype=torch.float32)
    config = LoraConfig(r=4, lora_alpha=2, target_modules=["to_q", "to_k", "to_v", "to_out.0"])
    adapted.add_adapter(config)
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_" in name:
                parameter.normal_()
    StableDiffusionXLPipeline.save_lora_weights(
        tmp_path,
        unet_lora_layers=get_peft_model_state_dict(adapted),
        unet_lora_adapter_metadata=config.to_dict() | {"target_modules": sorted(config.target_modules)},
    )
    loaded = read_lora(tmp_path / "pytorch_lora_weights.safetensors")
    assert (loaded.layout, len(loaded.lora)) == ("peft", 136)
    layer = adapted.get_submodule(Q)
    torch.testing.assert_close(delta(loaded.lora[Q]), layer.get_delta_weight("default"))


@pytest.mark.parametrize(("prefix", "layout"), [("unet.", "diffusers"), ("unet.unet.", "paper")])
def test_older_diffusers_names_are_read(tmp_path: Path, prefix: str, layout: str) -> None:
    tensors = {}
    for name, weights in small_lora().items():
        tensors[f"{prefix}{name}.lora.down.weight"] = weights.down
        tensors[f"{prefix}{name}.lora.up.weight"] = weights.up
    save_file(tensors, tmp_path / "a.safetensors")
    loaded = read_lora(tmp_path / "a.safetensors")
    assert loaded.layout == layout
    assert {name: delta(w).tolist() for name, w in loaded.lora.items()} == {
        name: delta(w).tolist() for name, w in small_lora().items()
    }


@pytest.mark.parametrize("branch", ["content", "style"])
def test_files_of_the_reference_implementation_are_read(branch: str) -> None:
    loaded = read_lora(GOLDEN / f"saved/m_{branch}/pytorch_lora_weights.safetensors")
    layers = json.loads((GOLDEN / "meta.json").read_text())["layers"]
    assert loaded.layout == "paper"
    assert (len(loaded.lora), loaded.rank) == (len(layers), 4)
    with safe_open(GOLDEN / f"saved/m_{branch}/pytorch_lora_weights.safetensors", "pt") as file:
        assert torch.equal(loaded.lora[Q].up, file.get_tensor(f"unet.unet.{Q}.lora.up.weight"))


def test_zero_lora_makes_an_empty_file(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    write_lora(path, {Q: LoRAWeights(torch.ones(2, 3), torch.zeros(5, 2))})
    assert read_lora(path).lora == {}


SIDES = st.sampled_from(
    ["down_blocks.1", "down_blocks.2", "mid_block", "up_blocks.0", "up_blocks.1", "up_blocks.10"]
)


@given(SIDES, st.integers(0, 12), st.integers(0, 12), st.sampled_from(["attn1", "attn2"]), st.integers(0, 3))
def test_layer_names_round_trip_with_underscores(
    side: str, attention: int, block: int, kind: str, projection: int
) -> None:
    last = ("to_q", "to_k", "to_v", "to_out.0")[projection]
    layer = f"{side}.attentions.{attention}.transformer_blocks.{block}.{kind}.{last}"
    layout = LAYOUTS["kohya-diffusers"]
    assert layout.split(f"{layout.module(layer)}.alpha") == (layer, "alpha")


def damaged(tmp_path: Path, **changes: torch.Tensor | None) -> Path:
    """A kohya file with some tensors of layer Q replaced or (None) removed."""
    path = tmp_path / "a.safetensors"
    write_lora(path, small_lora())
    tensors = load_file(path)
    for part, tensor in changes.items():
        key = part if "." in part else f"{KOHYA.module(Q)}.{part}.weight"
        tensors.pop(key, None)
        if tensor is not None:
            tensors[key] = tensor
    save_file(tensors, path)
    return path


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"lora_up": None}, "one half"),
        ({"lora_up": torch.ones(5, 3)}, "do not match"),
        ({"lora_down": torch.ones(2, 3, 1, 1)}, "do not match"),
        ({"lora_up": torch.full((5, 2), torch.inf)}, "infinite"),
        ({"lora_unet_mid_block_resnets_0.lora_up.weight": torch.ones(1)}, "mid_block_resnets_0"),
        ({"lora_te1_text_model.lora_up.weight": torch.ones(1)}, "lora_te1"),
    ],
)
def test_damaged_file_is_refused(tmp_path: Path, changes: dict[str, torch.Tensor | None], why: str) -> None:
    with pytest.raises(AdapterError, match=why):
        read_lora(damaged(tmp_path, **changes))


def test_file_that_is_not_a_lora_is_explained(tmp_path: Path) -> None:
    whole = damaged(tmp_path)
    with pytest.raises(AdapterError, match="no file"):
        read_lora(tmp_path / "missing.safetensors")
    (tmp_path / "short.safetensors").write_bytes(whole.read_bytes()[:-50])
    with pytest.raises(AdapterError, match="not a whole safetensors file"):
        read_lora(tmp_path / "short.safetensors")
    (tmp_path / "empty.safetensors").write_bytes(b"")
    with pytest.raises(AdapterError, match="not a whole safetensors file"):
        read_lora(tmp_path / "empty.safetensors")
    save_file({f"model.{i}": torch.ones(1) for i in range(9)}, tmp_path / "model.safetensors")
    with pytest.raises(AdapterError, match=r"not a LoRA .*model\.0, model\.1, model\.2 and 6 more"):
        read_lora(tmp_path / "model.safetensors")


def test_failed_write_leaves_the_older_file(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    write_lora(path, small_lora())
    before = path.read_bytes()
    with pytest.raises(TypeError):
        write_lora(path, small_lora(), {"steps": 3})  # type: ignore[dict-item]
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["a.safetensors"]
