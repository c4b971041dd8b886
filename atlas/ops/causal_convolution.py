"""Causal depthwise convolution of a few lags, in blocks of tokens that stay in the cache, with its own backward pass.

    y_t = sum_lag weight[lag] * x_{t - lag}

Autograd of the plain sum writes a zero-filled gradient of the whole stretch per lag, and every pass over a long stretch
goes to main memory. Here the same sums are taken block by block. `tests/unit/ops/test_causal_convolution.py` compares
both.

Legend: B sequences, T tokens, L lags, D channels.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from atlas.ops.first_order import first_order

BLOCK_ELEMENTS = 2**18  # per block on a CPU: a few blocks of 1 MiB fit the cache


def causal_convolution(x: Tensor, weight: Tensor) -> Tensor:
    """x [B, L - 1 + T, D], with the inputs before the stretch first, weight [L, D] -> y [B, T, D].

    Raises `ValueError` for other shapes.
    """
    if x.dim() != 3 or weight.dim() != 2 or not 0 < len(weight) <= x.shape[1] + 1 or x.shape[2] != weight.shape[1]:
        raise ValueError(f"causal_convolution: x is {list(x.shape)}, weight is {list(weight.shape)}")
    out: Tensor = BlockwiseConvolution.apply(x, weight)  # type: ignore[no-untyped-call]
    return out


class BlockwiseConvolution(torch.autograd.Function):
    """`causal_convolution` and its gradients."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        batch, length, width = x.shape
        lags = len(weight)
        out = x.new_empty(batch, length - lags + 1, width)
        for first, end in _blocks(out):
            part = out[:, first:end]
            for lag in range(lags):
                _add_product(part, _at_lag(x, lag, lags, first, end), weight[lag], fresh=lag == 0)
        ctx.save_for_backward(x, weight)
        return out

    @staticmethod
    @first_order
    def backward(ctx: Any, d_out: Tensor) -> tuple[Tensor, Tensor]:
        x, weight = ctx.saved_tensors
        lags = len(weight)
        d_x, d_weight = torch.empty_like(x), torch.zeros_like(weight)
        d_x[:, : lags - 1] = 0
        product = d_out.new_empty(0)
        for first, end in _blocks(d_out):
            part = d_out[:, first:end]
            product = product if product.shape == part.shape else torch.empty_like(part)
            for lag in range(lags):  # lag 0 sets the gradient of an input, later lags add to it
                _add_product(_at_lag(d_x, lag, lags, first, end), part, weight[lag], fresh=lag == 0)
                d_weight[lag] += torch.mul(part, _at_lag(x, lag, lags, first, end), out=product).sum((0, 1))
        return d_x, d_weight


def _blocks(out: Tensor) -> Iterator[tuple[int, int]]:
    """First token and end of every block of [B, T, D]; on a GPU the stretch is one block."""
    tokens = out.shape[1]
    size = tokens if out.is_cuda else max(1, BLOCK_ELEMENTS // max(1, out.shape[0] * out.shape[2]))
    for first in range(0, tokens, size):
        yield first, min(first + size, tokens)


def _at_lag(x: Tensor, lag: int, lags: int, first: int, end: int) -> Tensor:
    """The inputs of the tokens `first` to `end` at a lag."""
    shift = lags - 1 - lag
    return x[:, first + shift : end + shift]


def _add_product(target: Tensor, left: Tensor, right: Tensor, *, fresh: bool) -> None:
    if fresh:
        torch.mul(left, right, out=target)
    else:
        target.addcmul_(left, right)
