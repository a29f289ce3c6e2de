"""Text embeddings against those of diffusers' pipeline."""

import pytest
import torch
from diffusers import StableDiffusionXLPipeline

from tests.tiny_base import TOKENS
from unziplora_cli.sdxl.base import resolve_base
from unziplora_cli.sdxl.load import load_text_encoders
from unziplora_cli.sdxl.text import TextEncoders, encode, encode_unconditional, truncation_note

TEXTS = ["a monadikos fox in watercolor style", "a cat, on the beach", "", "z" * 100]


@pytest.fixture(scope="module")
def built_in() -> TextEncoders:
    return load_text_encoders(resolve_base("mini", offline=True)[0], device="cpu", dtype=torch.float32)


@pytest.mark.parametrize("text", TEXTS)
def test_embeddings_equal_those_of_the_diffusers_pipeline(
    encoders: TextEncoders, pipeline: StableDiffusionXLPipeline, text: str
) -> None:
    tokens, _, pooled, _ = pipeline.encode_prompt(text, do_classifier_free_guidance=False)
    embeddings = encode(encoders, [text])
    assert torch.equal(embeddings.tokens, tokens)
    assert torch.equal(embeddings.pooled, pooled)


@pytest.mark.parametrize("order", [TEXTS, TEXTS[::-1], TEXTS[:1] * 5 + TEXTS])
def test_an_embedding_does_not_depend_on_the_other_texts(encoders: TextEncoders, order: list[str]) -> None:
    together = encode(encoders, order)
    for i, text in enumerate(order):
        assert torch.equal(together.tokens[i : i + 1], encode(encoders, [text]).tokens)
        assert torch.equal(together.pooled[i : i + 1], encode(encoders, [text]).pooled)


def test_the_ignored_end_of_a_long_prompt_is_quoted(encoders: TextEncoders) -> None:
    fitting = " ".join(["fox"] * (TOKENS - 2))
    assert truncation_note(encoders, fitting) == ""
    note = truncation_note(encoders, fitting + " in the Sketch style, at 5:30")
    assert note.endswith('the base ignores: "in the Sketch style, at 5:30"')
    assert torch.equal(
        encode(encoders, [fitting]).tokens, encode(encoders, [fitting + " in the sketch style"]).tokens
    )


@pytest.mark.parametrize(
    ("text", "tokens"),
    [
        ("a watercolor fox, on a beach", "a</w> watercolor fox ,</w> on a</w> beach"),
        ("An Orange FOX.", "an orange fox .</w>"),
        ("(fox's) chalkboard", "(</w> fox ' s</w> )</w> c h a l k bo a r d</w>"),
        ("a monadikos fox🦊", "a</w> mo na di ko s</w> fox ð Ł ¦ Ĭ</w>"),
        ("renard à fox", "re na r d</w> Ã ł</w> fox"),
    ],
)
def test_a_word_that_the_built_in_base_knows_is_one_token(
    built_in: TextEncoders, text: str, tokens: str
) -> None:
    """So with every supported version of transformers: its slow tokenizer splits "fox," into letters."""
    for tokenizer in built_in.tokenizers:
        assert tokenizer.convert_ids_to_tokens(tokenizer(text).input_ids)[1:-1] == tokens.split()


def test_the_ignored_end_is_quoted_as_it_was_typed(built_in: TextEncoders) -> None:
    note = truncation_note(built_in, "fox " * 46 + "on a Beach, in the snow")
    assert note.endswith('the base ignores: "on a Beach, in the snow"')


def test_no_text_is_encoded_only_if_the_base_was_trained_so(encoders: TextEncoders) -> None:
    assert encode_unconditional(encoders) is None
    no_text = encode_unconditional(TextEncoders(encoders.tokenizers, encoders.models, zeros_for_empty=False))
    assert no_text is not None
    assert torch.equal(no_text.tokens, encode(encoders, [""]).tokens)
