"""Content and style in one LoRA, the merge weights folded in."""

from __future__ import annotations

import torch

from unziplora_cli.method.lora import LoRA, LoRAWeights, MergeWeights


def combine(
    content: LoRA, style: LoRA, content_merge: MergeWeights, style_merge: MergeWeights
) -> dict[str, LoRAWeights]:
    """The LoRA of rank r_c + r_s whose update of every layer is the sum of both branches' (paper, 3.5).

    ``down = [A_c; A_s]`` [r_c + r_s, in], ``up = [diag(m_c) B_c | diag(m_s) B_s]`` [out, r_c + r_s]; a layer
    that has no merge weight has the weight one. It is exact for whoever shows both branches the same text.
    """
    sides = ((content, content_merge), (style, style_merge))
    combined = {}
    for layer in dict.fromkeys((*content, *style)):
        parts = [(lora[layer], merge.get(layer)) for lora, merge in sides if layer in lora]
        combined[layer] = LoRAWeights(
            down=torch.cat([weights.down for weights, _ in parts]),
            up=torch.cat([weights.up if m is None else weights.up * m[:, None] for weights, m in parts], 1),
        )
    return combined
