"""Two LoRAs in one, and LoRAs of a lower rank, against dense matrices."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from unziplora_cli.adapters.lora_file import combine
from unziplora_cli.adapters.rank import reduce_rank
from unziplora_cli.method.lora import LoRAWeights


def draw(seed: int, out: int, inside: int, rank: int) -> LoRAWeights:
    generator = torch.Generator().manual_seed(seed)
    return LoRAWeights(
        torch.randn(rank, inside, generator=generator), torch.randn(out, rank, generator=generator)
    )


def dense(weights: LoRAWeights) -> torch.Tensor:
    return weights.up.double() @ weights.down.double()


def test_a_combination_is_the_weighted_sum_of_both_updates() -> None:
    content = {"both": draw(0, 6, 5, 2), "content": draw(1, 6, 5, 2)}
    style = {"both": draw(2, 6, 5, 3), "style": draw(3, 6, 5, 3)}
    m_content = {"both": torch.rand(6), "content": torch.rand(6)}
    m_style = {"both": torch.rand(6)}  # and none for the layer of style alone
    combined = combine(content, style, m_content, m_style)
    assert {layer: weights.rank for layer, weights in combined.items()} == {
        "both": 5,
        "content": 2,
        "style": 3,
    }
    wanted = {
        "both": m_content["both"][:, None] * dense(content["both"])
        + m_style["both"][:, None] * dense(style["both"]),
        "content": m_content["content"][:, None] * dense(content["content"]),
        "style": dense(style["style"]),
    }
    for layer, update in wanted.items():
        torch.testing.assert_close(dense(combined[layer]), update, rtol=1e-6, atol=1e-6)


@given(st.integers(0, 99), st.integers(1, 12), st.integers(1, 12), st.integers(1, 6), st.integers(1, 6))
def test_a_lower_rank_is_the_nearest_and_its_error_is_told(
    seed: int, out: int, inside: int, rank: int, kept: int
) -> None:
    """Eckart and Young: the best approximation leaves the norm of the singular values beyond its rank."""
    weights = draw(seed, out, inside, rank)
    reduced, error = reduce_rank({"a": weights}, kept)
    exact = dense(weights)
    values = torch.linalg.svdvals(exact)
    best = float(values[kept:].square().sum().sqrt() / values.square().sum().sqrt())
    assert reduced["a"].rank <= max(kept, 1)
    found = float((dense(reduced["a"]) - exact).norm() / exact.norm())
    assert abs(found - best) < 1e-5
    if rank > kept:
        assert abs(error - best) < 1e-5
    else:
        assert error == 0
        assert reduced["a"] is weights


def test_the_error_is_that_of_all_layers_together() -> None:
    lora = {"a": draw(0, 8, 8, 4), "b": draw(1, 8, 8, 2)}
    reduced, error = reduce_rank(lora, 2)
    lost = sum(float((dense(reduced[x]) - dense(lora[x])).square().sum()) for x in lora)
    whole = sum(float(dense(lora[x]).square().sum()) for x in lora)
    assert abs(error - (lost / whole) ** 0.5) < 1e-6


def test_an_update_of_nothing_has_no_error() -> None:
    nothing = {"a": LoRAWeights(torch.zeros(4, 3), torch.zeros(5, 4))}
    reduced, error = reduce_rank(nothing, 1)
    assert (reduced["a"].rank, error) == (1, 0.0)
