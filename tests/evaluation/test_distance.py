"""Distances between the results of two trainings."""

import math

import pytest
import torch

from unziplora_cli.evaluation.metrics import lora_distance, merge_distance
from unziplora_cli.method.lora import LoRAWeights


def random_weights(seed: int, rank: int = 3, out: int = 7) -> LoRAWeights:
    generator = torch.Generator().manual_seed(seed)
    down = torch.randn(rank, 5, generator=generator)
    up = torch.randn(out, rank, generator=generator)
    up[seed % out] = 0  # one unused column
    return LoRAWeights(down=down, up=up)


def test_lora_distance_is_the_distance_of_the_updates():
    recorded = {"a": random_weights(0), "b": random_weights(1), "gone": random_weights(2)}
    new = {"a": random_weights(0), "b": random_weights(3, rank=2), "come": random_weights(4)}
    updates = [
        {layer: weights.up @ weights.down for layer, weights in lora.items()} for lora in (recorded, new)
    ]
    zero = torch.zeros(7, 5)
    difference = sum(
        (updates[1].get(layer, zero) - updates[0].get(layer, zero)).square().sum()
        for layer in ("a", "b", "gone", "come")
    )
    size = max(sum(update.square().sum() for update in lora.values()) for lora in updates)
    distance = lora_distance(recorded, new)
    assert distance.relative == pytest.approx(math.sqrt(difference / size), rel=1e-5)
    # used by either: 6 of a, 7 of b, 6 of each other layer; by both: 6 of a, 5 of b
    assert distance.columns == pytest.approx(11 / 25)


def test_other_factors_of_the_same_update_have_no_distance():
    weights = random_weights(0)
    turned = LoRAWeights(down=weights.down * 4, up=weights.up / 4)
    assert lora_distance({"a": weights}, {"a": turned}).relative < 1e-7
    assert lora_distance({"a": weights}, {"a": weights}).relative == 0
    assert lora_distance({"a": weights}, {"a": weights}).columns == 1


def test_small_differences_are_not_rounded_away():
    weights = random_weights(0)
    moved = LoRAWeights(down=weights.down.double(), up=weights.up.double() * (1 + 1e-6))
    assert lora_distance({"a": weights}, {"a": moved}).relative == pytest.approx(1e-6, rel=1e-3)


def test_empty_loras():
    assert lora_distance({}, {}).relative == 0
    assert lora_distance({}, {"a": random_weights(0)}).relative == 1


def test_merge_distance_is_the_largest_difference():
    recorded = {"a": torch.tensor([0.0, 1.0]), "b": torch.tensor([0.5])}
    assert merge_distance(recorded, recorded) == 0
    new = {"a": torch.tensor([0.25, 1.0]), "b": torch.tensor([0.625])}
    assert merge_distance(recorded, new) == 0.25
    assert merge_distance(recorded, {"a": recorded["a"]}) == 1
    assert merge_distance({}, {}) == 0
