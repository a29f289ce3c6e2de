"""Fused LoRAs against the layers that they replace."""

from collections.abc import Iterator

import pytest
import torch
from diffusers import UNet2DConditionModel
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef

from benchmarks.parity import load_branch
from unziplora_cli.accel.fused_lora import FusedLoRA, fuse_lora, unfuse_lora
from unziplora_cli.method.importance import column_scores
from unziplora_cli.method.inject import eject, extract, inject
from unziplora_cli.method.layer import BRANCHES, DualLoRALinear, Mode
from unziplora_cli.method.losses import overlap_penalty
from unziplora_cli.method.separation import lora_parameters, projections, separate, set_mode
from unziplora_cli.sdxl.attention import separate_prompts
from unziplora_cli.sdxl.text import Conditioning, predict_noise

PARTS = ("down", "up", "merge")


def network() -> UNet2DConditionModel:
    """SDXL's blocks, up to two transformer blocks in each, in float64."""
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
    """Layers as in the middle of a training: some columns closed, merge weights that learn."""
    layers = inject(unet, 4, seed=1)
    generator = torch.Generator().manual_seed(2)
    for layer in layers.values():
        layer.to(torch.float64)
        for branch in layer.branches():
            branch.mask.copy_(torch.rand(branch.mask.shape, generator=generator) > 0.4)
            branch.merge.data.uniform_(generator=generator)
    separate(layers)
    return layers


def inputs(batch: int = 2) -> tuple[Tensor, Tensor, Conditioning]:
    generator = torch.Generator().manual_seed(3)
    full, content, style = (torch.randn(batch, 5, 24, generator=generator).double() for _ in range(3))
    pooled, noisy = (torch.randn(batch, *shape, generator=generator).double() for shape in ((12,), (4, 8, 8)))
    ids = torch.full((batch, 6), 64.0, dtype=torch.float64)
    return noisy, torch.tensor([100, 700])[:batch], Conditioning(full, content, style, pooled, ids)


@pytest.mark.parametrize("mode", ["both", "content", "style"])
@pytest.mark.parametrize("by_block", [False, True])
def test_fused_layers_have_equal_predictions_and_gradients(mode: Mode, by_block: bool) -> None:
    gradients, predictions = [], []
    for fused in (False, True):
        unet = network()
        layers = separated(unet)
        trained = fuse_lora(unet, layers, by_block=by_block) if fused else layers
        if by_block:
            unet.enable_gradient_checkpointing()
            unet.train()
        set_mode(trained, mode)
        prediction = predict_noise(unet, *inputs())
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


def test_layers_are_views_of_what_is_trained() -> None:
    unet = network()
    layers = separated(unet)
    before = extract(layers, "style")
    fused = fuse_lora(unet, layers)
    after = extract(layers, "style")
    assert all(torch.equal(after[name].up, weights.up) for name, weights in before.items())
    optimizer = torch.optim.SGD(lora_parameters(fused, "style"), lr=1.0)
    predict_noise(unet, *inputs()).square().mean().backward()
    optimizer.step()
    name = "mid_block.attentions.0.transformer_blocks.1.attn2.to_v"
    assert not torch.equal(extract(layers, "style")[name].up, before[name].up)
    load_branch(layers, "style", {})
    assert not any(group.style.up.any() for group in fused.values())


def test_a_new_text_is_projected_anew() -> None:
    """Projections are cached by the tensor of the text, not by its shape."""
    unet = network()
    layers = separated(unet)
    fuse_lora(unet, layers)
    noisy, timesteps, first = inputs()
    second = Conditioning(first.full + 1, first.content, first.style, first.pooled, first.time_ids)
    with torch.no_grad():
        outputs = [predict_noise(unet, noisy, timesteps, text) for text in (first, second)]
        unfuse_lora(unet)
        expected = [predict_noise(unet, noisy, timesteps, text) for text in (first, second)]
    assert not torch.allclose(*expected)
    torch.testing.assert_close(outputs, expected, rtol=1e-10, atol=1e-12)


def test_fused_weights_are_dropped_before_the_backward_pass() -> None:
    unet = network()
    layers = separated(unet)
    fuse_lora(unet, layers)
    layer = layers["mid_block.attentions.0.transformer_blocks.0.attn1.to_out.0"]
    storages = []
    layer.register_forward_hook(
        lambda *_: storages.append(StorageWeakRef(layer.fused_weight.untyped_storage()))
    )
    prediction = predict_noise(unet, *inputs(1))
    assert storages[0].expired()
    prediction.sum().backward()  # recomputes them
    assert len(storages) == 1


def test_layers_do_not_keep_the_shared_gradients() -> None:
    unet = network()
    layers = separated(unet)
    fused = fuse_lora(unet, layers)
    predict_noise(unet, *inputs(1)).sum().backward()
    gradients = [StorageWeakRef(group.content.up.grad.untyped_storage()) for group in fused.values()]
    scores = [column_scores(layer.content, "magnitude") for _, layer in projections(fused)]
    assert all(score.any() for score in scores)
    for group in fused.values():
        group.zero_grad()
    assert all(gradient.expired() for gradient in gradients)


@pytest.fixture(params=["success", "failure"])
def after_forward(request: pytest.FixtureRequest) -> Iterator[dict[str, DualLoRALinear]]:
    """Fused layers after a forward pass, which failed in the middle of a region or not."""
    unet = network()
    layers = separated(unet)
    fuse_lora(unet, layers)
    if request.param == "failure":
        name = "mid_block.attentions.0.transformer_blocks.1.attn1.to_out.0"

        def fail(*_: object) -> None:
            raise RuntimeError("no memory")

        layers[name].register_forward_hook(fail)
        with pytest.raises(RuntimeError, match="no memory"):
            predict_noise(unet, *inputs(1))
    else:
        predict_noise(unet, *inputs(1))
    return layers


def test_nothing_stays_fused_after_a_forward_pass(after_forward: dict[str, DualLoRALinear]) -> None:
    for layer in after_forward.values():
        assert layer.fused_weight is None
        assert layer.fused_qkv is None
        assert layer.cached_projection is None


def test_unfusing_is_the_inverse_of_fusing() -> None:
    unet = network()
    modules = dict(unet.named_modules())
    state = {name: tensor.clone() for name, tensor in unet.state_dict().items()}
    layers = separated(unet)
    expected = predict_noise(unet, *inputs())
    fused = fuse_lora(unet, layers)
    assert all(isinstance(group, FusedLoRA) for group in fused.values())
    unfuse_lora(unet)
    assert {type(layer) for layer in layers.values()} == {DualLoRALinear}
    hooks = [hook for m in unet.modules() for hook in (*m._forward_hooks, *m._forward_pre_hooks)]
    assert not hooks
    assert torch.equal(predict_noise(unet, *inputs()), expected)
    eject(unet)
    assert dict(unet.named_modules()) == modules
    assert all(torch.equal(tensor, state[name]) for name, tensor in unet.state_dict().items())
