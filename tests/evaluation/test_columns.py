"""What the files tell of columns, against counts by hand and against the masks of live layers."""

import math

import pytest
import torch
from diffusers import UNet2DConditionModel
from unziplora_cli.evaluation.columns import count_by_block, merge_cosine, read_columns, shared_share

from tests.tiny_base import unet_config
from unziplora_cli.accel.merged_unet import Branches
from unziplora_cli.method.inject import extract, extract_merge, inject
from unziplora_cli.method.lora import LoRAWeights
from unziplora_cli.method.separation import shared_columns
from unziplora_cli.training.checkpoint import closed

DOWN = "down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q"
MID = "mid_block.attentions.0.transformer_blocks.0.attn1.to_q"
UP = "up_blocks.0.attentions.1.transformer_blocks.0.attn2.to_v"


def lora(**open_rows: list[int]) -> dict[str, LoRAWeights]:
    """Layers of four columns, of which some are open."""
    layers = {"down": DOWN, "mid": MID, "up": UP}
    weights = {}
    for name, rows in open_rows.items():
        up = torch.zeros(4, 2)
        up[rows] = 1.0
        weights[layers[name]] = LoRAWeights(down=torch.ones(2, 3), up=up)
    return weights


def test_columns_are_counted_by_block_in_the_order_of_the_network():
    layers = read_columns(Branches(lora(up=[0], mid=[0, 1]), lora(down=[3], mid=[1, 2, 3], up=[0])))
    found = [
        (each.block, each.content, each.style, each.shared, each.total) for each in count_by_block(layers)
    ]
    assert found == [
        ("down_blocks.1.attentions.0", 0, 1, 0, 4),
        ("mid_block.attentions.0", 2, 3, 1, 4),
        ("up_blocks.0.attentions.1", 1, 1, 1, 4),
    ]
    assert shared_share(layers) == pytest.approx(2 / 6)


def test_the_cosine_is_of_merge_weights_on_open_columns():
    merge = {DOWN: torch.tensor([0.6, 0.8, 0.9, 0.9])}
    other = {DOWN: torch.tensor([1.0, 0.5, 0.9, 0.9])}
    layers = read_columns(Branches(lora(down=[0, 1]), lora(down=[1, 2]), merge, other))
    assert merge_cosine(layers) == pytest.approx(0.8 * 0.5 / (1.0 * math.hypot(0.5, 0.9)))


def test_the_cosine_is_1_for_equal_branches_and_0_for_disjoint_ones():
    assert merge_cosine(read_columns(Branches(lora(up=[0, 1]), lora(up=[0, 1])))) == pytest.approx(1.0)
    assert merge_cosine(read_columns(Branches(lora(up=[0]), lora(up=[1])))) == 0.0
    assert merge_cosine(read_columns(Branches(lora(up=[]), lora(up=[])))) == 0.0


def test_a_layer_that_neither_lora_changes_is_known_from_the_merge_weights():
    merge = {MID: torch.ones(4)}
    (block,) = count_by_block(read_columns(Branches({}, {}, merge, merge)))
    assert (block.content, block.style, block.total) == (0, 0, 4)


def test_files_tell_the_masks_of_the_layers_they_came_from():
    layers = inject(UNet2DConditionModel(**unet_config()), rank=2)
    generator = torch.Generator().manual_seed(0)
    for layer in layers.values():
        for branch in layer.branches():
            branch.mask.copy_(torch.rand(branch.mask.shape, generator=generator) < 0.3)
    with closed(layers):
        parts = [extract(layers, branch) for branch in ("content", "style")]
        merges = [extract_merge(layers, branch) for branch in ("content", "style")]
    blocks = count_by_block(read_columns(Branches(*parts, *merges)))
    shared, total = shared_columns(layers.values())
    assert sum(block.shared for block in blocks) == shared
    assert sum(block.total for block in blocks) == total
    assert sum(block.content for block in blocks) == sum(int(x.content.mask.sum()) for x in layers.values())
    assert len(blocks) == 11
