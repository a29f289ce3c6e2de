"""LoRAs fused into the weights that they adapt: the same function at the cost of the base.

A layer as the method defines it needs two thin products per branch, thousands of them in SDXL's U-Net, each
too small for a GPU. Since y = W x + B A x = (W + B A) x, one batched product of all B with all A of a region
gives the weights of its projections, and the region then runs like the base. Keys and values of
cross-attention see only the text, which is short and the same at every step: they are computed all at once.

Training fuses the branches anew in every forward pass and differentiates through it (:func:`fuse_lora`).
Generation fuses saved LoRAs once into the weights of the network (:func:`fuse_pair`).
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from typing import Any

import torch
import torch.nn.functional as F
from diffusers.models.attention_processor import Attention
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from torch.utils.weak import WeakTensorKeyDictionary

from unziplora_cli.errors import AdapterError, Remedy, count
from unziplora_cli.method.inject import adapted_projections
from unziplora_cli.method.layer import Branch, DualLoRALinear, Mode
from unziplora_cli.method.lora import LoRA, LoRAPair

TEXT_PROJECTIONS = (".attn2.to_k", ".attn2.to_v")
"""The projections whose input is a text."""

Factors = tuple[Tensor, Tensor]
"""A [..., rank, in] and scaled B [..., out, rank] of a low-rank update."""


def join_factors(updates: Iterable[Factors]) -> Factors:
    """The factors of the sum of ``updates``: ranks add up."""
    downs, ups = zip(*updates, strict=True)
    return torch.cat(downs, dim=-2), torch.cat(ups, dim=-1)


def fused_weight(weight: Tensor, down: Tensor, up: Tensor) -> Tensor:
    """W + B A for ``weight`` [out, in], or for several of one shape [layers, out, in]."""
    add = torch.addmm if weight.ndim == 2 else torch.baddbmm
    return add(weight, up, down)


def fused_text(projected: Tensor, updates: Iterable[tuple[Tensor, Factors]]) -> Tensor:
    """W x + the sum of B A x_i: ``projected`` is W x of the full prompt, x_i the text of one branch."""
    for text, (down, up) in updates:
        projected = projected + torch.matmul(torch.matmul(text, down.mT), up.mT)
    return projected


class FusedProjection(DualLoRALinear):
    """A dual layer that uses fused weights while its region computes.

    ``fused_weight`` is W + B A [out, in]; ``fused_qkv`` on a query projection is that of query, key and value
    stacked [3 out, in]; ``cached_projection`` [batch, tokens, out] is the output itself if the input is a
    text. Without them the layer computes as defined by its base class.
    """

    region: _Region
    fused_weight: Tensor | None = None
    fused_qkv: Tensor | None = None
    cached_projection: Tensor | None = None

    def forward(self, x: Tensor, x_content: Tensor | None = None, x_style: Tensor | None = None) -> Tensor:
        """See :class:`~unziplora_cli.method.layer.DualLoRALinear`."""
        if self.cached_projection is not None:
            return self.cached_projection
        if self.fused_weight is not None:
            return F.linear(x, self.fused_weight, self.base.bias)
        return super().forward(x, x_content, x_style)


def project_qkv(query: nn.Module, key: nn.Module, value: nn.Module, x: Tensor) -> tuple[Tensor, ...]:
    """Query, key and value of one ``x`` [..., in], each [..., out]; a single product if they are fused."""
    weight: Tensor | None = getattr(query, "fused_qkv", None)
    if weight is None:
        return query(x), key(x), value(x)
    return F.linear(x, weight).chunk(3, dim=-1)


class FusedLoRA(nn.Module):
    """Projections of one shape in one region, whose branches are held in shared tensors.

    ``content`` and ``style`` are branches with a leading dimension [layers, ...]; these are trained. The
    branches of the single ``layers`` become views of them, and so do their frozen weights, unless these are
    computed at every use (int8).
    """

    def __init__(self, layers: Mapping[str, DualLoRALinear], *, text: bool = False):
        super().__init__()
        self.layers: dict[str, FusedProjection] = {}
        for name, layer in layers.items():
            layer.__class__ = FusedProjection
            assert isinstance(layer, FusedProjection)
            self.layers[name] = layer
        members = list(self.layers.values())
        self.device = members[0].base.weight.device
        if text:  # W x runs once per prompt, so the weights are kept on the CPU
            self._move_frozen(torch.device("cpu"))
        self.content = stacked_branch([layer.content for layer in members])
        self.style = stacked_branch([layer.style for layer in members])
        self._groups = _groups(self.layers)
        self._projected_texts = WeakTensorKeyDictionary()
        self._frozen: Tensor | None = None
        if all(isinstance(layer.base.weight, nn.Parameter) for layer in members):
            self._frozen = torch.stack([layer.base.weight.detach() for layer in members])
            for layer, weight in zip(members, self._frozen, strict=True):
                layer.base.weight.data = weight

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

    def frozen_weights(self) -> Tensor:
        """The weights of the base, [layers, out, in]."""
        if self._frozen is not None:
            return self._frozen
        return torch.stack([layer.base.weight for layer in self.layers.values()])

    def fuse(self) -> RecomputedWeight:
        """Set the fused weights of all layers; returns a stand-in for them until the backward pass."""
        frozen = self.frozen_weights()
        down, up = join_factors(self._factors(branch, frozen.dtype) for branch in self._active())
        weights = fused_weight(frozen, down, up)
        sizes = [len(group) for group in self._groups]
        for group, part in zip(self._groups, torch.split(weights, sizes), strict=True):
            if len(group) > 1:
                group[0].fused_qkv = part.flatten(0, 1)
            for layer, weight in zip(group, part, strict=True):
                layer.fused_weight = weight
        return RecomputedWeight(frozen, down.detach(), up.detach(), weights.data_ptr())

    def project_text(self, full: Tensor, content: Tensor, style: Tensor) -> None:
        """Set the projections of the three texts [batch, tokens, in] for all layers.

        W x is kept for as long as the tensor ``full`` exists. The first call with a new tensor copies W to
        its device, which a CUDA graph cannot record.
        """
        texts = {self.content: content, self.style: style}
        if full not in self._projected_texts:
            frozen = self.frozen_weights().to(full.device)
            self._projected_texts[full] = torch.matmul(full.flatten(0, 1), frozen.mT)
        projected = fused_text(
            self._projected_texts[full],  # [layers, batch * tokens, out]
            ((texts[branch].flatten(0, 1), self._factors(branch, full.dtype)) for branch in self._active()),
        )
        for layer, output in zip(self.layers.values(), projected.unbind(), strict=True):
            layer.cached_projection = output.view(*full.shape[:2], -1)

    def release(self) -> None:
        """Drop everything fused or cached on the layers."""
        for layer in self.layers.values():
            layer.fused_weight = layer.fused_qkv = layer.cached_projection = None

    def dissolve(self) -> None:
        """Make the layers plain dual layers again, with their frozen weights on the former device."""
        self.release()
        self._move_frozen(self.device)
        for layer in self.layers.values():
            del layer.region
            layer.__class__ = DualLoRALinear  # type: ignore[assignment]

    def projections(self, name: str) -> Iterator[tuple[str, DualLoRALinear]]:
        """Each layer by its own name; while it is yielded, its gradients are views of the shared ones."""
        return zip(self.layers, with_gradients(self.layers.values(), self.branches()), strict=True)

    def _move_frozen(self, device: torch.device) -> None:
        for layer in self.layers.values():
            layer.base.to(device)

    def _active(self) -> list[Branch]:
        return [b for b, m in ((self.content, "content"), (self.style, "style")) if self.mode in ("both", m)]

    def _factors(self, branch: Branch, dtype: torch.dtype) -> Factors:
        return branch.factors(dtype, merged=self.mode == "both")


def fuse_lora(
    network: nn.Module, layers: Mapping[str, DualLoRALinear], *, by_block: bool = False
) -> dict[str, FusedLoRA]:
    """Fuse all ``layers`` of ``network`` in every forward pass; returns what to train, by name.

    A region is fused right before it runs: a whole stack of transformer blocks or, ``by_block``, each block,
    for networks that recompute activations block by block. The network must be called with the branches'
    texts in ``cross_attention_kwargs``, as :func:`~unziplora_cli.sdxl.text.predict_noise` does. Undo with
    :func:`unfuse_lora`.
    """
    regions: dict[str, dict[str, dict[str, DualLoRALinear]]] = {}
    for name, layer in layers.items():
        region = name.rpartition(".attn")[0]
        if not by_block:
            region = region.partition(".transformer_blocks.")[0]
        kind = "text" if name.endswith(TEXT_PROJECTIONS) else f"{layer.out_features}x{layer.in_features}"
        regions.setdefault(region, {}).setdefault(kind, {})[name] = layer
    fused = {}
    for region, kinds in regions.items():
        groups = {kind: FusedLoRA(members, text=kind == "text") for kind, members in kinds.items()}
        fused.update({f"{region}.{kind}": group for kind, group in groups.items()})
        _Region(network.get_submodule(region), groups, recomputes=not by_block)
    return fused


def unfuse_lora(network: nn.Module) -> None:
    """Undo :func:`fuse_lora`: every layer computes by itself again, with the weights as trained."""
    layers = [module for module in network.modules() if isinstance(module, FusedProjection)]
    for region in {layer.region for layer in layers}:
        region.remove()


class _Region:
    """Fuses the projections of ``module`` while it runs.

    If it ``recomputes``, autograd does not keep the fused weights for the backward pass.
    """

    def __init__(self, module: nn.Module, groups: Mapping[str, FusedLoRA], *, recomputes: bool) -> None:
        self.groups = groups
        self.recomputes = recomputes
        self.signature = inspect.signature(module.forward)
        self.saved_tensor_hooks = ExitStack()
        self.handles: list[RemovableHandle] = [
            module.register_forward_pre_hook(self.prepare, with_kwargs=True),
            module.register_forward_hook(self.release, always_call=True),
        ]
        for group in groups.values():
            for layer in group.layers.values():
                layer.region = self

    def prepare(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Fuse the weights, and project the texts that ``module`` is called with."""
        arguments = self.signature.bind(*args, **kwargs).arguments
        texts = arguments["cross_attention_kwargs"]
        for kind, group in self.groups.items():
            if kind == "text":
                full = arguments["encoder_hidden_states"]
                group.project_text(full, texts["content_states"], texts["style_states"])
                continue
            weights = group.fuse()
            if self.recomputes:
                hooks = torch.autograd.graph.saved_tensors_hooks(weights.pack, weights.unpack)
                self.saved_tensor_hooks.enter_context(hooks)

    def release(self, module: nn.Module, args: Any, output: Any) -> None:
        """Drop the fused weights; also called if ``module`` raised."""
        self.saved_tensor_hooks.close()
        for group in self.groups.values():
            group.release()

    def remove(self) -> None:
        """Remove the hooks and make the layers plain dual layers again."""
        for handle in self.handles:
            handle.remove()
        for group in self.groups.values():
            group.dissolve()


