import itertools
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionXLPipeline, UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor2_0
from PIL import Image
from torch import Tensor

from benchmarks.parity import load_branch
from tests.sdxl.adapters import generated, random_branches, random_lora
from unziplora_cli.accel.fused_lora import fuse_pair, unfuse_pair
from unziplora_cli.adapters.lora_file import write_lora
from unziplora_cli.config import GenerateConfig, Prompts
from unziplora_cli.errors import AdapterError
from unziplora_cli.events import Phase, Progress, run
from unziplora_cli.method.inject import eject, inject
from unziplora_cli.method.lora import LoRAPair
from unziplora_cli.method.separation import set_mode
from unziplora_cli.sdxl.attention import separate_prompts
from unziplora_cli.sdxl.base import BaseRef
from unziplora_cli.sdxl.generate import (
    AdaptedUNet,
    GeneratedImage,
    ImageRequest,
    denoise,
    encode_prompts,
    generate,
    make_conditioning,
)
from unziplora_cli.sdxl.load import load_scheduler, load_unet
from unziplora_cli.sdxl.sampling import initial_noise, sample
from unziplora_cli.sdxl.text import (
    Conditioning,
    TextEncoders,
    concat_conditionings,
    encode,
    predict_noise,
)

CPU = torch.device("cpu")
PROMPTS = Prompts("a monadikos fox in sketch style", "a monadikos fox", "a fox in sketch style")
STEPS = 3


def settings(**changes: object) -> GenerateConfig:
    return GenerateConfig(**{"steps": STEPS, "guidance": 5.0, "width": 64, "height": 48, **changes})


@pytest.fixture(scope="module")
def unet(base: BaseRef) -> UNet2DConditionModel:
    """The tiny base's U-Net; a test that changes it puts it back."""
    return load_unet(base, device=CPU, dtype=torch.float32)


def product_latents(
    base: BaseRef, unet: UNet2DConditionModel, request: ImageRequest, *, fuse: bool = True
) -> Tensor:
    """The latents that the product generates."""
    texts = run(encode_prompts(base, [request], device=CPU, dtype=torch.float32))
    adapted = AdaptedUNet(unet, fuse=fuse)
    adapted.apply(request.weighted)
    conditioning = make_conditioning(base, request, texts, device=CPU, dtype=torch.float32)
    *_, latents = denoise(base, adapted, request, list(request.seeds), *conditioning)
    adapted.apply(LoRAPair())
    unet.set_attn_processor(AttnProcessor2_0())
    eject(unet)
    return latents


def latents_from_layers(
    base: BaseRef, unet: UNet2DConditionModel, encoders: TextEncoders, request: ImageRequest
) -> Tensor:
    """The same latents from the trained layers themselves, with zeros fused or kept.

    The conditioning is spelled out from the paper's release: branches see zeros in the unconditional half,
    and a negative prompt is for the base alone; a single LoRA is an ordinary pipeline with one prompt.
    """
    branches, config = request.branches, request.config
    layers = inject(unet, rank=4)
    separate_prompts(unet)
    load_branch(layers, "content", branches.content or {}, branches.content_merge)
    load_branch(layers, "style", branches.style or {}, branches.style_merge)
    both = len(branches.names) == 2
    set_mode(layers, "both" if both or not branches.names else branches.names[0])
    full, content, style = (
        (PROMPTS.full, PROMPTS.content, PROMPTS.style)
        if both
        else [getattr(PROMPTS, branches.names[0] if branches.names else "full")] * 3
    )
    negative = encode(encoders, [config.negative_prompt])
    texts = [encode(encoders, [text]) for text in (full, content, style)]
    zeros = torch.zeros_like(texts[0].tokens)
    uncond_tokens = negative.tokens if config.negative_prompt else zeros
    uncond_pooled = negative.pooled if config.negative_prompt else torch.zeros_like(negative.pooled)
    uncond_branch = zeros if both else uncond_tokens
    ids = torch.tensor([[48.0, 64.0, 0.0, 0.0, 48.0, 64.0]])
    cond = Conditioning(texts[0].tokens, texts[1].tokens, texts[2].tokens, texts[0].pooled, ids)
    uncond = Conditioning(uncond_tokens, uncond_branch, uncond_branch, uncond_pooled, ids)
    joined = concat_conditionings(uncond, cond) if config.guidance > 1 else cond
    noise = torch.randn(1, 4, 6, 8, generator=torch.Generator().manual_seed(config.seed))
    latents = sample(
        lambda noisy, t: predict_noise(unet, noisy, t, joined),
        load_scheduler(base, config.scheduler),
        noise,
        steps=config.steps,
        guidance=config.guidance,
        generators=[torch.Generator().manual_seed(0)],
    )
    unet.set_attn_processor(AttnProcessor2_0())
    eject(unet)
    return latents


