"""The echoes of all pictures, as `unziplora_cli.training.echoes` makes those of one."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from unziplora_cli.config import TrainConfig
from unziplora_cli.diffusion.conditioning import Conditioning, predict_plain
from unziplora_cli.training.echoes import echo


@torch.no_grad()
def all_echoes(
    unet: nn.Module,
    alphas_cumprod: Tensor,
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
    numbers = sorted(contents)
    ids = time_ids.to(pictures.device, dtype).expand(len(numbers), -1)

    def told(prompts: list[str]) -> Conditioning:
        known = [texts(prompt) for prompt in prompts]
        tokens, pooled = (torch.cat([each[part] for each in known]) for part in range(2))
        return Conditioning.one_prompt(tokens, pooled, ids).to(device=pictures.device, dtype=dtype)

    learned = told([contents[number] for number in numbers])
    shown = told([config.echo_prompt.replace("{content}", contents[number]) for number in numbers])
    nothing = Conditioning.one_prompt(torch.zeros_like(shown.full), torch.zeros_like(shown.pooled), ids)
    conditions = {"picture": learned, "echo": shown, "nothing": nothing}

    def predict(noisy: Tensor, timestep: Tensor, text: str) -> Tensor:
        return predict_plain(unet, noisy.to(dtype), timestep.to(noisy.device), conditions[text]).float()

    found = torch.zeros(len(pictures), config.echoes, *pictures.shape[1:], device=pictures.device)
    for number in range(config.echoes):
        found[numbers, number] = echo(
            predict, alphas_cumprod.to(pictures.device), pictures[numbers], config, number
        )
    return found
