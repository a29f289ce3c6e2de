"""Curves and trackers that are not installed."""

import importlib.util
from collections.abc import Callable

import pytest
import torch

from tests.training.conftest import Parts
from unziplora_cli.cli._errors import hint
from unziplora_cli.errors import UsageError
from unziplora_cli.training.callbacks import check_tracker, merge_weight_curves


def test_a_missing_tracker_is_named_with_the_line_to_type(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    check_tracker("none")
    with pytest.raises(UsageError, match="tensorboard") as caught:
        check_tracker("tensorboard")
    assert hint(caught.value) == "pip install 'unziplora[tensorboard]'"


def test_merge_curves_are_the_mean_and_least_of_each_block(make_parts: Callable[[], Parts]) -> None:
    layers = make_parts().layers
    block = [name for name in layers if name.startswith("mid_block.attentions.0.")]
    with torch.no_grad():
        layers[block[0]].style.merge[0] = 0.25
    curves = merge_weight_curves(layers)
    columns = sum(layers[name].out_features for name in block)
    assert curves["merge/style/mid_block.attentions.0/min"] == 0.25
    assert curves["merge/style/mid_block.attentions.0/mean"] == pytest.approx(1 - 0.75 / columns)
    assert curves["merge/content/mid_block.attentions.0/min"] == 1.0
    assert len(curves) == 2 * 2 * 11  # statistics, branches, attention groups of SDXL's U-Net