@pytest.mark.parametrize("fuse", [True, False], ids=["fused", "plain"])
@pytest.mark.parametrize("guidance", [1.0, 5.0])
@pytest.mark.parametrize("negative", ["", "sketch"])
@pytest.mark.parametrize("names", [("content", "style"), ("content",), ("style",), ()], ids="+".join)
def test_generation_equals_the_trained_layers(
    base: BaseRef,
    unet: UNet2DConditionModel,
    encoders: TextEncoders,
    names: tuple[str, ...],
    negative: str,
    guidance: float,
    fuse: bool,
) -> None:
    request = ImageRequest(
        PROMPTS, random_branches(unet, *names), settings(negative_prompt=negative, guidance=guidance, seed=7)
    )
    expected = latents_from_layers(base, unet, encoders, request)
    scale = expected.abs().max()
    assert (product_latents(base, unet, request, fuse=fuse) - expected).abs().max() < 1e-5 * max(1.0, scale)


def test_every_part_of_the_method_changes_the_image(base: BaseRef, unet: UNet2DConditionModel) -> None:
    """The comparison above would prove nothing if branches, prompts or merge weights had no effect."""
    both = random_branches(unet, "content", "style")
    plain = product_latents(base, unet, ImageRequest(PROMPTS, both, settings()))
    others = [
        ImageRequest(PROMPTS, LoRAPair(both.content, both.style), settings()),
        ImageRequest(PROMPTS, both, settings(content_strength=0.5)),
        ImageRequest(PROMPTS, both, settings(negative_prompt="sketch")),
        ImageRequest(Prompts(PROMPTS.full, "a cat", PROMPTS.style), both, settings()),
        ImageRequest(Prompts(PROMPTS.full, PROMPTS.content, "a dog"), both, settings()),
        ImageRequest(PROMPTS, LoRAPair(both.content), settings()),
    ]
    assert min(float((product_latents(base, unet, other) - plain).abs().max()) for other in others) > 1e-2


@pytest.mark.parametrize("branch", ["content", "style"])
@pytest.mark.parametrize("negative", ["", "sketch"])
def test_one_lora_alone_is_diffusers_own_pipeline_with_the_saved_file(
    base: BaseRef, pipeline: StableDiffusionXLPipeline, tmp_path: Path, branch: str, negative: str
) -> None:
    lora = random_lora(pipeline.unet, seed=1)
    write_lora(tmp_path / "lora.safetensors", lora)
    request = ImageRequest(
        Prompts("a fox", "a fox", "a fox"), LoRAPair(**{branch: lora}), settings(negative_prompt=negative)
    )
    ours = generated(base, [request])[0].image

    pipeline.load_lora_weights(tmp_path, weight_name="lora.safetensors")
    noise, _ = initial_noise([0], 4, 6, 8)
    theirs = pipeline(
        "a fox",
        negative_prompt=negative or None,
        latents=noise,
        num_inference_steps=STEPS,
        guidance_scale=5.0,
        width=64,
        height=48,
    ).images[0]
    difference = np.abs(np.asarray(ours, dtype=int) - np.asarray(theirs, dtype=int))
    assert difference.max() <= 1