_View = tuple[torch.Size, tuple[int, ...], int]
"""Shape, strides and offset of a view."""


class RecomputedWeight:
    """Stands for fused weights that autograd would keep: packs views of them, and recomputes them once in the
    backward pass."""

    def __init__(self, frozen: Tensor, down: Tensor, up: Tensor, pointer: int) -> None:
        self.frozen, self.down, self.up = frozen, down, up
        self.pointer = pointer
        self.weights: Tensor | None = None
        self.views = 0

    def pack(self, tensor: Tensor) -> Tensor | _View:
        """``tensor``, or its place in the fused weights."""
        if tensor.untyped_storage().data_ptr() != self.pointer:
            return tensor
        self.views += 1
        return tensor.shape, tensor.stride(), int(tensor.storage_offset())

    def unpack(self, packed: Tensor | _View) -> Tensor:
        """The tensor that was packed; after the last view the weights are dropped."""
        if isinstance(packed, Tensor):
            return packed
        if self.weights is None:
            self.weights = fused_weight(self.frozen, self.down, self.up)
        view = self.weights.as_strided(*packed)
        self.views -= 1
        if self.views == 0:
            self.weights = None
        return view


def _groups(layers: Mapping[str, FusedProjection]) -> list[list[FusedProjection]]:
    """The layers in order; query, key and value of one self-attention have the same input: one group."""
    groups: list[list[FusedProjection]] = []
    for name, layer in layers.items():
        if name.endswith((".attn1.to_k", ".attn1.to_v")):
            groups[-1].append(layer)
        else:
            groups.append([layer])
    return groups


