"""The echoes of all pictures at once, from the same noise as `unziplora_cli.training.echoes` takes."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from unziplora_cli.config import TrainConfig
from unziplora_cli.diffusion.base import BaseRef
from unziplora_cli.diffusion.load import load_scheduler
from unziplora_cli.diffusion.sampling import sample
from unziplora_cli.training.echoes import GUIDANCE, STEPS, echo_generator


@torch.no_grad()
def all_echoes(
    unet: nn.Module,
    base: BaseRef,
    config: TrainConfig,
    pictures: Tensor,
    contents: Mapping[int, str],
    texts: Callable[[str], tuple[Tensor, Tensor]],
    time_ids: Tensor,
    dtype: torch.dtype,
) -> Tensor:
    """Echoes [samples, echoes, channels, h, w] of ``pictures`` [samples, channels, h, w].

    ``contents`` is the content prompt of each picture; pictures without one get no echo, but zeros.
    """
    found = torch.zeros(len(pictures), config.echoes, *pictures.shape[1:], device=pictures.device)
    numbers = sorted(contents)
    told = [texts(config.echo_prompt.replace("{content}", contents[number])) for number in numbers]
    tokens, pooled = (torch.cat([each[part] for each in told]).to(pictures.device, dtype) for part in range(2))
    ids = time_ids.to(pictures.device, dtype).expand(2 * len(numbers), -1)
    tokens, pooled = (torch.cat([torch.zeros_like(each), each]) for each in (tokens, pooled))

    def denoiser(noisy: Tensor, timestep: Tensor) -> Tensor:
        added = {"text_embeds": pooled, "time_ids": ids}
        prediction: Tensor = unet(
            noisy.to(dtype), timestep, encoder_hidden_states=tokens, added_cond_kwargs=added, return_dict=False
        )[0]
        return prediction.float()

    for echo in range(config.echoes):
        noise = torch.cat(
            [torch.randn(1, *pictures.shape[1:], generator=echo_generator(number, echo)) for number in numbers]
        )
        found[numbers, echo] = sample(
            denoiser,
            load_scheduler(base, "euler"),
            noise.to(pictures.device),
            steps=STEPS,
            guidance=GUIDANCE,
            picture=pictures[numbers],
            strength=config.echo_strength,
        )
    return found
