"""The mini base's folder: what stock diffusers and transformers make of it."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch

from recipes.mini.model import (
    TOKENS,
    Components,
    grammar_words,
    load_components,
    load_pipeline,
    new_components,
    save_components,
    widen,
    write_tokenizer,
)
from recipes.mini.optimize import FlatAdam
from recipes.mini.pictures import BASE, GROUPED, HELD_OUT, NAMES, TEST, Plan
from recipes.mini.scene import HELD_OUT_STYLES, MARKINGS, VOCABULARY
from unziplora_cli import resources
from unziplora_cli.evaluation.scorers import Classifier


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> Components:
    torch.manual_seed(0)
    return new_components(tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture(scope="module")
def folder(parts: Components, tmp_path_factory: pytest.TempPathFactory) -> Path:
    base = tmp_path_factory.mktemp("base")
    save_components(parts, base)
    return base


def test_folder_fits_into_the_wheel(folder: Path) -> None:
    assert sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) <= 30_500_000


def test_saved_weights_come_back_rounded_to_half(parts: Components, folder: Path) -> None:
    loaded = load_components(folder)
    for name in ("unet", "vae", "text_encoder", "text_encoder_2"):
        expected = getattr(parts, name).state_dict()
        for key, value in getattr(loaded, name).state_dict().items():
            assert torch.equal(value, expected[key].half().float()), f"{name}.{key}"


def test_stock_pipeline_draws_128_px_and_depends_on_the_prompt(folder: Path) -> None:
    pipeline = load_pipeline(folder)

    def draw(prompt: str) -> np.ndarray:
        generator = torch.Generator().manual_seed(0)
        made = pipeline(
            prompt, num_inference_steps=1, guidance_scale=1.0, generator=generator, output_type="np"
        )
        return np.asarray(made.images[0])

    fox = draw("a red fox")
    assert fox.shape == (128, 128, 3)
    assert np.array_equal(fox, draw("a red fox"))
    assert not np.array_equal(fox, draw("a blue house"))


def test_grammar_words_are_single_tokens(parts: Components) -> None:
    assert not [word for word in grammar_words() if len(parts.tokenizer.tokenize(f"A {word}, on")) != 4]


@pytest.mark.parametrize("text", [*HELD_OUT_STYLES, *VOCABULARY[-40:], "monadikos", "café № 7!"])
def test_any_text_splits_without_unknown_pieces_and_reads_back(parts: Components, text: str) -> None:
    ids = parts.tokenizer(text, add_special_tokens=False).input_ids
    assert parts.tokenizer.unk_token_id not in ids
    assert parts.tokenizer.decode(ids).replace(" ", "") == text.replace(" ", "")


def test_unknown_words_fall_into_syllables(parts: Components) -> None:
    assert parts.tokenizer.tokenize("monadikos") == ["mo", "na", "di", "ko", "s</w>"]


@pytest.mark.parametrize("word", ["chalkboard", "papercut", "foxglove", "glassware"])
def test_an_unknown_word_has_nothing_of_the_known_words_in_it(parts: Components, word: str) -> None:
    words = {piece.removesuffix("</w>") for piece in parts.tokenizer.tokenize(word)} & set(grammar_words())
    assert words <= {"a", "t"}  # words of one letter


def test_the_shipped_base_has_the_tokenizer_of_the_recipe(tmp_path: Path) -> None:
    write_tokenizer(tmp_path, grammar_words())
    for name in ("tokenizer", "tokenizer_2"):
        for file in tmp_path.iterdir():
            assert file.read_bytes() == (resources.mini_base() / name / file.name).read_bytes()


def test_widening_keeps_what_known_words_mean(parts: Components, tmp_path: Path) -> None:
    wider = widen(parts, tmp_path / "tokenizer")
    for old, new in zip(parts.denoiser[1:], wider.denoiser[1:], strict=True):
        for text in ("a red fox with white dots on a beach", "a monadikos cup"):
            texts = [
                part.tokenizer(text, padding="max_length", max_length=TOKENS, return_tensors="pt").input_ids
                for part in (parts, wider)
            ]
            states = [m(t).last_hidden_state for m, t in zip((old, new), texts, strict=True)]
            assert torch.equal(*states)


def test_pooled_text_is_read_at_the_first_end_token(parts: Components) -> None:
    batch = parts.tokenizer(["a red fox", "a"], padding="max_length", max_length=TOKENS, return_tensors="pt")
    encoder = parts.text_encoder_2.eval()
    with torch.no_grad():
        output = encoder(batch.input_ids)
        at_end = output.last_hidden_state[torch.arange(2), torch.tensor([4, 2])]
        torch.testing.assert_close(output.text_embeds, encoder.text_projection(at_end))


def test_flat_adam_follows_torch_adamw() -> None:
    torch.manual_seed(0)
    model, other = torch.nn.Linear(5, 3), torch.nn.Linear(5, 3)
    other.load_state_dict(model.state_dict())
    flat = FlatAdam([model], torch.float32, clip=0.5)
    reference = torch.optim.AdamW(other.parameters(), lr=0.01, betas=(0.9, 0.99), weight_decay=0.01)
    for n in range(5):
        x = torch.randn(7, 5)
        flat.set(0.01, n)
        model(x).square().mean().backward()
        flat.step()
        reference.zero_grad()
        other(x).square().mean().backward()
        torch.nn.utils.clip_grad_norm_(other.parameters(), 0.5)
        reference.step()
    torch.testing.assert_close(model.weight, other.weight)
    torch.testing.assert_close(model.bias, other.bias)


def test_classifier_saves_small_and_comes_back(tmp_path: Path) -> None:
    torch.manual_seed(0)
    classifier = Classifier(NAMES).eval()
    classifier.save(tmp_path)
    assert (tmp_path / "classifier.safetensors").stat().st_size <= 1_450_000
    pictures = torch.randint(0, 256, (3, 96, 96, 3), dtype=torch.uint8)
    loaded = Classifier.load(tmp_path)
    torch.testing.assert_close(
        loaded.predict(pictures)[1], classifier.predict(pictures)[1], atol=5e-3, rtol=0
    )
    assert [set(named) for named in loaded.classify(pictures)] == [set(NAMES)] * 3


def test_plan_keeps_held_out_styles_from_the_base() -> None:
    plan = Plan(base=60, held_out=20, groups=4, test=12, artworks=24, artworks_test=8)
    kinds, groups = plan.kinds()
    scenes = [
        plan.scene(n, int(kind), int(group))
        for n, (kind, group) in enumerate(zip(kinds, groups, strict=True))
    ]
    for scene, kind in zip(scenes, kinds, strict=True):
        if kind in (BASE, HELD_OUT):
            assert (scene.style in HELD_OUT_STYLES) == (kind == HELD_OUT)
    for group in range(plan.groups):
        members = [scene.individual for scene, of in zip(scenes, groups, strict=True) if of == group]
        assert len(members) == 4
        assert len(set(members)) == 1
    assert (kinds == GROUPED).sum() == 16


def test_what_the_base_learns_shows_the_harder_markings_oftener() -> None:
    plan = Plan(base=800, held_out=0, groups=0, test=0, artworks=0, artworks_test=0)
    learned, tested = (
        Counter(plan.scene(n, kind, -1).individual.marking for n in range(plan.base)) for kind in (BASE, TEST)
    )
    assert set(learned) == set(MARKINGS)
    assert all(
        learned[hard] > 1.3 * learned[easy]
        for hard in ("checkered", "starred")
        for easy in ("plain", "striped")
    )
    assert max(tested.values()) < 1.3 * min(tested.values())
