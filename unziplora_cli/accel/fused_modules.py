"""Make an unmodified diffusers U-Net faster on a GPU: fused kernels, and one memory layout from end to end.

Convolutions on tensor cores want channels_last, and so do the linear layers of the transformers; diffusers'
own code goes back and forth. Modules keep their place, names and parameters and only change their class, so
that state dicts, adapters and attention processors work as before.
"""

from __future__ import annotations

from functools import cache
from importlib.util import find_spec
from typing import Any

import torch
from diffusers import Transformer2DModel
from diffusers.models.activations import GEGLU
from diffusers.models.resnet import ResnetBlock2D
from torch import Tensor, nn


def fuse_modules(unet: nn.Module) -> bool:
    """Put ``unet``, whose own weights must be frozen, on the fused kernels; False where they cannot run.

    In float32 the results differ from the plain network's by rounding alone. A second call changes nothing.
    """
    if not kernels_available(next(unet.parameters()).device):
        return False
    for module in unet.modules():
        if _is_plain(module):
            module.__class__ = _FASTER.get(type(module), type(module))
    unet.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return True


@cache
def kernels_available(device: torch.device) -> bool:
    """Whether the fused kernels run on ``device``: a GPU, with Triton and the C compiler that it calls."""
    if device.type != "cuda" or find_spec("triton") is None:
        return False
    try:
        from unziplora_cli.accel.kernels.geglu import geglu

        geglu(torch.zeros(1, 2, device=device))
    except Exception:  # whatever a missing compiler, header or driver makes Triton raise
        return False
    return True


class FusedGEGLU(GEGLU):
    """``hidden_states`` [batch, pixels, width] -> [batch, pixels, inner width]."""

    def forward(self, hidden_states: Tensor) -> Tensor:
        from unziplora_cli.accel.kernels.geglu import geglu

        return geglu(self.proj(hidden_states))


class FusedGroupNorm(nn.GroupNorm):
    """``x`` [batch, channels, height, width] -> the same shape in channels_last, through SiLU if asked."""

    def forward(self, x: Tensor, *, silu: bool = False) -> Tensor:
        from unziplora_cli.accel.kernels.group_norm import group_norm

        return group_norm(x, self.num_groups, self.weight, self.bias, self.eps, silu=silu)


class FusedResnetBlock(ResnetBlock2D):
    """Both norms take the SiLU that follows; no division by a scale of 1, no copy before the shortcut."""

    def forward(self, input_tensor: Tensor, temb: Tensor) -> Tensor:
        """[batch, in, height, width] and the embedded time [batch, width] -> [batch, out, height, width]."""
        hidden = self.conv1(self.norm1(input_tensor, silu=True))
        hidden = hidden + self.time_emb_proj(self.nonlinearity(temb))[:, :, None, None]
        hidden = self.conv2(self.dropout(self.norm2(hidden, silu=True)))
        shortcut = input_tensor if self.conv_shortcut is None else self.conv_shortcut(input_tensor)
        return shortcut + hidden


class ChannelsLastTransformer(Transformer2DModel):
    """Leaves the pixels in channels_last, in which the blocks wrote them."""

    def _get_output_for_continuous_inputs(
        self, hidden_states: Tensor, residual: Tensor, batch_size: int, height: int, width: int, **_: Any
    ) -> Tensor:
        """[batch, pixels, width] and the block's input [batch, out, height, width] -> projected, the sum."""
        projected = self.proj_out(hidden_states)  # [batch, pixels, out]
        return projected.unflatten(1, (height, width)).permute(0, 3, 1, 2) + residual


_FASTER: dict[type[nn.Module], type[nn.Module]] = {
    GEGLU: FusedGEGLU,
    nn.GroupNorm: FusedGroupNorm,
    ResnetBlock2D: FusedResnetBlock,
    Transformer2DModel: ChannelsLastTransformer,
}


def _is_plain(module: nn.Module) -> bool:
    """Whether ``module`` is of the kind that SDXL has, where its class comes in several."""
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
        return module.is_input_continuous and module.use_linear_projection
    return True