def with_gradients(
    layers: Iterable[DualLoRALinear], branches: tuple[Branch, Branch]
) -> Iterator[DualLoRALinear]:
    """Each layer whose tensors are views of ``branches``; while it is yielded, so are its gradients."""
    for i, layer in enumerate(layers):
        for single, shared in zip(layer.branches(), branches, strict=True):
            for part, parameter in single.named_parameters():
                grad = shared.get_parameter(part).grad
                parameter.grad = None if grad is None else grad[i]
        yield layer
        for single in layer.branches():  # a view would keep the memory of all gradients
            single.zero_grad()


def stacked_branch(branches: Sequence[Branch]) -> Branch:
    """One branch with a leading dimension; the tensors of ``branches`` become frozen views of its own."""
    stacked = Branch(*(torch.stack([getattr(b, part).detach() for b in branches]) for part in ("down", "up")))
    stacked.load_state_dict(
        {key: torch.stack([b.state_dict()[key] for b in branches]) for key in stacked.state_dict()}
    )
    stacked.merge.requires_grad_(branches[0].merge.requires_grad)
    for i, branch in enumerate(branches):
        for name, parameter in branch.named_parameters():
            parameter.data = stacked.get_parameter(name).data[i]
            parameter.requires_grad_(False)
        for name, _ in branch.named_buffers():
            setattr(branch, name, stacked.get_buffer(name)[i])
    return stacked


