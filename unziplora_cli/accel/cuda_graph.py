"""CUDA graphs: thousands of kernels recorded once and replayed with a single launch."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor

from unziplora_cli.accel.device import SlowPathWarning

T = TypeVar("T")


class Recording(Generic[T]):
    """One call of a function, recorded as a CUDA graph.

    The graph reads copies of ``inputs`` and writes ``output``, all of which stay where they are. Everything
    else that the function reads must stay in place too. It uses the memory pool of ``share``, if given.
    Raises RuntimeError if the call cannot be recorded, for example torch.OutOfMemoryError.
    """

    def __init__(
        self,
        function: Callable[..., T],
        inputs: Sequence[Tensor] = (),
        *,
        share: Recording[Any] | None = None,
    ) -> None:
        self.inputs = [tensor.clone() for tensor in inputs]
        self.graph = torch.cuda.CUDAGraph()
        device = torch.cuda.device(inputs[0].device) if inputs else nullcontext()
        pool = share.graph.pool() if share is not None else None
        with device, torch.cuda.graph(self.graph, pool=pool):
            self.output = function(*self.inputs)

    def replay(self, inputs: Sequence[Tensor] = ()) -> T:
        """Run the recorded call on ``inputs``; the next replay overwrites the tensors in the output."""
        for recorded, value in zip(self.inputs, inputs, strict=True):
            recorded.copy_(value)
        self.graph.replay()
        return self.output


class GraphedFunction:
    """``function`` of tensors to one tensor, replayed from a CUDA graph where that is possible.

    The second call in a row with inputs of the same shapes and dtypes records, later ones replay. The
    function is called as it is if not ``enabled``, on other devices, and if recording fails; this is reported
    once by a :class:`SlowPathWarning`.
    """

    def __init__(self, function: Callable[..., Tensor], *, enabled: bool = True) -> None:
        self.function = function
        self.enabled = enabled
        self._kinds: Sequence[tuple[torch.Size, torch.dtype]] = ()
        self._recording: Recording[Tensor] | None = None

    def __call__(self, *inputs: Tensor) -> Tensor:
        """The output for ``inputs``, all on one device; never overwritten by later calls."""
        kinds = [(tensor.shape, tensor.dtype) for tensor in inputs]
        if not self.enabled or inputs[0].device.type != "cuda" or kinds != self._kinds:
            self._recording, self._kinds = None, kinds
            return self.function(*inputs)
        if self._recording is None:
            try:
                self._recording = Recording(self.function, inputs)
            except RuntimeError as error:
                self.enabled = False
                warn_not_recorded(error)
                return self.function(*inputs)
        return self._recording.replay(inputs).clone()


def warn_not_recorded(error: RuntimeError) -> None:
    """Report that kernels are launched one by one because a CUDA graph could not be recorded."""
    reason = str(error).strip().partition("\n")[0]
    warnings.warn(
        f"CUDA graphs are not used, which is slower: recording failed ({reason}).",
        SlowPathWarning,
        stacklevel=3,
    )
