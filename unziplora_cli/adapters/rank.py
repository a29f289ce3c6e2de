"""LoRAs of a lower rank."""

from __future__ import annotations

import torch

from unziplora_cli.method.lora import LoRA, LoRAWeights


def reduce_rank(lora: LoRA, rank: int) -> tuple[dict[str, LoRAWeights], float]:
    """The nearest LoRA (in the Frobenius norm) of at most this rank, layer by layer, and its relative error.

    With ``up = Q_u R_u`` and ``down^T = Q_d R_d`` the update is ``Q_u (R_u R_d^T) Q_d^T``, so the singular
    values come from a matrix of the old rank; the out x in matrix is never formed. Both new tensors get the
    square root of the singular values. A layer of that rank or less stays as it is.

    The error is the norm of what was cut off all layers over the norm of all layers.
    """
    reduced, lost, whole = {}, 0.0, 0.0
    for layer, weights in lora.items():
        q_up, r_up = torch.linalg.qr(weights.up)  # [out, k], [k, old rank]
        q_down, r_down = torch.linalg.qr(weights.down.T)  # [in, l], [l, old rank]
        left, values, right = torch.linalg.svd((r_up @ r_down.T).double(), full_matrices=False)
        whole += float(values.square().sum())
        if weights.rank <= rank:
            reduced[layer] = weights
            continue
        lost += float(values[rank:].square().sum())
        root = values[:rank].sqrt()
        reduced[layer] = LoRAWeights(
            down=(root[:, None] * right[:rank]).float() @ q_down.T,  # [rank, in]
            up=q_up @ (left[:, :rank] * root).float(),  # [out, rank]
        )
    return reduced, (lost / whole) ** 0.5 if whole else 0.0
