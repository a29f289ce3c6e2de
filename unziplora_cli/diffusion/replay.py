"""A denoiser recorded once as a CUDA graph and then replayed, step after step of a picture."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

Denoiser = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True, slots=True)
class _Recording:
    """``graph`` reads ``noisy`` and ``timestep`` and writes ``result``, all of which stay in place."""

    graph: torch.cuda.CUDAGraph
    noisy: Tensor
    timestep: Tensor
    result: Tensor


@dataclass(slots=True)
class Replayed:
    """Calls ``denoiser`` with noisy pictures and a timestep; the second call records, later ones replay.

    All calls must have the same shapes, and what ``denoiser`` reads beside its arguments must stay in place.
    Away from CUDA, and where a recording cannot be had, as for want of memory, it is called as it is.
    """

    denoiser: Denoiser
    _calls: int = field(default=0, init=False)
    _recording: _Recording | None = field(default=None, init=False)

    def __call__(self, noisy: Tensor, timestep: Tensor) -> Tensor:
        self._calls += 1
        if noisy.device.type == "cuda" and self._calls == 2:
            self._recording = self._record(noisy, timestep)
        if self._recording is None:
            return self.denoiser(noisy, timestep)
        self._recording.noisy.copy_(noisy)
        self._recording.timestep.copy_(timestep)
        self._recording.graph.replay()
        return self._recording.result.clone()

    def _record(self, noisy: Tensor, timestep: Tensor) -> _Recording | None:
        noisy, timestep = noisy.clone(), timestep.to(noisy.device, copy=True)
        graph = torch.cuda.CUDAGraph()
        torch.cuda.empty_cache()
        try:
            with torch.cuda.device(noisy.device), torch.cuda.graph(graph):
                result = self.denoiser(noisy, timestep)
        except RuntimeError:
            return None
        return _Recording(graph, noisy, timestep, result)
