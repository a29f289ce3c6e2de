"""Columns read from LoRA files, against counts by hand and against the masks of live layers."""

import math

import numpy as np
import pytest
import torch
from diffusers import UNet2DConditionModel

from tests.tiny_base import unet_config
from unziplora_cli.adapters.columns import (
    COLORS,
    OWNERS,
    ColumnCounts,
    column_map,
    count_columns,
    group_by_block,
    merge_cosine,
    read_columns,
    shared_share,
)
from unziplora_cli.method.inject import extract, extract_merge, inject
from unziplora_cli.method.lora import LoRAPair, LoRAWeights
from unziplora_cli.method.separation import shared_columns
from unziplora_cli.training.checkpoint import chosen_columns_only

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


def test_columns_are_counted_by_block_in_network_order():
    layers = read_columns(LoRAPair(lora(up=[0], mid=[0, 1]), lora(down=[3], mid=[1, 2, 3], up=[0])))
    blocks = group_by_block(layers)
    assert [(name, count_columns(block)) for name, block in blocks.items()] == [
        ("down_blocks.1.attentions.0", ColumnCounts(content=0, style=1, shared=0, total=4)),
        ("mid_block.attentions.0", ColumnCounts(content=2, style=3, shared=1, total=4)),
        ("up_blocks.0.attentions.1", ColumnCounts(content=1, style=1, shared=1, total=4)),
    ]
    assert shared_share(layers) == pytest.approx(2 / 6)
    mid = count_columns(blocks["mid_block.attentions.0"])
    assert [mid.owned_by(owner) for owner in OWNERS] == [0, 2, 1, 1]
    assert [mid.percent(owner) for owner in OWNERS] == [0, 50, 25, 25]


def test_projections_of_a_block_are_sorted_by_number():
    names = [f"mid_block.attentions.0.transformer_blocks.{number}.attn1.to_q" for number in (10, 9, 1)]
    weights = {name: LoRAWeights(torch.ones(1, 2), torch.ones(2, 1)) for name in names}
    (block,) = group_by_block(read_columns(LoRAPair(weights, weights))).values()
    assert list(block) == names[::-1]


def test_cosine_covers_merge_weights_of_used_columns_only():
    content_merge = {DOWN: torch.tensor([0.6, 0.8, 0.9, 0.9])}
    style_merge = {DOWN: torch.tensor([1.0, 0.5, 0.9, 0.9])}
    layers = read_columns(LoRAPair(lora(down=[0, 1]), lora(down=[1, 2]), content_merge, style_merge))
    assert merge_cosine(layers) == pytest.approx(0.8 * 0.5 / (1.0 * math.hypot(0.5, 0.9)))


def test_cosine_is_1_for_equal_branches_and_0_for_disjoint_ones():
    assert merge_cosine(read_columns(LoRAPair(lora(up=[0, 1]), lora(up=[0, 1])))) == pytest.approx(1.0)
    assert merge_cosine(read_columns(LoRAPair(lora(up=[0]), lora(up=[1])))) == 0.0
    assert merge_cosine(read_columns(LoRAPair(lora(up=[]), lora(up=[])))) == 0.0


def test_merge_weights_alone_define_a_layer():
    merge = {MID: torch.ones(4)}
    layers = read_columns(LoRAPair({}, {}, merge, merge))
    assert count_columns(layers) == ColumnCounts(content=0, style=0, shared=0, total=4)


def test_files_reproduce_the_masks_of_the_layers_they_came_from():
    layers = inject(UNet2DConditionModel(**unet_config()), rank=2)
    generator = torch.Generator().manual_seed(0)
    for layer in layers.values():
        for branch in layer.branches():
            branch.mask.copy_(torch.rand(branch.mask.shape, generator=generator) < 0.3)
    with chosen_columns_only(layers):
        loras = [extract(layers, branch) for branch in ("content", "style")]
        merges = [extract_merge(layers, branch) for branch in ("content", "style")]
    columns = read_columns(LoRAPair(*loras, *merges))
    shared, total = shared_columns(layers.values())
    counts = count_columns(columns)
    assert (counts.shared, counts.total) == (shared, total)
    assert counts.content == sum(int(layer.content.mask.sum()) for layer in layers.values())
    assert len(group_by_block(columns)) == 11


def random_masks(widths: list[int]) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    generator = torch.Generator().manual_seed(0)
    return {
        str(number): (
            torch.rand(width, generator=generator) < 0.4,
            torch.rand(width, generator=generator) < 0.3,
        )
        for number, width in enumerate(widths)
    }


def test_every_column_on_a_map_has_the_color_of_its_owner():
    masks = random_masks([96] * 12)
    image = column_map(masks, min_width=720, min_height=56)
    pixels = np.asarray(image.convert("RGB"))
    assert pixels.shape[1] >= 720
    height, width = pixels.shape[0] // 12, pixels.shape[1] // 96
    cells = pixels[height // 2 :: height, width // 2 :: width]  # [12 projections, 96 columns, RGB]
    for row, (content, style) in zip(cells, masks.values(), strict=True):
        assert (row == np.array(COLORS)[2 * content.int() + style.int()]).all()


def test_narrow_projections_are_stretched_to_the_widest():
    masks = random_masks([32, 1280])
    owners = np.asarray(column_map(masks, min_width=720, min_height=56))
    assert owners.shape == (56, 1280)
    content, style = masks["0"]
    assert (owners[0, ::40] == (2 * content.int() + style.int()).numpy()).all()