def test_strength_scales_the_update(base: BaseRef, unet: UNet2DConditionModel) -> None:
    """Half the strength of a LoRA is a LoRA with half its `up`."""
    both = random_branches(unet, "content", "style")
    halved = {name: type(w)(down=w.down, up=w.up / 2) for name, w in (both.content or {}).items()}
    weaker = product_latents(base, unet, ImageRequest(PROMPTS, both, settings(content_strength=0.5)))
    same = LoRAPair(halved, both.style, both.content_merge, both.style_merge)
    expected = product_latents(base, unet, ImageRequest(PROMPTS, same, settings()))
    torch.testing.assert_close(weaker, expected)


def test_restoring_the_base_is_exact(base: BaseRef) -> None:
    unet = load_unet(base, device=CPU, dtype=torch.bfloat16)
    before = {name: tensor.clone() for name, tensor in unet.state_dict().items()}
    originals = fuse_pair(unet, random_branches(unet, "content", "style"))
    changed = [name for name, tensor in unet.state_dict().items() if not torch.equal(tensor, before[name])]
    assert len(changed) == len(originals) == 136 * 6 // 8
    unfuse_pair(unet, originals)
    assert all(torch.equal(tensor, before[name]) for name, tensor in unet.state_dict().items())


def test_texts_are_projected_once_per_image(base: BaseRef, unet: UNet2DConditionModel) -> None:
    calls: list[str] = []
    hooks = []
    for name, module in unet.named_modules():
        if name.endswith(("attn2.to_k", "attn2.to_v")):
            hooks.append(module.register_forward_hook(lambda *_, name=name: calls.append(name)))
    request = ImageRequest(PROMPTS, random_branches(unet, "content", "style"), settings())
    texts = run(encode_prompts(base, [request], device=CPU, dtype=torch.float32))
    conditioning = make_conditioning(base, request, texts, device=CPU, dtype=torch.float32)
    list(denoise(base, AdaptedUNet(unet), request, [0], *conditioning))
    for hook in hooks:
        hook.remove()
    assert len(calls) == len(set(calls)) == 34


def images(base: BaseRef, requests: list[ImageRequest], **options: object) -> list[Image.Image]:
    return [result.image for result in generated(base, requests, **options)]


