"""Causal products of the Q-K projection by PyTorch's operations, in blocks. Legend and equations: `__init__.py`."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from atlas.ops.first_order import first_order
from atlas.ops.own_precision import own_precision

BLOCK = 64  # tokens whose pairwise products are formed at once


def causal_products(start: Tensor, query: Tensor, key: Tensor) -> tuple[Tensor, Tensor]:
    """(start [N, d, d], q [N, T, d], k [N, T, d]) -> M_t q_t [N, T, d], and the matrix after them [N, d, d]."""
    out, total = CausalProducts.apply(start, query, key)  # type: ignore[no-untyped-call]
    return out, total


class CausalProducts(torch.autograd.Function):
    """`causal_products` with its backward pass.

    The gradients of queries and keys are causal products too. The precision is that of the tensors, under autocast too.
    """

    @staticmethod
    def forward(ctx: Any, start: Tensor, query: Tensor, key: Tensor) -> tuple[Tensor, Tensor]:
        rows, tokens = key.shape[:2]
        with own_precision(key):
            queries, keys = _blocks(query), _blocks(key)
            own = (keys.mT @ keys).unflatten(0, (rows, _count(tokens)))
            sums = torch.cat((start.unsqueeze(1), own), dim=1).cumsum(1)
            before = sums[:, :-1].flatten(0, 1)
            gram = (queries @ keys.mT).tril_()
            projected = torch.bmm(queries, before).baddbmm_(gram, keys)
        ctx.save_for_backward(queries, keys, before, gram)
        return _joined(projected, rows, tokens), sums[:, -1].clone()

    @staticmethod
    @first_order
    def backward(ctx: Any, d_projected: Tensor, d_total: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        queries, keys, before, gram = ctx.saved_tensors
        rows, tokens = d_projected.shape[:2]
        with own_precision(d_projected):
            gradients = _blocks(d_projected)
            own = (queries.mT @ gradients).unflatten(0, (rows, _count(tokens)))
            later = torch.cat((own, d_total.unsqueeze(1)), dim=1).flip(1).cumsum(1).flip(1)
            after = later[:, 1:].flatten(0, 1)
            d_gram = (gradients @ keys.mT).tril_()
            d_query = torch.bmm(gradients, before.mT).baddbmm_(d_gram, keys)
            d_key = torch.bmm(keys, after + after.mT)
            d_key.baddbmm_(gram.mT, gradients).baddbmm_(d_gram.mT, queries)
        return later[:, 0], _joined(d_query, rows, tokens), _joined(d_key, rows, tokens)


def _count(tokens: int) -> int:
    """Blocks of a row."""
    return -(-tokens // BLOCK)


def _blocks(tokens: Tensor) -> Tensor:
    """[N, T, d] -> [N * n, b, d], padded with zeros: a token of zeros adds nothing."""
    block = min(BLOCK, tokens.shape[1])
    padding = -tokens.shape[1] % block
    filled = F.pad(tokens, (0, 0, 0, padding)) if padding else tokens
    return filled.reshape(len(tokens) * _count(tokens.shape[1]), block, tokens.shape[2])


def _joined(blocks: Tensor, rows: int, tokens: int) -> Tensor:
    joined: Tensor = blocks.view(rows, _count(tokens) * blocks.shape[1], blocks.shape[2])[:, :tokens]
    return joined
