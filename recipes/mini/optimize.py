"""What both trainings share: one flat AdamW with a moving average, and a step captured as a CUDA graph."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence

import torch

ALIGN = 64


class FlatAdam:
    """AdamW and a moving average over all parameters of some modules, each as one flat float32 vector.

    The modules compute in `dtype`; their parameters and gradients become views of two flat buffers in that
    dtype, and the float32 master is rounded into them after each step. A step is then a handful of kernels
    however many parameters there are.
    """

    def __init__(
        self,
        modules: Sequence[torch.nn.Module],
        dtype: torch.dtype,
        *,
        weight_decay: float = 0.01,
        betas: tuple[float, float] = (0.9, 0.99),
        clip: float = 1.0,
    ) -> None:
        self.parameters = list(_parameters(modules))
        self.spans = []
        size = 0
        for parameter in self.parameters:
            self.spans.append(slice(size, size + parameter.numel()))
            size += -(-parameter.numel() // ALIGN) * ALIGN
        device = self.parameters[0].device
        on_gpu = device.type == "cuda"
        self.master = torch.zeros(size, device=device)
        self.average = torch.zeros(size, device=device)
        self.values = torch.zeros(size, device=device, dtype=dtype)
        self.gradients = torch.zeros(size, device=device, dtype=dtype)
        for parameter, span in zip(self.parameters, self.spans, strict=True):
            self.master[span] = parameter.detach().reshape(-1).float()
            self.values[span] = self.master[span].to(dtype)
            parameter.data = self.values[span].view(parameter.shape)
            parameter.grad = self.gradients[span].view(parameter.shape)
        self.average.copy_(self.master)
        self.master.grad = torch.zeros_like(self.master)
        self.rate = torch.zeros((), device=device)
        self.follow = torch.zeros((), device=device)
        self.norm = torch.zeros((), device=device)
        self.clip = clip
        self.adam = torch.optim.AdamW(
            [self.master],
            lr=self.rate,
            betas=betas,
            weight_decay=weight_decay,
            foreach=False,
            fused=on_gpu,
            capturable=on_gpu,
        )

    def step(self) -> None:
        """Clip, update and average; then clear the gradients. Never waits for the device."""
        gradient = self.master.grad
        assert gradient is not None
        gradient.copy_(self.gradients).nan_to_num_(0.0, 0.0, 0.0)
        self.norm.copy_(gradient.norm())
        gradient.mul_((self.clip / (self.norm + 1e-6)).clamp(max=1.0))
        self.adam.step()
        self.average.lerp_(self.master, self.follow)
        self.values.copy_(self.master)
        self.gradients.zero_()

    def set(self, rate: float, step: int, decay: float = 0.999) -> None:
        """Set the learning rate, and how closely the average follows at this step."""
        self.rate.fill_(rate)
        self.follow.fill_(1.0 - min(decay, (1 + step) / (10 + step)))

    def write_average(self, modules: Iterable[torch.nn.Module]) -> None:
        """Write the averaged weights into modules of the same shape, on any device."""
        with torch.no_grad():
            for parameter, span in zip(_parameters(modules), self.spans, strict=True):
                parameter.copy_(self.average[span].view(parameter.shape))

    def state_dict(self) -> dict[str, object]:
        """Everything needed to go on."""
        return {
            "master": self.master.detach(),
            "average": self.average,
            "adam": self.adam.state_dict()["state"],
        }

    def take_from_first(self) -> None:
        """Make this process's weights, average and moments those of the first process."""
        moments = [value for value in self.adam.state[self.master].values() if value.dim()]
        for tensor in (self.master.detach(), self.average, self.values, *moments):
            torch.distributed.broadcast(tensor, 0)

    def load_state_dict(self, state: dict[str, object]) -> None:
        """Go on from `state_dict()`; to be called before the step is captured."""
        with torch.no_grad():
            self.master.copy_(state["master"])  # type: ignore[arg-type]
            self.average.copy_(state["average"])  # type: ignore[arg-type]
            self.values.copy_(self.master)
        saved = {"state": state["adam"], "param_groups": self.adam.state_dict()["param_groups"]}
        self.adam.load_state_dict(saved)
        self.adam.param_groups[0]["lr"] = self.rate


class CaptureError(RuntimeError):
    """A step could not be recorded; the process can draw no more random numbers there: start again."""


def capture(step: Callable[[], None], uncompile: Callable[[], bool], *, graph: bool) -> Callable[[], None]:
    """Warm `step` up, record it as a CUDA graph, return the replay; without CUDA or `graph`, `step` itself.

    `uncompile` is called when the very first step fails; it says whether there was something to undo, so that
    the step is worth another try. Raises `CaptureError` when the recording fails.
    """
    graph = graph and torch.cuda.is_available()
    stream = torch.cuda.Stream() if graph else None
    if stream is not None:
        stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        try:
            step()
        except Exception as error:
            if not uncompile():
                raise
            print(f"goes on uncompiled: {type(error).__name__}: {str(error).splitlines()[:1]}", flush=True)
            step()
        if stream is None:
            return step
        step()
        step()
    torch.cuda.synchronize()
    recorded = torch.cuda.CUDAGraph()
    try:
        with torch.cuda.graph(recorded, stream=stream, capture_error_mode="thread_local"):
            step()
    except Exception as error:
        raise CaptureError(f"the step cannot be captured: {error}") from error
    return recorded.replay


def learning_rate(peak: float, step: int, share: float, warm_up: int = 200) -> float:
    """Linear warm-up over steps, then a cosine to 2 % of the peak as `share` of the time goes from 0 to 1."""
    cosine = 0.51 + 0.49 * math.cos(math.pi * min(max(share, 0.0), 1.0))
    return peak * min(1.0, (step + 1) / warm_up) * cosine


def _parameters(modules: Iterable[torch.nn.Module]) -> Iterable[torch.nn.Parameter]:
    return (parameter for module in modules for parameter in module.parameters())
