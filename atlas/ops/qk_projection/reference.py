"""Slow reference of the Q-K projection: one row, one token at a time.

Legend: T tokens, d head width.
"""

from __future__ import annotations

import torch
from torch import Tensor


def projected_queries(
    query: Tensor, key: Tensor, matrix: Tensor, norm: Tensor, *, period: int | None, per_key: bool
) -> Tensor:
    """q' of one row's tokens [T, d], one by one; every period starts from `matrix` [d, d] and `norm`."""
    outputs: list[Tensor] = []
    for t in range(len(key)):
        if t == 0 or (period and t % period == 0):
            M, total = matrix, norm
        square = key[t] @ key[t]
        M = M + torch.outer(key[t], key[t]) / (square if per_key else 1.0)
        total = total + square
        outputs.append(M @ query[t] / (1.0 if per_key else total))
    return torch.stack(outputs)
