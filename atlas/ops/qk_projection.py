"""Q-K projection in parallel form: masked linear attention whose values are the keys (TNT Eq 7, App. C).

Legend: N sequences x heads (x periods), T tokens, d head width, b block.

    M_t      = M_persistent    + sum_{i = period start .. t} k_i k_i^T         (token t included)
    norm_t   = norm_persistent + sum_{i = period start .. t} ||k_i||^2
    q'_t     = M_t q_t / max(norm_t, eps)

With `per_key` every outer product is divided by its own ||k||^2 and nothing else is.

Blocks of b tokens, for block i with queries Q, keys K and gradient D of M_t q_t; M is symmetric but for its start:

    before_i = start + sum_{j < i} K_j^T K_j        M_t q_t = Q before + tril(Q K^T) K
    after_i = d_total + sum_{j > i} Q_j^T D_j       dQ = D before^T + tril(D K^T) K
    d_start = after_{-1}                            dK = K (after + after^T) + tril(Q K^T)^T D + tril(D K^T)^T Q
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from atlas.ops.compiled import kernels_for
from atlas.ops.compiled_products import CompiledProducts

EPSILON = 1e-8
BLOCK = 64  # tokens whose pairwise products are formed at once


class Accumulator(NamedTuple):
    """Running sums of one period."""

    matrix: Tensor  # [N, d, d]
    norm: Tensor  # [N]
    tokens: int  # summed since the period's start


def project(
    start: Accumulator, query: Tensor, key: Tensor, *, per_key: bool, divide: bool = True
) -> tuple[Tensor, Accumulator]:
    """q' for every token of a stretch inside one period [N, T, d], and the sums after it.

    `divide=False` leaves it as M_t q_t: for who wants its direction only.
    """
    square = key.square().sum(-1)  # [N, T]
    if per_key:
        key = key * torch.rsqrt(square.clamp(min=EPSILON)).unsqueeze(-1)
    kernel = kernels_for((start.matrix, query, key), query.shape[2:])
    if kernel is None:
        projected, matrix = CausalProducts.apply(start.matrix, query, key)  # type: ignore[no-untyped-call]
    else:
        projected, matrix = CompiledProducts.apply(kernel, start.matrix, query, key)  # type: ignore[no-untyped-call]
    if divide and not per_key:
        norm = start.norm.unsqueeze(1) + square.cumsum(1)
        projected = projected / norm.clamp(min=EPSILON).unsqueeze(-1)
    return projected, Accumulator(matrix, start.norm + square.sum(1), start.tokens + key.shape[1])


class CausalProducts(torch.autograd.Function):
    """(start [N, d, d], q [N, T, d], k [N, T, d]) -> M_t q_t [N, T, d] and the matrix after the last token [N, d, d].

    The gradients of queries and keys are causal products too, see above. Computed in the tensors' own precision, under
    autocast too.
    """

    @staticmethod
    def forward(ctx: Any, start: Tensor, query: Tensor, key: Tensor) -> tuple[Tensor, Tensor]:
        rows, tokens = key.shape[:2]
        with _own_precision(key.device.type):
            queries, keys = _blocks(query), _blocks(key)
            own = (keys.mT @ keys).unflatten(0, (rows, -1))
            sums = torch.cat((start.unsqueeze(1), own), dim=1).cumsum(1)
            before = sums[:, :-1].flatten(0, 1)
            gram = (queries @ keys.mT).tril_()
            projected = torch.bmm(queries, before).baddbmm_(gram, keys)
        ctx.save_for_backward(queries, keys, before, gram)
        return _joined(projected, rows, tokens), sums[:, -1].clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_projected: Tensor, d_total: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        queries, keys, before, gram = ctx.saved_tensors
        rows, tokens = d_projected.shape[:2]
        with _own_precision(d_projected.device.type):
            gradients = _blocks(d_projected)
            own = (queries.mT @ gradients).unflatten(0, (rows, -1))
            later = torch.cat((own, d_total.unsqueeze(1)), dim=1).flip(1).cumsum(1).flip(1)
            after = later[:, 1:].flatten(0, 1)
            d_gram = (gradients @ keys.mT).tril_()
            d_query = torch.bmm(gradients, before.mT).baddbmm_(d_gram, keys)
            d_key = torch.bmm(keys, after + after.mT)
            d_key.baddbmm_(gram.mT, gradients).baddbmm_(d_gram.mT, queries)
        return later[:, 0], _joined(d_query, rows, tokens), _joined(d_key, rows, tokens)


def _own_precision(device: str) -> AbstractContextManager[None]:
    """No autocast, on devices that have it."""
    return torch.autocast(device, enabled=False) if torch.amp.is_autocast_available(device) else nullcontext()


def _blocks(tokens: Tensor) -> Tensor:
    """[N, T, d] -> [N * n, b, d], filled up with zeros: a token of zeros adds nothing."""
    block = min(BLOCK, tokens.shape[1])
    padding = -tokens.shape[1] % block
    filled = F.pad(tokens, (0, 0, 0, padding)) if padding else tokens
    return filled.reshape(-1, block, tokens.shape[2])


def _joined(blocks: Tensor, rows: int, tokens: int) -> Tensor:
    joined: Tensor = blocks.view(rows, -1, blocks.shape[2])[:, :tokens]
    return joined
