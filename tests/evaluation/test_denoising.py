"""Denoising results against diffusers' own U-Net and against the U-Net in training."""

import json
import shutil

import pytest
import torch
from diffusers import DDPMScheduler, UNet2DConditionModel

from unziplora_cli.config import GenerateConfig, Prompts
from unziplora_cli.errors import AdapterError
from unziplora_cli.evaluation import denoising
from unziplora_cli.evaluation.denoising import measure_denoising, relative_gap, sample_noise
from unziplora_cli.events import run
from unziplora_cli.method.inject import extract, extract_merge, inject
from unziplora_cli.method.lora import LoRAPair, LoRAWeights
from unziplora_cli.sdxl.attention import separate_prompts
from unziplora_cli.sdxl.base import component_config, resolve_base
from unziplora_cli.sdxl.generate import ImageRequest, encode_prompts, make_conditioning
from unziplora_cli.sdxl.text import predict_noise

CPU, FP32 = torch.device("cpu"), torch.float32
PROMPTS = Prompts("a monadikos fox in sketch style", "a monadikos fox", "a fox in sketch style")
SETTINGS = GenerateConfig(width=64, height=64)


@pytest.fixture
def base(tiny_base):
    return resolve_base(str(tiny_base), offline=True)[0]


@pytest.fixture
def latents():
    return torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(1))


def measure(base, requests, latents, **options):
    return run(
        measure_denoising(base, requests, latents, samples=4, seed=7, device=CPU, dtype=FP32, **options)
    )


@pytest.fixture
def adapted(base):
    """A network with two branches in training, and the same branches as files would hold them."""
    unet = UNet2DConditionModel.from_pretrained(base.path, subfolder="unet", torch_dtype=FP32)
    layers = inject(unet, rank=2, seed=3)
    separate_prompts(unet)
    generator = torch.Generator().manual_seed(4)
    for layer in layers.values():
        for branch in layer.branches():
            branch.merge.data.uniform_(generator=generator)
    parts = [extract(layers, branch) for branch in ("content", "style")]
    merges = [extract_merge(layers, branch) for branch in ("content", "style")]
    return unet, LoRAPair(*parts, *merges)


