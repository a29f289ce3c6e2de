"""The U-Net's forward pass recorded once as a CUDA graph and then replayed, step after step of a drawing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, fields

import torch
from diffusers import UNet2DConditionModel
from torch import Tensor

from unziplora_cli.sdxl.text import Conditioning, predict_noise_merged


@dataclass(frozen=True, slots=True)
class _Recording:
    """``graph`` reads ``inputs`` and writes ``noise``, all of which stay in place."""

    graph: torch.cuda.CUDAGraph
    inputs: Sequence[Tensor]
    noise: Tensor


@dataclass(slots=True)
class GraphedUNet:
    """:func:`~unziplora_cli.sdxl.text.predict_noise_merged` of ``unet``, float32 in and out.

    The second call in a row with inputs of the same kind records, later ones replay. The weights, and keys
    and values that were cached, may change between calls where they are, but must stay there. The network is
    called as it is with ``records`` off, away from CUDA, and where a recording cannot be had, as for want of
    memory.
    """

    unet: UNet2DConditionModel
    records: bool = True
    _kinds: Sequence[tuple[torch.Size, torch.dtype]] = field(default=(), init=False)
    _recording: _Recording | None = field(default=None, init=False)

    def __call__(self, noisy: Tensor, timestep: Tensor, told: Conditioning) -> Tensor:
        """``noisy`` [batch, channels, height, width], ``timestep`` [] or [batch] -> noise of that shape."""
        inputs = (noisy, timestep.to(noisy.device), *(getattr(told, f.name) for f in fields(told)))
        kinds = [(each.shape, each.dtype) for each in inputs]
        if not self.records or noisy.device.type != "cuda" or kinds != self._kinds:
            self._recording, self._kinds = None, kinds
            return self._predict(*inputs)
        if self._recording is None:
            self._recording = self._record(inputs)
        if self._recording is None:
            self.records = False
            return self._predict(*inputs)
        for kept, new in zip(self._recording.inputs, inputs, strict=True):
            kept.copy_(new)
        self._recording.graph.replay()
        return self._recording.noise.clone()

    def _predict(self, noisy: Tensor, timestep: Tensor, *told: Tensor) -> Tensor:
        return predict_noise_merged(
            self.unet, noisy.to(self.unet.dtype), timestep, Conditioning(*told)
        ).float()

    def _record(self, inputs: Sequence[Tensor]) -> _Recording | None:
        inputs = [each.clone() for each in inputs]
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.device(inputs[0].device), torch.cuda.graph(graph):
                noise = self._predict(*inputs)
        except RuntimeError:
            return None
        return _Recording(graph, inputs, noise)
