import pytest
import torch
from torch import nn

from unziplora_cli.method.importance import column_scores, select_columns, top_columns
from unziplora_cli.method.layer import DualLoRALinear
from unziplora_cli.method.schedule import Action
from unziplora_cli.method.separation import Separation


def with_gradients(seed: int = 0) -> DualLoRALinear:
    layer = DualLoRALinear(nn.Linear(16, 20), rank=4, generator=torch.Generator().manual_seed(seed))
    torch.manual_seed(seed)
    layer(torch.randn(6, 16)).pow(3).sum().backward()
    return layer


def test_score_is_the_directional_derivative_of_the_update() -> None:
    """dW of a small gradient step on A and B, by finite differences in float64, gives the magnitude score."""
    layer = with_gradients().double()
    branch = layer.content
    down, up = branch.down.detach(), branch.up.detach()
    step = 1e-7
    moved = (down + step * branch.down.grad).T @ (up + step * branch.up.grad).T
    change = (moved - down.T @ up.T) / step
    expected = (down.T @ up.T * change).abs().mean(dim=0)
    torch.testing.assert_close(column_scores(branch, "magnitude"), expected, rtol=1e-4, atol=1e-9)


def test_loss_scale_lowers_the_threshold() -> None:
    branch = with_gradients().content
    plain = column_scores(branch, "count", threshold=1e-1)
    scaled = column_scores(branch, "count", threshold=1e-1 * 65536, loss_scale=65536)
    torch.testing.assert_close(plain, scaled)
    assert 0 < plain.mean() < 1


def test_strict_top_drops_the_last_and_all_ties() -> None:
    scores = torch.tensor([0.9, 0.5, 0.7, 0.5, 0.1, 0.2, 0.3, 0.0, 0.6, 0.8])
    assert top_columns(scores, 0.4, strict=True).nonzero().flatten().tolist() == [0, 2, 9]
    assert top_columns(scores, 0.6, strict=True).nonzero().flatten().tolist() == [0, 2, 8, 9]
    assert not top_columns(torch.ones(10), 0.5, strict=True).any()
    assert not top_columns(scores, 0.05, strict=True).any()


def test_exact_top_takes_n_columns_even_with_ties() -> None:
    assert top_columns(torch.ones(10), 0.5, strict=False).sum() == 5
    assert not top_columns(torch.full((10,), -torch.inf), 0.5, strict=False).any()


def test_style_avoids_the_columns_of_content() -> None:
    layer = with_gradients()
    for branch in layer.branches():
        branch.score.copy_(torch.arange(20.0))
    select_columns(layer, "both", 0.2, strict=False)
    assert layer.content.mask.nonzero().flatten().tolist() == [16, 17, 18, 19]
    assert layer.style.mask.nonzero().flatten().tolist() == [12, 13, 14, 15]


def test_overlap_is_allowed_without_avoidance() -> None:
    layer = with_gradients()
    for branch in layer.branches():
        branch.score.copy_(torch.arange(20.0))
    select_columns(layer, "both", 0.2, avoid_overlap=False, strict=False)
    assert torch.equal(layer.content.mask, layer.style.mask)


@pytest.mark.parametrize("selective", ["content", "style"])
def test_the_owner_of_a_block_keeps_every_column(selective: str) -> None:
    layer = with_gradients()
    for branch in layer.branches():
        branch.score.copy_(torch.arange(20.0))
    select_columns(layer, selective, 0.2, strict=False)  # type: ignore[arg-type]
    chosen, owner = (layer.content, layer.style) if selective == "content" else (layer.style, layer.content)
    assert owner.mask.all()
    assert chosen.mask.sum() == 4


def test_masks_only_grow() -> None:
    layer = with_gradients()
    layer.content.score.copy_(torch.arange(20.0))
    select_columns(layer, "content", 0.1, strict=False)
    layer.content.score.copy_(-torch.arange(20.0))
    select_columns(layer, "content", 0.1, strict=False)
    assert layer.content.mask.nonzero().flatten().tolist() == [0, 1, 18, 19]


def test_accumulated_scores_are_the_sum_over_the_importance_steps() -> None:
    layers = {"mid_block.attentions.0.transformer_blocks.0.attn1.to_q": (layer := with_gradients())}
    one = column_scores(layer.content, "magnitude")
    accumulating = Separation(score="magnitude", accumulate=True)
    for action in (Action.OPEN, Action.SCORE, Action.SCORE, Action.SELECT):
        accumulating.apply(action, layers)
    torch.testing.assert_close(layer.content.score, 3 * one)
    layer.content.score.zero_()
    last_only = Separation(score="magnitude")
    for action in (Action.OPEN, Action.SCORE, Action.SELECT):
        last_only.apply(action, layers)
    torch.testing.assert_close(layer.content.score, one)


def test_merge_gradients_are_gated_to_the_columns_that_may_learn() -> None:
    for own_columns in (False, True):
        layer = with_gradients()
        layer.content.mask[:6] = True
        layer.style.mask[4:9] = True
        for branch in layer.branches():
            branch.merge.grad = torch.ones(20)
        Separation(own_columns=own_columns).apply(Action.GATE, {"x": layer})
        assert layer.content.merge.grad.sum() == (6 if own_columns else 2)
        assert layer.style.merge.grad.sum() == (5 if own_columns else 2)
