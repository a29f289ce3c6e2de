"""The two branches fused into the weights that they adapt: the same function at the cost of the base.

A layer as it is defined needs two thin products per branch, thousands of them in SDXL's U-Net, each too
small for a GPU. Since y = W x + B A x = (W + B A) x, one product of all B with all A of a region makes the
weights of its projections, and the region then computes as the base does; the gradients of A and B come back
through the same product. Texts are short and the same in the whole region: their keys and values are made all
at once.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.weak import WeakTensorKeyDictionary

from unziplora_cli.method.layer import Branch, DualLoRALinear, Mode

TEXT_PROJECTIONS = (".attn2.to_k", ".attn2.to_v")
"""The projections whose input is a text."""


class FusedLoRA(nn.Module):
    """Projections of one shape in one region, whose branches lie in shared tensors.

    ``content`` and ``style`` are branches with a leading dimension [layers, ...], and these are what is
    trained; those of the single ``layers`` become views of them, and so do their frozen weights, unless those
    are made from something smaller at every use.
    """

    def __init__(self, layers: Mapping[str, DualLoRALinear], *, text: bool = False):
        super().__init__()
        self.layers = dict(layers)
        parts = list(self.layers.values())
        self.device = parts[0].base.weight.device
        if text:  # what the base makes of a text is known once it was read: its weights can wait elsewhere
            self._move_frozen(torch.device("cpu"))
        self.content = _gathered([layer.content for layer in parts])
        self.style = _gathered([layer.style for layer in parts])
        self._groups = _groups(self.layers)
        self._known = WeakTensorKeyDictionary()
        self._frozen: Tensor | None = None
        if all(isinstance(layer.base.weight, nn.Parameter) for layer in parts):
            self._frozen = torch.stack([layer.base.weight.detach() for layer in parts])
            for layer, weight in zip(parts, self._frozen, strict=True):
                layer.base.weight.data = weight

    def frozen(self) -> Tensor:
        """The weights of the base, [layers, out, in]."""
        if self._frozen is not None:
            return self._frozen
        return torch.stack([layer.base.weight for layer in self.layers.values()])

    @property
    def mode(self) -> Mode:
        """Which branches act; the same in all layers."""
        return next(iter(self.layers.values())).mode

    @mode.setter
    def mode(self, mode: Mode) -> None:
        for layer in self.layers.values():
            layer.mode = mode

    def branches(self) -> tuple[Branch, Branch]:
        """The content and the style branch, in that order."""
        return self.content, self.style

    def fuse_lora(self) -> RecomputedWeight:
        """Set ``fused_weight`` = W + (B_c * g_c) A_c + (B_s * g_s) A_s, [out, in], on the layers.

        Returns what can stand for these weights until the backward pass.
        """
        frozen = self.frozen()
        acting = [self._factors(branch, frozen.dtype) for branch in self._acting()]
        down = torch.cat([down for down, _ in acting], dim=-2)  # [layers, 1 or 2 ranks, in]
        up = torch.cat([up for _, up in acting], dim=-1)  # [layers, out, 1 or 2 ranks]
        weights = torch.baddbmm(frozen, up, down)
        sizes = [len(group) for group in self._groups]
        for group, fused_qkv in zip(self._groups, torch.split(weights, sizes), strict=True):
            if len(group) > 1:
                group[0].fused_qkv = fused_qkv.flatten(0, 1)
            for layer, weight in zip(group, fused_qkv, strict=True):
                layer.fused_weight = weight
        return RecomputedWeight(
            partial(torch.baddbmm, frozen, up.detach(), down.detach()), weights.data_ptr()
        )

    def read(self, full: Tensor, content: Tensor, style: Tensor) -> None:
        """Prepare the layers for texts [batch, tokens, in] to the base, content and style branch."""
        own = {self.content: content, self.style: style}
        if full not in self._known:
            frozen = self.frozen().to(full.device)
            self._known[full] = torch.matmul(full.flatten(0, 1), frozen.mT)  # [layers, batch * tokens, out]
        answers = self._known[full]
        for branch in self._acting():
            down, up = self._factors(branch, full.dtype)
            answers = answers + torch.matmul(torch.matmul(own[branch].flatten(0, 1), down.mT), up.mT)
        for layer, cached_projection in zip(self.layers.values(), answers.unbind(), strict=True):
            layer.cached_projection = cached_projection.view(*full.shape[:2], -1)

    def forget(self) -> None:
        """Let the layers compute by themselves again."""
        for layer in self.layers.values():
            layer.fused_weight = layer.fused_qkv = layer.cached_projection = None

    def restore(self) -> None:
        """Put the frozen weights back where they were."""
        self._move_frozen(self.device)

    def with_gradients(self) -> Iterator[tuple[str, DualLoRALinear]]:
        """Each layer by name; while it is yielded, its branches' gradients are views of the shared ones."""
        for i, (name, layer) in enumerate(self.layers.items()):
            for single, shared in zip(layer.branches(), self.branches(), strict=True):
                for part, parameter in single.named_parameters():
                    grad = shared.get_parameter(part).grad
                    parameter.grad = None if grad is None else grad[i]
            yield name, layer
            for single in layer.branches():  # a view would keep the memory of all gradients
                single.zero_grad()

    def _move_frozen(self, device: torch.device) -> None:
        for layer in self.layers.values():
            layer.base.to(device)

    def _acting(self) -> tuple[Branch, ...]:
        return self.branches() if self.mode == "both" else (self.get_submodule(self.mode),)  # type: ignore[return-value]

    def _factors(self, branch: Branch, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """``down`` and scaled ``up``, in the precision of the base."""
        scale = branch.merge * branch.gate if self.mode == "both" else branch.gate  # [layers, out]
        return branch.down.to(dtype), (branch.up * scale[..., None]).to(dtype)


Folds = Mapping[str, FusedLoRA]


def fuse_lora(network: nn.Module, layers: Mapping[str, DualLoRALinear], *, by_block: bool = False) -> Folds:
    """Fuse all ``layers`` of ``network``; returns the groups by name.

    A region is fused just before it computes: a whole stack of transformer blocks, or, ``by_block``, each of
    them, for networks that recompute activations block by block. The network must be called with the texts of
    the branches, as :func:`~unziplora_cli.sdxl.text.predict_noise` does.
    """
    groups: dict[str, dict[str, dict[str, DualLoRALinear]]] = {}
    for name, layer in layers.items():
        region = name.rpartition(".attn")[0]
        if not by_block:
            region = region.partition(".transformer_blocks.")[0]
        kind = "text" if name.endswith(TEXT_PROJECTIONS) else f"{layer.out_features}x{layer.in_features}"
        groups.setdefault(region, {}).setdefault(kind, {})[name] = layer
    folds = {}
    for region, kinds in groups.items():
        own = {kind: FusedLoRA(members, text=kind == "text") for kind, members in kinds.items()}
        folds.update({f"{region}.{kind}": each for kind, each in own.items()})
        module = network.get_submodule(region)
        hooks = _Region(own, inspect.signature(module.forward), saves=not by_block)
        module.register_forward_pre_hook(hooks.prepare, with_kwargs=True)
        module.register_forward_hook(hooks.forget, always_call=True)
    return folds


def unfuse_lora(network: nn.Module) -> None:
    """Let every region of ``network`` compute by its layers again, whose weights stay what they are."""
    for module in network.modules():
        for hooks in (module._forward_pre_hooks, module._forward_hooks):
            for key, hook in list(hooks.items()):
                region: Any = getattr(hook, "__self__", None)
                if isinstance(region, _Region):
                    del hooks[key]
                    for each in region.folds.values():
                        each.restore()


def project_qkv(query: nn.Module, key: nn.Module, value: nn.Module, x: Tensor) -> tuple[Tensor, ...]:
    """What three projections make of one ``x`` [..., in], each [..., out]; one product if fused."""
    fused_qkv: Tensor | None = getattr(query, "fused_qkv", None)  # [3 out, in]
    if fused_qkv is None:
        return query(x), key(x), value(x)
    return F.linear(x, fused_qkv).chunk(3, dim=-1)


def projections(layers: Mapping[str, DualLoRALinear | FusedLoRA]) -> Iterator[tuple[str, DualLoRALinear]]:
    """Every single projection by name, its gradients in place."""
    for name, each in layers.items():
        if isinstance(each, FusedLoRA):
            yield from each.with_gradients()
        else:
            yield name, each


class _Region:
    """Folds the projections of a region while it computes.

    With ``saves``, autograd keeps no fused weights for the backward pass: they are recomputed there.
    """

    def __init__(self, folds: Folds, signature: inspect.Signature, *, saves: bool) -> None:
        self.folds = folds
        self.signature = signature
        self.saves = saves
        self.keeping = ExitStack()

    def prepare(self, region: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Fuse the weights and project the texts that ``region`` is called with."""
        told = self.signature.bind(*args, **kwargs).arguments
        texts = told["cross_attention_kwargs"]
        for kind, each in self.folds.items():
            if kind == "text":
                each.read(told["encoder_hidden_states"], texts["content_states"], texts["style_states"])
                continue
            weights = each.fuse_lora()
            if self.saves:
                hooks = torch.autograd.graph.saved_tensors_hooks(weights.pack, weights.unpack)
                self.keeping.enter_context(hooks)

    def forget(self, region: nn.Module, args: Any, output: Any) -> None:
        """Leave nothing prepared."""
        self.keeping.close()
        for each in self.folds.values():
            each.forget()


_Part = tuple[torch.Size, tuple[int, ...], int]


class RecomputedWeight:
    """Stands for fused weights that autograd would keep; ``make`` recomputes them in the backward pass."""

    def __init__(self, make: Callable[[], Tensor], pointer: int) -> None:
        self.make, self.pointer = make, pointer
        self.weights: Tensor | None = None
        self.left = 0

    def pack(self, tensor: Tensor) -> Tensor | _Part:
        """``tensor``, or where in the fused weights it lies."""
        if tensor.untyped_storage().data_ptr() != self.pointer:
            return tensor
        self.left += 1
        return tensor.shape, tensor.stride(), int(tensor.storage_offset())

    def unpack(self, packed: Tensor | _Part) -> Tensor:
        """What was packed; after the last part the weights are given up."""
        if isinstance(packed, Tensor):
            return packed
        if self.weights is None:
            self.weights = self.make()
        part = self.weights.as_strided(*packed)
        self.left -= 1
        if self.left == 0:
            self.weights = None
        return part


def _groups(layers: Mapping[str, DualLoRALinear]) -> list[list[DualLoRALinear]]:
    """The layers in order; query, key and value of one self-attention read the same and are one group."""
    groups: list[list[DualLoRALinear]] = []
    for name, layer in layers.items():
        if name.endswith((".attn1.to_k", ".attn1.to_v")):
            groups[-1].append(layer)
        else:
            groups.append([layer])
    return groups


def _gathered(branches: Sequence[Branch]) -> Branch:
    """One branch with a leading dimension; the tensors of ``branches`` become frozen views of its own."""
    whole = Branch(*(torch.stack([getattr(b, part).detach() for b in branches]) for part in ("down", "up")))
    whole.load_state_dict(
        {key: torch.stack([b.state_dict()[key] for b in branches]) for key in whole.state_dict()}
    )
    whole.merge.requires_grad_(branches[0].merge.requires_grad)
    for i, branch in enumerate(branches):
        for name, parameter in branch.named_parameters():
            parameter.data = whole.get_parameter(name).data[i]
            parameter.requires_grad_(False)
        for name, _ in branch.named_buffers():
            setattr(branch, name, whole.get_buffer(name)[i])
    return whole
