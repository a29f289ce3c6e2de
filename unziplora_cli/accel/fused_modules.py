"""Make an unmodified diffusers U-Net faster on a GPU: fused kernels, and one memory layout from end to end.

Tensor cores need channels_last for convolutions, and so do the linear layers of the transformers; diffusers'
own code converts back and forth. Modules keep their place, names and parameters and only change their class,
so that state dicts, adapters and attention processors work as before.
"""

from __future__ import annotations

import os
import shutil
import warnings
from functools import cache
from importlib.util import find_spec
from typing import Any

import torch
from diffusers import Transformer2DModel
from diffusers.models.activations import GEGLU
from diffusers.models.resnet import ResnetBlock2D
from torch import Tensor, nn

from unziplora_cli.accel.device import SlowPathWarning


def fuse_modules(unet: nn.Module) -> bool:
    """Use the fused kernels in ``unet``, whose weights must be frozen; False if they do not run there.

    In float32 the results differ from the plain network's by rounding only. A second call changes nothing. A
    GPU on which the kernels cannot run is reported by a :class:`~unziplora_cli.accel.device.SlowPathWarning`.
    """
    device = next(unet.parameters()).device
    if not kernels_available(device):
        if device.type == "cuda":
            warnings.warn(
                f"The fused kernels are not used, which is slower: {kernel_problem(device)}",
                SlowPathWarning,
                stacklevel=2,
            )
        return False
    for module in unet.modules():
        if _is_supported(module):
            module.__class__ = _FUSED.get(type(module), type(module))
    unet.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return True


def kernels_available(device: torch.device) -> bool:
    """Whether the fused kernels run on ``device``."""
    return kernel_problem(device) is None


@cache
def kernel_problem(device: torch.device) -> str | None:
    """Why the fused kernels do not run on ``device``, as a sentence; None if they do, by running one."""
    if device.type != "cuda":
        return "They need an NVIDIA or AMD GPU."
    if find_spec("triton") is None:
        return compiler_problem()
    try:
        from unziplora_cli.accel.kernels.geglu import geglu

        geglu(torch.zeros(1, 2, device=device))
    except Exception as error:  # a missing compiler, header or driver can raise anything in Triton
        reason = str(error).strip().partition("\n")[0]
        return compiler_problem() or f"Triton cannot run a kernel ({type(error).__name__}: {reason})."
    return None


def compiler_problem() -> str | None:
    """What is missing to compile Triton kernels, as a sentence: Triton, or the C compiler that it calls.

    Triton uses ``$CC``, else gcc or clang. None if both are there.
    """
    if find_spec("triton") is None:
        return "Triton is not installed."
    compiler = os.environ.get("CC")
    if compiler and shutil.which(compiler) is None:
        return f"The C compiler that $CC names was not found: {compiler}."
    if not compiler and not any(map(shutil.which, ("gcc", "clang"))):
        return "Triton needs a C compiler (gcc or clang), and none was found."
    return None


class FusedGEGLU(GEGLU):  # type: ignore[misc]
    """``hidden_states`` [batch, pixels, width] -> [batch, pixels, inner width]."""

    def forward(self, hidden_states: Tensor) -> Tensor:
        from unziplora_cli.accel.kernels.geglu import geglu

        return geglu(self.proj(hidden_states))


class FusedGroupNorm(nn.GroupNorm):
    """``x`` [batch, channels, height, width] -> the same shape in channels_last, with or without SiLU."""

    def forward(self, x: Tensor, *, silu: bool = False) -> Tensor:
        from unziplora_cli.accel.kernels.group_norm import group_norm

        return group_norm(x, self.num_groups, self.weight, self.bias, self.eps, silu=silu)


class FusedResnetBlock(ResnetBlock2D):  # type: ignore[misc]
    """Both norms include the SiLU that follows; no division by a scale of 1, no copy before the shortcut."""

    def forward(self, input_tensor: Tensor, temb: Tensor) -> Tensor:
        """[batch, in, height, width] and the time embedding [batch, width] -> [batch, out, height, width]."""
        hidden = self.conv1(self.norm1(input_tensor, silu=True))
        hidden = hidden + self.time_emb_proj(self.nonlinearity(temb))[:, :, None, None]
        hidden = self.conv2(self.dropout(self.norm2(hidden, silu=True)))
        shortcut: Tensor = input_tensor if self.conv_shortcut is None else self.conv_shortcut(input_tensor)
        output: Tensor = shortcut + hidden
        return output


class ChannelsLastTransformer(Transformer2DModel):  # type: ignore[misc]
    """Keeps the pixels in channels_last, as the transformer blocks wrote them.

    Overrides a private method of diffusers; :func:`_is_supported` checks that it exists.
    """

    def _get_output_for_continuous_inputs(
        self, hidden_states: Tensor, residual: Tensor, batch_size: int, height: int, width: int, **_: Any
    ) -> Tensor:
        """[batch, pixels, width] -> projected, plus the input of the block [batch, out, height, width]."""
        projected: Tensor = self.proj_out(hidden_states)
        return torch.unflatten(projected, 1, (height, width)).permute(0, 3, 1, 2) + residual


_FUSED: dict[type[nn.Module], type[nn.Module]] = {
    GEGLU: FusedGEGLU,
    nn.GroupNorm: FusedGroupNorm,
    ResnetBlock2D: FusedResnetBlock,
    Transformer2DModel: ChannelsLastTransformer,
}


def _is_supported(module: nn.Module) -> bool:
    """Whether ``module`` is of the variant that SDXL uses, if its class has several."""
    if isinstance(module, ResnetBlock2D):
        return (
            module.upsample is None
            and module.downsample is None
            and module.time_emb_proj is not None
            and module.time_embedding_norm == "default"
            and not module.skip_time_act
            and module.output_scale_factor == 1
            and isinstance(module.nonlinearity, nn.SiLU)
        )
    if isinstance(module, Transformer2DModel):
        # A private method: without it the plain class stays, which is slower and equally right.
        overridable = hasattr(Transformer2DModel, "_get_output_for_continuous_inputs")
        return overridable and bool(module.is_input_continuous and module.use_linear_projection)
    return True
