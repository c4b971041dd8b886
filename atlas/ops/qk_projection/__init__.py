"""Q-K projection in parallel form: masked linear attention whose values are the keys (TNT Eq 7, App. C).

Legend: N sequences x heads (x periods), T tokens, d head width, b block.

    M_t      = M_persistent    + sum_{i = period start .. t} k_i k_i^T         (token t included)
    norm_t   = norm_persistent + sum_{i = period start .. t} ||k_i||^2
    q'_t     = M_t q_t / max(norm_t, eps)

With `per_key` every outer product is divided by its own ||k||^2 and nothing else is.

Blocks of b tokens, for block i with queries Q, keys K and gradient dO of M_t q_t; M - start is symmetric:

    before_i = start + sum_{j < i} K_j^T K_j        M_t q_t = Q before + tril(Q K^T) K
    after_i = d_total + sum_{j > i} Q_j^T dO_j      dQ = dO before^T + tril(dO K^T) K
    d_start = after_{-1}                            dK = K (after + after^T) + tril(Q K^T)^T dO + tril(dO K^T)^T Q
"""

from __future__ import annotations

from types import ModuleType
from typing import NamedTuple

from torch import Tensor, rsqrt

from atlas.kernels.call import takes
from atlas.ops.qk_projection import cpp, triton
from atlas.ops.qk_projection import torch as plain

EPSILON = 1e-8


class Accumulator(NamedTuple):
    """Running sums of one period."""

    matrix: Tensor  # [N, d, d]
    norm: Tensor  # [N]
    tokens: int  # summed since the period's start


def chosen_form(start: Tensor, query: Tensor, key: Tensor) -> ModuleType:
    """The kernels (`triton` on a GPU, `cpp` on a CPU) where they take these, else `torch`."""
    if triton.takes(start, query, key):
        return triton
    return cpp if takes(start, query, key, widths=query.shape[2:]) else plain


def project(
    start: Accumulator, query: Tensor, key: Tensor, *, per_key: bool, divide: bool = True
) -> tuple[Tensor, Accumulator]:
    """q' for every token of a stretch inside one period [N, T, d], and the sums after it.

    `divide=False` gives M_t q_t, which has the same direction.
    """
    if not key.shape[1]:
        return query, start
    square = key.square().sum(-1)  # [N, T]
    if per_key:
        key = key * rsqrt(square.clamp(min=EPSILON)).unsqueeze(-1)
    projected, matrix = chosen_form(start.matrix, query, key).causal_products(start.matrix, query, key)
    if divide and not per_key:
        norm = start.norm.unsqueeze(1) + square.cumsum(1)
        projected = projected / norm.clamp(min=EPSILON).unsqueeze(-1)
    return projected, Accumulator(matrix, start.norm + square.sum(1), start.tokens + key.shape[1])
