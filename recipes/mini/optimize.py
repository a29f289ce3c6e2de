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
        return {"master": self.master.detach(), "average": self.average, "adam": self.adam.state_dict()["state"]}

    def load_state_dict(self, state: dict[str, object]) -> None:
        """Go on from `state_dict()`; to be called before the step is captured."""
        with torch.no_grad():
            self.master.copy_(state["master"])  # type: ignore[arg-type]
            self.average.copy_(state["average"])  # type: ignore[arg-type]
            self.values.copy_(self.master)
        saved = {"state": state["adam"], "param_groups": self.adam.state_dict()["param_groups"]}
        self.adam.load_state_dict(saved)
        self.adam.param_groups[0]["lr"] = self.rate


def capture(step: Callable[[], None], warm_up: int = 3) -> Callable[[], None]:
    """Record `step` as a CUDA graph and return its replay; without CUDA, or if recording fails, `step` itself."""
    if not torch.cuda.is_available():
        return step
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(warm_up):
            step()
    torch.cuda.current_stream().wait_stream(side)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    try:
        with torch.cuda.graph(graph):
            step()
    except RuntimeError as error:
        torch.cuda.synchronize()
        print(f"step runs eagerly: its capture failed: {str(error).splitlines()[0]}", flush=True)
        return step
    return graph.replay


def learning_rate(peak: float, step: int, share: float, warm_up: int = 200) -> float:
    """Linear warm-up over steps, then a cosine to 2 % of the peak as `share` of the time goes from 0 to 1."""
    cosine = 0.51 + 0.49 * math.cos(math.pi * min(max(share, 0.0), 1.0))
    return peak * min(1.0, (step + 1) / warm_up) * cosine


def _parameters(modules: Iterable[torch.nn.Module]) -> Iterable[torch.nn.Parameter]:
    return (parameter for module in modules for parameter in module.parameters())
