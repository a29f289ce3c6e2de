import pytest
import torch
from diffusers import StableDiffusionXLPipeline

from tests.tiny_base import TOKENS
from unziplora_cli.sdxl.text import TextEncoders, encode, encode_unconditional, truncated

TEXTS = ["a monadikos fox in watercolor style", "a cat, on the beach", "", "z" * 100]


@pytest.mark.parametrize("text", TEXTS)
def test_embeddings_are_those_of_diffusers_own_pipeline(
    encoders: TextEncoders, pipeline: StableDiffusionXLPipeline, text: str
) -> None:
    tokens, _, pooled, _ = pipeline.encode_prompt(text, do_classifier_free_guidance=False)
    ours = encode(encoders, [text])
    assert torch.equal(ours.tokens, tokens)
    assert torch.equal(ours.pooled, pooled)


def test_several_prompts_at_once_keep_their_order(encoders: TextEncoders) -> None:
    together = encode(encoders, TEXTS)
    for i, text in enumerate(TEXTS):
        torch.testing.assert_close(together[i].tokens, encode(encoders, [text]).tokens)
        torch.testing.assert_close(together[i].pooled, encode(encoders, [text]).pooled)


def test_what_does_not_fit_is_named(encoders: TextEncoders) -> None:
    fitting = " ".join(["fox"] * (TOKENS - 2))
    assert truncated(encoders, fitting) == ""
    assert truncated(encoders, fitting + " in the sketch style") == "in the sketch style"
    assert torch.equal(
        encode(encoders, [fitting]).tokens, encode(encoders, [fitting + " in the sketch style"]).tokens
    )


def test_no_text_is_zeros_only_where_the_base_was_trained_so(encoders: TextEncoders) -> None:
    assert encode_unconditional(encoders) is None
    empty = encode_unconditional(TextEncoders(encoders.tokenizers, encoders.models, zeros_for_empty=False))
    assert empty is not None
    assert torch.equal(empty.tokens, encode(encoders, [""]).tokens)