def test_many_requests_share_one_loading_and_do_not_disturb_each_other(
    base: BaseRef, unet: UNet2DConditionModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    both = random_branches(unet, "content", "style")
    requests = [
        ImageRequest(PROMPTS, LoRAPair(), settings(width=32, height=32)),
        ImageRequest(PROMPTS, both, settings(count=2)),
        ImageRequest(Prompts("a cat", "a cat", "a cat"), both, settings()),
        ImageRequest(PROMPTS, LoRAPair(content=both.content), settings(scheduler="ddim")),
        ImageRequest(PROMPTS, both, settings(style_strength=0.25)),
    ]
    alone = list(itertools.chain.from_iterable(images(base, [request]) for request in requests))

    loads = []
    monkeypatch.setattr(
        "unziplora_cli.sdxl.generate.load_unet", lambda *a, **k: loads.append(1) or load_unet(*a, **k)
    )
    together = images(base, requests)
    assert len(loads) == 1
    assert [image.size for image in together] == [(32, 32)] + [(64, 48)] * 5
    assert all(one.tobytes() == other.tobytes() for one, other in zip(alone, together, strict=True))


def test_a_batch_gives_the_same_images_as_single_requests(base: BaseRef, unet: UNet2DConditionModel) -> None:
    both = random_branches(unet, "content", "style")
    request = ImageRequest(PROMPTS, both, settings(count=3, seed=5, scheduler="ddpm"))
    one_by_one = images(base, [request])
    batched = images(base, [request], batch_size=2)
    for one, other in zip(one_by_one, batched, strict=True):
        assert np.abs(np.asarray(one, dtype=int) - np.asarray(other, dtype=int)).max() <= 1
    assert len({image.tobytes() for image in batched}) == 3


def test_images_that_are_not_fused_are_the_same(base: BaseRef, unet: UNet2DConditionModel) -> None:
    """Without fused weights, requests still share one network and do not disturb each other."""
    both = random_branches(unet, "content", "style")
    requests = [
        ImageRequest(PROMPTS, both, settings(count=2, content_strength=0.5)),
        ImageRequest(PROMPTS, LoRAPair(), settings(negative_prompt="sketch")),
        ImageRequest(PROMPTS, LoRAPair(style=both.style), settings()),
    ]
    pairs = zip(images(base, requests), images(base, requests, fuse=False, batch_size=2), strict=True)
    for fused, plain in pairs:
        assert np.abs(np.asarray(fused, dtype=int) - np.asarray(plain, dtype=int)).max() <= 1


def test_half_precision_gives_nearly_the_same_image(base: BaseRef, unet: UNet2DConditionModel) -> None:
    requests = [ImageRequest(PROMPTS, random_branches(unet, "content", "style"), settings(count=2))]
    half = [np.asarray(image, dtype=float) for image in images(base, requests, dtype=torch.bfloat16)]
    full = [np.asarray(image, dtype=float) for image in images(base, requests)]
    apart = np.abs(full[0] - full[1]).mean()
    for one, other in zip(half, full, strict=True):
        assert np.abs(one - other).mean() < 0.2 * apart


def test_a_seed_gives_the_same_image_with_any_count(base: BaseRef) -> None:
    four = images(base, [ImageRequest(PROMPTS, config=settings(count=4))])
    third = images(base, [ImageRequest(PROMPTS, config=settings(seed=2))])
    assert four[2].tobytes() == third[0].tobytes()


def test_progress_counts_steps_and_images(base: BaseRef) -> None:
    request = ImageRequest(PROMPTS, config=settings(count=2))
    first, *events = generate(base, [request], device=CPU, dtype=torch.float32)
    assert first == Phase("load base")
    images = [event for event in events if isinstance(event, GeneratedImage)]
    assert [image.seed for image in images] == [0, 1]
    assert [event for event in events if event not in images] == [
        Progress("generate", done, 2, step, STEPS) for done in (0, 1) for step in (1, 2, 3)
    ]


def test_parameters_reproduce_the_image(base: BaseRef) -> None:
    request = ImageRequest(
        PROMPTS, config=settings(seed=3, negative_prompt="sketch"), notes={"command": "content"}
    )
    (result,) = generated(base, [request])
    parameters = result.parameters
    assert parameters["prompts"] == {"full": PROMPTS.full, "content": PROMPTS.full, "style": PROMPTS.full}
    assert (parameters["seed"], parameters["steps"], parameters["width"], parameters["height"]) == (
        3,
        STEPS,
        64,
        48,
    )
    assert (parameters["negative_prompt"], parameters["scheduler"], parameters["command"]) == (
        "sketch",
        "euler",
        "content",
    )
    assert parameters["base"]["fingerprint"] == base.fingerprint


def wider(lora: dict) -> dict:
    name, weights = next(iter(lora.items()))
    return {name: type(weights)(down=torch.ones(4, 99), up=weights.up)}


def renamed(lora: dict) -> dict:
    return {"down_blocks.9.attentions.0.transformer_blocks.0.attn1.to_q": next(iter(lora.values()))}


@pytest.mark.parametrize("spoil", [wider, renamed])
def test_a_lora_of_another_base_is_refused(
    base: BaseRef, unet: UNet2DConditionModel, spoil: Callable[[dict], dict]
) -> None:
    lora = spoil(random_lora(unet, 1))
    request = ImageRequest(PROMPTS, LoRAPair(style=lora), settings())
    with pytest.raises(AdapterError, match="style LoRA"):
        generated(base, [request])
