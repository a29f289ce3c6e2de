"""What trainings of several pictures share, so that nothing is loaded twice."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import torch
from accelerate import Accelerator
from diffusers import UNet2DConditionModel

from unziplora_cli.diffusion.device import settle_threads
from unziplora_cli.diffusion.generate import free
from unziplora_cli.diffusion.load import load_unet
from unziplora_cli.training.events import Event
from unziplora_cli.training.materials import Materials, gather
from unziplora_cli.training.request import TrainRequest


@dataclass(slots=True)
class Workshop:
    """All pictures ``to_come`` are encoded before the first U-Net, which then stays for those after it.

    They share base, device and precision.
    """

    to_come: Sequence[TrainRequest] = ()
    _encoded: list[tuple[TrainRequest, Materials]] = field(default_factory=list, init=False)
    _unet: UNet2DConditionModel | None = field(default=None, init=False)

    def materials(
        self, request: TrainRequest, accelerator: Accelerator, dtype: torch.dtype
    ) -> Iterator[Event | Materials]:
        """What ``request`` draws from, at last; before it the events of what had to be done."""
        if not any(_alike(request, done) for done, _ in self._encoded):
            others = [each for each in self.to_come if not _alike(request, each)]
            for found in gather([request, *others], accelerator, dtype):
                if isinstance(found, tuple):
                    self._encoded.append(found)
                else:
                    yield found
            self.to_come = ()
        yield next(materials for done, materials in self._encoded if _alike(request, done))

    def unet(self, request: TrainRequest, device: torch.device, dtype: torch.dtype) -> UNet2DConditionModel:
        """The U-Net, without branches."""
        unet, self._unet = self._unet, None
        if unet is None:
            eight_bits = request.config.quantize == "int8"
            unet = load_unet(request.base, device=device, dtype=dtype, eight_bits=eight_bits)
        free(device)
        settle_threads(unet)
        return unet

    def keep(self, unet: UNet2DConditionModel) -> None:
        """Take back the U-Net, without branches."""
        self._unet = unet


def _alike(one: TrainRequest, other: TrainRequest) -> bool:
    """Whether both draw from the same pictures under the same prompts."""
    parts = ("pictures", "prompts", "validation", "config", "vae")
    return all(getattr(one, part) == getattr(other, part) for part in parts)
