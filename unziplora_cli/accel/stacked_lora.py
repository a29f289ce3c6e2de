"""Several trainings in one network: every adapted projection holds a pair of LoRAs for each of them.

The images of all trainings form one batch, training by training. The frozen layers compute it as any other
batch, and a batched product applies the LoRAs of each training to its own part. No number of a training
depends on the others.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from torch import Tensor, nn

from unziplora_cli.accel.fused_lora import fused_text, join_factors, stacked_branch, with_gradients
from unziplora_cli.method.layer import BRANCHES, DualLoRALinear


class StackedLoRA(DualLoRALinear):
    """A dual layer for several trainings, whose branches have a leading dimension [trainings, ...].

    ``singles`` are the layers of the single trainings: views of the shared tensors.
    """

    def __init__(self, singles: Sequence[DualLoRALinear]) -> None:
        nn.Module.__init__(self)
        self.base = singles[0].base
        self.singles = tuple(singles)
        self.content = stacked_branch([single.content for single in singles])
        self.style = stacked_branch([single.style for single in singles])
        self.mode = singles[0].mode

    def projections(self, name: str) -> Iterator[tuple[str, DualLoRALinear]]:
        """The layer of each training, all under ``name``."""
        for single in with_gradients(self.singles, self.branches()):
            yield name, single

    def forward(self, x: Tensor, x_content: Tensor | None = None, x_style: Tensor | None = None) -> Tensor:
        """See :class:`~unziplora_cli.method.layer.DualLoRALinear`; ``x`` holds training after training."""
        y = self._by_training(self.base(x))
        inputs, factors = [], []
        for name, branch, text in zip(BRANCHES, self.branches(), (x_content, x_style), strict=True):
            if self.mode in ("both", name):
                inputs.append(x if text is None else text)
                factors.append(branch.factors(x.dtype, merged=self.mode == "both"))
        if x_content is None and x_style is None:  # one product for both branches
            inputs, factors = inputs[:1], [join_factors(factors)]
        updates = zip(map(self._by_training, inputs), factors, strict=True)
        return fused_text(y, updates).view(*x.shape[:-1], -1)

    def _by_training(self, x: Tensor) -> Tensor:
        """[trainings * batch, tokens, width] -> [trainings, batch * tokens, width]."""
        return x.reshape(len(self.singles), -1, x.shape[-1])


def stack_lora(
    network: nn.Module, trainings: Sequence[Mapping[str, DualLoRALinear]]
) -> dict[str, StackedLoRA]:
    """Put the layers of several ``trainings`` of one network into it, whose tensors become views.

    Undo with :func:`~unziplora_cli.method.inject.eject`.
    """
    stacked = {name: StackedLoRA([layers[name] for layers in trainings]) for name in trainings[0]}
    for name, layer in stacked.items():
        network.set_submodule(name, layer)
    return stacked
