"""What a training tells of its memory: before it is short, and when it was."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

from unziplora_cli.diffusion.faster import available
from unziplora_cli.project.unfinished import CHECKPOINTS
from unziplora_cli.training.memory import free_memory
from unziplora_cli.training.plan import Target, base_of, needed, predict_memory
from unziplora_cli.training.proposal import Changes, line, lower, options, propose
from unziplora_cli.training.request import TrainRequest


def target_of(device: torch.device, precision: str) -> Target:
    """Where ``device`` computes in ``precision`` (fp32, bf16 or fp16)."""
    return Target(device.type, precision, available(device))


@dataclass(slots=True)
class Foresight:
    """The memory of one training; ``free`` is what there was before it began."""

    request: TrainRequest
    device: torch.device
    precision: str
    free: int = field(init=False)

    def __post_init__(self) -> None:
        self.free = free_memory(self.device)

    def warning(self) -> str:
        """That it will probably not fit, and what would; empty when it fits."""
        request, target = self.request, target_of(self.device, self.precision)
        need = needed(predict_memory(base_of(request.base), request.config, target), target)
        if need <= self.free:
            return ""
        what = f"This takes about {need / 1e9:.1f} GB of the GPU, of which {self.free / 1e9:.1f} GB are free"
        changes = None if request.resume else self._proposal()
        return f"{what}: it may not fit." + (f" This would: {self._line(changes)}" if changes else "")

    def advice(self) -> str:
        """What to type when memory ran out."""
        request = self.request
        ways = [" ".join(options(each)) for each in lower(request.config, self.precision)]
        if request.resume:  # its settings are decided
            go_on = f"unziplora train --resume {request.name}"
            return f"Close what else uses this memory, then: {go_on}   Or begin anew with --force {ways[0]}"
        changes = self._proposal()
        if not request.typed:
            first = [" ".join(options(changes))] if changes else []
            return "Try " + ", then ".join(dict.fromkeys(first + ways)) + "."
        changes = changes or lower(request.config, self.precision)[0]
        rest = [way for way in ways if way != " ".join(options(changes))]
        return f"{self._line(changes)}   If that is not enough: {', '.join(rest)}"

    def _proposal(self) -> Changes | None:
        target, base = target_of(self.device, self.precision), base_of(self.request.base)
        return propose(base, self.request.config, target, self.free, self.request.given)

    def _line(self, changes: Changes) -> str:
        """The command; a training that was cut off and has other settings gives way."""
        request = self.request
        kept = any((request.checkpoints or request.folder / CHECKPOINTS).glob("step-*.safetensors"))
        return line(request.typed, changes, *(["--force"] if kept else []))
