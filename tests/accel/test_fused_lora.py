"""Folds against the layers they are made of."""

import pytest
import torch
from diffusers import UNet2DConditionModel
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef

from unziplora_cli.accel.fused_lora import fuse_lora, projections
from unziplora_cli.method.importance import column_scores
from unziplora_cli.method.inject import extract, inject, load_branch
from unziplora_cli.method.layer import BRANCHES, DualLoRALinear, Mode
from unziplora_cli.method.losses import overlap_penalty
from unziplora_cli.method.separation import lora_parameters, separate, set_mode
from unziplora_cli.sdxl.attention import separate_prompts
from unziplora_cli.sdxl.text import Conditioning, predict_noise

PARTS = ("down", "up", "merge")


def network() -> UNet2DConditionModel:
    """SDXL's blocks, two transformer blocks in each, in float64."""
    torch.manual_seed(0)
    unet = UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(16, 32, 32),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        transformer_layers_per_block=(1, 1, 2),
        attention_head_dim=(2, 4, 4),
        cross_attention_dim=24,
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=6 * 8 + 12,
        norm_num_groups=8,
        layers_per_block=1,
    )
    nn.Module.to(unet, torch.float64)
    separate_prompts(unet)
    return unet.eval()


def separated(unet: UNet2DConditionModel) -> dict[str, DualLoRALinear]:
    """Layers in the middle of a training: some columns closed, merge weights that learn."""
    layers = inject(unet, 4, seed=1)
    generator = torch.Generator().manual_seed(2)
    for layer in layers.values():
        layer.to(torch.float64)
        for branch in layer.branches():
            branch.mask.copy_(torch.rand(branch.mask.shape, generator=generator) > 0.4)
            branch.merge.data.uniform_(generator=generator)
    separate(layers)
    return layers


def told(batch: int = 2) -> tuple[Tensor, Tensor, Conditioning]:
    generator = torch.Generator().manual_seed(3)
    full, content, style = (torch.randn(batch, 5, 24, generator=generator).double() for _ in range(3))
    pooled, noisy = (torch.randn(batch, *shape, generator=generator).double() for shape in ((12,), (4, 8, 8)))
    ids = torch.full((batch, 6), 64.0, dtype=torch.float64)
    return noisy, torch.tensor([100, 700])[:batch], Conditioning(full, content, style, pooled, ids)


@pytest.mark.parametrize("mode", ["both", "content", "style"])
@pytest.mark.parametrize("by_block", [False, True])
def test_folded_layers_predict_and_learn_as_the_layers_do(mode: Mode, by_block: bool) -> None:
    gradients, predictions = [], []
    for fused_weight in (False, True):
        unet = network()
        layers = separated(unet)
        trained = fuse_lora(unet, layers, by_block=by_block) if fused_weight else layers
        if by_block:
            unet.enable_gradient_checkpointing()
            unet.train()
        set_mode(trained, mode)
        prediction = predict_noise(unet, *told())
        (prediction.square().mean() + overlap_penalty(trained.values())).backward()
        predictions.append(prediction.detach())
        gradients.append(
            {
                f"{name}.{branch}.{part}": layer.get_submodule(branch).get_parameter(part).grad
                for name, layer in projections(trained)
                for branch in BRANCHES
                for part in PARTS
            }
        )
    torch.testing.assert_close(predictions[1], predictions[0], rtol=1e-10, atol=1e-12)
    assert gradients[0].keys() == gradients[1].keys()
    for name, expected in gradients[0].items():
        actual = gradients[1][name]
        if expected is None:
            assert actual is None or not actual.any()
        else:
            torch.testing.assert_close(actual, expected, rtol=1e-8, atol=1e-12, msg=name)


def test_a_layer_sees_what_its_fold_learns() -> None:
    unet = network()
    layers = separated(unet)
    before = extract(layers, "style")
    folds = fuse_lora(unet, layers)
    assert all(torch.equal(extract(layers, "style")[name].up, each.up) for name, each in before.items())
    optimizer = torch.optim.SGD(lora_parameters(folds, "style"), lr=1.0)
    predict_noise(unet, *told()).square().mean().backward()
    optimizer.step()
    name = "mid_block.attentions.0.transformer_blocks.1.attn2.to_v"
    assert not torch.equal(extract(layers, "style")[name].up, before[name].up)
    load_branch(layers, "style", {})
    assert not any(each.style.up.any() for each in folds.values())


def test_folded_weights_are_given_up_before_the_backward_pass() -> None:
    unet = network()
    layers = separated(unet)
    fuse_lora(unet, layers)
    layer = layers["mid_block.attentions.0.transformer_blocks.0.attn1.to_out.0"]
    seen = []
    layer.register_forward_hook(lambda *_: seen.append(StorageWeakRef(layer.fused_weight.untyped_storage())))
    prediction = predict_noise(unet, *told(1))
    assert seen[0].expired()
    prediction.sum().backward()  # makes them again
    assert len(seen) == 1


def test_layers_do_not_keep_the_gradients_of_their_fold() -> None:
    unet = network()
    layers = separated(unet)
    folds = fuse_lora(unet, layers)
    predict_noise(unet, *told(1)).sum().backward()
    gradients = [StorageWeakRef(each.content.up.grad.untyped_storage()) for each in folds.values()]
    scores = [column_scores(layer.content, "magnitude") for _, layer in projections(folds)]
    assert all(score.any() for score in scores)
    for each in folds.values():
        each.zero_grad()
    assert all(gradient.expired() for gradient in gradients)


def test_nothing_stays_prepared() -> None:
    unet = network()
    layers = separated(unet)
    fuse_lora(unet, layers)
    with torch.no_grad():
        predict_noise(unet, *told(1))
    assert all(layer.fused_weight is None and layer.cached_projection is None for layer in layers.values())