def check_fit(network: nn.Module, pair: LoRAPair) -> None:
    """Raise AdapterError unless every weight of ``pair`` fits a projection of ``network``."""
    projections = adapted_projections(network)
    remedy = Remedy("Use the base that the LoRA was trained on", settings={"base": None})
    for name in pair.names:
        lora: LoRA = getattr(pair, name)
        unknown = [layer for layer in lora if layer not in projections]
        if unknown:
            raise AdapterError(
                f"The {name} LoRA adapts {count(len(unknown), 'layer')} that this base does not have, "
                f"such as {unknown[0]}.",
                remedy,
            )
        for layer, weights in lora.items():
            expected = (projections[layer].out_features, projections[layer].in_features)
            actual = (weights.up.shape[0], weights.down.shape[1])
            merge = (getattr(pair, f"{name}_merge") or {}).get(layer)
            if actual != expected or (merge is not None and merge.shape != expected[:1]):
                raise AdapterError(
                    f"The {name} LoRA does not fit this base: {layer} is {expected[0]} x {expected[1]}, "
                    f"the LoRA is made for {actual[0]} x {actual[1]}.",
                    remedy,
                )


@torch.no_grad()
def fuse_pair(network: nn.Module, pair: LoRAPair, *, keep: bool = True) -> dict[str, Tensor]:
    """Add the updates of ``pair`` to the weights of ``network`` in place, except for the text projections.

    Returns copies of the original weights on the CPU for :func:`unfuse_pair`; none if ``keep`` is off.
    """
    originals = {}
    for layer, linear in adapted_projections(network).items():
        updates = [] if layer.endswith(TEXT_PROJECTIONS) else list(pair.updates(layer))
        if not updates:
            continue
        weight = linear.weight
        if keep:
            originals[layer] = weight.detach().to("cpu", copy=True)
        down, up = join_factors((down, up) for _, down, up in updates)
        weight.copy_(fused_weight(weight.float(), down.to(weight.device), up.to(weight.device)))
    return originals


@torch.no_grad()
def unfuse_pair(network: nn.Module, originals: Mapping[str, Tensor]) -> None:
    """Undo :func:`fuse_pair` exactly."""
    projections = adapted_projections(network)
    for layer, weight in originals.items():
        projections[layer].weight.copy_(weight)


class CachedTextProcessor:
    """Cross-attention to cached keys and values [batch, heads, tokens, head width]."""

    def __init__(self, key: Tensor, value: Tensor) -> None:
        self.key = key
        self.value = value

    def __call__(
        self,
        attn: Attention,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        temb: Tensor | None = None,
    ) -> Tensor:
        """``hidden_states`` [batch, pixels, width] -> the same shape; ignores the text."""
        query = _split_heads(attn.to_q(hidden_states), attn.heads)
        attended = F.scaled_dot_product_attention(query, self.key, self.value)
        return attn.to_out[1](attn.to_out[0](attended.transpose(1, 2).flatten(-2)))  # type: ignore[no-any-return]


@torch.no_grad()
def cache_text(network: nn.Module, pair: LoRAPair, full: Tensor, content: Tensor, style: Tensor) -> None:
    """Compute keys and values of cross-attention from the three texts [batch, tokens, in], and use them from
    now on.

    Keys and values of the same shape are replaced in place, where a CUDA graph reads them.
    """
    texts = {"content": content.float(), "style": style.float()}
    for name, attn in network.named_modules():
        if not isinstance(attn, Attention) or not name.endswith(".attn2"):
            continue
        cached = []
        for projection in ("to_k", "to_v"):
            linear = attn.get_submodule(projection)
            assert isinstance(linear, nn.Linear)
            dtype, device = linear.weight.dtype, full.device
            updates = pair.updates(f"{name}.{projection}")
            output = fused_text(
                linear(full.to(dtype)).float(),  # [batch, tokens, width]
                ((texts[branch], (down.to(device), up.to(device))) for branch, down, up in updates),
            )
            cached.append(_split_heads(output, attn.heads).to(dtype).contiguous())
        processor = attn.processor
        if isinstance(processor, CachedTextProcessor) and processor.key.shape == cached[0].shape:
            processor.key.copy_(cached[0])
            processor.value.copy_(cached[1])
        else:
            attn.set_processor(CachedTextProcessor(*cached))


def _split_heads(x: Tensor, heads: int) -> Tensor:
    """[batch, tokens, width] -> [batch, heads, tokens, head width]."""
    return torch.unflatten(x, -1, (heads, -1)).transpose(1, 2)
