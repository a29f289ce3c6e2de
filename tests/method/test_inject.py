import json
from collections import Counter
from pathlib import Path

import pytest
import torch
from diffusers import UNet2DConditionModel

from benchmarks.parity import load_branch
from unziplora_cli.method.blocks import policy
from unziplora_cli.method.inject import (
    adapted_projections,
    eject,
    extract,
    extract_merge,
    inject,
)
from unziplora_cli.method.layer import BRANCHES

META = json.loads((Path(__file__).parents[1] / "golden" / "golden_a" / "meta.json").read_text())

SDXL = {
    "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
    "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
    "block_out_channels": [320, 640, 1280],
    "transformer_layers_per_block": [1, 2, 10],
    "attention_head_dim": [5, 10, 20],
    "cross_attention_dim": 2048,
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816,
}


@pytest.fixture
def unet() -> UNet2DConditionModel:
    torch.manual_seed(0)
    return UNet2DConditionModel.from_config(META["unet_config"]).eval()


def test_sdxl_has_560_projections_in_the_blocks_of_the_paper() -> None:
    with torch.device("meta"):
        projections = adapted_projections(UNet2DConditionModel.from_config(SDXL))
    assert len(projections) == 560
    assert Counter(policy(name) for name in projections) == {"both": 272, "style": 160, "content": 128}
    assert {policy(name, block_separation=False) for name in projections} == {"both"}


def test_ejection_is_the_inverse_of_injection(unet: UNet2DConditionModel) -> None:
    before = dict(unet.named_modules())
    state = {key: value.clone() for key, value in unet.state_dict().items()}
    inject(unet, 4)
    eject(unet)
    assert dict(unet.named_modules()) == before
    after = unet.state_dict()
    assert after.keys() == state.keys()
    assert all(torch.equal(after[key], state[key]) for key in state)


def test_only_the_branches_are_trainable(unet: UNet2DConditionModel) -> None:
    inject(unet, 4)
    trainable = {name for name, p in unet.named_parameters() if p.requires_grad}
    assert trainable
    assert all(name.endswith((".down", ".up")) for name in trainable)
    assert len(trainable) == 4 * len(META["layers"])


def test_start_values_depend_only_on_the_seed(unet: UNet2DConditionModel) -> None:
    torch.manual_seed(7)
    first = extract(inject(unet, 4, seed=3), "style")
    eject(unet)
    torch.manual_seed(8)
    second = extract(inject(unet.to(torch.bfloat16), 4, seed=3), "style")
    eject(unet)
    third = extract(inject(unet, 4, seed=4), "style")
    name = next(iter(first))
    assert all(torch.equal(first[n].up, second[n].up) for n in first)
    assert not torch.equal(first[name].up, third[name].up)


def test_injecting_twice_raises(unet: UNet2DConditionModel) -> None:
    inject(unet, 4)
    with pytest.raises(ValueError, match="adapted already"):
        inject(unet, 4)


def test_extracted_weights_load_back(unet: UNet2DConditionModel) -> None:
    layers = inject(unet, 4)
    for layer in layers.values():
        for branch in layer.branches():
            branch.merge.data.uniform_()
    saved = {b: (extract(layers, b), extract_merge(layers, b)) for b in BRANCHES}
    eject(unet)
    again = inject(unet, 4, seed=9)
    for branch in BRANCHES:
        load_branch(again, branch, *saved[branch])
    for branch in BRANCHES:
        lora, merge = saved[branch]
        assert all(
            torch.equal(w.up, lora[n].up) and torch.equal(w.down, lora[n].down)
            for n, w in extract(again, branch).items()
        )
        assert all(torch.equal(m, merge[n]) for n, m in extract_merge(again, branch).items())
