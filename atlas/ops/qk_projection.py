"""Q-K projection in parallel form: masked linear attention whose values are the keys (TNT Eq 7, App. C).

Legend: N sequences x heads (x periods), T tokens, d head width, b block.

    M_t      = M_persistent    + sum_{i = period start .. t} k_i k_i^T         (token t included)
    norm_t   = norm_persistent + sum_{i = period start .. t} ||k_i||^2
    q'_t     = M_t q_t / max(norm_t, eps)

With `per_key` every outer product is divided by its own ||k||^2 and nothing else is.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

EPSILON = 1e-8
BLOCK = 64  # tokens whose pairwise products are formed at once


class Accumulator(NamedTuple):
    """Running sums of one period."""

    matrix: Tensor  # [N, d, d]
    norm: Tensor  # [N]
    tokens: int  # summed since the period's start


def project(start: Accumulator, query: Tensor, key: Tensor, *, per_key: bool) -> tuple[Tensor, Accumulator]:
    """q' for every token of a stretch inside one period [N, T, d], and the sums after it."""
    tokens = key.shape[1]
    square = key.square().sum(-1)  # [N, T]
    if per_key:
        key = key * torch.rsqrt(square.clamp(min=EPSILON)).unsqueeze(-1)
    norm = start.norm.unsqueeze(1) + square.cumsum(1)
    block = min(BLOCK, tokens)
    padding = -tokens % block
    queries = F.pad(query, (0, 0, 0, padding)).unflatten(1, (-1, block))  # [N, T/b, b, d]
    keys = F.pad(key, (0, 0, 0, padding)).unflatten(1, (-1, block))
    totals = start.matrix.unsqueeze(1) + (keys.mT @ keys).cumsum(1)  # sums at the block ends
    before = torch.cat((start.matrix.unsqueeze(1), totals[:, :-1]), dim=1)
    projected = queries @ before + torch.tril(queries @ keys.mT) @ keys  # M is symmetric
    projected = projected.flatten(1, 2)[:, :tokens]
    if not per_key:
        projected = projected / norm.clamp(min=EPSILON).unsqueeze(-1)
    return projected, Accumulator(totals[:, -1], norm[:, -1], start.tokens + tokens)