def test_base_alone_predicts_as_diffusers_unet(base, latents):
    requests = {"base": ImageRequest(Prompts(*[PROMPTS.full] * 3), LoRAPair(), SETTINGS)}
    results = measure(base, requests, latents)["base"]
    samples = sample_noise(latents, 4, 7, 1000)
    conditioning, _ = make_conditioning(
        base, requests["base"], run(encode_prompts(base, list(requests.values()), device=CPU, dtype=FP32)),
        device=CPU, dtype=FP32,
    )  # fmt: skip
    unet = UNet2DConditionModel.from_pretrained(base.path, subfolder="unet", torch_dtype=FP32)
    noisy = DDPMScheduler.from_config(component_config(base, "scheduler")).add_noise(
        samples.latents, samples.noise, samples.timesteps
    )
    with torch.no_grad():
        expected = unet(
            noisy,
            samples.timesteps,
            encoder_hidden_states=conditioning.full.expand(4, -1, -1),
            added_cond_kwargs={
                "text_embeds": conditioning.pooled.expand(4, -1),
                "time_ids": conditioning.time_ids.expand(4, -1),
            },
        ).sample
    torch.testing.assert_close(results.prediction, expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(results.loss, (expected - samples.noise).square().flatten(1).mean(1))


@pytest.mark.parametrize("batch_size", [1, 3])
def test_both_branches_predict_as_in_training(base, latents, adapted, batch_size):
    unet, branches = adapted
    request = ImageRequest(PROMPTS, branches, SETTINGS)
    results = measure(base, {"full": request}, latents, batch_size=batch_size)["full"]
    samples = sample_noise(latents, 4, 7, 1000)
    texts = run(encode_prompts(base, [request], device=CPU, dtype=FP32))
    conditioning, _ = make_conditioning(base, request, texts, device=CPU, dtype=FP32)
    noisy = DDPMScheduler.from_config(component_config(base, "scheduler")).add_noise(
        samples.latents, samples.noise, samples.timesteps
    )
    with torch.no_grad():
        expected = predict_noise(unet, noisy, samples.timesteps, conditioning)
    torch.testing.assert_close(results.prediction, expected, rtol=1e-3, atol=1e-4)


def test_requests_are_independent(base, latents, adapted, monkeypatch):
    monkeypatch.setattr(denoising, "RECONSTRUCTION_STEPS", 3)
    _, branches = adapted
    alone = ImageRequest(Prompts(*[PROMPTS.full] * 3), LoRAPair(), SETTINGS)
    both = ImageRequest(PROMPTS, branches, SETTINGS)
    results = measure(base, {"before": alone, "both": both, "after": alone}, latents, reconstruct={"both"})
    assert torch.equal(results["before"].prediction, results["after"].prediction)
    assert not torch.equal(results["before"].prediction, results["both"].prediction)
    assert results["both"].reconstruction_error is not None
    assert results["before"].reconstruction_error is None


def test_velocity_prediction_is_compared_with_the_velocity(tiny_base, tmp_path, latents):
    folder = tmp_path / "velocity"
    shutil.copytree(tiny_base, folder)
    file = folder / "scheduler/scheduler_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "prediction_type": "v_prediction"}))
    base = resolve_base(str(folder), offline=True)[0]
    results = measure(base, {"base": ImageRequest(PROMPTS, LoRAPair(), SETTINGS)}, latents)["base"]
    samples = sample_noise(latents, 4, 7, 1000)
    kept = DDPMScheduler.from_config(component_config(base, "scheduler")).alphas_cumprod[samples.timesteps]
    kept = kept.view(-1, 1, 1, 1)
    velocity = kept.sqrt() * samples.noise - (1 - kept).sqrt() * samples.latents  # Salimans and Ho
    torch.testing.assert_close(results.loss, (results.prediction - velocity).square().flatten(1).mean(1))


def test_timesteps_are_stratified_and_images_take_turns():
    latents = torch.stack([torch.zeros(4, 8, 8), torch.ones(4, 8, 8)])
    samples = sample_noise(latents, 10, 0, 1000)
    assert [int(t) // 100 for t in samples.timesteps] == list(range(10))
    assert samples.latents.mean(dim=(1, 2, 3)).tolist() == [0.0, 1.0] * 5
    again = sample_noise(latents, 10, 0, 1000)
    assert torch.equal(samples.noise, again.noise)
    assert not torch.equal(samples.noise, sample_noise(latents, 10, 1, 1000).noise)


def test_true_noise_reconstructs_the_image(base, latents):
    samples = sample_noise(latents, 6, 0, 1000)
    true_noise = lambda noisy, timesteps: samples.noise[: len(noisy)]  # noqa: E731
    assert denoising._reconstruct(true_noise, samples, component_config(base, "scheduler")) < 1e-3
    zeros = lambda noisy, timesteps: torch.zeros_like(noisy)  # noqa: E731
    assert denoising._reconstruct(zeros, samples, component_config(base, "scheduler")) > 0.5


def test_gap_is_relative_to_the_effect():
    base = torch.zeros(3)
    assert relative_gap(torch.tensor([0.0, 3.0, 0.0]), torch.tensor([0.0, 4.0, 0.0]), base) == 0.25
    assert relative_gap(base, base, base) == 0.0


def test_lora_of_another_base_is_refused(base, latents):
    strange = {"mid_block.attentions.9.x.attn1.to_q": LoRAWeights(torch.ones(1, 3), torch.ones(3, 1))}
    with pytest.raises(AdapterError, match="does not have"):
        measure(base, {"content": ImageRequest(PROMPTS, LoRAPair(content=strange), SETTINGS)}, latents)
