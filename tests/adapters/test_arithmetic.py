"""Combined LoRAs and LoRAs of reduced rank, against dense matrices."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from unziplora_cli.adapters.lora_file import combine, reduce_rank
from unziplora_cli.method.lora import LoRAWeights


def random_weights(seed: int, out: int, inside: int, rank: int) -> LoRAWeights:
    generator = torch.Generator().manual_seed(seed)
    return LoRAWeights(
        torch.randn(rank, inside, generator=generator), torch.randn(out, rank, generator=generator)
    )


def dense(weights: LoRAWeights) -> torch.Tensor:
    return weights.up.double() @ weights.down.double()


def test_combined_update_is_the_weighted_sum_of_both() -> None:
    content = {"both": random_weights(0, 6, 5, 2), "content": random_weights(1, 6, 5, 2)}
    style = {"both": random_weights(2, 6, 5, 3), "style": random_weights(3, 6, 5, 3)}
    m_content = {"both": torch.rand(6), "content": torch.rand(6)}
    m_style = {"both": torch.rand(6)}  # none for the layer that only style has
    combined = combine(content, style, m_content, m_style)
    assert {layer: weights.rank for layer, weights in combined.items()} == {
        "both": 5,
        "content": 2,
        "style": 3,
    }
    expected = {
        "both": m_content["both"][:, None] * dense(content["both"])
        + m_style["both"][:, None] * dense(style["both"]),
        "content": m_content["content"][:, None] * dense(content["content"]),
        "style": dense(style["style"]),
    }
    for layer, update in expected.items():
        torch.testing.assert_close(dense(combined[layer]), update, rtol=1e-6, atol=1e-6)


@given(st.integers(0, 99), st.integers(1, 12), st.integers(1, 12), st.integers(1, 6), st.integers(1, 6))
def test_reduced_rank_is_optimal_and_reports_its_error(
    seed: int, out: int, inside: int, rank: int, kept: int
) -> None:
    """Eckart and Young: the least possible error is the norm of the singular values beyond the rank."""
    weights = random_weights(seed, out, inside, rank)
    reduced, error = reduce_rank({"a": weights}, kept)
    exact = dense(weights)
    values = torch.linalg.svdvals(exact)
    best = float(values[kept:].square().sum().sqrt() / values.square().sum().sqrt())
    assert reduced["a"].rank <= max(kept, 1)
    actual = float((dense(reduced["a"]) - exact).norm() / exact.norm())
    assert abs(actual - best) < 1e-5
    if rank > kept:
        assert abs(error - best) < 1e-5
    else:
        assert error == 0
        assert reduced["a"] is weights


def test_rank_error_is_taken_over_all_layers() -> None:
    lora = {"a": random_weights(0, 8, 8, 4), "b": random_weights(1, 8, 8, 2)}
    reduced, error = reduce_rank(lora, 2)
    lost = sum(float((dense(reduced[x]) - dense(lora[x])).square().sum()) for x in lora)
    whole = sum(float(dense(lora[x]).square().sum()) for x in lora)
    assert abs(error - (lost / whole) ** 0.5) < 1e-6


def test_rank_error_of_a_zero_update_is_zero() -> None:
    nothing = {"a": LoRAWeights(torch.zeros(4, 3), torch.zeros(5, 4))}
    reduced, error = reduce_rank(nothing, 1)
    assert (reduced["a"].rank, error) == (1, 0.0)
