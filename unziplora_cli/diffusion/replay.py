"""A denoiser recorded once as a CUDA graph and then replayed, step after step of a picture."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

Denoiser = Callable[[Tensor, Tensor], Tensor]


@dataclass(slots=True)
class Replayed:
    """Calls ``denoiser`` with noisy pictures and a timestep; the second call records, later ones replay.

    All calls must have the same shapes, and what ``denoiser`` reads beside its arguments must stay in place.
    The result is overwritten by the next call. Away from CUDA, ``denoiser`` is called as it is.
    """

    denoiser: Denoiser
    _warm: bool = field(default=False, init=False)
    _graph: torch.cuda.CUDAGraph | None = field(default=None, init=False)
    _noisy: Tensor | None = field(default=None, init=False)
    _timestep: Tensor | None = field(default=None, init=False)
    _result: Tensor | None = field(default=None, init=False)

    def __call__(self, noisy: Tensor, timestep: Tensor) -> Tensor:
        if noisy.device.type != "cuda" or not self._warm:
            self._warm = True
            return self.denoiser(noisy, timestep)
        if self._graph is None:
            self._record(noisy, timestep)
        assert self._noisy is not None
        assert self._timestep is not None
        assert self._result is not None
        self._noisy.copy_(noisy)
        self._timestep.copy_(timestep)
        assert self._graph is not None
        self._graph.replay()
        return self._result

    def _record(self, noisy: Tensor, timestep: Tensor) -> None:
        self._noisy, self._timestep = noisy.clone(), timestep.to(noisy.device, copy=True)
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph):
            self._result = self.denoiser(self._noisy, self._timestep)
