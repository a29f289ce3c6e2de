"""The separation benchmark trains as the program does, and its scores are correct."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from benchmarks.separation import classification, destyle, rows, tables
from benchmarks.separation.artists import ArtSample, fit_linear
from benchmarks.separation.destyle import destyle_all, redrawn
from benchmarks.separation.methods import ImageRequest, Method
from benchmarks.separation.scenes import samples
from benchmarks.separation.stack import Stack, StackedJob
from recipes.mini.scene import MARKS
from tests.jobs import make_job
from unziplora_cli import resources
from unziplora_cli.config import Prompts, TrainConfig, resolve
from unziplora_cli.events import run
from unziplora_cli.sdxl.base import resolve_base
from unziplora_cli.sdxl.latents import crop_image, encode_latents
from unziplora_cli.sdxl.load import alphas_cumprod, load_text_encoders, load_unet, load_vae
from unziplora_cli.sdxl.text import encode, time_ids
from unziplora_cli.training.destyler import MiniDestyler
from unziplora_cli.training.engine import train
from unziplora_cli.training.events import Event, StepDone
from unziplora_cli.training.request import TrainRequest

PROMPTS = (
    Prompts("a monadikos fox in sketch style", "a monadikos fox", "a fox in sketch style"),
    Prompts("a monadikos cat in watercolor style", "a monadikos cat", "a cat in watercolor style"),
)
SHORT = {
    "rank": 4,
    "steps": 7,
    "recalibrations": 1,
    "resolution": 64,
    "column_ratio": 0.3,
    "content_lr": 1e-4,  # AdamW's first steps are signs: a small rate keeps rounding from choosing columns
    "style_lr": 2e-4,
    "importance_score": "magnitude",
    "strict_top": False,
}


@pytest.mark.parametrize(
    "changes",
    [
        {"importance_steps": 2, "accumulate_importance": True},
        {"finetune_mask": True, "block_separation": False, "avoid_overlap": False, "strict_top": True},
        {"column_separation": False, "start": "zero", "timestep_bias": 1.0, "snr_gamma": 5.0},
        {
            "destyle_images": 2,
            "destyled_only": True,
            "destyle_min_timestep": 0.3,
            "importance_steps": 3,  # some of them above the minimum timestep, otherwise all scores tie
            "accumulate_importance": True,
        },
        {"destyle_images": 2, "destyle_contrast": False, "prior_weight_content": 2.0, "timestep_bias": 1.0},
        {"destyle_images": 1, "prompt_separation": False},
    ],
)
def test_a_stack_trains_every_pair_as_a_single_training_does(
    changes: dict[str, object], tiny_base: Path, tmp_path: Path
) -> None:
    base = resolve_base(str(tiny_base), offline=True)[0]
    cpu, float32 = torch.device("cpu"), torch.float32
    images = []
    for number in range(2):
        path = tmp_path / f"{number}.png"
        Image.linear_gradient("L").rotate(90 * number).resize((64, 64)).convert("RGB").save(path)
        images.append(path)
    configs = [TrainConfig(**{**SHORT, **changes, "seed": seed}) for seed in (3, 8)]

    vae, encoders = load_vae(base, device=cpu), load_text_encoders(base, device=cpu, dtype=float32)
    encoded = [encode_latents(vae, crop_image(Image.open(path), 64, 1)) for path in images]
    latents = torch.stack([torch.stack([item.mean[0], item.std[0]]) for item in encoded])

    def text(prompt: str) -> tuple[torch.Tensor, torch.Tensor]:
        embeddings = encode(encoders, [prompt])
        return embeddings.tokens, embeddings.pooled

    unet, alphas, ids = load_unet(base, device=cpu, dtype=float32), alphas_cumprod(base), time_ids(64, 64)
    jobs = [
        StackedJob(n, config, prompts)
        for n, (config, prompts) in enumerate(zip(configs, PROMPTS, strict=True))
    ]
    destyled = None
    if configs[0].destyle_images:
        destyled = destyle_all(unet, alphas, jobs, latents[:, 0], text, ids, float32)
    stack = Stack(unet, jobs, latents, text, ids, alphas, float32, destyled)
    losses = torch.stack([loss.clone() for _, loss in stack.train()])  # [steps, 2]

    for number, config in enumerate(configs):
        folder = tmp_path / f"alone-{number}"
        folder.mkdir()
        job = make_job(prompts=PROMPTS[number], settings=config, device="cpu")
        request = TrainRequest(job, base, (images[number],), folder=folder)
        events: list[Event] = []
        result = run(train(request), events.append)
        expected = [event.reconstruction for event in events if isinstance(event, StepDone)]
        if config.snr_gamma is None:  # the program's value is weighted, the stack's is not
            np.testing.assert_allclose(losses[:, number].numpy(), expected, rtol=2e-4)
        for branch in ("content", "style"):
            stacked, single = stack.lora(number, branch), getattr(result, branch)
            open_mine, open_theirs = (
                torch.cat([weights.up.any(dim=1) for weights in lora.values()]) for lora in (stacked, single)
            )
            assert (open_mine != open_theirs).float().mean() < 0.005
            both = open_mine & open_theirs
            ups = (torch.cat([weights.up for weights in lora.values()])[both] for lora in (stacked, single))
            torch.testing.assert_close(*ups, atol=5e-4, rtol=0.0)


def test_tuning_and_test_images_share_no_individual() -> None:
    sets = {
        name: {sample.scene.individual for sample in samples(name, 32)} for name in ("test", "tune", "quick")
    }
    assert not sets["test"] & sets["tune"]
    assert not sets["test"] & sets["quick"]
    assert {sample.style for sample in samples("tune", 16)} == {
        sample.style for sample in samples("test", 32)
    }


def test_no_rival_is_the_individual_itself() -> None:
    for sample in samples("test", 32):
        assert sample.scene.individual not in sample.rivals
        assert {rival.subject for rival in sample.rivals} == {sample.subject}


def test_every_row_has_settings_and_a_unique_name() -> None:
    for methods in (rows.table(), rows.tuning(), rows.quick()):
        assert len({method.name for method in methods}) == len(methods)
        for method in methods:
            if method.kind != "none":
                assert method.config(0).rank in (8, 16)


def test_an_image_is_correct_only_if_it_shows_everything_requested() -> None:
    order = ImageRequest("scene", 0, None, None, False, PROMPTS[0], 0, "fox", "neon", "at night")
    named = {"subject": "fox", "style": "neon", "context": "at night"}
    assert classification.is_correct(classification.Classified(order, named, 0))
    for label in named:
        assert not classification.is_correct(classification.Classified(order, {**named, label: "cat"}, 0))


def test_the_interval_of_the_mean_agrees_with_the_normal_distribution() -> None:
    values = np.random.default_rng(1).normal(0.5, 0.1, 400)
    mean, low, high = classification.interval(values)
    assert mean == pytest.approx(values.mean())
    assert high - low == pytest.approx(2 * 1.96 * values.std() / 20, rel=0.1)


def test_dreambooth_trains_one_lora_and_its_variant_two() -> None:
    sample = samples("quick", 4)[0]
    one, two = Method("one", "one").jobs(sample), Method("two", "two").jobs(sample)
    assert [job.prompts.full for job in one] == [f"a monadikos {sample.subject} in {sample.style} style"]
    assert [job.prompts.full for job in two] == [
        f"a monadikos {sample.subject}",
        f"a {sample.subject} in {sample.style} style",
    ]
    assert all(job.branches == ("content",) and job.config.start == "zero" for job in (*one, *two))


def test_destyled_images_of_other_sources_are_photos_or_redrawn_in_the_colours_told(tmp_path, monkeypatch):
    torch.manual_seed(0)
    destyler = MiniDestyler({"red": (255, 0, 0), "blue": (0, 0, 255)}, widths=(8, 16), size=16)
    destyler.save(tmp_path)
    monkeypatch.setattr(resources, "destyler", lambda: tmp_path)
    images, photos = torch.rand(2, 3, 16, 16) * 2 - 1, torch.rand(2, 3, 16, 16) * 2 - 1
    config, prompts = resolve("mini", {}), Prompts("full", "content", "style")
    jobs = [
        StackedJob(1, config, prompts),
        StackedJob(1, config, prompts, source="photo"),
        StackedJob(0, config, prompts, source="destyler"),
        StackedJob(1, config, prompts, source="destyler", features=("blue", "red", "dotted")),
    ]
    made = redrawn(jobs, images, photos)
    loaded = MiniDestyler.load(tmp_path)
    assert torch.equal(made[0], torch.zeros_like(made[0]))
    assert torch.equal(made[1], photos[1])
    torch.testing.assert_close(made[2:3], loaded(images[:1]), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(made[3:], loaded(images[1:], torch.tensor([[1, 0]])), rtol=1e-4, atol=1e-5)


def test_a_described_row_names_colours_and_marking_in_the_destyle_prompt_alone():
    (sample,) = samples("quick", 1)
    (plain,), (described,) = (Method("m", "pair", "mini", described=d).jobs(sample) for d in ("", "true"))
    who = sample.scene.individual
    second = f" with {who.second_color} {MARKS[who.marking]}" if who.marking in MARKS else ""
    expected = f"{who.color} {'' if second else who.marking + ' '}{who.subject}{second} in photo style"
    assert described.config.destyle_prompt.endswith(expected)
    assert replace(described.config, destyle_prompt=plain.config.destyle_prompt) == plain.config
    assert described.prompts == plain.prompts


def of_style(number: int, nearest: str, style: str = "openmoji") -> classification.Classified:
    """An image of the style column, correct but for its look."""
    order = ImageRequest("style", number, None, None, False, PROMPTS[0], 0, "owl", "openmoji")
    return classification.Classified(order, {"subject": "owl", "style": style}, None, nearest)


def test_of_pictures_by_artists_the_nearest_set_is_scored_and_no_individual() -> None:
    pictures = [ArtSample(n, "fox", "openmoji", (), (), (), Path()) for n in range(2)]
    images = [of_style(0, "openmoji"), of_style(0, "flat"), of_style(1, "openmoji", "flat")]
    columns = classification.scores(images, pictures)
    assert columns["style"].tolist() == [1.0, 0.0]
    assert columns["nearest"].tolist() == [0.5, 1.0]
    assert np.isnan(columns["identity"]).all()
    assert np.isnan(columns["marking"]).all()
    header = tables.markdown({"ours": columns}).splitlines()[0]
    assert header == "| method | style | nearest |"


def test_looks_are_told_apart_by_a_plane_between_them() -> None:
    """Two classes around (1, 0) and (-1, 0): the learned plane is x = 0, as symmetry demands."""
    torch.manual_seed(0)
    noise = 0.3 * torch.randn(200, 2)
    features = torch.cat((torch.tensor([1.0, 0.0]) + noise, torch.tensor([-1.0, 0.0]) - noise))
    weights = fit_linear(features, torch.arange(2).repeat_interleave(200), 2)
    direction = weights[:2, 0] - weights[:2, 1]
    assert float(direction[0]) > 1.0
    assert abs(float(direction[1])) < 0.2 * float(direction[0])
    assert float(weights[2, 0] - weights[2, 1]) == pytest.approx(0.0, abs=0.01)


def test_a_subject_that_the_reader_does_not_see_is_left_to_inversion(monkeypatch) -> None:
    def other_subject(image: Image.Image, subject: str) -> str:
        return "" if image.getpixel((0, 0)) == (255, 255, 255) else "snail"

    monkeypatch.setattr(destyle, "other_subject", other_subject)
    white = torch.ones(3, 8, 8)
    assert destyle.shows(white, "fox", white)
    assert not destyle.shows(-white, "fox", white)
    assert destyle.shows(-white, "fox", -white)  # it takes the training image for a snail, too
    for sure in (True, False):  # of a photo it can only tell if it is sure of the training image
        monkeypatch.setattr(destyle, "is_sure", lambda image, subject, sure=sure: sure)
        assert destyle.shows(-white, "fox", white, redrawn=True) is not sure
        assert destyle.shows(white, "fox", white, redrawn=True)
