import inspect
import os
from types import SimpleNamespace

import pytest
import torch
from diffusers import Transformer2DModel, UNet2DConditionModel
from torch import Tensor, nn

from tests.tiny_base import unet_config
from unziplora_cli.accel import fused_modules
from unziplora_cli.accel.device import SlowPathWarning
from unziplora_cli.accel.fused_modules import (
    compiler_problem,
    fuse_modules,
    kernel_problem,
    kernels_available,
)

DEVICE = "cpu" if os.environ.get("TRITON_INTERPRET") == "1" else "cuda"


@pytest.fixture
def unet() -> UNet2DConditionModel:
    torch.manual_seed(0)
    return UNet2DConditionModel(**unet_config()).eval().requires_grad_(False)


@pytest.fixture
def anywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pretend that the kernels run on every device: modules can be replaced, but not run."""
    monkeypatch.setattr(fused_modules, "kernels_available", lambda device: True)


def state(unet: nn.Module) -> list[object]:
    """Classes, parameters, strides and names: everything that a replacement could change."""
    weights = [(name, p.stride(), p.dtype, id(p)) for name, p in unet.named_parameters()]
    return [*map(type, unet.modules()), *weights, *unet.state_dict()]


def test_a_cpu_has_no_fused_kernels(unet: UNet2DConditionModel) -> None:
    before = state(unet)
    assert not kernels_available(torch.device("cpu"))
    assert not fuse_modules(unet)
    assert state(unet) == before


def test_missing_triton_is_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fused_modules, "find_spec", lambda name: None)
    assert kernel_problem.__wrapped__(torch.device("cuda")) == "Triton is not installed."


def test_missing_compiler_is_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fused_modules, "find_spec", lambda name: object())
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setattr(fused_modules.shutil, "which", lambda name: None)
    assert "C compiler" in kernel_problem.__wrapped__(torch.device("cuda", 99))


def test_compiler_named_by_cc_must_exist(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fused_modules, "find_spec", lambda name: object())
    monkeypatch.setenv("CC", "no-such-compiler")
    assert "no-such-compiler" in compiler_problem()


def test_failing_triton_is_reported_once_with_its_reason(
    unet: UNet2DConditionModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The former version swallowed whatever Triton raised."""
    monkeypatch.setattr(fused_modules, "find_spec", lambda name: object())
    monkeypatch.setattr(fused_modules, "compiler_problem", lambda: None)
    reason = kernel_problem.__wrapped__(torch.device("cuda", 99))
    assert reason.startswith("Triton cannot run a kernel (")

    class OnGPU(nn.Module):
        def parameters(self):
            yield SimpleNamespace(device=torch.device("cuda", 99))

    monkeypatch.setattr(fused_modules, "kernel_problem", lambda device: reason)
    with pytest.warns(SlowPathWarning, match="Triton cannot run"):
        assert not fuse_modules(OnGPU())


def test_the_private_method_of_diffusers_still_exists() -> None:
    """ChannelsLastTransformer overrides it; without it, the plain class stays."""
    method = inspect.signature(Transformer2DModel._get_output_for_continuous_inputs)
    expected = ["self", "hidden_states", "residual", "batch_size", "height", "width", "inner_dim"]
    assert list(method.parameters) == expected


@pytest.mark.usefixtures("anywhere")
def test_every_kind_of_module_is_replaced_once(unet: UNet2DConditionModel) -> None:
    names = list(unet.state_dict())
    assert fuse_modules(unet)
    fused_state = state(unet)
    kinds = {type(module) for module in unet.modules()}
    assert kinds >= set(fused_modules._FUSED.values())
    assert not kinds & set(fused_modules._FUSED)
    assert list(unet.state_dict()) == names
    assert unet.conv_in.weight.is_contiguous(memory_format=torch.channels_last)

    assert fuse_modules(unet)
    assert state(unet) == fused_state


@pytest.mark.usefixtures("anywhere")
def test_unsupported_variants_are_not_replaced(unet: UNet2DConditionModel) -> None:
    unet.mid_block.resnets[0].output_scale_factor = 2.0
    before = type(unet.mid_block.resnets[0])
    fuse_modules(unet)
    assert type(unet.mid_block.resnets[0]) is before


@pytest.mark.gpu
@pytest.mark.usefixtures("anywhere")
def test_the_network_computes_the_same(unet: UNet2DConditionModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """Prediction and gradients of 16 x 24 latents, and the memory layout between blocks."""
    pytest.importorskip("triton")
    unet.to(DEVICE)
    trained = [module.weight for name, module in unet.named_modules() if name.endswith("attn1.to_q")]
    for weight in trained:
        weight.requires_grad_()
    config = unet.config
    shapes = {"latents": (2, 4, 16, 24), "text": (2, 7, config.cross_attention_dim), "times": (2, 6)}
    shapes["pooled"] = (2, config.projection_class_embeddings_input_dim - 6 * config.addition_time_embed_dim)
    torch.manual_seed(1)
    inputs = {name: torch.randn(shape).to(DEVICE) for name, shape in shapes.items()}
    conditions = {"text_embeds": inputs["pooled"], "time_ids": inputs["times"]}

    def run() -> tuple[Tensor, ...]:
        out = unet(inputs["latents"], 300, inputs["text"], added_cond_kwargs=conditions).sample
        return out, *torch.autograd.grad(out.square().mean(), trained)

    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    plain = run()
    fuse_modules(unet)
    layouts = []
    for block in (*unet.down_blocks, *unet.up_blocks):
        for module in (*block.resnets, *getattr(block, "attentions", ())):
            module.register_forward_hook(lambda _, __, out: layouts.append(out))
    fused = run()
    for a, b in zip(fused, plain, strict=True):
        assert (a - b).abs().max() <= 1e-4 * b.abs().max()
    outputs = [out if isinstance(out, Tensor) else out[0] for out in layouts]
    assert outputs
    assert all(out.is_contiguous(memory_format=torch.channels_last) for out in outputs)
